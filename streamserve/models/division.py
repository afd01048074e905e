"""Which part of a dimension each rank holds (Megatron-LM, Shoeybi et al., 2019, https://arxiv.org/abs/1909.08053).

Plain numbers. A dimension consists of pieces that are not cut: rows, or heads of so many rows each.
"""

from __future__ import annotations

from streamserve.errors import ConfigError

VOCABULARY_MULTIPLE = 16
"""Every rank but the last holds a multiple of so many ids, which every form of weights takes."""


def equal_share(pieces: int, rank: int, world_size: int, what: str) -> range:
    """The pieces of one rank, as many on each. Raises `ConfigError`, naming `what`, when they can't be divided equally."""
    if pieces % world_size:
        raise ConfigError(
            f"{pieces} {what} can't be divided among {world_size} ranks: use a --tensor-parallel-size that divides them"
        )
    share = pieces // world_size
    return range(rank * share, (rank + 1) * share)


def share_of_blocks(size: int, block: int, rank: int, world_size: int, what: str) -> range:
    """One rank's part of `size` numbers in blocks that are not cut, as many blocks on each but the last ones.

    Raises `ConfigError`, naming `what`, when there are too few blocks for every rank to have one.
    """
    share = -(-size // (block * world_size)) * block
    if share * (world_size - 1) >= size:
        raise ConfigError(f"{size} {what} in blocks of {block} are too few for {world_size} ranks: use fewer")
    return range(rank * share, min((rank + 1) * share, size))


def shared_heads(heads: int, rank: int, world_size: int) -> range:
    """The key heads of one rank: an equal share, or where there are fewer than ranks the one that several hold alike.

    Rank r then has the head that the r-th share of the query heads reads. Raises `ConfigError` when neither is possible.
    """
    if heads < world_size and world_size % heads == 0:
        head = rank * heads // world_size
        return range(head, head + 1)
    return equal_share(heads, rank, world_size, "key heads")


def vocabulary_share(size: int, rank: int, world_size: int) -> range:
    """The ids of one rank: as many on each but the last ones, which may have fewer."""
    share = vocabulary_per_rank(size, world_size)
    return range(min(rank * share, size), min((rank + 1) * share, size))


def vocabulary_per_rank(size: int, world_size: int) -> int:
    """The most ids that a rank holds."""
    share = -(-size // world_size)
    return size if world_size == 1 else -(-share // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
