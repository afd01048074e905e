"""Sums and gathers among the GPUs of one host. They have no reference: CPUs exchange over other means."""

from __future__ import annotations

from torch import Tensor

from streamserve_kernels.dispatch.areas import triton_area
from streamserve_kernels.peers.slots import PeerSlots


def peer_sum(x: Tensor, slots: PeerSlots, residual: Tensor | None = None) -> Tensor:
    """The ranks' x [rows, n] added up in fp32, in the order of ranks, onto a residual that all have alike.

    Every rank gets the same bits. -0.0 counts as 0.0. Only for GPUs, which map each other's memory; see `peers.memory`.
    """
    total: Tensor = triton_area("peers.memory").peer_sum(x, slots, residual)
    return total


def peer_gather(x: Tensor, slots: PeerSlots) -> Tensor:
    """The ranks' x [rows, n] side by side, in the order of ranks: [rows, world_size * n]; otherwise as `peer_sum`."""
    gathered: Tensor = triton_area("peers.memory").peer_gather(x, slots)
    return gathered
