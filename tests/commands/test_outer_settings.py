"""Options from the environment and from a configuration file: one rule for all of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from streamserve.cli import run
from streamserve.commands.chat import chat
from streamserve.commands.compile import compile_layers
from streamserve.commands.generate import generate
from streamserve.commands.serve import serve
from streamserve.errors import ConfigError
from tests.support.command_line import parsed, serve_options_of

COMMANDS = [serve, generate, chat, compile_layers]


def spelled(command: click.Command) -> list[tuple[str, click.Option]]:
    """Each long flag of a command that has a value to set."""
    options = [
        option for option in command.params if isinstance(option, click.Option) and option.name not in ("help", "config")
    ]
    return [(name, option) for option in options for name in option.opts if name.startswith("--")]


def value_of(option: click.Option) -> str:
    """Some value that is not the default."""
    if isinstance(option.type, click.Choice):
        return next(str(choice) for choice in option.type.choices if choice != option.default)
    samples = {"integer": "5", "integer range": "5", "float": "0.5", "float range": "0.5", "amount": "4k", "json": '["x"]'}
    return samples.get(option.type.name, "word")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_read_from_the_environment(command: click.Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for flag, option in spelled(command):
        variable = f"STREAMSERVE_{flag[2:].upper().replace('-', '_')}"
        with monkeypatch.context() as environment:
            environment.setenv(variable, "true" if option.is_flag else value_of(option))
            outer = parsed(command)[option.name]
        by_flag = parsed(command, flag, *([] if option.is_flag else [value_of(option)]))[option.name]
        assert outer == by_flag, variable
        assert outer != parsed(command)[option.name], variable


def test_every_option_is_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    for flag, option in spelled(serve):
        file.write_text(yaml.safe_dump({flag[2:]: True if option.is_flag else yaml.safe_load(value_of(option))}))
        outer = parsed(serve, "--config", str(file))[option.name]
        assert outer == parsed(serve, flag, *([] if option.is_flag else [value_of(option)]))[option.name], flag


def config(folder: Path, **values: Any) -> str:
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(values))
    return str(file)


def test_the_command_line_wins_over_the_environment_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = config(tmp_path, model="a", port=1, max_num_seqs=1, seed=1, served_model_name=["x", "y"])
    monkeypatch.setenv("STREAMSERVE_MAX_NUM_SEQS", "2")
    monkeypatch.setenv("STREAMSERVE_SEED", "2")
    options = serve_options_of("--config", file, "--seed", "3")
    assert (options.engine.model, options.listen.port, options.engine.max_num_seqs, options.engine.seed) == ("a", 1, 2, 3)
    assert options.server.model_names == ["x", "y"]
    assert serve_options_of("b", "--config", file, "--served-model-name", "z").server.model_names == ["z"]


def test_a_file_of_vllms_is_read_as_there(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        """
        model: demo
        host: "127.0.0.1"
        port: 6379
        uvicorn-log-level: "warning"
        swap-space: 4
        task: generate
        max_model_len: 4k
        quantization: null
        trust-remote-code: false
        no-enable-prefix-caching: true
        allowed-origins: ["https://example.org"]
        override-generation-config: {temperature: 0.5}
        limit-mm-per-prompt: {image: 0}
        """
    )
    options = serve_options_of("--config", str(file))
    assert (options.engine.model, options.engine.max_model_len, options.engine.enable_prefix_caching) == ("demo", 4000, False)
    assert (options.listen.host, options.listen.port, options.listen.log_level) == ("127.0.0.1", 6379, "warning")
    assert options.sampling_overrides == {"temperature": 0.5}
    assert options.server.cors is not None
    assert options.server.cors.origins == ("https://example.org",)


def test_a_file_may_be_named_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMSERVE_CONFIG", config(tmp_path, model="demo", port=7))
    assert serve_options_of().listen.port == 7


def test_a_model_on_the_command_line_is_the_one_that_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMSERVE_MODEL", "other")
    for arguments in (["demo"], ["--model", "demo"], ["demo", "--config", config(tmp_path, model="third")]):
        assert serve_options_of(*arguments).engine.model == "demo"
    assert serve_options_of().engine.model == "other"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max-num-seq: 3", "max-num-seq in .*: there is no such option"),
        ("enable-lora: true", "enable-lora in .*: not supported"),
        ("config: other.yaml", "names no other"),
        ("- port", "must hold options"),
        ("port: [", "is not YAML"),
        ("enforce-eager: perhaps", "enforce-eager in .*boolean"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words):
        parsed(serve, "demo", "--config", str(file))


def test_a_wrong_value_is_reported_with_where_it_came_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["serve", "demo", "--config", config(tmp_path, port="many")]) == 2
    assert "port in " in capsys.readouterr().err
    monkeypatch.setenv("STREAMSERVE_MAX_QUEUE", "many")
    assert run(["serve", "demo"]) == 2
    error = capsys.readouterr().err
    assert "STREAMSERVE_MAX_QUEUE" in error
    assert len(error.strip().splitlines()) == 1
    assert run(["serve", "demo", "--config", "/nowhere.yaml"]) == 2
    assert "--config /nowhere.yaml: No such file" in capsys.readouterr().err


def test_what_kubernetes_says_of_a_service_is_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """VLLM_PORT in vLLM's documentation: a service that is named after the program sets its port to a URL."""
    monkeypatch.setenv("STREAMSERVE_PORT", "tcp://10.43.0.1:8000")
    monkeypatch.setenv("STREAMSERVE_SERVICE_HOST", "10.43.0.1")
    assert serve_options_of("demo").listen.port == 8000


def test_a_misspelt_variable_is_named_with_the_flag_that_it_is_like(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for variable in ("MAX_NUM_SEQ", "WHATEVER", "SERVICE_PORT", "WEB_PORT_80_TCP_ADDR", "API_KEY", "SEED", "TASK"):
        monkeypatch.setenv(f"STREAMSERVE_{variable}", "generate" if variable == "TASK" else "2")
    parsed(serve, "demo")
    assert capsys.readouterr().err.splitlines() == [
        "warning: STREAMSERVE_MAX_NUM_SEQ is no option and has no effect: "
        "did you mean STREAMSERVE_MAX_NUM_SEQS (--max-num-seqs)?",
        "warning: STREAMSERVE_WHATEVER is no option and has no effect",
    ]
    monkeypatch.setenv("STREAMSERVE_PORT", "8123")
    parsed(generate, "demo")
    assert [line.split()[1] for line in capsys.readouterr().err.splitlines()] == ["STREAMSERVE_MAX_NUM_SEQ"]


def test_a_key_in_the_environment_is_not_shown_in_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STREAMSERVE_API_KEY", "secret-key")
    monkeypatch.setenv("STREAMSERVE_PORT", "8123")
    assert run(["serve", "--help"]) == 0
    printed = capsys.readouterr().out
    assert "secret-key" not in printed
    assert "[default: 8123]" in printed


def test_help_is_in_groups_and_tells_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", "--help"]) == 0
    printed = capsys.readouterr().out
    for group in ("Server:", "Model:", "Memory:", "Scheduling:", "Devices:", "Chats:", "Limits:", "Log:", "Options:"):
        assert f"\n{group}\n" in printed
    for default in ("256", "0.9", "on", "8000", "auto", "fcfs"):
        assert f"[default: {default}" in " ".join(printed.split())


def test_a_file_is_parsed_only_where_there_is_one() -> None:
    program = "import sys, streamserve.commands.serve; sys.exit('yaml' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0
