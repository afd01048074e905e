"""Memory and processor time of a server's processes, by what each of them runs. Reads /proc: elsewhere it finds none."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

_ROLES = {
    "streamserve.engine.process.main": "engine",
    "streamserve.server.process.worker_process": "API worker",
    "streamserve.executor.rank": "rank",
}
_PAGE_BYTES, _TICKS = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")


def family(pid: int) -> Iterator[int]:
    """A process and its descendants."""
    yield pid
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from family(int(child))


def resident_bytes(pid: int) -> dict[str, float]:
    """Resident memory by role: "server" for the first process, which answers as well, "engine", "API worker", "rank"."""
    return _by_role(pid, lambda each: int(_read(each, "statm").split()[1]) * _PAGE_BYTES)


def processor_s(pid: int) -> dict[str, float]:
    """Processor seconds used so far, by role."""
    # Of "pid (name) state …" what follows the name, which may hold blanks: user and system time are 14 and 15 of all.
    return _by_role(pid, lambda each: sum(map(int, _read(each, "stat").rsplit(")", 1)[1].split()[11:13])) / _TICKS)


def _by_role(pid: int, read: Callable[[int], float]) -> dict[str, float]:
    sums: Counter[str] = Counter()
    for each in family(pid):
        # A process may end at any time.
        with suppress(OSError, IndexError):
            module = _read(each, "cmdline").rstrip("\0").rsplit("\0", 1)[-1]
            sums[_ROLES.get(module, "server")] += read(each)  # type: ignore[assignment]
    return dict(sums)


def _read(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text()
