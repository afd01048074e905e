"""Log-probabilities of a prompt with their text, which is looked up for those that are asked for.

They come all at once, and may be a million: whoever writes them out takes some at a time, on whatever thread. Immutable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import overload

from streamserve.types import TextLogprob, TokenLogprobs

Entry = TextLogprob | None


class PromptLogprobs(Sequence[Entry]):
    """One entry per token of the prompt, None for the first.

    entries    as the engine reports them
    with_text  looks one up
    """

    __slots__ = ("_entries", "_with_text")

    def __init__(self, entries: Sequence[TokenLogprobs | None], with_text: Callable[[TokenLogprobs], TextLogprob]) -> None:
        self._entries = entries
        self._with_text = with_text

    def __len__(self) -> int:
        return len(self._entries)

    @overload
    def __getitem__(self, place: int) -> Entry: ...

    @overload
    def __getitem__(self, place: slice) -> list[Entry]: ...

    def __getitem__(self, place: int | slice) -> Entry | list[Entry]:
        if isinstance(place, slice):
            return [self._read(entry) for entry in self._entries[place]]
        return self._read(self._entries[place])

    def _read(self, entry: TokenLogprobs | None) -> Entry:
        return None if entry is None else self._with_text(entry)
