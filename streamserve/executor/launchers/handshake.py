"""How ranks of other machines connect to their engine: a handshake over TCP, after which both ends are plain connections.

The engine sends a number used once; the rank answers with its own number and a proof that it knows the secret (HMAC-SHA-256),
and the first of them with the address of the store that it will keep for all. Blocking calls. Nothing here is encrypted:
ranks belong in a network of their own, as NCCL's connections do.
"""

from __future__ import annotations

import hmac
import secrets
import socket
from typing import NamedTuple

import msgspec

from streamserve.process.framing import FrameDecoder, M, ProtocolViolation, encode

HANDSHAKE_TIMEOUT_S = 10.0
"""Seconds that a peer gets for its part of the handshake."""


class Challenge(msgspec.Struct, frozen=True, array_like=True):
    """The engine's first frame."""

    nonce: bytes


class Hello(msgspec.Struct, frozen=True, array_like=True):
    """The rank's answer.

    proof  of the secret, for the nonce
    store  "host:port" of the store, from the first rank
    """

    rank: int
    proof: bytes
    store: str


class StoreAddress(msgspec.Struct, frozen=True, array_like=True):
    """The engine's second frame, once all ranks have connected.

    store  "host:port" of the store, which the first rank keeps
    """

    store: str


class ConnectedRank(NamedTuple):
    """A rank that knows the secret."""

    rank: int
    store: str
    connection: socket.socket

    def admit(self, store: StoreAddress) -> None:
        """Complete the handshake."""
        self.connection.sendall(encode(store))
        self.connection.settimeout(None)


def accept_rank(connection: socket.socket, secret: bytes) -> ConnectedRank | None:
    """The engine's part: the rank behind a new connection; None, and it is closed, for one that does not know the secret."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.settimeout(HANDSHAKE_TIMEOUT_S)
    nonce = secrets.token_bytes(32)
    try:
        connection.sendall(encode(Challenge(nonce)))
        hello = _receive(connection, Hello)
    except (OSError, ProtocolViolation):
        connection.close()
        return None
    if not hmac.compare_digest(hello.proof, _proof(secret, nonce)):
        connection.close()
        return None
    return ConnectedRank(hello.rank, hello.store, connection)


def connect_to_engine(
    address: tuple[str, int], secret: bytes, rank: int, *, timeout_s: float
) -> tuple[socket.socket, str, int]:
    """A rank's part: its connection, the store's address, and the descriptor of the socket that the store listens on.

    The first rank keeps the store; for the others the descriptor is -1.

    timeout_s  how long the other ranks may take to connect
    Raises `OSError` when the engine can't be reached or turns it away.
    """
    connection = socket.create_connection(address, HANDSHAKE_TIMEOUT_S)
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        challenge = _receive(connection, Challenge)
        store, store_fd = "", -1
        if rank == 0:
            host = connection.getsockname()[0]
            listening = socket.create_server((host, 0))
            store, store_fd = f"{host}:{listening.getsockname()[1]}", listening.detach()
        connection.sendall(encode(Hello(rank, _proof(secret, challenge.nonce), store)))
        connection.settimeout(timeout_s)
        found = _receive(connection, StoreAddress)
        connection.settimeout(None)
    except BaseException:
        connection.close()
        raise
    return connection, found.store, store_fd


def _proof(secret: bytes, nonce: bytes) -> bytes:
    return hmac.digest(secret, nonce, "sha256")


def _receive(connection: socket.socket, kind: type[M]) -> M:
    """The next frame. The peer sends no more before it has an answer."""
    decoder = FrameDecoder(msgspec.msgpack.Decoder(kind))
    while data := connection.recv(4096):
        for message in decoder.feed(data):
            return message
    raise ConnectionError("the peer has closed the connection")
