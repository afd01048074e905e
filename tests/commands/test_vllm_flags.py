"""vLLM's flags: what describes what happens anyway is accepted, everywhere alike; all else is refused with the reason."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from streamserve.commands.chat import chat
from streamserve.commands.compile import compile_layers
from streamserve.commands.generate import generate
from streamserve.commands.serve import serve
from streamserve.errors import ConfigError
from streamserve.offline.arguments import engine_settings
from streamserve.vllm_arguments import ARGUMENTS, Argument
from tests.support import flags_page
from tests.support.command_line import parsed, serve_options_of

ROOT = Path(__file__).resolve().parents[2]
TUTORIAL = ["--model", "demo", "--tokenizer-mode", "auto", "--dtype", "auto", "--swap-space", "4", "--task", "generate"]


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STREAMSERVE_API_KEY", "VLLM_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "flags",
    [
        ["--swap-space", "16"],
        ["--swap_space=4"],
        ["--task", "generate", "--runner=generate", "--convert", "auto"],
        ["--task", "embed", "--runner", "pooling", "--convert=embed"],
        ["--tokenizer-mode", "auto"],
        ["--disable-log-requests"],
        ["--no-enable-log-requests"],
        ["--disable-log-stats", "--no-enable-lora", "--no-trust-remote-code", "--no-enforce-eager"],
        ["--distributed-executor-backend=mp", "-tp", "1"],
        ["--distributed-executor-backend", "uni", "-tp=1"],
        ["--quantization", "None", "--max-model-len=None"],
        ["--kv-cache-dtype", "auto", "--nnodes", "1", "-n", "1", "--node-rank=0"],
        ["--limit-mm-per-prompt", '{"image": 0, "video": 1}', "--language-model-only", "--mm-encoder-tp-mode", "data"],
        ["--limit-mm-per-prompt.image", "2"],
        ["--structured-outputs-config.backend", "guidance"],
        ["--structured-outputs-config", '{"backend": "auto"}'],
        ["--enable-reasoning", "--reasoning-parser", "qwen3"],
        ["--max-seq-len-to-capture", "32768", "--use-v2-block-manager"],
    ],
)
def test_flags_for_what_happens_anyway_change_nothing(flags: list[str]) -> None:
    """vllm's tutorial: `--swap-space 4`, `--task generate` and `--no-enable-log-requests` were refused."""
    plain, flagged = serve_options_of("demo"), serve_options_of(*flags, "demo", "--port", "1")
    assert flagged.engine.tensor_parallel_size == 1
    for name in ("model", "quantization", "max_model_len", "trust_remote_code", "enforce_eager"):
        assert getattr(flagged.engine, name) == getattr(plain.engine, name)
    assert not flagged.server.log_requests
    assert flagged.listen.port == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--task", "score"], "--task: not supported: models generate text"),
        (["--override-pooler-config", '{"pooling_type": "CLS"}'], "pooling_type must be one of LAST, MEAN"),
        (["--calculate-kv-scales"], "--calculate-kv-scales: .* the checkpoint's"),
        (["--enable-eplb"], "--enable-eplb: "),
        (["--speculative-config", '{"method": "ngram"}'], "--speculative-config: .* draft"),
        (["--speculative-config.method", "ngram"], "--speculative-config.method: .* draft"),
        (["-O3"], "-O3: .* graphs"),
        (["-dpn", "1"], "-dpn: "),
        (["--no-disable-log-requests"], "--no-disable-log-requests: .* never their prompts"),
        (["--omni"], "--omni: .* text"),
        (["--structured-outputs-config.backend", "xgrammar"], "llguidance"),
        (["--cpu-offload-gb", "8"], "--cpu-offload-gb: .* device"),
    ],
)
def test_flags_for_anything_else_are_refused_by_name_with_the_reason(flags: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        serve_options_of("demo", *flags)


def held(argument: Argument) -> list[Any]:
    """Values of an argument that describe what happens anyway."""
    if isinstance(argument.holds, tuple):
        return list(argument.holds)
    return [7, "text", {"key": 1}] if argument.accepts(7) else [{"backend": "auto"}]


def on_command_line(name: str, value: Any) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    return [flag, value if isinstance(value, str) else json.dumps(value)]


def test_what_llm_accepts_the_command_line_the_environment_and_files_accept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config.yaml"
    for name, argument in ARGUMENTS.items():
        for value in held(argument):
            assert engine_settings({name: value}) == {}, (name, value)
            parsed(serve, "demo", *on_command_line(name, value))
            file.write_text(yaml.safe_dump({name.replace("_", "-"): value}))
            parsed(serve, "demo", "--config", str(file))
            with monkeypatch.context() as environment:
                environment.setenv(f"STREAMSERVE_{name.upper()}", value if isinstance(value, str) else json.dumps(value))
                parsed(serve, "demo")


def test_what_llm_refuses_the_command_line_refuses_for_the_same_reason() -> None:
    for name, argument in ARGUMENTS.items():
        value = "nonsense" if not argument.is_flag else not argument.holds[0]  # type: ignore[index]
        if argument.accepts(value):
            continue
        with pytest.raises(ConfigError) as by_library:
            engine_settings({name: value})
        with pytest.raises(ConfigError) as by_command:
            parsed(serve, "demo", *on_command_line(name, value))
        assert name in by_library.value.message
        assert argument.reason in by_library.value.message
        assert argument.reason in by_command.value.message


@pytest.mark.parametrize("command", [serve, generate, chat, compile_layers])
def test_no_flag_of_ours_is_one_that_is_only_accepted(command: click.Command) -> None:
    ours = {name[2:].replace("-", "_") for option in command.params for name in option.opts if name.startswith("--")}
    assert not ours & ARGUMENTS.keys()


def test_each_flag_can_be_turned_off_as_vllms_can() -> None:
    flags = [
        option for option in serve.params if isinstance(option, click.Option) and option.is_bool_flag and option.name != "help"
    ]
    assert len(flags) > 12
    for flag in flags:
        for name in (name for name in flag.opts if name.startswith("--")):
            assert parsed(serve, "demo", name)[flag.name] is True
            assert parsed(serve, "demo", name, name.replace("--", "--no-", 1))[flag.name] is False


def test_words_after_a_flag_that_is_accepted_are_its_value_and_no_more() -> None:
    assert parsed(serve, "--swap-space", "4", "demo", "--served-model-name", "a", "b")["served_model_name"] == ("a", "b")
    assert parsed(generate, "--model", "demo", "--", "--swap-space")["prompt"] == "--swap-space"


def test_the_server_starts_by_vllms_module_name() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "streamserve.entrypoints.openai.api_server", *TUTORIAL, "--port", "99999"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: --port 99999"), done.stderr


def test_every_flag_of_vllms_is_an_option_or_has_its_answer() -> None:
    lines = (ROOT / "tests/data/vllm_flags.txt").read_text().splitlines()
    theirs = {name for line in lines if not line.startswith("#") for name in line.split()}
    ours = {name[2:] for option in serve.params for name in option.opts}
    assert theirs - ours - {name.replace("_", "-") for name in ARGUMENTS} == set()


def test_the_page_of_flags_is_what_the_program_does() -> None:
    assert flags_page.PAGE.read_text(encoding="utf-8") == flags_page.page(), "run python -m tests.support.flags_page"
