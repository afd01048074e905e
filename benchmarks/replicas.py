"""Requests per second of one replica and of several behind the router, over HTTP: `python benchmarks/replicas.py --help`.

Needs no weights and no tokenizer: the model is a shape with random weights (benchmarks/configs), whose tokens are called t256,
t257 and so on. Each number of replicas is one server, and each server gets two loads in a closed loop, with so many streams for
each replica: prompts that share nothing, and prompts that begin with one of some long prefixes, for which it counts where they
were sent before. On GPUs every replica takes one, or as many as -tp says; on CPUs they share the cores.
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# The checkout need not be installed on the machine that measures it.
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import click  # noqa: E402
from prometheus_client.parser import text_string_to_metric_families  # noqa: E402
from tokenizers import Tokenizer, decoders, pre_tokenizers  # noqa: E402
from tokenizers.models import BPE  # noqa: E402

from streamserve.bench.load import Load, run_load, summary  # noqa: E402
from streamserve.bench.output import show  # noqa: E402
from streamserve.bench.report import Report  # noqa: E402
from streamserve.bench.workloads import Span  # noqa: E402
from streamserve.process.server_process import ServerProcess, free_port, serve_command  # noqa: E402
from streamserve.process.signals import exiting_on  # noqa: E402

COLUMNS = {
    "replicas": "replicas",
    "load": "load",
    "ready_s": "ready s",
    "c": "streams",
    "req_s": "req/s",
    "times_one": "x",
    "tok_s": "tokens/s",
    "ttft_p50": "TTFT p50",
    "ttft_p99": "p99",
    "tpot_p50": "TPOT p50",
    "cached": "cached",
    "prompts": "prompt tokens by replica, %",
}
Row = dict[str, Any]


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--model", default=str(ROOT / "benchmarks/configs/Qwen3-8B"), show_default=True, help="Folder with config.json.")
@click.option("--replicas", "-dp", multiple=True, type=click.IntRange(min=1), default=[1, 4], show_default=True)
@click.option("--streams", "-c", type=click.IntRange(min=1), default=64, show_default=True, help="In flight for each replica.")
@click.option("--rounds", type=click.IntRange(min=1), default=4, show_default=True, help="Requests of a stream, in turn.")
@click.option("--input-len", "-i", type=int, default=512, show_default=True)
@click.option("--output-len", "-o", type=int, default=128, show_default=True)
@click.option(
    "--prefix-len", type=int, default=2048, show_default=True, help="Of the second load; its prompts end with 64 more."
)
@click.option("--prefixes", type=int, default=16, show_default=True, help="Of the second load, for each replica.")
@click.option("--workers", type=int, default=2, show_default=True, help="API processes for each replica.")
@click.option("--clients", type=int, default=4, show_default=True, help="Client processes for each replica.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Where to write all rows.")
@click.argument("serve_options", nargs=-1, type=click.UNPROCESSED, metavar="[SERVE OPTIONS]...")
def main(model: str, replicas: tuple[int, ...], json_path: Path | None, serve_options: tuple[str, ...], **sizes: int) -> None:
    """Measure servers with these numbers of replicas, started with [SERVE OPTIONS], and print a table."""
    report = Report(f"{Path(model).name}, random weights, times in ms", COLUMNS, "replicas", {"req_s": "requests per second"})
    with tempfile.TemporaryDirectory() as folder, exiting_on(signal.SIGTERM, signal.SIGHUP):
        write_model(Path(folder), Path(model))
        for count in replicas:
            report.rows += measure(folder, count, serve_options, **sizes)
            print(json.dumps(report.rows[-2:]), file=sys.stderr, flush=True)
    base = {row["load"]: row["req_s"] / row["replicas"] for row in sorted(report.rows, key=lambda row: -row["replicas"])}
    for row in report.rows:
        row["times_one"] = round(row["req_s"] / base[row["load"]], 2)
    if json_path is not None:
        json_path.write_text("".join(json.dumps(row) + "\n" for row in report.rows))
    show(report, as_json=False, plot=None)


def write_model(folder: Path, model: Path) -> None:
    """The model's configuration, and a tokenizer with a name for each token: bytes first."""
    config = json.loads((model / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config))
    names = pre_tokenizers.ByteLevel.alphabet()
    names += [f"t{number}" for number in range(len(names), config["vocab_size"])]
    tokenizer = Tokenizer(BPE(vocab={name: number for number, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))


def measure(
    folder: str,
    count: int,
    serve_options: tuple[str, ...],
    *,
    streams: int,
    rounds: int,
    input_len: int,
    output_len: int,
    prefix_len: int,
    prefixes: int,
    workers: int,
    clients: int,
) -> list[Row]:
    """A row for each load of a server with so many replicas. Exits with an error when a request fails."""
    port, rows = free_port(), []
    options = ["--load-format", "dummy", "-dp", str(count), "--api-server-count", str(workers * count), *serve_options]
    with ServerProcess(serve_command(port, "--model", folder, "--served-model-name", "m", *options), port) as server:

        def load(num_requests: int, **lengths: Any) -> Load:
            return Load(
                base_url=server.base_url,
                model="m",
                concurrency=streams * count,
                num_requests=num_requests,
                output_len=Span(output_len, output_len),
                processes=min(clients * count, streams * count),
                token_ids=True,
                **lengths,
            )

        run_load(load(streams * count, input_len=Span(16, 16), seed=1))
        shared = {"input_len": Span(64, 64), "prefix_len": prefix_len, "num_prefixes": prefixes * count}
        for name, lengths in (("apart", {"input_len": Span(input_len, input_len)}), ("prefixes", shared)):
            before = scrape(server.base_url)
            settings = load(streams * count * rounds, **lengths)
            row = summary(settings, run_load(settings), tag=name)
            if row["failed"] or row["short"]:
                raise click.ClickException(f"{row['failed']} requests failed, {row['short']} were short: {row['why']}")
            rows.append({"replicas": count, "load": name, "ready_s": round(server.ready_s, 1), **row})
            rows[-1] |= by_replica(before, scrape(server.base_url), count)
    return rows


def scrape(base_url: str) -> dict[tuple[str, str], float]:
    """Values of /metrics by name and engine."""
    with urllib.request.urlopen(f"{base_url}/metrics") as page:
        families = text_string_to_metric_families(page.read().decode())
    return {(sample.name, sample.labels.get("engine", "")): sample.value for family in families for sample in family.samples}


def by_replica(before: dict[tuple[str, str], float], after: dict[tuple[str, str], float], count: int) -> Row:
    """The share of prompt tokens that were in a prefix cache, and which share of all prompt tokens each replica got."""

    def grown(name: str) -> list[float]:
        keys = [(f"vllm:{name}_total", str(number)) for number in range(count)]
        return [after[key] - before[key] for key in keys]

    queries = grown("prefix_cache_queries")
    total = sum(queries) or 1.0
    return {
        "cached": round(sum(grown("prefix_cache_hits")) / total, 2),
        "prompts": [round(100 * each / total) for each in queries],
    }


if __name__ == "__main__":
    main()
