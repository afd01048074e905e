"""What a conversation is compacted to: a summary, in a form that clients send back and do not read.

OpenAI's API calls the form encrypted; this server has nothing to hide from who had it written, and encodes it. Pure functions.
"""

from __future__ import annotations

import base64
import binascii
from contextlib import suppress

from streamserve.errors import InvalidParameter

_MARK = "streamserve-1:"
_INTRODUCTION = "Summary of the conversation so far:\n\n"


def encoded(summary: str) -> str:
    """A summary as the `encrypted_content` of a compaction."""
    return _MARK + base64.b64encode(summary.encode()).decode()


def summary_of(where: str, content: str) -> str:
    """The text that a model reads for an `encrypted_content`. Raises `InvalidParameter` unless it was made by `encoded`."""
    with suppress(binascii.Error, UnicodeDecodeError):
        if content.startswith(_MARK):
            return _INTRODUCTION + base64.b64decode(content.removeprefix(_MARK), validate=True).decode()
    raise InvalidParameter(where, "was not made by this server: send the conversation itself")
