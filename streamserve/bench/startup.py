"""`bench startup`: the time from the start of `streamserve serve` to its first token, as a deploy sees it."""

from __future__ import annotations

import http.client
import json
import signal
from pathlib import Path

import click

from streamserve.bench.measures import median
from streamserve.bench.output import output_options, show
from streamserve.bench.report import Report
from streamserve.bench.serve import first_model
from streamserve.errors import Unavailable
from streamserve.process.server_process import ServerProcess, free_port, serve_command
from streamserve.process.signals import exiting_on

COLUMNS = {
    "model": "model",
    "repeats": "repeats",
    "ready_s": "ready s",
    "first_token_s": "first token s",
    "slowest_s": "slowest s",
}
PLOTTED = {"ready_s": "ready, s", "first_token_s": "first token, s"}


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--repeats", "-r", type=click.IntRange(min=1), default=3, show_default=True, help="Starts; medians are reported.")
@output_options
@click.argument("serve_arguments", nargs=-1, type=click.UNPROCESSED, metavar="[SERVE OPTIONS]...")
def startup(repeats: int, as_json: bool, plot: Path | None, serve_arguments: tuple[str, ...]) -> None:
    """Seconds from process start until a server with [SERVE OPTIONS] is ready, and until its first streamed token."""
    with exiting_on(signal.SIGTERM, signal.SIGHUP):
        times = [start_once(serve_arguments) for _ in range(repeats)]
    model, *_ = (name for name, _, _ in times)
    row = {
        "model": model,
        "repeats": repeats,
        "ready_s": round(median(ready for _, ready, _ in times) or 0.0, 3),
        "first_token_s": round(median(first for _, _, first in times) or 0.0, 3),
        "slowest_s": round(max(first for _, _, first in times), 3),
    }
    show(Report("startup", COLUMNS, "model", PLOTTED, [row]), as_json=as_json, plot=plot)


def start_once(arguments: tuple[str, ...]) -> tuple[str, float, float]:
    """The model's name, seconds until ready and seconds until the first token. Raises `Unavailable`."""
    port = free_port()
    with ServerProcess(serve_command(port, *arguments), port) as server:
        model = first_model(server.base_url, None)
        _first_event(port, model)
        return model, server.ready_s, server.age_s


def _first_event(port: int, model: str) -> None:
    body = {"model": model, "prompt": [1], "max_tokens": 1, "stream": True}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200 or not response.readline().startswith(b"data: {"):
            raise Unavailable(f"the server was ready and did not stream: HTTP {response.status}")
    finally:
        connection.close()
