"""The file of results: appended to a line at a time, so that a batch that was cut off goes on where it was.

One process at a time writes it. Knows no requests.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import msgspec

from streamserve.batch.lines import BatchResult
from streamserve.errors import ConfigError


class ResultsFile:
    """Results so far, and those to come; made by `open_results`.

    custom_ids  of lines that have a result
    numbers     of lines without a `custom_id` of their own that have one
    """

    def __init__(self, file: BinaryIO) -> None:
        self.custom_ids: set[str] = set()
        self.numbers: set[int] = set()
        self._file = file

    def add(self, result: BatchResult) -> None:
        """Append a result, which is in the file when this returns."""
        self._file.write(msgspec.json.encode(result) + b"\n")
        self._file.flush()

    def read(self) -> None:
        """Note what is done; a last line that was cut off is removed, for its request to be sent again.

        Raises `ValueError` for a line that is no result.
        """
        self._file.seek(0)
        end = 0
        for number, line in enumerate(self._file, start=1):
            if not line.endswith(b"\n"):
                break
            self._note(line, number)
            end += len(line)
        self._file.truncate(end)

    def _note(self, line: bytes, number: int) -> None:
        try:
            result = msgspec.json.decode(line, type=BatchResult)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"line {number} is no result of a batch: {error}") from error
        if result.custom_id is not None:
            self.custom_ids.add(result.custom_id)
        elif result.error is not None and result.error.line is not None:
            self.numbers.add(result.error.line)


@contextmanager
def open_results(path: Path) -> Iterator[ResultsFile]:
    """The results at `path`, which may have some already.

    Raises `ConfigError` for a file that can't be written, that holds anything else, or that another process is writing.
    """
    try:
        file = path.open("a+b")
    except OSError as error:
        raise ConfigError(f"--output-file {path}: {error.strerror}") from error
    with file:
        results = ResultsFile(file)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            results.read()
        except BlockingIOError as error:
            raise ConfigError(f"--output-file {path}: another batch is writing it") from error
        except ValueError as error:
            raise ConfigError(f"--output-file {path}: {error}") from error
        yield results
