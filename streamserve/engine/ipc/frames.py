"""The protocol of the engine socket: commands one way and replies the other, framed as `process.framing` says."""

from __future__ import annotations

import msgspec

from streamserve.engine.ipc.packing import PackedSequences
from streamserve.process.framing import FrameDecoder
from streamserve.types import EngineInfo, EngineStats, ErrorInfo, Quotas, TokenDelta


class OpenSequences(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Admit sequences, all or none; the reply is `Opened` or `Refused` with the same call number.

    are_suspects  an engine has ended before it had a token of them: to be begun while no other sequence does
    """

    call: int
    sequences: PackedSequences
    are_suspects: bool = False


class AbortSequence(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Free what a sequence holds, or stop admitting it; no reply.

    left_at  when the reader left, on the clock that all processes of a machine share (CLOCK_MONOTONIC), seconds; None from
             another machine
    """

    sequence_id: str
    left_at: float | None


class PauseSequence(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Stop planning a sequence until it is resumed; no reply."""

    sequence_id: str


class ResumeSequence(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Plan a paused sequence again; no reply."""

    sequence_id: str


class ReadStats(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """The reply is `Stats` or `Refused` with the same call number."""

    call: int


class RefuseRequests(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """Admit no more sequences of these requests for some minutes; no reply."""

    fingerprints: list[bytes]


class EndReasoning(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """Have a sequence end its reasoning and go on with the answer; no reply."""

    sequence_id: str


Command = OpenSequences | AbortSequence | PauseSequence | ResumeSequence | ReadStats | RefuseRequests | EndReasoning


class Ready(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """The model is loaded; the first reply on every connection."""

    info: EngineInfo


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The engine could not start or has died; the last reply on a connection."""

    error: ErrorInfo


class Opened(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """All sequences of a call are in the queue; `quotas` are what their tenant may still use, where that is limited."""

    call: int
    quotas: Quotas | None = None


class Refused(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """None of the sequences of a call runs.

    param    as on the exception
    holds_s  as on `QueueFull`
    quotas   as of `Opened`
    """

    call: int
    error: ErrorInfo
    param: str | None = None
    holds_s: float = 0.0
    quotas: Quotas | None = None


class Deltas(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """One step's deltas of all the sequences of one API worker."""

    deltas: list[tuple[str, TokenDelta]]


class Stats(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """A snapshot of the engine."""

    call: int
    stats: EngineStats


class Room(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """A sequence has left the queue or ended since a refusal that holds until then."""


Reply = Ready | Failed | Opened | Refused | Deltas | Stats | Room


def command_decoder() -> FrameDecoder[Command]:
    """For the engine's side of a connection."""
    return FrameDecoder(msgspec.msgpack.Decoder(Command))


def reply_decoder() -> FrameDecoder[Reply]:
    """For the API worker's side of a connection."""
    return FrameDecoder(msgspec.msgpack.Decoder(Reply))
