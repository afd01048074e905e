"""How much a JSON text holds: its objects, arrays, strings and commas, counted before anything of it is built.

A megabyte takes some milliseconds, so that callers on an event loop feed pieces and let others run in between. Knows no types.
"""

from __future__ import annotations

_ESCAPED_BACKSLASH, _ESCAPED_QUOTE = b"\\\\", b'\\"'


class JsonStructure:
    """Counts of the text fed so far.

    containers  objects and arrays
    strings     names of members included
    commas      outside of strings: the values, but for one in each container
    """

    def __init__(self) -> None:
        self.containers = 0
        self.commas = 0
        self._quotes = 0
        self._rest = b""

    @property
    def strings(self) -> int:
        return (self._quotes + 1) // 2

    def feed(self, piece: bytes, *, max_strings: int) -> None:
        """Count one more piece; only its strings where they exceed `max_strings`.

        Text that is no JSON has some count or other.
        """
        text = self._rest + piece
        complete = text.rstrip(b"\\")
        # Whether a backslash at the end of a piece escapes what follows depends on whether their number is odd.
        self._rest = b"\\" * ((len(text) - len(complete)) % 2)
        plain = complete.replace(_ESCAPED_BACKSLASH, b"").replace(_ESCAPED_QUOTE, b"") if b"\\" in complete else complete
        starts_inside = self._quotes % 2
        self._quotes += plain.count(b'"')
        if self.strings > max_strings:
            return
        outside = b"".join(plain.split(b'"')[starts_inside::2])
        self.containers += outside.count(b"[") + outside.count(b"{")
        self.commas += outside.count(b",")
