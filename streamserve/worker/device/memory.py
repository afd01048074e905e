"""The memory of this machine: how much there is for a worker on a CPU."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a device's memory; `free` is what nobody holds, this process included."""

    total: int
    free: int


def host_memory(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> Memory:
    """What this process may use: the machine's memory, or less in a container (cgroup v2) that is bounded."""
    machine, container = _machine_memory(proc / "meminfo"), _container_memory(cgroup)
    if container is None:
        return machine
    return Memory(min(machine.total, container.total), min(machine.free, container.free))


def _machine_memory(meminfo: Path) -> Memory:
    if not meminfo.exists():
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return Memory(total, total // 2)
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    return Memory(_kib(fields["MemTotal"]), _kib(fields["MemAvailable"]))


def _kib(text: str) -> int:
    return int(text.split()[0]) << 10


def _container_memory(folder: Path) -> Memory | None:
    limit, used = folder / "memory.max", folder / "memory.current"
    if not limit.exists() or limit.read_text().strip() == "max":
        return None
    total = int(limit.read_text())
    return Memory(total, max(0, total - int(used.read_text())))
