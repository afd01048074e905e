"""`Client` over real sockets: typed answers, streams in awkward pieces, errors, retries, and leaving early."""

from __future__ import annotations

import json
import socket
import threading

import httpx
import pytest

from streamserve_client import (
    APIError,
    AuthenticationFailed,
    BadRequest,
    Client,
    ConnectionFailed,
    ContextLengthExceeded,
    ModelNotFound,
    NotFound,
    ProtocolError,
    RateLimited,
    RetryPolicy,
    ServerError,
    StreamFailed,
    StreamInterrupted,
    TimedOut,
    TooLarge,
    Unavailable,
)
from tests.client.scripted_server import USAGE, Reply, ScriptedServer, answer, chat_chunk, completion_chunk, events

FAST = RetryPolicy(base_s=0.0)
NEVER = RetryPolicy(max_retries=0)
EVENT_STREAM = {"Content-Type": "text/event-stream"}


def error_body(code: str = "invalid_value", message: str = "no") -> dict[str, object]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": "prompt", "code": code}}


def test_a_completion_stream_gives_its_chunks_usage_and_request_id() -> None:
    reply = events(completion_chunk("秋"), completion_chunk("天🍂"), completion_chunk("", "stop"), USAGE, "[DONE]")
    with ScriptedServer(reply) as server, Client(server.url) as client:
        with client.stream_completion("北京的", model="m", max_tokens=9, extra_body={"top_k": 3}) as stream:
            chunks = list(stream)
    assert [chunk.text for chunk in chunks] == ["秋", "天🍂", "", ""]
    assert chunks[2].finish_reason == "stop"
    assert stream.usage is not None
    assert stream.usage.completion_tokens == 5
    assert stream.request_id == "req-1"
    sent = server.requests[0]
    assert (sent.method, sent.path) == ("POST", "/v1/completions")
    assert sent.body == {
        "model": "m",
        "prompt": "北京的",
        "max_tokens": 9,
        "top_k": 3,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_a_chat_stream_sends_the_messages_and_gives_the_deltas() -> None:
    reply = events(chat_chunk("Hel"), chat_chunk("lo"), chat_chunk("", "length"), "[DONE]")
    messages = [{"role": "user", "content": "hi"}]
    with ScriptedServer(reply) as server, Client(server.url) as client:
        with client.stream_chat(messages, model="m") as stream:  # type: ignore[arg-type]
            assert "".join(stream.text()) == "Hello"
    assert server.requests[0].path == "/v1/chat/completions"
    assert server.requests[0].body["messages"] == messages


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_the_network_may_cut_the_stream_anywhere(size: int) -> None:
    body = b"\n\n".join(events(completion_chunk("秋天"), completion_chunk("🍂"), "[DONE]").pieces)
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    with ScriptedServer(Reply(pieces, headers=EVENT_STREAM)) as server, Client(server.url) as client:
        with client.stream_completion("p", model="m") as stream:
            assert "".join(stream.text()) == "秋天🍂"


def test_plain_calls_are_typed() -> None:
    completion = {"id": "c", "model": "m", "choices": [{"index": 0, "text": "yes", "finish_reason": "stop", "new_field": 1}]}
    chat = {"id": "c", "choices": [{"index": 0, "message": {"role": "assistant", "content": "哦"}, "finish_reason": "stop"}]}
    with ScriptedServer(answer(completion), answer(chat)) as server, Client(server.url) as client:
        assert client.complete("p", model="m").text == "yes"
        assert client.chat([{"role": "user", "content": "?"}], model="m").text == "哦"
    assert "stream" not in server.requests[0].body


def test_a_key_comes_from_where_the_servers_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "theirs")
    with ScriptedServer(*[answer({"data": []})] * 3) as server:
        for ours, given in (("", None), ("ours", None), ("ours", "")):
            monkeypatch.setenv("STREAMSERVE_API_KEY", ours)
            with Client(server.url, api_key=given) as client:
                client.models()
    keys = [request.headers.get("authorization") for request in server.requests]
    assert keys == ["Bearer theirs", "Bearer ours", None], "an empty key is none, whatever the environment has"


def test_without_a_model_the_first_one_listed_is_asked_and_remembered() -> None:
    models = answer({"object": "list", "data": [{"id": "big", "max_model_len": 4096}, {"id": "small"}]})
    with ScriptedServer(models, answer({"choices": []}), answer({"choices": []})) as server, Client(server.url) as client:
        client.complete("p")
        client.complete("p")
    assert [request.path for request in server.requests] == ["/v1/models", "/v1/completions", "/v1/completions"]
    assert server.requests[2].body["model"] == "big"


def test_the_key_travels_as_a_bearer_token_and_the_base_url_may_end_in_v1() -> None:
    with ScriptedServer(answer({"data": []})) as server, Client(f"{server.url}/v1/", api_key="k") as client:
        assert client.models() == []
    assert server.requests[0].path == "/v1/models"
    assert server.requests[0].headers["authorization"] == "Bearer k"


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with ScriptedServer(answer({"data": []})) as server, Client(server.url, retry=NEVER) as client:
        assert client.models() == []


def test_a_connection_serves_one_stream_after_another() -> None:
    reply = events(completion_chunk("a"), "[DONE]")
    with ScriptedServer(reply, reply) as server, Client(server.url) as client:
        for _ in range(2):
            with client.stream_completion("p", model="m") as stream:
                list(stream)
        assert server.connections == 1


def test_leaving_a_stream_early_closes_its_connection() -> None:
    reply = events(completion_chunk("a"), ending="hang")
    with ScriptedServer(reply) as server, Client(server.url) as client:
        with client.stream_completion("p", model="m") as stream:
            assert next(stream).text == "a"
        assert server.departed.wait(5)


def test_an_exception_inside_the_block_closes_the_connection_too() -> None:
    with ScriptedServer(events(completion_chunk("a"), ending="hang")) as server, Client(server.url) as client:
        with pytest.raises(KeyError), client.stream_completion("p", model="m") as stream:
            next(stream)
            raise KeyError
        assert server.departed.wait(5)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "invalid_value", BadRequest),
        (400, "context_length_exceeded", ContextLengthExceeded),
        (401, "invalid_api_key", AuthenticationFailed),
        (404, "model_not_found", ModelNotFound),
        (404, "not_found", NotFound),
        (413, "too_large", TooLarge),
        (429, "queue_full", RateLimited),
        (500, "internal_error", ServerError),
        (503, "unavailable", Unavailable),
        (418, "teapot", APIError),
    ],
)
def test_each_refusal_is_its_own_error(status: int, code: str, kind: type[APIError]) -> None:
    refusal = answer(error_body(code, "because"), status, X_Request_Id="req-9")
    with ScriptedServer(refusal) as server, Client(server.url, retry=NEVER) as client, pytest.raises(APIError) as caught:
        client.stream_completion("p", model="m")
    error = caught.value
    assert type(error) is kind
    assert (error.status, error.code, error.param, error.request_id, str(error)) == (status, code, "prompt", "req-9", "because")


def test_a_refusal_without_a_json_body_still_says_what_it_was() -> None:
    with ScriptedServer(Reply([b"upstream went away"], 502)) as server, Client(server.url, retry=NEVER) as client:
        with pytest.raises(ServerError, match="HTTP 502: upstream went away"):
            client.models()


def test_an_error_inside_a_stream_comes_after_all_that_was_delivered() -> None:
    body = b"".join(events(completion_chunk("a"), completion_chunk("b"), error_body("slow_consumer"), "[DONE]").pieces)
    with ScriptedServer(Reply([body], headers=EVENT_STREAM)) as server, Client(server.url) as client:
        texts = []
        with pytest.raises(StreamFailed) as caught, client.stream_completion("p", model="m") as stream:
            for chunk in stream:
                texts.append(chunk.text)
    assert texts == ["a", "b"]
    assert caught.value.code == "slow_consumer"


@pytest.mark.parametrize("ending", ["cut", "whole"])
def test_a_stream_without_its_ending_is_not_taken_for_a_whole_one(ending: str) -> None:
    with ScriptedServer(events(completion_chunk("a"), ending=ending)) as server, Client(server.url) as client:
        texts = []
        with pytest.raises(StreamInterrupted), client.stream_completion("p", model="m") as stream:
            for chunk in stream:
                texts.append(chunk.text)
    assert texts == ["a"]


def test_a_connection_cut_after_the_ending_harms_nothing() -> None:
    with ScriptedServer(events(completion_chunk("a"), "[DONE]", ending="cut")) as server, Client(server.url) as client:
        with client.stream_completion("p", model="m") as stream:
            assert [chunk.text for chunk in stream] == ["a"]


@pytest.mark.parametrize(
    "reply",
    [
        answer({"choices": []}),
        events("not json"),
        events('{"choices": 3}'),
        Reply([b"<html>"], headers={"Content-Type": "text/html"}),
    ],
)
def test_what_is_no_stream_of_this_api_is_a_protocol_error(reply: Reply) -> None:
    with ScriptedServer(reply) as server, Client(server.url) as client:
        with pytest.raises(ProtocolError), client.stream_completion("p", model="m") as stream:
            list(stream)


def test_a_busy_server_is_asked_again_and_then_answers() -> None:
    busy = answer(error_body("queue_full"), 429, Retry_After_Ms="1", Retry_After="30")
    with ScriptedServer(busy, busy, events(completion_chunk("a"), "[DONE]")) as server, Client(server.url) as client:
        with client.stream_completion("p", model="m") as stream:
            assert "".join(stream.text()) == "a"
    assert len(server.requests) == 3


def test_a_dropped_connection_is_tried_again_before_the_answer_began() -> None:
    with ScriptedServer(Reply(ending="mute"), answer({"data": []})) as server, Client(server.url, retry=FAST) as client:
        assert client.models() == []


def test_a_stream_that_began_is_never_repeated() -> None:
    reply = events(completion_chunk("a"), ending="cut")
    with ScriptedServer(reply, reply) as server, Client(server.url, retry=FAST) as client:
        with pytest.raises(StreamInterrupted), client.stream_completion("p", model="m") as stream:
            list(stream)
    assert len(server.requests) == 1


def test_a_refusal_that_would_come_again_is_not_retried() -> None:
    with ScriptedServer(answer(error_body(), 400), answer({"data": []})) as server, Client(server.url, retry=FAST) as client:
        with pytest.raises(BadRequest):
            client.models()
    assert len(server.requests) == 1


def test_nobody_listening_is_a_failed_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with Client(f"http://127.0.0.1:{port}", retry=FAST) as client, pytest.raises(ConnectionFailed, match=str(port)):
        client.models()


def test_silence_times_out_and_is_not_repeated() -> None:
    reply = events(completion_chunk("a"), ending="hang")
    with ScriptedServer(reply) as server, Client(server.url, timeout=httpx.Timeout(5, read=0.05)) as client:
        with pytest.raises(TimedOut), client.stream_completion("p", model="m") as stream:
            list(stream)
    assert len(server.requests) == 1


@pytest.mark.parametrize(("status", "is_ready"), [(200, True), (503, False)])
def test_health_tells_alive_from_ready(status: int, is_ready: bool) -> None:
    with ScriptedServer(answer({}), answer({}, status)) as server, Client(server.url) as client:
        health = client.health()
    assert (health.is_alive, health.is_ready) == (True, is_ready)


def test_threads_may_share_a_client() -> None:
    replies = [events(completion_chunk("a"), "[DONE]") for _ in range(4)]
    texts: list[str] = []

    def read() -> None:
        with client.stream_completion("p", model="m") as stream:
            texts.append("".join(stream.text()))

    with ScriptedServer(*replies) as server, Client(server.url) as client:
        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert texts == ["a"] * 4


def test_no_message_of_an_error_contains_the_key_or_the_prompt() -> None:
    with (
        ScriptedServer(Reply([json.dumps({"nonsense": 1}).encode()], 400)) as server,
        Client(server.url, api_key="sk-1") as client,
        pytest.raises(BadRequest) as caught,
    ):
        client.complete("my secret", model="m")
    assert "sk-1" not in str(caught.value)
    assert "my secret" not in str(caught.value)


def test_a_stream_is_told_to_answer_by_its_name_or_its_requests() -> None:
    told = {"id": "x", "object": "request.answering", "answering": True}
    for headers, name in (({"X-Stream-Id": "chatcmpl-7"}, "chatcmpl-7"), ({}, "req-1")):
        reply = events(chat_chunk("a"), chat_chunk("b", "stop"), "[DONE]")
        reply.headers.update(headers)
        with ScriptedServer(reply, answer(told)) as server, Client(server.url) as client:
            with client.stream_chat([{"role": "user", "content": "hi"}], model="m") as stream:
                next(stream)
                stream.answer_now()
                assert [chunk.text for chunk in stream] == ["b"]
        assert (server.requests[1].method, server.requests[1].path) == ("POST", f"/v1/requests/{name}/answer")
