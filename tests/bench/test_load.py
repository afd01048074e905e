"""The load generator against a scripted server: what it counts, and what it calls a failure."""

from __future__ import annotations

import asyncio
import itertools
import json

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from streamserve.bench.commands import bench
from streamserve.bench.load import Load, RequestResult, run_load, summary
from streamserve.bench.stream_client import StreamTimer, StreamTimes
from streamserve.bench.workloads import Span
from streamserve.errors import ConfigError
from tests.client.scripted_server import Reply, ScriptedServer, answer, completion_chunk, events

USAGE = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}}
STREAM = [
    completion_chunk("a"),
    completion_chunk('b\ndata: {"not an event"}'),
    completion_chunk("c", "length"),
    USAGE,
    "[DONE]",
]


def load(url: str, **changes: object) -> Load:
    settings = {
        "concurrency": 1,
        "num_requests": 1,
        "input_len": Span(4, 4),
        "output_len": Span(3, 3),
        "processes": 1,
        "timeout_s": 20.0,
    }
    return Load(base_url=url, model="m", **(settings | changes))  # type: ignore[arg-type]


def test_two_processes_share_the_streams_and_the_servers_own_count_is_reported() -> None:
    with ScriptedServer(*[events(*STREAM) for _ in range(5)]) as server:
        asked = load(server.url, concurrency=3, num_requests=5, processes=2)
        result = summary(asked, run_load(asked), tag="t")
    assert (result["ok"], result["failed"], result["short"], result["why"], result["tag"]) == (5, 0, 0, [], "t")
    assert result["prompt_tokens"] == 35
    assert result["events_per_tok"] == pytest.approx(4 / 3, abs=1e-3)
    assert 0 < result["ttft_p50"] <= result["e2e_p50"] <= result["e2e_p99"]
    body = server.requests[0].body
    assert (body["stream"], body["ignore_eos"], body["max_tokens"]) == (True, True, 3)
    assert len(body["prompt"].split()) == 4
    assert len({json.dumps(request.body) for request in server.requests}) == 5


def test_prompts_begin_with_one_of_the_prefixes_whichever_process_sends_them() -> None:
    with ScriptedServer(*[events(*STREAM) for _ in range(12)]) as server:
        asked = load(server.url, concurrency=2, num_requests=12, processes=2, prefix_len=5, num_prefixes=2, token_ids=True)
        run_load(asked)
    prompts = [request.body["prompt"] for request in server.requests]
    assert {len(prompt) for prompt in prompts} == {9}
    assert len({tuple(prompt[:5]) for prompt in prompts}) == 2
    assert len({tuple(prompt) for prompt in prompts}) == 12


RESPONSE = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in events(*STREAM).pieces)
    + b"0\r\n\r\n"
)


@given(st.lists(st.integers(0, len(RESPONSE)), max_size=40))
def test_events_are_counted_however_the_network_cuts_them(cuts: list[int]) -> None:
    finished: asyncio.Future[StreamTimes] = asyncio.Future(loop=asyncio.new_event_loop())
    stream = StreamTimer(finished, requires_done=True)
    places = [0, *sorted(cuts), len(RESPONSE)]
    for start, end in itertools.pairwise(places):
        stream.data_received(RESPONSE[start:end])
    stream.connection_lost(None)
    finished.get_loop().close()
    times = finished.result()
    assert (times.failure, times.events, times.prompt_tokens, times.completion_tokens) == ("", 4, 7, 3)


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (answer({"error": {"message": "full"}}, 429), "HTTP 429"),
        (events(completion_chunk("a"), ending="cut"), "ended without its ending"),
        (events("[DONE]"), "no events"),
        (Reply(ending="mute"), "no answer"),
    ],
)
def test_what_is_no_whole_answer_is_a_failure_with_a_reason(reply: Reply, why: str) -> None:
    with ScriptedServer(reply) as server:
        asked = load(server.url)
        result = summary(asked, run_load(asked))
    assert (result["ok"], result["failed"], result["why"]) == (0, 1, [why])


def test_a_server_that_hangs_is_given_up() -> None:
    with ScriptedServer(events(completion_chunk("a"), ending="hang")) as server:
        [answered] = run_load(load(server.url, timeout_s=0.2))
    assert answered.times.failure == "TimeoutError"


def test_fields_can_be_added_and_removed_for_servers_that_differ() -> None:
    done = events(completion_chunk("a", "stop"))
    with ScriptedServer(done) as server:
        asked = load(server.url, chat=True, body={"ignore_eos": None, "top_k": 3}, requires_done=False)
        result = summary(asked, run_load(asked))
    assert result["ok"] == 1
    assert server.requests[0].path == "/v1/chat/completions"
    assert "ignore_eos" not in server.requests[0].body
    assert server.requests[0].body["top_k"] == 3


def test_times_are_read_off_the_reads() -> None:
    times = StreamTimes(started_s=10.0, ended_s=12.0, reads_s=[10.5, 10.75, 11.5], events=3, completion_tokens=5)
    assert (times.ttft_s, times.e2e_s, times.gaps_s, times.tpot_s) == (0.5, 2.0, [0.25, 0.75], 0.25)
    result = summary(load("http://h"), [RequestResult(times, 4)])
    assert (result["ttft_p50"], result["gap_p50"], result["gap_p99"], result["tpot_p50"]) == (500.0, 250.0, 750.0, 250.0)
    assert (result["short"], result["tok_s"]) == (1, 2.5)


def test_the_command_prints_json_lines_and_fails_when_a_request_did() -> None:
    replies = [answer({"data": [{"id": "m"}]}), events(*STREAM), answer({"error": "x"}, 500)]
    with ScriptedServer(*replies) as server:
        done = CliRunner(env={"VLLM_API_KEY": "theirs"}).invoke(
            bench, ["serve", "--base-url", server.url, "-c", "1", "-n", "2", "-o", "3", "--json"], prog_name="bench"
        )
    assert done.exit_code == 1
    row = json.loads(done.stdout.splitlines()[0])
    assert (row["ok"], row["failed"]) == (1, 1)
    assert "1 of 2 requests failed: HTTP 500" in done.stderr
    assert {request.headers.get("authorization") for request in server.requests} == {"Bearer theirs"}


def test_chat_prompts_cannot_be_token_ids() -> None:
    with pytest.raises(ConfigError, match="token-ids"):
        load("http://h", chat=True, token_ids=True)
