"""The protocol of the engine socket: length-prefixed msgpack frames, commands one way and replies the other.

Sans-IO: bytes in, messages out. A frame is a 4-byte big-endian length and that many bytes of msgpack. Every message is checked
against its type while it is decoded, so that a peer can send nothing executable.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

import msgspec

from streamserve.engine.ipc.packing import PackedSequences
from streamserve.types import EngineInfo, EngineStats, ErrorInfo, TokenDelta

MAX_FRAME_BYTES = 256 << 20
_LENGTH_BYTES = 4


class OpenSequences(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Admit sequences, all or none; the reply is `Opened` or `Refused` with the same call number."""

    call: int
    sequences: PackedSequences


class AbortSequence(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Free what a sequence holds, or stop admitting it; no reply.

    left_at  when the reader left, on the clock that all processes of a machine share (CLOCK_MONOTONIC), seconds
    """

    sequence_id: str
    left_at: float


class PauseSequence(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Stop planning a sequence until it is resumed; no reply."""

    sequence_id: str


class ResumeSequence(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Plan a paused sequence again; no reply."""

    sequence_id: str


class ReadStats(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """The reply is `Stats` or `Refused` with the same call number."""

    call: int


Command = OpenSequences | AbortSequence | PauseSequence | ResumeSequence | ReadStats


class Ready(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """The model is loaded; the first reply on every connection."""

    info: EngineInfo


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The engine could not start or has died; the last reply on a connection."""

    error: ErrorInfo


class Opened(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """All sequences of a call are in the queue."""

    call: int


class Refused(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """None of the sequences of a call runs; `param` and `retry_after_s` as on the exception."""

    call: int
    error: ErrorInfo
    param: str | None = None
    retry_after_s: float | None = None


class Deltas(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """One step's deltas of all the sequences of one API worker."""

    deltas: list[tuple[str, TokenDelta]]


class Stats(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """A snapshot of the engine."""

    call: int
    stats: EngineStats


Reply = Ready | Failed | Opened | Refused | Deltas | Stats

M = TypeVar("M")


class ProtocolViolation(Exception):
    """The peer sent something that is not a frame of this protocol; the connection can't be used any more."""


def encode(message: Command | Reply) -> bytes:
    """A message as one frame."""
    buffer = bytearray(_LENGTH_BYTES)
    _ENCODER.encode_into(message, buffer, _LENGTH_BYTES)
    buffer[:_LENGTH_BYTES] = (len(buffer) - _LENGTH_BYTES).to_bytes(_LENGTH_BYTES, "big")
    return bytes(buffer)


class FrameDecoder(Generic[M]):
    """Cuts a byte stream into messages.

    decoder  of the one union of messages that this direction carries
    """

    def __init__(self, decoder: msgspec.msgpack.Decoder[M]) -> None:
        self._decoder = decoder
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[M]:
        """The messages that `data` completes, in order; raises `ProtocolViolation`."""
        self._buffer += data
        start = 0
        try:
            while len(self._buffer) - start >= _LENGTH_BYTES:
                body = start + _LENGTH_BYTES
                end = body + int.from_bytes(self._buffer[start:body], "big")
                if end - body > MAX_FRAME_BYTES:
                    raise ProtocolViolation(f"a frame of {end - body} bytes; at most {MAX_FRAME_BYTES} are allowed")
                if len(self._buffer) < end:
                    break
                frame = bytes(self._buffer[body:end])
                start = end
                yield self._decode(frame)
        finally:
            del self._buffer[:start]

    def _decode(self, frame: bytes) -> M:
        try:
            return self._decoder.decode(frame)
        except msgspec.DecodeError as error:
            raise ProtocolViolation(str(error)) from error


def command_decoder() -> FrameDecoder[Command]:
    """For the engine's side of a connection."""
    return FrameDecoder(msgspec.msgpack.Decoder(Command))


def reply_decoder() -> FrameDecoder[Reply]:
    """For the API worker's side of a connection."""
    return FrameDecoder(msgspec.msgpack.Decoder(Reply))


_ENCODER = msgspec.msgpack.Encoder()
