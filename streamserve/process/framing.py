"""Messages between processes of this program: length-prefixed msgpack frames.

Sans-IO: bytes in, messages out. A frame is a 4-byte big-endian length and that many bytes of msgpack. Every message is checked
against its type while it is decoded, so that a peer can send nothing executable.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

import msgspec

MAX_FRAME_BYTES = 256 << 20
_LENGTH_BYTES = 4
_ENCODER = msgspec.msgpack.Encoder()

M = TypeVar("M")


class ProtocolViolation(Exception):
    """The peer sent something that is not a frame of this protocol; the connection can't be used any more."""


def encode(message: msgspec.Struct) -> bytes:
    """A message as one frame."""
    buffer = bytearray(_LENGTH_BYTES)
    _ENCODER.encode_into(message, buffer, _LENGTH_BYTES)
    buffer[:_LENGTH_BYTES] = (len(buffer) - _LENGTH_BYTES).to_bytes(_LENGTH_BYTES, "big")
    return bytes(buffer)


class FrameDecoder(Generic[M]):
    """Cuts a byte stream into messages.

    decoder  of the one union of messages that this direction carries
    """

    def __init__(self, decoder: msgspec.msgpack.Decoder[M]) -> None:
        self._decoder = decoder
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[M]:
        """The messages that `data` completes, in order; raises `ProtocolViolation`."""
        self._buffer += data
        start = 0
        try:
            while len(self._buffer) - start >= _LENGTH_BYTES:
                body = start + _LENGTH_BYTES
                end = body + int.from_bytes(self._buffer[start:body], "big")
                if end - body > MAX_FRAME_BYTES:
                    raise ProtocolViolation(f"a frame of {end - body} bytes; at most {MAX_FRAME_BYTES} are allowed")
                if len(self._buffer) < end:
                    break
                frame = bytes(self._buffer[body:end])
                start = end
                yield self._decode(frame)
        finally:
            del self._buffer[:start]

    def _decode(self, frame: bytes) -> M:
        try:
            return self._decoder.decode(frame)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ProtocolViolation(str(error)) from error
