"""The handshake of ranks that connect over TCP: who knows the secret gets in, and all learn where the store is."""

from __future__ import annotations

import hmac
import socket
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from streamserve.executor.launchers.handshake import Challenge, Hello, StoreAddress, accept_rank, connect_to_engine
from streamserve.process.framing import FrameDecoder, encode

SECRET = b"s" * 32


def test_ranks_that_know_the_secret_are_admitted_and_told_where_the_first_one_keeps_the_store() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening, ThreadPoolExecutor(2) as threads:
        connecting = [
            threads.submit(connect_to_engine, listening.getsockname(), SECRET, rank, timeout_s=10.0) for rank in range(2)
        ]
        connected = {each.rank: each for _ in range(2) if (each := accept_rank(listening.accept()[0], SECRET)) is not None}
        assert connected[1].store == ""
        for each in connected.values():
            each.admit(StoreAddress(connected[0].store))
        (first, store, store_fd), (second, same, no_fd) = (each.result() for each in connecting)
        with first, second, socket.socket(fileno=store_fd) as kept:
            assert store == same == "{}:{}".format(*kept.getsockname())
            assert no_fd == -1
            connected[1].connection.sendall(b"a plan")
            assert second.recv(100) == b"a plan"
        for each in connected.values():
            each.connection.close()


def test_whoever_does_not_know_it_is_turned_away() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening, ThreadPoolExecutor(1) as threads:
        connecting = threads.submit(connect_to_engine, listening.getsockname(), b"guess", 1, timeout_s=10.0)
        assert accept_rank(listening.accept()[0], SECRET) is None
        with pytest.raises(ConnectionError):
            connecting.result()


def test_a_proof_for_an_earlier_challenge_is_refused() -> None:
    challenges = FrameDecoder(msgspec.msgpack.Decoder(Challenge))
    proof = b""
    with socket.create_server(("127.0.0.1", 0)) as listening, ThreadPoolExecutor(1) as threads:
        for is_accepted in (True, False):
            with socket.create_connection(listening.getsockname()) as rank:
                accepting = threads.submit(accept_rank, listening.accept()[0], SECRET)
                [challenge] = challenges.feed(rank.recv(100))
                proof = proof or hmac.digest(SECRET, challenge.nonce, "sha256")
                rank.sendall(encode(Hello(0, proof, "")))
                connected = accepting.result()
                assert (connected is not None) == is_accepted
                if connected is not None:
                    connected.connection.close()


@pytest.mark.parametrize("nonsense", [b"GET / HTTP/1.1\r\n\r\n", b"", b"\x00\x00\x00\x01\xc1"])
def test_a_peer_that_speaks_something_else_is_turned_away(nonsense: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        with socket.create_connection(listening.getsockname()) as stranger:
            stranger.sendall(nonsense)
            stranger.shutdown(socket.SHUT_WR)
            assert accept_rank(listening.accept()[0], SECRET) is None
