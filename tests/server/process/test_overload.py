"""A server that is asked for far more than it can do; `loadtest/overload.py` by the clock, shorter."""

from __future__ import annotations

import asyncio
from statistics import median

import pytest

from loadtest.overload import ANSWERED, FAILED, GAVE_UP, TIMES, Client, beside, capacity, first_tokens, offer, server

pytestmark = pytest.mark.slow

SECONDS = 15.0


async def study(base_url: str) -> None:
    greedy, polite = Client(base_url, "greedy"), Client(base_url, "polite")
    await capacity(base_url, 5.0)
    peak = await capacity(base_url, SECONDS)
    fates = await offer(greedy, TIMES * peak, SECONDS)
    # Nine tenths on a machine with nothing else to do; its processors are shared here.
    assert fates[ANSWERED] >= 0.75 * peak * SECONDS, fates
    assert not fates[GAVE_UP], fates
    assert not fates[FAILED], fates
    alone = await first_tokens(polite, SECONDS / 3)
    crowded = await beside(greedy, lambda: asyncio.ensure_future(first_tokens(polite, SECONDS)))
    # Without shares a request of this key waits for seconds, or is refused.
    assert median(crowded) <= 6 * median(alone)
    for client in (greedy, polite):
        await client.close()


@pytest.mark.parametrize("arguments", [(), ("--max-queue-time", "3")], ids=["clients say how long they wait", "by a flag"])
def test_ten_times_what_a_server_can_do_costs_it_nothing_and_one_key_little_beside_another(arguments: tuple[str, ...]) -> None:
    with server(*arguments) as (base_url, _):
        asyncio.run(study(base_url))
