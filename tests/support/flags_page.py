"""Writes docs/FLAGS.md: `python -m tests.support.flags_page`. A test compares the page with what this writes."""

from __future__ import annotations

import json
from pathlib import Path

import click

from streamserve.commands.serve import serve
from streamserve.commands.vllm_command import VllmOption
from streamserve.vllm_arguments import ARGUMENTS, Argument

PAGE = Path(__file__).resolve().parents[2] / "docs" / "FLAGS.md"

_INTRODUCTION = """\
# Flags

`streamserve serve` takes the flags of `vllm serve`, with vLLM's names and meaning: with dashes or underscores, `--flag value`
or `--flag=value`, several values after one flag, 25.6k for 25600, `--no-…` for what is on. `python -m
streamserve.entrypoints.openai.api_server` is the same command.

## From elsewhere

An option can be set in four places. The first that has it counts: the command line, the environment, the file that
`--config` names, its default.

* In the environment it is `STREAMSERVE_` and the flag's name in capitals, with underscores: `STREAMSERVE_MAX_NUM_SEQS=64`. A
  flag is `true` or `false`; a list is separated by white space. This holds for `generate`, `chat`, `compile` and `bench` as
  well. A variable that is no option is named at the start, with the flag that it is like. What Kubernetes sets for a service
  named `streamserve` is left alone: `STREAMSERVE_PORT=tcp://…`, `STREAMSERVE_SERVICE_HOST` and the like.
* A file is YAML in vLLM's format: the flag's name without the dashes, lists as lists, objects where an option takes JSON. A
  name that is no option is an error.

```yaml
model: Qwen/Qwen3-0.6B
port: 8000
max-model-len: 4k
served-model-name: [qwen, small]
override-generation-config: {temperature: 0.6}
```

`VLLM_API_KEY` counts where no other key is set.
"""

_VLLM = """\
## vLLM's other flags

A flag that describes what happens anyway is accepted, with the values of the second column. With another value it is refused
before anything starts, for the reason in the third. `LLM(...)` accepts and refuses the same.

| flag | accepted | what happens |
| --- | --- | --- |
"""


_BACKEND = {"backend": "auto"}


def page() -> str:
    """The text of docs/FLAGS.md."""
    return "\n".join([_INTRODUCTION, "## Options", "", *_options(), _VLLM + "\n".join(map(_argument, ARGUMENTS)), ""])


def _options() -> list[str]:
    groups: dict[str, list[str]] = {}
    context = click.Context(serve, info_name="serve", show_default=True)
    for option in serve.params:
        if isinstance(option, VllmOption):
            default = option.get_help_extra(context).get("default", "")
            names = " ".join(f"`{name}`" for name in option.opts)
            groups.setdefault(option.group, []).append(f"| {names} | {_cell(default)} | {_cell(option.help or '')} |")
    return [
        line
        for group, rows in groups.items()
        for line in (f"### {group}", "", "| flag | default | |", "| --- | --- | --- |", *rows, "")
    ]


def _argument(name: str) -> str:
    return f"| `--{name.replace('_', '-')}` | {_accepted(ARGUMENTS[name])} | {_cell(ARGUMENTS[name].reason)} |"


def _accepted(argument: Argument) -> str:
    if callable(argument.holds):
        return "any value" if argument.accepts("anything") else f"objects such as `{json.dumps(_BACKEND)}`"
    if argument.is_flag:
        return {(True,): "yes", (False,): "`--no-…`", (True, False): "yes, `--no-…`"}[argument.holds]
    return ", ".join(f"`{value if isinstance(value, str) and value else json.dumps(value)}`" for value in argument.holds)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "\\<")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
