"""`bench serve`: load a running server."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import click

from streamserve.bench.load import Load, run_load, summary
from streamserve.bench.output import output_options, show
from streamserve.bench.report import Report
from streamserve.bench.workloads import Span, SpanType
from streamserve.commands.api_keys import API_KEY_VARIABLES
from streamserve.errors import ConfigError

COLUMNS = {
    "c": "streams",
    "n": "requests",
    "i": "in",
    "o": "out",
    "tok_s": "tokens/s",
    "req_s": "req/s",
    "ttft_p50": "TTFT p50",
    "ttft_p99": "p99",
    "tpot_p50": "TPOT p50",
    "gap_p99": "gap p99",
    "e2e_p50": "all p50",
    "failed": "failed",
    "short": "short",
}
PLOTTED = {"tok_s": "tokens per second", "ttft_p50": "TTFT p50, ms", "gap_p99": "gap p99, ms"}


@click.command()
@click.option("--base-url", default="http://127.0.0.1:8000", show_default=True)
@click.option("--model", help="Default: the first that the server lists.")
@click.option(
    "--concurrency", "-c", multiple=True, type=click.IntRange(min=1), default=[32], help="Streams in flight; several sweep."
)
@click.option("--num-requests", "-n", type=click.IntRange(min=1), default=128, show_default=True, help="Requests for each -c.")
@click.option(
    "--input-len", "-i", type=SpanType(), default=Span(128, 128), show_default=True, help="Tokens (or words) of a prompt."
)
@click.option("--prefix-len", type=click.IntRange(min=0), default=0, show_default=True, help="Tokens before those, shared.")
@click.option(
    "--num-prefixes", type=click.IntRange(min=1), default=1, show_default=True, help="Prefixes; a prompt has one of them."
)
@click.option("--output-len", "-o", type=SpanType(), default=Span(128, 128), show_default=True, help="Tokens to generate.")
@click.option("--processes", "-p", type=click.IntRange(min=1), help="Client processes; default: one per 16 streams, at most 8.")
@click.option("--chat", is_flag=True, help="Use /v1/chat/completions.")
@click.option("--token-ids", is_flag=True, help="Prompts of exactly --input-len token ids, for servers that take them.")
@click.option("--temperature", type=float, default=0.0, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--api-key", envvar=list(API_KEY_VARIABLES), show_envvar=True, help="Sent as a bearer token.")
@click.option("--body", default="{}", help="JSON merged into every request; null removes a field the server refuses.")
@click.option(
    "--lenient", is_flag=True, help="For servers that send no [DONE]; answers of another length are no failure either."
)
@click.option("--timeout", "timeout_s", type=float, default=600.0, show_default=True, help="Seconds for one request.")
@click.option("--tag", default="", help="Copied into the result.")
@output_options
def serve(
    concurrency: tuple[int, ...],
    model: str | None,
    body: str,
    lenient: bool,
    tag: str,
    as_json: bool,
    plot: Path | None,
    **values: Any,
) -> None:
    """Load any server with OpenAI's API: closed loop, streamed, several client processes. Exit code 1 when a request failed."""
    model = model or first_model(values["base_url"], values["api_key"])
    extra = _json_object(body)
    report = Report(f"{model} at {values['base_url']}, times in ms", COLUMNS, "c", PLOTTED)
    for streams in concurrency:
        load = Load(concurrency=streams, model=model, body=extra, requires_done=not lenient, **values)
        report.rows.append(summary(load, run_load(load), tag=tag))
    show(report, as_json=as_json, plot=plot)
    for row in report.rows:
        if row["failed"]:
            raise click.ClickException(f"{row['failed']} of {row['n']} requests failed: {', '.join(row['why'])}")
        if row["short"] and not lenient:
            raise click.ClickException(f"{row['short']} of {row['n']} answers had another length than requested")


def first_model(base_url: str, api_key: str | None) -> str:
    """The first model that the server lists. Raises `ConfigError` when it can't be reached."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    root = base_url.rstrip("/").removesuffix("/v1")
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(urllib.request.Request(f"{root}/v1/models", headers=headers), timeout=10) as response:
            return str(json.load(response)["data"][0]["id"])
    except (OSError, ValueError, LookupError) as error:
        raise ConfigError(f"{root}/v1/models: {error}; is the server running? --model names one without asking") from error


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise click.BadParameter(str(error), param_hint="--body") from error
    if not isinstance(value, dict):
        raise click.BadParameter("must be a JSON object", param_hint="--body")
    return value
