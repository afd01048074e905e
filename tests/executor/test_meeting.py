"""The handshake of ranks that connect over TCP: who knows the secret gets in, and all learn where the store is."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from streamserve.executor.launchers.meeting import Hello, Meeting, greet, visit
from streamserve.process.framing import encode

SECRET = b"s" * 32


def test_ranks_that_know_the_secret_are_admitted_and_told_where_the_first_one_keeps_the_store() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening, ThreadPoolExecutor(2) as threads:
        visits = [threads.submit(visit, listening.getsockname(), SECRET, rank, timeout_s=10.0) for rank in range(2)]
        guests = {guest.rank: guest for _ in range(2) if (guest := greet(listening.accept()[0], SECRET)) is not None}
        assert guests[1].store == ""
        for guest in guests.values():
            guest.admit(Meeting(guests[0].store))
        (first, store, store_fd), (second, same, no_fd) = (each.result() for each in visits)
        with first, second, socket.socket(fileno=store_fd) as kept:
            assert store == same == "{}:{}".format(*kept.getsockname())
            assert no_fd == -1
            guests[1].connection.sendall(b"a plan")
            assert second.recv(100) == b"a plan"
        for guest in guests.values():
            guest.connection.close()


def test_whoever_does_not_know_it_is_turned_away() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening, ThreadPoolExecutor(1) as threads:
        visiting = threads.submit(visit, listening.getsockname(), b"guess", 1, timeout_s=10.0)
        assert greet(listening.accept()[0], SECRET) is None
        with pytest.raises(ConnectionError):
            visiting.result()


def test_an_answer_to_an_earlier_challenge_is_worth_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        hellos = []
        for _ in range(2):
            with socket.create_connection(listening.getsockname()) as stranger:
                stranger.sendall(encode(Hello(0, hellos[0] if hellos else b"", "")))
                assert greet(listening.accept()[0], SECRET) is None
                hellos.append(stranger.recv(100))
        assert hellos[0] != hellos[1]


@pytest.mark.parametrize("nonsense", [b"GET / HTTP/1.1\r\n\r\n", b"", b"\x00\x00\x00\x01\xc1"])
def test_a_peer_that_speaks_something_else_is_turned_away(nonsense: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        with socket.create_connection(listening.getsockname()) as stranger:
            stranger.sendall(nonsense)
            stranger.shutdown(socket.SHUT_WR)
            assert greet(listening.accept()[0], SECRET) is None
