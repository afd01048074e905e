"""`streamserve generate` and `streamserve chat`, with the demo model, as processes on a pipe."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from streamserve.cli import run

SMALL = ("--model", "demo", "--kv-cache-memory", "64M", "--max-model-len", "1024", "--temperature", "0")


def command(*arguments: str, said: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "streamserve", *arguments],
        input=said,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_generate_continues_standard_input_and_tells_its_speed() -> None:
    done = command("generate", *SMALL, "--max-tokens", "6", "--stats", said="The capital of France is\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(" Paris")
    assert "[6 tokens, first after " in done.stderr


def test_chat_remembers_until_cleared_and_survives_a_message_that_does_not_fit() -> None:
    said = "What is 2+2?\n" + "x " * 3000 + "\n/clear\nSay hello.\n/exit\nnever asked\n"
    done = command("chat", *SMALL, "--max-tokens", "12", said=said)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.strip().splitlines()) >= 2
    assert "error: " in done.stderr
    assert "maximum context length" in done.stderr


def test_a_model_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", "hi", "--model", "/nowhere/at/all"]) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("error: /nowhere/at/all")


def test_help_loads_neither_torch_nor_a_server() -> None:
    program = (
        "import sys; from streamserve.cli import run; run(['--help']); "
        "sys.exit(bool({'torch', 'litestar', 'uvicorn'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, timeout=60).returncode == 0


def test_serve_loads_no_torch_in_its_api_process() -> None:
    program = "import sys, streamserve.commands.serve; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, timeout=60).returncode == 0


@pytest.mark.slow
def test_a_batch_is_answered_from_a_file_into_a_file_and_goes_on(tmp_path: Path) -> None:
    requests, results = tmp_path / "requests.jsonl", tmp_path / "results.jsonl"
    body = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "max_tokens": 16, "temperature": 0}
    lines = [{"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body} for number in range(5)]
    requests.write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"custom_id": "bad"}]))
    arguments = ("-i", str(requests), "-o", str(results), *SMALL[:-2])
    done = command("run-batch", *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip().splitlines()[-1] == "5 answered, 1 refused"
    answers = {each["custom_id"]: each for each in map(json.loads, results.read_text().splitlines())}
    assert all("Paris" in answers[str(n)]["response"]["body"]["choices"][0]["message"]["content"] for n in range(5))
    assert answers["bad"]["error"]["param"] == "url"
    again = command("run-batch", *arguments)
    assert again.stderr.strip().splitlines()[-1] == "0 answered, 0 refused, 6 done before"


@pytest.mark.slow
def test_a_batch_that_ctrl_c_cuts_off_says_how_far_it_got_and_keeps_that(tmp_path: Path) -> None:
    requests, results = tmp_path / "requests.jsonl", tmp_path / "results.jsonl"
    short, long = ({"prompt": "a", "max_tokens": count, "ignore_eos": True} for count in (1, 900))
    lines = [
        {"custom_id": str(number), "method": "POST", "url": "/v1/completions", "body": short if number < 3 else long}
        for number in range(20)
    ]
    requests.write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = ("run-batch", "-i", str(requests), "-o", str(results), *SMALL[:-2])
    batch = subprocess.Popen([sys.executable, "-m", "streamserve", *arguments], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (results.exists() and len(results.read_text().splitlines()) >= 3):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    batch.send_signal(signal.SIGINT)
    _, said = batch.communicate(timeout=60)
    assert batch.returncode == 130
    num_done = len(results.read_text().splitlines())
    assert f"interrupted: {num_done} answered, 0 refused; results are in" in " ".join(said.split())
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["demo"], ["--input-file"]),
        (["demo", "-i", "/nowhere", "-o", "/nowhere"], ["--input-file /nowhere: no such file"]),
        (["demo", "-i", __file__, "-o", __file__], ["is the input as well"]),
        (["-i", __file__, "-o", "/nowhere"], ["name a model"]),
    ],
)
def test_a_batch_that_can_not_begin_is_one_line(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["run-batch", *arguments]) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    assert all(word in error for word in words), error
