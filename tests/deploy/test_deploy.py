"""What an application is made of, without Ray: its options, its directory, its API workers among each other, its scale."""

from __future__ import annotations

import asyncio
import importlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
import yaml

from streamserve.deploy.api_siblings import ApiSiblings
from streamserve.deploy.autoscaling import by_queue_depth
from streamserve.deploy.directory import ANNOUNCE_INTERVAL_S, TTL_S, Directory, Member
from streamserve.deploy.options import Scale, app_options
from streamserve.deploy.ray_serve import app
from streamserve.engine.ipc.tcp import TcpAddress
from streamserve.errors import ConfigError
from streamserve.server.http.access.owned_id import OwnedId

pytestmark = pytest.mark.anyio

ADDRESS = TcpAddress("127.0.0.1", 1, b"")


def test_options_are_those_of_the_command_and_how_many_there_are_is_no_concern_of_theirs() -> None:
    args = {"model": "demo", "max_model_len": "512", "api-key": ["a", "b"], "enforce-eager": True}
    options, scale = app_options({**args, "data-parallel-size": 3, "api-server-count": 2})
    assert (options.engine.max_model_len, options.engine.enforce_eager, options.server.api_keys) == (512, True, ["a", "b"])
    assert scale == Scale(num_engines=3, num_api=2)
    assert app_options(args) == (options, Scale(1, 1)), "whoever is scaled is not started anew"
    assert app_options({**args, "data-parallel-size": 3})[1] == Scale(3, 1)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"model": "demo", "port": 80}, "port in args: .* http_options.port"),
        ({"model": "demo", "max-engine-restarts": 3}, "Ray Serve replaces replicas"),
        ({"model": "demo", "nothing": 1}, "nothing in args: there is no such option"),
        ({"model": "demo", "max-num-seqs": "many"}, "--max-num-seqs.*'many' is no whole number"),
        ({"model": "demo", "pipeline-parallel-size": 2}, "--pipeline-parallel-size 2: only 1 is supported"),
        ({}, "name a model"),
    ],
)
def test_an_option_that_is_wrong_or_belongs_elsewhere_is_named(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        app_options(args)


def test_the_configuration_on_the_page_is_one() -> None:
    page = (Path(__file__).parents[2] / "docs" / "SCALING.md").read_text()
    configuration = yaml.safe_load(page.partition("```yaml")[2].partition("```")[0])
    [application] = configuration["applications"]
    module, _, name = application["import_path"].partition(":")
    assert getattr(importlib.import_module(module), name) is app
    args = application["args"]
    assert args.pop("autoscaling")["max_replicas"] == 20
    assert app_options(args)[0].engine.tensor_parallel_size == 2


def test_without_ray_serve_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'streamserve\[ray-serve\]'"):
        app({"model": "demo"})


@pytest.mark.parametrize(
    ("sequences", "replicas"), [([], 0), ([0.0, 0.0], 0), ([64.0], 1), ([65.0], 2), ([100.0, 100.0, 1.0], 4)]
)
def test_there_are_as_many_replicas_as_sequences_need(sequences: list[float], replicas: int) -> None:
    metrics = {"sequences": dict(enumerate(sequences)), "waiting": {}}
    context = SimpleNamespace(aggregated_metrics=metrics, config=SimpleNamespace(target_ongoing_requests=64.0))
    assert by_queue_depth(context) == (replicas, {})


async def test_a_member_that_is_not_heard_of_is_forgotten() -> None:
    now = 0.0
    directory = Directory(clock=lambda: now)
    first, second, third = (Member(id=id, kind="engine", address=ADDRESS) for id in "abc")
    for member in (first, second, third):
        await directory.announce(member)
    await directory.leave("c")
    now = TTL_S - ANNOUNCE_INTERVAL_S
    await directory.announce(second)
    assert await directory.members() == [first, second]
    now = TTL_S
    assert await directory.members() == [second]


async def test_api_workers_find_and_reach_each_other_until_one_is_gone() -> None:
    here = ApiSiblings(lambda method, id: False)
    there = ApiSiblings(lambda method, id: id == OwnedId("tenant", "kept"))

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        writer.close()

    http = await asyncio.start_unix_server(echo, there.http_path)
    try:
        address, control = await there.listen("127.0.0.1")
        members = [Member(id=id, kind="api", address=address, control=control) for id in ("there", "here")]
        await here.update(members, "here")
        await here.update(members, "here")
        assert await here.call("find", OwnedId("tenant", "other")) is None
        number = await here.call("find", OwnedId("tenant", "kept"))
        assert number is not None
        async with await anyio.connect_unix(here.internal_socket(number)) as connection:
            await connection.send(b"hello\n")
            assert await connection.receive() == b"hello\n"
        await there.close()
        with anyio.fail_after(5):
            while await here.call("find", OwnedId("tenant", "kept")) is not None:
                await anyio.lowlevel.checkpoint()
    finally:
        http.close()
        await here.close()
        await there.close()
