"""What an engine and its ranks send each other.

An engine sends plans, one frame each; closing the connection ends the rank. A rank sends one `RankLoaded`, then the first of
them a `StepDone` for each plan; `RankFailed` is the last that any sends.
"""

from __future__ import annotations

import msgspec

from streamserve.checkpoint.files import Checkpoint
from streamserve.config import EngineConfig
from streamserve.process.framing import FrameDecoder
from streamserve.scheduling.plan import Plan, StepResult
from streamserve.types import EngineInfo


class RankLaunch(msgspec.Struct, frozen=True, kw_only=True):
    """What a rank is started with.

    device_index   the GPU to take, among those that its process sees; None takes torch's current one
    connection_fd  an inherited socket, its connection to the engine; -1 where it connects by itself
    store          the file in which the ranks of a machine find each other, or "host:port" of a TCP store
    store_fd       the socket that the TCP store listens on, for the rank that keeps it; -1 for all others
    """

    config: EngineConfig
    checkpoint: Checkpoint
    rank: int
    device_index: int | None = None
    store: str = ""
    store_fd: int = -1
    connection_fd: int = -1

    @property
    def world_size(self) -> int:
        return self.config.tensor_parallel_size


class RankLoaded(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """The rank is ready for plans."""

    info: EngineInfo


class StepDone(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """A plan has been run; sent in the order of plans."""

    result: StepResult


class RankFailed(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """The rank can't go on, and exits.

    is_config_error  it could not start with these settings; the message says what to change
    num_tokens       of the step in the middle of which it ran out of memory, if that is why
    """

    message: str
    is_config_error: bool
    num_tokens: int | None = None


RankMessage = RankLoaded | StepDone | RankFailed


def plan_decoder() -> FrameDecoder[Plan]:
    """For a rank's side of its connection."""
    return FrameDecoder(msgspec.msgpack.Decoder(Plan))


def rank_message_decoder() -> FrameDecoder[RankMessage]:
    """For the engine's side."""
    return FrameDecoder(msgspec.msgpack.Decoder(RankMessage))
