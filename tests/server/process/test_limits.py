"""Limits that a server sets itself at its start."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest

from streamserve.process.limits import descriptor_limit, raise_descriptor_limit
from streamserve.server.http.connections.connection_limit import connections_for


@pytest.fixture
def hard_limit() -> Iterator[int]:
    """The hard limit on descriptors, with the soft one below it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_shells_descriptor_limit_is_raised_as_far_as_the_user_may(hard_limit: int) -> None:
    """At the usual soft limit of 1 024 a server stopped to accept at about as many clients, without a word."""
    raise_descriptor_limit()
    assert descriptor_limit() == hard_limit


@pytest.mark.parametrize(("descriptors", "connections"), [(1024, 896), (128, 64)])
def test_descriptors_are_kept_for_all_else(descriptors: int, connections: int) -> None:
    assert connections_for(descriptors) == connections
