"""The command group `streamserve bench`."""

from __future__ import annotations

import click

from streamserve.bench.offline import latency, prefill, throughput
from streamserve.bench.serve import serve
from streamserve.bench.startup import startup


@click.group()
def bench() -> None:
    """Measure the engine in this process (latency, prefill, throughput), a server (serve), or its start (startup)."""


for command in (latency, prefill, throughput, serve, startup):
    bench.add_command(command)
