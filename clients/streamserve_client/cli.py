"""`streamserve-client`: complete | chat | models | health, from a terminal or a script.

Exit codes: 0 done, 1 the server refused or failed, 2 wrong usage, 3 no connection, 4 the stream was interrupted, 130 Ctrl-C,
141 broken pipe. Leaving early, by Ctrl-C or a closed pipe, closes the connection, at which the server cancels the request.
"""

from __future__ import annotations

import asyncio
import json
import sys
from functools import partial
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table

from streamserve_client import options, terminal
from streamserve_client.calls import first_model
from streamserve_client.conversation import Conversation
from streamserve_client.errors import ClientError, ConnectionFailed, StreamInterrupted
from streamserve_client.printing import print_stream, print_websocket_stream
from streamserve_client.types import Message
from streamserve_client.websocket import WebSocketSession

EXIT_REFUSED, EXIT_UNREACHABLE, EXIT_STREAM_INTERRUPTED, EXIT_INTERRUPTED, EXIT_BROKEN_PIPE = 1, 3, 4, 130, 141


def main() -> None:
    """Entry point: run the command and exit with its code."""
    terminal.use_utf8()
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run a command line and return its exit code; an error is one line on standard error."""
    try:
        result = cli.main(arguments, prog_name="streamserve-client", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        terminal.note("")
        return EXIT_INTERRUPTED
    except terminal.OutputClosed:
        terminal.silence_stdout()
        return EXIT_BROKEN_PIPE
    except ClientError as error:
        terminal.note(f"error: {error}")
        return _exit_code(error)
    return result if isinstance(result, int) else 0


def _exit_code(error: ClientError) -> int:
    if isinstance(error, ConnectionFailed):
        return EXIT_UNREACHABLE
    return EXIT_STREAM_INTERRUPTED if isinstance(error, StreamInterrupted) else EXIT_REFUSED


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="streamserve")
def cli() -> None:
    """Talk to a streamserve server, or to any other with OpenAI's API."""


@cli.command()
@click.argument("prompt", required=False)
@options.generation(max_tokens=256)
def complete(
    prompt: str | None, model: str | None, as_json: bool, over_ws: bool, progress: bool | None, stats: bool, **values: Any
) -> None:
    """Continue PROMPT (default: standard input), streaming the text as it comes."""
    sampling = options.sampling(values)
    text = options.input_text(prompt, "prompt")
    with options.client(values) as client:
        model = model or first_model(client.models())
        if options.wants_progress(client, progress):
            sampling["stream_options"] = {"include_progress": True}
        if over_ws:
            open_stream = partial(WebSocketSession.stream_completion, prompt=text, model=model, **sampling)
            asyncio.run(print_websocket_stream(options.async_client(values), open_stream, as_json=as_json, stats=stats))
            return
        print_stream(partial(client.stream_completion, text, model=model, **sampling), as_json=as_json, stats=stats)


@cli.command()
@click.argument("message", required=False)
@click.option("--system", "-s", help="Instructions to the model, before the conversation.")
@options.generation(max_tokens=None)
def chat(
    message: str | None,
    system: str | None,
    model: str | None,
    as_json: bool,
    over_ws: bool,
    progress: bool | None,
    stats: bool,
    **values: Any,
) -> None:
    """Answer MESSAGE (default: standard input), or converse when run in a terminal without one."""
    sampling = options.sampling(values)
    messages: list[Message] = [{"role": "system", "content": terminal.argument_text(system)}] if system else []
    is_conversation = message is None and not as_json and not over_ws and sys.stdin.isatty()
    if not is_conversation:
        messages.append({"role": "user", "content": options.input_text(message, "message")})
    with options.client(values) as client:
        model = model or first_model(client.models())
        if options.wants_progress(client, progress):
            sampling["stream_options"] = {"include_progress": True}
        if is_conversation:
            Conversation(client, model, messages, sampling, stats=stats).run()
        elif over_ws:
            open_stream = partial(WebSocketSession.stream_chat, messages=messages, model=model, **sampling)
            asyncio.run(print_websocket_stream(options.async_client(values), open_stream, as_json=as_json, stats=stats))
        else:
            print_stream(partial(client.stream_chat, messages, model=model, **sampling), as_json=as_json, stats=stats)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@options.connection
def models(as_json: bool, **values: Any) -> None:
    """List the models that the server serves."""
    with options.client(values) as client:
        served = client.models()
    if as_json:
        terminal.write_line(json.dumps(msgspec.to_builtins(served), ensure_ascii=False))
        return
    table = Table("model", "context", "owner", box=None)
    for model in served:
        table.add_row(model.id, "" if model.max_model_len is None else str(model.max_model_len), model.owned_by)
    console = Console()
    with console.capture() as shown:
        console.print(table)
    terminal.write(shown.get())


@cli.command()
@options.connection
def health(**values: Any) -> int:
    """Report whether the server is alive and ready; exit code 0 when it is both."""
    with options.client(values) as client:
        state = client.health()
    terminal.write_line("ready" if state.is_ready else "alive, not ready" if state.is_alive else "failing")
    return 0 if state.is_alive and state.is_ready else EXIT_REFUSED


if __name__ == "__main__":
    main()
