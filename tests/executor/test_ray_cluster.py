"""The address of a Ray cluster, before Ray is imported."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from streamserve.errors import ConfigError
from streamserve.executor.launchers.ray_cluster import require_reachable_cluster


@pytest.fixture
def address_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where `ray start` leaves an address; its folder exists."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "ray").mkdir()
    return tmp_path / "ray" / "ray_current_cluster"


def closed_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def test_a_file_that_a_dead_cluster_left_is_named(address_file: Path) -> None:
    address_file.write_text(address := closed_address())
    with pytest.raises(ConfigError) as refusal:
        require_reachable_cluster()
    assert str(address_file) in refusal.value.message
    assert address in refusal.value.message


def test_a_wrong_ray_address_is_named_and_counts_before_the_file(address_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", closed_address())
    with socket.create_server(("127.0.0.1", 0)) as server:
        address_file.write_text(f"127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(ConfigError, match="RAY_ADDRESS names"):
            require_reachable_cluster()


@pytest.mark.parametrize("address", ["", "auto", "local", "ray://127.0.0.1:1", "nonsense"])
def test_without_an_address_to_look_at_ray_decides(address: str, address_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    require_reachable_cluster()


def test_a_cluster_that_answers_is_taken(address_file: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address_file.write_text(f"127.0.0.1:{server.getsockname()[1]}\n")
        require_reachable_cluster()
