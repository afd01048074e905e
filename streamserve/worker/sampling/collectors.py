"""What some lines of a step need beyond their row: each collector gathers one kind, packs it, and reads it back on the device.

Runs on the launch thread. `pack` puts the numbers among the step's words and returns how to view them once they are there; a
kind that no line needs packs nothing and reads as None.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from streamserve.worker.device.staging import Packing, floats
from streamserve.worker.rows.traits import Biases, MaskWords
from streamserve_kernels import BadWords, LogitEdits, LogprobRequest, Penalties, TokenMasks

_BAN = -np.inf


class Lines:
    """Lines of one kind."""

    def __init__(self) -> None:
        self.lines: list[int] = []

    def pack(self, packing: Packing) -> Callable[[Tensor], Tensor | None]:
        if not self.lines:
            return _absent
        lines = packing.put(self.lines)
        return lambda words: words[lines]


class RestrictedLines(Lines):
    """Lines with a restriction, such as top_k."""

    def __init__(self) -> None:
        super().__init__()
        self._top_ks: list[int] = []

    def add(self, line: int, top_k: int) -> None:
        self.lines.append(line)
        self._top_ks.append(top_k)

    @property
    def max_top_k(self) -> int:
        """0 when one of them has none."""
        return 0 if 0 in self._top_ks else max(self._top_ks, default=0)


class EditCollector:
    """Numbers to add to single logits. Those that lines share, as the sequences of one request do, go up once."""

    def __init__(self) -> None:
        self._uses: list[tuple[int, int]] = []
        self._places: dict[int, int] = {}
        self._sets: list[Biases] = []

    def add(self, line: int, biases: Biases) -> None:
        if len(biases[0]):
            place = self._places.setdefault(id(biases), len(self._sets))
            if place == len(self._sets):
                self._sets.append(biases)
            self._uses.append((line, place))

    def ban(self, line: int, token_ids: list[int]) -> None:
        self.add(line, (np.array(token_ids, dtype=np.int32), np.full(len(token_ids), _BAN, dtype=np.float32)))

    def pack(self, packing: Packing) -> Callable[[Tensor], LogitEdits | None]:
        if not self._uses:
            return _absent
        sizes = np.array([len(token_ids) for token_ids, _ in self._sets], dtype=np.int32)
        starts = np.cumsum(sizes, dtype=np.int32) - sizes
        places = [place for _, place in self._uses]
        lines = packing.put([line for line, _ in self._uses])
        firsts, counts = packing.put(starts[places]), packing.put(sizes[places])
        token_ids = packing.put(np.concatenate([token_ids for token_ids, _ in self._sets]))
        values = packing.put(np.concatenate([values for _, values in self._sets]))
        longest = int(sizes.max())
        return lambda words: LogitEdits(
            words[lines], words[firsts], words[counts], words[token_ids], floats(words[values]), longest
        )


class BadWordCollector:
    """Token sequences of two ids and more."""

    def __init__(self) -> None:
        self._lines: list[int] = []
        self._words: list[list[int]] = []

    def add(self, line: int, words: list[list[int]]) -> None:
        self._lines += [line] * len(words)
        self._words += words

    def pack(self, packing: Packing) -> Callable[[Tensor], BadWords | None]:
        if not self._words:
            return _absent
        length = max(len(word) - 1 for word in self._words)
        padded = np.full((len(self._words), length), -1, dtype=np.int32)
        for prefix, word in zip(padded, self._words, strict=True):
            prefix[length - len(word) + 1 :] = word[:-1]
        lines, prefixes, last = packing.put(self._lines), packing.put(padded), packing.put([word[-1] for word in self._words])
        return lambda words: BadWords(words[lines], words[prefixes].view(-1, length), words[last])


class MaskCollector:
    """Which tokens a line may take, all masks of the same width."""

    def __init__(self) -> None:
        self._lines: list[int] = []
        self._masks: list[MaskWords] = []

    def add(self, line: int, mask: MaskWords) -> None:
        self._lines.append(line)
        self._masks.append(mask)

    def pack(self, packing: Packing) -> Callable[[Tensor], TokenMasks | None]:
        if not self._masks:
            return _absent
        lines, masks = packing.put(self._lines), packing.put(np.stack(self._masks))
        return lambda words: TokenMasks(words[lines], words[masks].view(len(self._masks), -1))


class PenaltyCollector(Lines):
    """Lines with a presence, frequency or repetition penalty."""

    def __init__(self) -> None:
        super().__init__()
        self._max_tokens = 0

    def add(self, line: int, num_tokens: int) -> None:
        self.lines.append(line)
        self._max_tokens = max(self._max_tokens, num_tokens)

    def read(self, lines: Tensor | None) -> Penalties | None:
        return None if lines is None else Penalties(lines, self._max_tokens)


class LogprobCollector(Lines):
    """Lines that report log-probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self._num_top = 0

    def add(self, line: int, num_top: int) -> None:
        self.lines.append(line)
        self._num_top = max(self._num_top, num_top)

    def read(self, lines: Tensor | None) -> LogprobRequest | None:
        return None if lines is None else LogprobRequest(lines, self._num_top)


def _absent(words: Tensor) -> None:
    """Nothing was packed."""
