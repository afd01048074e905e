"""The load test that Locust runs: its users, its shape, what it must keep to, its report.

Needs the extra `loadtest`. Exits with 1 when a threshold is not kept.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from locust import LoadTestShape, events
from locust.argument_parser import LocustArgumentParser

from loadtest.report import page
from loadtest.samples import Sampler
from loadtest.shapes import SHAPES, Course
from loadtest.thresholds import Thresholds, violations
from loadtest.users import AgentUser, ChatUser, LeavingUser, NeverReader, ResumingUser, SlowReader, SocketUser

__all__ = [
    "AgentUser",
    "ChatUser",
    "LeavingUser",
    "NeverReader",
    "ResumingUser",
    "Shape",
    "SlowReader",
    "SocketUser",
]


@events.init_command_line_parser.add_listener
def add_options(parser: LocustArgumentParser) -> None:
    parser.add_argument("--shape", choices=sorted(SHAPES), default="steps", help="How many users there are when")
    parser.add_argument("--max-users", type=int, default=32, help="Users at the shape's height")
    parser.add_argument("--seconds", type=float, default=120.0, help="How long the test takes, but for steps")
    parser.add_argument("--step-s", type=float, default=30.0, help="Seconds between two steps")
    parser.add_argument("--max-ttft-ms", type=float, default=None, help="p99 of the time to the first token, at most")
    parser.add_argument("--max-gap-ms", type=float, default=None, help="p99 of the gap between two texts, at most")
    parser.add_argument("--max-fail-ratio", type=float, default=0.0, help="Share of answers that may fail")
    parser.add_argument("--report", default="", help="File for the report, HTML")
    parser.add_argument(
        "--server-pid", type=int, default=None, help="The server's process, if it runs here: its memory is shown"
    )


class Shape(LoadTestShape):
    """The shape that `--shape` names."""

    def tick(self) -> tuple[int, float] | None:
        options = self.runner.environment.parsed_options
        course = Course(options.max_users, options.seconds, options.step_s)
        users = SHAPES[options.shape](course, self.get_run_time())
        return None if users is None else (users, float(max(1, users)))


@events.test_start.add_listener
def start_sampling(environment: Any, **_: Any) -> None:
    environment.sampler = Sampler(environment, environment.parsed_options.server_pid)


@events.quitting.add_listener
def judge(environment: Any, **_: Any) -> None:
    """Say what was not kept, and write the report."""
    options, stats = environment.parsed_options, environment.stats
    environment.sampler.stop()
    held = environment.sampler.settled()
    found = violations(stats, Thresholds(options.max_ttft_ms, options.max_gap_ms, options.max_fail_ratio), held)
    for each in found:
        print(f"not kept: {each}", file=sys.stderr)
    if options.report:
        text = page(
            f"Load test: {options.shape}",
            shlex.join(["locust", *sys.argv[1:]]),
            environment.sampler.samples,
            stats,
            found,
            held,
        )
        Path(options.report).write_text(text, encoding="utf-8")
        print(f"report: {options.report}", file=sys.stderr)
    environment.process_exit_code = int(bool(found))
