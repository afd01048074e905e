"""The options of what answers are like: names, chat templates, parsers, defaults. For a server and for a batch."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from streamserve.checkpoint.files import Checkpoint
from streamserve.commands.json_object import json_object
from streamserve.commands.vllm_command import CommandT, option
from streamserve.config import EngineConfig
from streamserve.errors import ConfigError
from streamserve.text.parsing.dialects.known import REASONING_PARSERS, TOOL_CALL_PARSERS
from streamserve.text.sampling_defaults import default_sampling_params

_chat = partial(option, "Chats")
_answers = partial(option, "Answers")

_OPTIONS = [
    _chat("--chat-template", help="A Jinja file, or the template itself, instead of the model's own."),
    _chat(
        "--trust-request-chat-template",
        is_flag=True,
        help="Accept chat templates in requests: each runs in a process of its own, for a second at most.",
    ),
    _chat(
        "--allow-special-tokens-in-messages",
        is_flag=True,
        help="Read <|im_end|> and the like in a chat's messages as the model's tokens, not as text.",
    ),
    _chat("--tool-call-parser", type=click.Choice(TOOL_CALL_PARSERS), help="Reads tool calls; else by the template."),
    _chat("--reasoning-parser", type=click.Choice(REASONING_PARSERS), help="Reads reasoning; else by the template."),
    _chat(
        "--default-chat-template-kwargs", default="{}", help="JSON object of chat_template_kwargs; a request's own count more."
    ),
    _chat("--enable-auto-tool-choice", is_flag=True, help="Do not start when the model's tool calls can't be read."),
    _chat("--exclude-tools-when-tool-choice-none", is_flag=True, help="Leave tools not to be called out of the prompt."),
    _answers("--generation-config", default="auto", help='"auto": defaults from the model; "vllm": none; or a folder.'),
    _answers("--override-generation-config", default="{}", help="JSON object of defaults that replace the model's."),
    _answers("--max-logprobs", type=click.IntRange(min=-1), default=20, help="Most alternatives per position; -1: all."),
    _answers("--return-tokens-as-token-ids", is_flag=True, help='Write tokens as "token_id:<id>" in logprobs.'),
    _answers("--served-model-name", multiple=True, help="Names that requests may give; the first is the one reported."),
]


def answer_options(command: CommandT) -> CommandT:
    """Add the options; the command passes their values to `answer_settings` and `sampling_defaults`."""
    for add in reversed(_OPTIONS):
        command = add(command)
    return command


def answer_settings(values: dict[str, Any], engine: EngineConfig) -> dict[str, Any]:
    """The fields of `ServerConfig` that the options set. Raises `ConfigError`."""
    names = (
        "max_logprobs",
        "trust_request_chat_template",
        "allow_special_tokens_in_messages",
        "tool_call_parser",
        "reasoning_parser",
        "enable_auto_tool_choice",
        "exclude_tools_when_tool_choice_none",
        "return_tokens_as_token_ids",
    )
    return {
        **{name: values[name] for name in names},
        "model_names": list(values["served_model_name"]) or [engine.model],
        "model_root": engine.model,
        "default_chat_template_kwargs": json_object("--default-chat-template-kwargs", values["default_chat_template_kwargs"]),
        "chat_template": _template(values["chat_template"]),
        "priority_scheduling": engine.scheduling_policy == "priority",
    }


def sampling_defaults(values: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Sampling defaults of the command line, which override the model's; and whether the model's are used at all."""
    source = values["generation_config"]
    defaults = {} if source in ("auto", "vllm") else _read_generation_config(Path(source))
    defaults |= json_object("--override-generation-config", values["override_generation_config"])
    checkpoint = Checkpoint(source="", path=Path(), format="dummy", config={}, generation_config=defaults)
    return default_sampling_params(checkpoint), source == "auto"


def _read_generation_config(folder: Path) -> dict[str, Any]:
    file = folder / "generation_config.json" if folder.is_dir() else folder
    if not file.is_file():
        raise ConfigError(f'--generation-config {folder}: no generation_config.json there; give "auto", "vllm" or a folder')
    return json_object(f"--generation-config {folder}", file.read_text())


def _template(value: str | None) -> str | None:
    """The source of a template, which may be in a file or on the command line itself."""
    if value is None:
        return None
    path = Path(value)
    try:
        if path.is_file():
            return path.read_text()
    except OSError as error:
        if "{" not in value:
            raise ConfigError(f"--chat-template {value}: {error.strerror}") from error
    if "{" not in value:
        raise ConfigError(f"--chat-template {value}: no such file, and no template either")
    return value
