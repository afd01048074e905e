"""`make demo`: serve the demo model on a free port, stream two answers through the client's command line, stop.

Runs processes only. A failure, Ctrl-C or a signal that ends this script ends the server too.
"""

from __future__ import annotations

import signal
import subprocess
import sys

from streamserve.errors import Unavailable
from streamserve.process.server_process import ServerProcess, free_port, serve_command
from streamserve.process.signals import exiting_on

QUESTIONS = ("What is the capital of France, and what is it known for?", "描述一下北京的秋天")
NOTE = (
    "The demo model is SmolLM2-135M, small enough to come with a Python package. It knows English; its Chinese is nonsense:\n"
    "a real answer to the second question needs a model such as Qwen3 (streamserve serve --model Qwen/Qwen3-0.6B)."
)


def main() -> None:
    """Run the demo and exit; with 0 when both answers were complete."""
    try:
        with exiting_on(signal.SIGTERM, signal.SIGHUP):
            sys.exit(run())
    except KeyboardInterrupt:
        sys.exit(130)
    except Unavailable as error:
        sys.exit(f"demo: {error}")


def run() -> int:
    """Serve, stream both answers, stop; returns the exit code of the first client that failed, else 0."""
    port = free_port()
    print("$ streamserve serve --model demo", flush=True)
    with ServerProcess(serve_command(port, "--model", "demo"), port) as server:
        print(f"ready after {server.ready_s:.1f} s", flush=True)
        for question in QUESTIONS:
            if code := stream_answer(question, server.base_url):
                return code
    print(f"\n{NOTE}")
    return 0


def stream_answer(question: str, base_url: str) -> int:
    """Stream one answer to the terminal, with its TTFT and tokens/s; returns the client's exit code."""
    print(f'\n$ streamserve-client chat "{question}" --stats', flush=True)
    command = [sys.executable, "-m", "streamserve_client.cli", "chat", question, "--stats"]
    command += ["--max-tokens", "96", "--base-url", base_url]
    return subprocess.run(command, stdin=subprocess.DEVNULL).returncode


if __name__ == "__main__":
    main()
