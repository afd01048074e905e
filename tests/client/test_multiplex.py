"""Many streams over sockets that drop: every reader gets every token once."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamserve_client import BadRequest, Completion, ProtocolError, RateLimited, StreamFailed
from streamserve_client.multiplex import Finished, Multiplex
from tests.client.scripted_server import completion_chunk


class WireServer:
    """The server's side of the protocol, for streams of given texts: numbers messages, replays from a log."""

    def __init__(self, texts: list[str]) -> None:
        self._texts = texts
        self.logs: dict[str, list[dict[str, Any]]] = {}

    def answer(self, message: str) -> list[dict[str, Any]]:
        """All that the server sends for a message, if the socket lives long enough."""
        asked = json.loads(message)
        stream_id = asked["stream_id"]
        if asked["type"] == "response.resume":
            response_id = asked["response_id"].removeprefix("cmpl-")
            log = self.logs.get(response_id)
            return [gap(stream_id)] if log is None else log[asked["starting_after"] + 1 :]
        response_id = asked["request_id"]
        assert response_id not in self.logs, "generated twice"
        log = [
            {
                "type": "completion.chunk",
                "stream_id": stream_id,
                "sequence_number": number,
                "data": completion_chunk(text) | {"id": f"cmpl-{response_id}"},
            }
            for number, text in enumerate(self._texts)
        ]
        log.append({"type": "completion.done", "stream_id": stream_id, "sequence_number": len(log), "status": "completed"})
        self.logs[response_id] = log
        return log


def gap(stream_id: str) -> dict[str, Any]:
    error = {"message": "no events of this response are kept", "code": "resume_gap"}
    return {"type": "error", "stream_id": stream_id, "status": 404, "error": error}


def open_one() -> tuple[Multiplex, str]:
    multiplex = Multiplex()
    stream_id, _ = multiplex.open("completion", {"prompt": "p"})
    return multiplex, stream_id


def chunk(stream_id: str, number: int, text: str = "x") -> str:
    data = completion_chunk(text)
    return json.dumps({"type": "completion.chunk", "stream_id": stream_id, "sequence_number": number, "data": data})


@given(
    st.lists(st.text(min_size=1, max_size=3), max_size=8),
    st.integers(1, 4),
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 12)), max_size=6),
)
def test_whatever_drops_nothing_is_lost_or_repeated(texts: list[str], streams: int, drops: list[tuple[int, int]]) -> None:
    """A socket carries so many messages to the server, and so many back, before it drops."""
    server, multiplex = WireServer(texts), Multiplex()
    to_send = [multiplex.open("completion", {"prompt": "p"})[1] for _ in range(streams)]
    heard: dict[str, list[str]] = {}
    finished = set()
    for hears, says in [*drops, (10**6, 10**6)]:
        while to_send and hears > 0:
            hears -= 1
            for message in server.answer(to_send.pop(0)):
                says -= 1
                arrival = multiplex.receive(json.dumps(message)) if says >= 0 else None
                to_send += multiplex.take_replies()
                if arrival is None:
                    continue
                stream_id, event = arrival
                if isinstance(event, Completion):
                    heard.setdefault(stream_id, []).append(event.text)
                else:
                    assert event == Finished("completed")
                    finished.add(stream_id)
        to_send = multiplex.reconnected()
    assert len(finished) == len(server.logs) == streams
    assert all(got == texts for got in heard.values())
    assert to_send == []


def test_a_create_that_was_lost_is_sent_again_under_the_same_name() -> None:
    multiplex = Multiplex()
    stream_id, create = multiplex.open("completion", {"prompt": "p"})
    [resume] = map(json.loads, multiplex.reconnected())
    assert (resume["type"], resume["response_id"]) == ("response.resume", json.loads(create)["request_id"])
    assert multiplex.receive(json.dumps(gap(stream_id))) is None
    assert multiplex.take_replies() == [create]
    assert multiplex.take_replies() == []


def test_a_create_whose_first_copy_is_just_being_admitted_takes_another_name() -> None:
    multiplex = Multiplex()
    stream_id, create = multiplex.open("completion", {"prompt": "p"})
    multiplex.reconnected()
    multiplex.receive(json.dumps(gap(stream_id)))
    multiplex.take_replies()
    taken = {"message": "another request with this id is running", "param": "request_id", "code": "invalid_value"}
    refusal = json.dumps({"type": "error", "stream_id": stream_id, "status": 400, "error": taken})
    assert multiplex.receive(refusal) is None
    cancel, again = map(json.loads, multiplex.take_replies())
    assert cancel == {"type": "response.cancel", "response_id": json.loads(create)["request_id"]}
    assert again["request_id"] != json.loads(create)["request_id"]


def test_an_id_that_the_caller_chose_and_that_is_taken_is_a_refusal() -> None:
    multiplex = Multiplex()
    stream_id, create = multiplex.open("completion", {"request_id": "mine"})
    assert json.loads(create)["request_id"] == "mine"
    taken = {"message": "another request with this id is running", "param": "request_id", "code": "invalid_value"}
    arrival = multiplex.receive(json.dumps({"type": "error", "stream_id": stream_id, "status": 400, "error": taken}))
    assert arrival is not None
    assert isinstance(arrival[1], BadRequest)


def test_a_stream_cancelled_before_its_create_arrived_does_not_begin() -> None:
    multiplex, stream_id = open_one()
    multiplex.cancel(stream_id)
    multiplex.reconnected()
    assert multiplex.receive(json.dumps(gap(stream_id))) == (stream_id, Finished("cancelled"))
    assert multiplex.take_replies() == []


def test_events_that_are_no_longer_kept_end_a_stream_that_had_begun() -> None:
    multiplex, stream_id = open_one()
    multiplex.receive(chunk(stream_id, 0))
    multiplex.reconnected()
    arrival = multiplex.receive(json.dumps(gap(stream_id)))
    assert arrival is not None
    assert isinstance(arrival[1], StreamFailed)


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


def test_a_stream_that_is_to_answer_is_told_so_again_on_a_new_socket_until_it_is_over() -> None:
    multiplex, stream_id = open_one()
    told = {"type": "response.answer", "stream_id": stream_id}
    assert json.loads(multiplex.answer_now(stream_id) or "") == told
    assert [json.loads(message) for message in multiplex.reconnected()][1:] == [told]
    multiplex.receive(json.dumps({"type": "completion.done", "stream_id": stream_id, "sequence_number": 0}))
    assert multiplex.answer_now(stream_id) is None


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
