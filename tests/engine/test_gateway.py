"""Engines behind gateways, as those of other hosts are: who is let through, and replicas that come, leave and are replaced."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import msgspec
import pytest

from streamserve.engine.ipc.tcp import Gateway, Place, TcpAddress
from streamserve.engine.replicas.replica_set import ReplicaSet
from streamserve.engine.replicas.routing_memory import RoutingMemory
from streamserve.engine.resume_state import ResumeState
from streamserve.errors import EngineDead, Unavailable
from streamserve.types import TokenDelta
from tests.engine.conftest import MakeSpec
from tests.engine.processes import PAUSING_SOON, Pair, kill, num_alive, running_at, until
from tests.support.reading import read_all, read_together
from tests.support.scripted import continuation

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def places_of(pair: Pair) -> AsyncIterator[list[Place]]:
    """Where a gateway of each listens."""
    gateways = [Gateway(process.address) for process in pair]
    try:
        yield [Place(await gateway.listen("127.0.0.1")) for gateway in gateways]
    finally:
        for gateway in gateways:
            await gateway.close()


@asynccontextmanager
async def replicas_at(*places: Place) -> AsyncIterator[ReplicaSet]:
    replicas = ReplicaSet(places, RoutingMemory(2), stream_limits=PAUSING_SOON)
    await replicas.start()
    try:
        yield replicas
    finally:
        await replicas.stop()


async def test_an_engine_behind_a_gateway_streams_and_aborts_as_any_other(processes: Pair, make_spec: MakeSpec) -> None:
    async with places_of(processes) as places, replicas_at(places[0]) as replicas:
        [stream] = await replicas.open([spec := make_spec(max_tokens=900)])
        assert (await read_all(stream)).token_ids == continuation(spec.prompt_token_ids, 900)
        [left] = await replicas.open([make_spec(max_tokens=4000)])
        await until(replicas, lambda stats: stats.num_requests_paused == 1)
        left.close()
        stats = await until(replicas, lambda stats: stats.kv_blocks_used == 0)
        assert stats.abort_latency_s < 60, "the clocks of two hosts are not compared"


async def test_who_does_not_know_the_secret_is_sent_away(processes: Pair) -> None:
    async with places_of(processes) as places:
        address = places[0].address
        assert address is not None
        with pytest.raises(EngineDead):
            await ReplicaSet([Place(msgspec.structs.replace(address, secret=b"guessed"))]).start()
        async with await anyio.connect_tcp(address.host, address.port) as stranger:
            assert len(await stranger.receive(32)) == 32
            await stranger.send(b"x" * 32)
            with anyio.fail_after(5), pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                await stranger.receive()


async def test_nobody_at_an_address_is_an_engine_that_has_ended() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = TcpAddress("127.0.0.1", taken.getsockname()[1], b"")
    with pytest.raises(EngineDead, match="can't be reached"):
        await ReplicaSet([Place(address)]).start()


async def test_a_replica_that_is_added_takes_requests_and_there_is_room_for_so_many(
    processes: Pair, make_spec: MakeSpec
) -> None:
    async with places_of(processes) as places, replicas_at(places[0]) as replicas:
        assert await replicas.add(places[1]) == 1
        streams = [(await replicas.open([make_spec(max_tokens=4000)]))[0] for _ in range(4)]
        await until(replicas, lambda stats: stats.num_requests_paused == 4)
        assert await running_at(replicas) == [2, 2]
        with pytest.raises(Unavailable, match="2 replicas already"):
            await replicas.add(Place(places[0].address))
        for stream in streams:
            stream.close()


async def test_what_a_retired_replica_still_runs_continues_with_the_next_token_at_another(
    processes: Pair, make_spec: MakeSpec
) -> None:
    async with places_of(processes) as places, replicas_at(*places) as replicas:
        specs = [make_spec(max_tokens=900) for _ in range(4)]
        streams = await replicas.open(specs)
        await until(replicas, lambda stats: stats.num_requests_paused == 4)
        assert await replicas.retire(0, timeout_s=0)
        with anyio.fail_after(20):
            wholes = await read_together(streams)
        assert [whole.token_ids for whole in wholes] == [continuation(spec.prompt_token_ids, 900) for spec in specs]
        assert await replicas.add(Place(places[0].address)) == 0, "its number goes to the next"


async def test_first_figures_of_a_sequence_that_has_moved_are_reported_once(make_spec: MakeSpec) -> None:
    state = ResumeState(make_spec())
    first = TokenDelta([5], cached_tokens=16, queue_s=1.0)
    assert state.without_repeats(first) is first
    state.token_ids.append(5)
    state.engine_left()
    again = state.without_repeats(first)
    assert (again.cached_tokens, again.queue_s) == (0, None)
    assert not state.is_suspect


async def test_streams_of_the_last_replica_wait_for_the_one_that_comes_in_its_place(
    processes: Pair, make_spec: MakeSpec
) -> None:
    async with places_of(processes) as places, replicas_at(places[0]) as replicas:
        [stream] = await replicas.open([spec := make_spec(max_tokens=900)])
        await until(replicas, lambda stats: stats.num_requests_paused == 1)
        assert not await replicas.retire(0, timeout_s=0)
        with pytest.raises(Unavailable):
            await replicas.open([make_spec()])
        await kill(processes[0])
        places[0].address = places[1].address
        with anyio.fail_after(20):
            assert (await read_all(stream)).token_ids == continuation(spec.prompt_token_ids, 900)
            [next_stream] = await replicas.open([make_spec()])
            await read_all(next_stream)
        processes[0].restart()


async def test_streams_of_a_place_that_is_closed_end(processes: Pair, make_spec: MakeSpec) -> None:
    async with places_of(processes) as places, replicas_at(places[0]) as replicas:
        [stream] = await replicas.open([make_spec(max_tokens=4000)])
        await until(replicas, lambda stats: stats.num_requests_paused == 1)
        places[0].is_closed = True
        await kill(processes[0])
        with anyio.fail_after(10):
            whole = await read_all(stream)
        assert whole.finish_reason == "error"
        processes[0].restart()


async def test_a_router_counts_the_sequences_of_others_where_there_are_others(processes: Pair, make_spec: MakeSpec) -> None:
    async with places_of(processes) as places, replicas_at(places[0]) as others:
        theirs = await others.open([make_spec(max_tokens=4000) for _ in range(3)])
        await until(others, lambda stats: stats.num_requests_paused == 3)
        replicas = ReplicaSet([Place(place.address) for place in places], is_only_router=False, stream_limits=PAUSING_SOON)
        await replicas.start()
        try:
            in_a_row = 0
            with anyio.fail_after(10):
                # Without knowing of the others', they would be taken in turn.
                while in_a_row < 3:
                    [stream] = await replicas.open([make_spec(max_tokens=4000)])
                    in_a_row = in_a_row + 1 if await running_at(replicas) == [3, 1] else 0
                    stream.close()
                    await until(replicas, lambda stats: num_alive(stats) == 3)
        finally:
            await replicas.stop()
        for stream in theirs:
            stream.close()
