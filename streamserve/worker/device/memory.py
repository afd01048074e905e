"""The memory of this machine: how much there is for a worker on a CPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a device's memory.

    free     what no process holds, this one included; what the system only caches of files counts as free
    is_host  the machine's own memory, which everything on it shares
    """

    total: int
    free: int
    is_host: bool = False


def host_memory(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> Memory:
    """What this process may use: the machine's memory, or less in a bounded control group such as a container's."""
    bounds = [_machine_memory(proc / "meminfo"), *_group_memories(proc / "self" / "cgroup", cgroup)]
    return Memory(min(bound.total for bound in bounds), min(bound.free for bound in bounds), is_host=True)


def _machine_memory(meminfo: Path) -> Memory:
    if not meminfo.exists():
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return Memory(total, total // 2)
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    return Memory(_kib(fields["MemTotal"]), _kib(fields["MemAvailable"]))


def _kib(text: str) -> int:
    return int(text.split()[0]) << 10


def _group_memories(membership: Path, root: Path) -> Iterator[Memory]:
    """The bounds of this process's control group and of those around it.

    membership  /proc/self/cgroup, lines of `id:controllers:path`; version 2 has id 0 and no controllers
    """
    lines = membership.read_text().splitlines() if membership.exists() else ["0::/"]
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            yield from _bounds_up_from(root, path, "memory.max", "memory.current", "")
        elif controllers == "memory":
            yield from _bounds_up_from(root / "memory", path, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_")


def _bounds_up_from(root: Path, path: str, limit: str, usage: str, prefix: str) -> Iterator[Memory]:
    """prefix  of the values in memory.stat that count a group's children too"""
    group = root / path.lstrip("/")
    for folder in (group, *group.parents):
        # Inside of a container the path may be the one outside, which is not there: its root is.
        if (folder / limit).exists() and (bound := (folder / limit).read_text().strip()) != "max":
            held = int((folder / usage).read_text()) - _reclaimable(folder / "memory.stat", prefix)
            yield Memory(int(bound), max(0, int(bound) - held))
        if folder == root:
            return


def _reclaimable(stat: Path, prefix: str) -> int:
    """Bytes that the system takes back when they are needed: cached files and caches of its own."""
    if not stat.exists():
        return 0
    values = dict(line.split() for line in stat.read_text().splitlines())
    return sum(int(values.get(prefix + name, 0)) for name in ("inactive_file", "active_file", "slab_reclaimable"))
