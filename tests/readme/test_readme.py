"""The README's snippets run as written, with the demo model in place of the ones they name and a free port in place of 8000."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from streamserve.errors import Unavailable
from streamserve.process.server_process import ServerProcess, free_port, serve_command
from tests.support.marked_processes import assert_gone, processes_with

ROOT = Path(__file__).resolve().parents[2]
MODELS = re.compile(r"Qwen/Qwen3-0\.6B")


def snippets(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


def test_both_readmes_show_the_same_code() -> None:
    def code(name: str) -> list[str]:
        blocks = re.findall(r"```\w+\n.*?```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL)
        return [re.sub(r"[ \t]+#.*", "", block) for block in blocks]

    assert code("README.md") == code("README.zh-CN.md")


def snippet(language: str, containing: str) -> str:
    [found] = [text for text in snippets(language) if containing in text]
    return MODELS.sub("demo", found)


def run(*command: str, source: str | None = None) -> str:
    done = subprocess.run(command, input=source, capture_output=True, text=True, timeout=110, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    port = free_port()
    with ServerProcess(serve_command(port, "--model", "demo", "--max-model-len", "256"), port) as server:
        yield server.base_url


def test_it_opens_with_the_two_commands() -> None:
    commands = [line.split("#")[0].strip() for line in snippets("sh")[0].splitlines()]
    assert commands == ["make demo", "make test"]


def test_every_flag_it_names_exists() -> None:
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split("## Server")[1].split("### curl")[0].split())
    help_text = run(sys.executable, "-m", "streamserve", "serve", "--help")
    for flag in set(re.findall(r"--[a-z][a-z-]+", text)) - {"--help"}:
        assert flag in help_text


@pytest.mark.parametrize("name", ["import OpenAI", "import Client", "client.websocket()"])
def test_the_clients_stream_an_answer(name: str, base_url: str) -> None:
    source = snippet("python", name).replace("http://localhost:8000", base_url).replace("=256", "=16")
    assert len(run(sys.executable, "-c", source)) > 2


def test_the_command_line_client_streams_an_answer(base_url: str) -> None:
    [command] = [text for text in snippets("sh") if text.startswith("streamserve-client complete")]
    arguments = [sys.executable, "-m", "streamserve_client.cli", *shlex.split(command)[1:]]
    assert len(run(*arguments, "--base-url", base_url, "-n", "8")) > 2


def test_the_curl_lines_are_answered(base_url: str) -> None:
    source = snippet("sh", "curl").replace("http://localhost:8000", base_url).replace("curl ", "curl -sS --fail-with-body ")
    answers = run("bash", "-e", "-c", source.replace('"stream": true', '"stream": true, "max_tokens": 8'))
    assert '"object":"list"' in answers.replace(" ", "")
    assert '"text_completion"' in answers
    assert answers.rstrip().endswith("data: [DONE]")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["import LLM", "import AsyncEngine"])
def test_the_library_snippets_run(name: str) -> None:
    assert len(run(sys.executable, "-c", snippet("python", name))) > 50


def test_a_server_process_ends_its_whole_group_when_its_block_is_left() -> None:
    marker = f"readme-{uuid4().hex}"
    port = free_port()
    script = f"sleep 60 & exec {sys.executable} -m http.server --bind 127.0.0.1 {port}"
    with ServerProcess(["env", f"MARKER={marker}", "sh", "-c", script], port, ready_path="/README.md") as server:
        assert server.ready_s > 0
        assert len(processes_with(marker)) == 2
    assert_gone(marker)


def test_a_server_that_cannot_start_says_why() -> None:
    with pytest.raises(Unavailable, match="exit code 3:\nno model"):
        ServerProcess(["sh", "-c", "echo no model; exit 3"], free_port()).__enter__()


@pytest.mark.slow
def test_the_demo_answers_both_questions_and_leaves_nothing_running() -> None:
    marker = f"readme-{uuid4().hex}"
    shown = run("env", f"MARKER={marker}", sys.executable, "-m", "streamserve.demo")
    assert "描述一下北京的秋天" in shown
    assert "Paris" in shown
    assert_gone(marker)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_interrupted_leaves_nothing_running(number: signal.Signals) -> None:
    marker = f"readme-{uuid4().hex}"
    command = [sys.executable, "-m", "streamserve.demo"]
    with subprocess.Popen(command, env={**os.environ, "MARKER": marker}, stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        assert "serve" in demo.stdout.readline()
        demo.send_signal(number)
        assert demo.wait(60) == 128 + number
    assert_gone(marker)
