"""Many streams over sockets that drop: every reader gets every token once."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamserve_client import Completion, ProtocolError, RateLimited, StreamFailed
from streamserve_client.multiplex import Finished, Multiplex
from tests.client.scripted_server import completion_chunk


class WireServer:
    """The server's side of the protocol, for streams of given texts: numbers messages, replays from a log."""

    def __init__(self, texts: list[str]) -> None:
        self._texts = texts
        self._logs: dict[str, list[dict[str, Any]]] = {}

    def answer(self, message: str) -> list[dict[str, Any]]:
        """All that the server sends for a message, if the socket lives long enough."""
        asked = json.loads(message)
        stream_id = asked["stream_id"]
        if asked["type"] == "response.resume":
            return self._logs[asked["response_id"]][asked["starting_after"] + 1 :]
        response_id = f"cmpl-{len(self._logs)}"
        log = [
            {
                "type": "completion.chunk",
                "stream_id": stream_id,
                "sequence_number": number,
                "data": completion_chunk(text) | {"id": response_id},
            }
            for number, text in enumerate(self._texts)
        ]
        log.append({"type": "completion.done", "stream_id": stream_id, "sequence_number": len(log), "status": "completed"})
        self._logs[response_id] = log
        return log


def open_one() -> tuple[Multiplex, str]:
    multiplex = Multiplex()
    stream_id, _ = multiplex.open("completion", {"prompt": "p"})
    return multiplex, stream_id


def chunk(stream_id: str, number: int, text: str = "x") -> str:
    data = completion_chunk(text)
    return json.dumps({"type": "completion.chunk", "stream_id": stream_id, "sequence_number": number, "data": data})


@given(st.lists(st.text(min_size=1, max_size=3), max_size=8), st.integers(1, 4), st.lists(st.integers(0, 12), max_size=6))
def test_whatever_drops_nothing_is_lost_or_repeated(texts: list[str], streams: int, drops: list[int]) -> None:
    server, multiplex = WireServer(texts), Multiplex()
    to_send = [multiplex.open("completion", {"prompt": "p"})[1] for _ in range(streams)]
    heard: dict[str, list[str]] = {}
    finished = set()
    for lives_for in [*drops, 10**6]:
        incoming = [event for message in to_send for event in server.answer(message)][:lives_for]
        for message in incoming:
            arrival = multiplex.receive(json.dumps(message))
            assert arrival is not None
            stream_id, event = arrival
            if isinstance(event, Completion):
                heard.setdefault(stream_id, []).append(event.text)
            else:
                assert event == Finished("completed")
                finished.add(stream_id)
        to_send = multiplex.reconnected()
    assert len(finished) == streams
    assert all(got == texts for got in heard.values())
    assert to_send == []


def test_a_message_seen_before_says_nothing() -> None:
    multiplex, stream_id = open_one()
    assert multiplex.receive(chunk(stream_id, 0)) is not None
    assert multiplex.receive(chunk(stream_id, 0)) is None


def test_a_missing_message_ends_the_stream_instead_of_passing_for_whole() -> None:
    multiplex, stream_id = open_one()
    multiplex.receive(chunk(stream_id, 0))
    arrival = multiplex.receive(chunk(stream_id, 3))
    assert arrival is not None
    assert isinstance(arrival[1], ProtocolError)
    assert "1 to 2" in str(arrival[1])
    assert multiplex.reconnected() == []


def test_a_refusal_has_its_own_kind_and_a_failure_later_is_one_of_the_stream() -> None:
    multiplex, stream_id = open_one()
    body = {"message": "full", "code": "queue_full"}
    refusal = multiplex.receive(json.dumps({"type": "error", "stream_id": stream_id, "status": 429, "error": body}))
    assert refusal is not None
    assert isinstance(refusal[1], RateLimited)
    multiplex, stream_id = open_one()
    multiplex.receive(chunk(stream_id, 0))
    failure = multiplex.receive(json.dumps({"type": "error", "stream_id": stream_id, "status": 500, "error": body}))
    assert failure is not None
    assert isinstance(failure[1], StreamFailed)


def test_a_cancel_is_said_once_and_again_on_a_new_socket() -> None:
    multiplex, stream_id = open_one()
    multiplex.receive(chunk(stream_id, 0))
    cancel = multiplex.cancel(stream_id)
    assert cancel is not None
    assert json.loads(cancel) == {"type": "response.cancel", "stream_id": stream_id}
    assert multiplex.cancel(stream_id) is None
    assert [json.loads(message)["type"] for message in multiplex.reconnected()] == ["response.resume", "response.cancel"]


def test_what_comes_for_a_stream_that_is_over_is_ignored() -> None:
    multiplex, stream_id = open_one()
    done = {"type": "completion.done", "stream_id": stream_id, "sequence_number": 0, "status": "cancelled"}
    assert multiplex.receive(json.dumps(done)) == (stream_id, Finished("cancelled"))
    assert multiplex.receive(chunk(stream_id, 1)) is None
    assert multiplex.cancel(stream_id) is None


@pytest.mark.parametrize("text", ["nonsense", "[]", '{"type": "error", "error": {"message": "no type"}}'])
def test_what_is_no_message_of_the_protocol_is_an_error(text: str) -> None:
    with pytest.raises(ProtocolError):
        Multiplex().receive(text)


def test_a_cancel_that_comes_after_the_ending_harms_no_other_stream() -> None:
    streams = Multiplex()
    ended, _ = streams.open("completion", {})
    going_on, _ = streams.open("completion", {})
    assert streams.cancel(ended) is not None
    late = {"type": "error", "status": 404, "error": {"message": "no such stream is running", "code": "not_found"}}
    assert streams.receive(json.dumps({"type": "completion.done", "stream_id": ended, "sequence_number": 0})) is not None
    assert streams.receive(json.dumps(late)) is None
    assert streams.cancel(going_on) is not None


def test_pongs_and_unknown_messages_are_harmless() -> None:
    multiplex, stream_id = open_one()
    assert multiplex.receive('{"type": "pong"}') is None
    assert multiplex.receive(json.dumps({"type": "new.kind", "stream_id": stream_id})) is None


def test_chunks_of_the_wrong_shape_fail_their_stream() -> None:
    multiplex, stream_id = open_one()
    arrival = multiplex.receive(
        json.dumps({"type": "completion.chunk", "stream_id": stream_id, "sequence_number": 0, "data": 3})
    )
    assert arrival is not None
    assert isinstance(arrival[1], ProtocolError)
