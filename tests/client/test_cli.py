"""`streamserve-client` as a person or a script runs it: a process of its own against a real server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.client.scripted_server import USAGE, Reply, ScriptedServer, answer, chat_chunk, completion_chunk, events

COMMAND = [sys.executable, "-m", "streamserve_client.cli"]
MODELS = answer({"data": [{"id": "demo", "max_model_len": 2048, "owned_by": "us"}]})
AUTUMN = events(completion_chunk("秋天，"), completion_chunk("真美🍂"), completion_chunk("", "stop"), USAGE, "[DONE]")


def environment(url: str = "http://127.0.0.1:9", **changes: str) -> dict[str, str]:
    return {**os.environ, "STREAMSERVE_BASE_URL": url, "COLUMNS": "100", **changes}


def run(*arguments: str, url: str, stdin: str | bytes = b"", **changes: str) -> subprocess.CompletedProcess[bytes]:
    data = stdin.encode() if isinstance(stdin, str) else stdin
    return subprocess.run([*COMMAND, *arguments], env=environment(url, **changes), input=data, capture_output=True, timeout=60)


def test_complete_streams_the_text_and_ends_the_line() -> None:
    with ScriptedServer(MODELS, AUTUMN) as server:
        done = run("complete", "描述一下北京的秋天", "-n", "9", "-t", "0", "--stop", "。", "-p", "top_k=3", url=server.url)
    assert (done.returncode, done.stdout.decode(), done.stderr.decode()) == (0, "秋天，真美🍂\n", "")
    body = server.requests[1].body
    assert body["prompt"] == "描述一下北京的秋天"
    assert (body["model"], body["max_tokens"], body["temperature"], body["stop"], body["top_k"]) == ("demo", 9, 0, ["。"], 3)
    assert body["stream_options"] == {"include_usage": True}, "a script is not bothered with progress"


def test_progress_is_shown_where_it_is_asked_for() -> None:
    queued = {**completion_chunk(""), "choices": [], "progress": {"index": 0, "state": "queued", "position": 3, "wait_s": 12.4}}
    read = {"index": 0, "state": "prefill", "total": 900, "cache": 0, "processed": 512, "time_ms": 40.5}
    stream = events(queued, {**queued, "progress": read}, completion_chunk("hi"), completion_chunk("", "stop"), "[DONE]")
    with ScriptedServer(stream) as server:
        done = run("complete", "x", "-m", "demo", "--progress", url=server.url)
    assert done.stdout.decode() == "hi\n"
    assert done.stderr.decode() == "queued: place 3, about 12 s\nreading the prompt: 512 of 900 tokens\n"
    assert server.requests[0].body["stream_options"]["include_progress"] is True


def test_on_a_terminal_progress_gives_way_to_the_text() -> None:
    pty = pytest.importorskip("pty")
    controller, terminal = pty.openpty()
    ours = answer({"data": [{"id": "demo", "owned_by": "streamserve"}]})
    queued = {**completion_chunk(""), "choices": [], "progress": {"index": 0, "state": "queued", "position": 3}}
    with ScriptedServer(ours, events(queued, completion_chunk("hi"), "[DONE]")) as server:
        command = [*COMMAND, "complete", "x", "-m", "demo"]
        subprocess.run(
            command, env=environment(server.url), stdout=terminal, stderr=terminal, stdin=subprocess.DEVNULL, check=True
        )
        os.close(terminal)
        shown = os.read(controller, 1000)
        os.close(controller)
    assert server.requests[1].body["stream_options"]["include_progress"] is True
    assert shown == b"\r\x1b[Kqueued: place 3\r\x1b[Khi\r\n"


def test_the_prompt_may_come_from_a_pipe() -> None:
    with ScriptedServer(AUTUMN) as server:
        run("complete", "--model", "demo", url=server.url, stdin="北京\n")
    assert server.requests[0].body["prompt"] == "北京"


@pytest.mark.parametrize(
    "locale", [{"PYTHONIOENCODING": "latin-1"}, {"PYTHONIOENCODING": "gbk"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}]
)
def test_chinese_and_emoji_stay_whole_whatever_the_locale(locale: dict[str, str]) -> None:
    with ScriptedServer(AUTUMN) as server:
        done = run("complete", "北京🍁", "-m", "demo", url=server.url, **locale)
    assert done.stdout.decode() == "秋天，真美🍂\n"
    assert server.requests[0].body["prompt"] == "北京🍁"


def test_json_is_one_object_for_scripts() -> None:
    with ScriptedServer(AUTUMN) as server:
        done = run("complete", "x", "-m", "demo", "--json", url=server.url)
    answered = json.loads(done.stdout)
    assert answered["text"] == "秋天，真美🍂"
    assert (answered["finish_reason"], answered["usage"]["completion_tokens"]) == ("stop", 5)
    assert answered["ttft_s"] > 0


def test_stats_go_to_standard_error() -> None:
    with ScriptedServer(AUTUMN) as server:
        done = run("complete", "x", "-m", "demo", "--stats", url=server.url)
    assert done.stdout.decode() == "秋天，真美🍂\n"
    assert "TTFT" in done.stderr.decode()
    assert "3 prompt + 5 completion tokens" in done.stderr.decode()


def test_chat_sends_the_system_prompt_and_the_message() -> None:
    with ScriptedServer(events(chat_chunk("hi"), chat_chunk("", "stop"), "[DONE]")) as server:
        done = run("chat", "你好", "--system", "Be brief.", "-m", "demo", url=server.url)
    assert done.stdout.decode() == "hi\n"
    assert server.requests[0].body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "你好"},
    ]


def test_models_and_health() -> None:
    with ScriptedServer(MODELS, MODELS, answer({}), answer({}), answer({}), answer({}, 503)) as server:
        assert "demo" in run("models", url=server.url).stdout.decode()
        assert json.loads(run("models", "--json", url=server.url).stdout)[0]["max_model_len"] == 2048
        ready, loading = run("health", url=server.url), run("health", url=server.url)
    assert (ready.returncode, ready.stdout) == (0, b"ready\n")
    assert (loading.returncode, loading.stdout) == (1, b"alive, not ready\n")


def test_each_way_of_failing_has_its_exit_code() -> None:
    refusal = answer({"error": {"message": "too long", "code": "context_length_exceeded"}}, 400)
    with ScriptedServer(refusal, events(completion_chunk("a"), ending="cut")) as server:
        refused = run("complete", "x", "-m", "demo", url=server.url)
        broken_off = run("complete", "x", "-m", "demo", url=server.url)
    assert (refused.returncode, refused.stderr) == (1, b"error: too long\n")
    assert (broken_off.returncode, broken_off.stdout) == (4, b"a")
    assert run("complete", "x", "--top-p", "much", url=server.url).returncode == 2
    assert run("models", url=server.url).returncode == 3


def test_ctrl_c_leaves_the_stream_at_once_with_130() -> None:
    with ScriptedServer(events(completion_chunk("a"), ending="hang")) as server:
        command = [*COMMAND, "complete", "x", "-m", "demo"]
        with subprocess.Popen(command, env=environment(server.url), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.read(1) == b"a"
            process.send_signal(signal.SIGINT)
            stdout, stderr = process.communicate(timeout=30)
        assert server.departed.wait(5)
    assert process.returncode == 130
    assert stdout == b""
    assert b"Traceback" not in stderr


def test_a_closed_pipe_is_quiet_and_ends_the_request() -> None:
    many = [completion_chunk("x" * 500) for _ in range(400)]
    with ScriptedServer(events(*many, ending="hang")) as server:
        command = [*COMMAND, "complete", "x", "-m", "demo"]
        with subprocess.Popen(command, env=environment(server.url), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.read(10)
            process.stdout.close()
            stderr = process.stderr.read()
        assert process.returncode == 141
        assert server.departed.wait(5)
    assert stderr == b""


def test_a_model_cannot_steer_the_terminal(tmp_path: Path) -> None:
    pty = pytest.importorskip("pty")
    controller, terminal = pty.openpty()
    with ScriptedServer(events(completion_chunk("a\x1b[2Jb\x07\tc"), "[DONE]")) as server:
        command = [*COMMAND, "complete", "x", "-m", "demo"]
        subprocess.run(command, env=environment(server.url), stdout=terminal, stdin=subprocess.DEVNULL, check=True, timeout=60)
        os.close(terminal)
        shown = os.read(controller, 1000)
        os.close(controller)
    assert shown == b"a[2Jb\tc\r\n"


def test_a_conversation_sends_what_was_said_and_ctrl_d_ends_it() -> None:
    pty = pytest.importorskip("pty")
    replies = [events(chat_chunk(text), chat_chunk("", "stop"), "[DONE]") for text in ("one", "two")]
    controller, terminal = pty.openpty()
    with ScriptedServer(*replies) as server:
        os.write(controller, b"first\nsecond\n/exit\n")
        done = subprocess.run(
            [*COMMAND, "chat", "-m", "demo"], env=environment(server.url), stdin=terminal, capture_output=True, timeout=60
        )
        os.close(terminal)
        os.close(controller)
    assert done.returncode == 0
    assert done.stdout.decode().splitlines() == ["one", "two"]
    assert [message["content"] for message in server.requests[1].body["messages"]] == ["first", "one", "second"]


def test_a_conversation_outlives_an_answer_that_broke_off() -> None:
    pty = pytest.importorskip("pty")
    broken = events(chat_chunk("hal"), ending="cut")
    controller, terminal = pty.openpty()
    with ScriptedServer(broken, events(chat_chunk("whole"), chat_chunk("", "stop"), "[DONE]")) as server:
        os.write(controller, b"first\nagain\n/exit\n")
        done = subprocess.run(
            [*COMMAND, "chat", "-m", "demo"], env=environment(server.url), stdin=terminal, capture_output=True, timeout=60
        )
        os.close(terminal)
        os.close(controller)
    assert done.returncode == 0
    assert b"error: the connection" in done.stderr
    assert done.stdout.decode().endswith("whole\n")
    assert [message["content"] for message in server.requests[1].body["messages"]] == ["again"]


def test_an_unexpected_reply_is_an_error_and_no_traceback() -> None:
    with ScriptedServer(Reply([b"<html>"], headers={"Content-Type": "text/html"})) as server:
        done = run("complete", "x", "-m", "demo", url=server.url)
    assert done.returncode == 1
    assert b"expected an event stream, got text/html" in done.stderr
    assert b"Traceback" not in done.stderr
