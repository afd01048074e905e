"""A socket to a server in a process of its own, on the demo model: a signal lets its streams finish."""

from __future__ import annotations

import signal

import pytest

from tests.server.ws.session import numbers, session
from tests.support.serve_process import serve_process

pytestmark = pytest.mark.anyio


async def test_a_signal_lets_streams_finish_and_closes_the_socket_with_1001() -> None:
    arguments = (
        "demo",
        "--max-model-len",
        "256",
        "--kv-cache-memory",
        "64M",
        "--max-num-seqs",
        "4",
        "--shutdown-timeout",
        "20",
    )
    with serve_process(*arguments) as server:
        server.wait_ready()
        async with session(int(server.base_url.rsplit(":", 1)[1])) as client:
            for name in "abc":
                await client.chat(name, "Tell a story.", max_tokens=40, ignore_eos=True)
            await client.receive()
            server.signal(signal.SIGUSR1)
            server.signal(signal.SIGTERM)
            assert await client.closed() == 1001
        for name in "abc":
            own = client.of(name)
            assert (own[-1]["type"], own[-1]["status"]) == ("chat.completion.done", "completed")
            assert own[-2]["data"]["choices"][0]["finish_reason"] == "length"
            assert numbers(own) == list(range(len(own)))
        assert server.wait() == 0
