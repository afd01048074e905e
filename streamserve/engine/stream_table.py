"""The streams that are open on one API side, by sequence.

Lives on the readers' event loop. Takes what the engine delivers after a step, pushes each sequence's delta into its stream, and
drops a stream as soon as nothing more can come for it.
"""

from __future__ import annotations

from collections.abc import Iterable

from streamserve.engine.error_info import describe
from streamserve.engine.resume_state import ResumeState
from streamserve.engine.stream import ChannelStream, SequenceControl, StreamLimits
from streamserve.errors import EndsEngines, InvalidParameter, StreamserveError
from streamserve.types import SequenceSpec, TokenDelta


class StreamTable:
    """Open streams of one engine; a `DeltaSink` for the engine and the `SequenceControl` of its streams.

    late_tokens  tokens that arrived for streams which their readers had left
    """

    def __init__(self, control: SequenceControl, limits: StreamLimits) -> None:
        self._control = control
        self._limits = limits
        self._streams: dict[str, ChannelStream] = {}
        self.late_tokens = 0

    def __len__(self) -> int:
        return len(self._streams)

    def add(self, specs: Iterable[SequenceSpec]) -> list[ChannelStream]:
        """Open a stream per sequence, before anything can be delivered for it; raises `InvalidParameter` for an id in use."""
        added = [ChannelStream(spec, self, self._limits) for spec in specs]
        if len({stream.sequence_id for stream in added} - self._streams.keys()) < len(added):
            raise InvalidParameter("sequence_id", "in use by a sequence that is still running")
        self._streams.update((stream.sequence_id, stream) for stream in added)
        return added

    def forget(self, streams: Iterable[ChannelStream]) -> None:
        """Drop streams whose sequences were never admitted."""
        for stream in streams:
            self._streams.pop(stream.sequence_id, None)

    def adopt(self, stream: ChannelStream) -> None:
        """Take in the open stream of another engine, whose sequence continues here."""
        stream.steer_by(self)
        self._streams[stream.sequence_id] = stream

    def release(self, sequence_id: str) -> ChannelStream | None:
        """Give up an open stream for another engine to `adopt`; None when it has ended meanwhile."""
        return self._streams.pop(sequence_id, None)

    def deliver(self, deltas: list[tuple[str, TokenDelta]]) -> None:
        """Push each sequence's delta into its stream. Never awaits."""
        streams = self._streams
        for sequence_id, delta in deltas:
            stream = streams.get(sequence_id)
            if stream is None:
                self.late_tokens += len(delta.token_ids)
                continue
            if delta.finish_reason is not None:
                del streams[sequence_id]
            stream.push(delta)

    def abort_stream(self, sequence_id: str) -> bool:
        """End a stream with reason "abort", keeping what is unread; False when it is not open."""
        stream = self._streams.get(sequence_id)
        if stream is None:
            return False
        stream.abort()
        return True

    def engine_lost(self) -> list[ResumeState]:
        """Count the loss for every stream; end those that engines end under, which it returns."""
        given_up: list[ResumeState] = []
        for stream in list(self._streams.values()):
            state = stream.resume_state
            state.engine_lost()
            if state.is_given_up:
                given_up.append(state)
                ended = f"the engine has ended {state.num_losses} times under this request; it is given up"
                self.fail(stream.sequence_id, EndsEngines(ended))
        return given_up

    def expire(self) -> None:
        """End the streams that have run out of time while no engine had them."""
        for stream in list(self._streams.values()):
            if stream.resume_state.is_out_of_time:
                del self._streams[stream.sequence_id]
                stream.end("time")

    def streams(self) -> list[ChannelStream]:
        """Those that are open."""
        return list(self._streams.values())

    def engine_resumed(self, sequence_id: str) -> None:
        """Repeat to the sequence's new engine that it is paused, if it is."""
        stream = self._streams.get(sequence_id)
        if stream is not None and stream.is_paused:
            self._control.pause(sequence_id)

    def __contains__(self, sequence_id: str) -> bool:
        return sequence_id in self._streams

    def fail(self, sequence_id: str, error: StreamserveError) -> None:
        """End a stream with this error, keeping what is unread; unknown ones are ignored."""
        stream = self._streams.pop(sequence_id, None)
        if stream is not None:
            stream.end("error", describe(error))

    def end_all(self, error: StreamserveError) -> None:
        """End every stream with this error, keeping what is unread."""
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.end("error", describe(error))

    def pause(self, sequence_id: str) -> None:
        self._control.pause(sequence_id)

    def resume(self, sequence_id: str) -> None:
        self._control.resume(sequence_id)

    def end_reasoning(self, sequence_id: str) -> None:
        self._control.end_reasoning(sequence_id)

    def abort(self, sequence_id: str) -> None:
        self._streams.pop(sequence_id, None)
        self._control.abort(sequence_id)
