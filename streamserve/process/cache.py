"""The folders of this program in the user's cache. Used before torch is imported, so it imports the standard library only.

What is loaded from there is code, and runs as this user: nobody else may be able to write it.
"""

from __future__ import annotations

import grp
import os
import stat
from pathlib import Path

_OTHERS_WRITE, _GROUP_WRITES, _OTHERS_ENTER = stat.S_IWOTH, stat.S_IWGRP, stat.S_IXGRP | stat.S_IXOTH


def cache_folder(name: str) -> Path:
    """One of the folders, which may not exist yet."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "streamserve" / name


def compiled_layers() -> Path:
    """The folder of layers compiled for a CPU, of all models; it exists once something was compiled."""
    return cache_folder("compiled")


def make_private(folder: Path) -> None:
    """Make a folder that only this user may enter, unless it exists."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


def require_private(path: Path) -> None:
    """Raise `PermissionError` when another user than this one or root can change what lies at a path that exists."""
    path = path.resolve()
    for place in [*reversed(path.parents), path]:
        found = place.stat()
        if found.st_uid not in (os.geteuid(), 0) or _others_write(found):
            raise PermissionError(f"other users can write to {place}, and what is in {path} would run as you")
        if found.st_uid == os.geteuid() and stat.S_ISDIR(found.st_mode) and not found.st_mode & _OTHERS_ENTER:
            # Nobody else reaches what is below.
            return


def _others_write(found: os.stat_result) -> bool:
    """Whether others write to a file, or put what they like in the place of what a folder has."""
    if stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX:
        return False
    return bool(found.st_mode & _OTHERS_WRITE or (found.st_mode & _GROUP_WRITES and not _is_own_group(found.st_gid)))


def _is_own_group(group_id: int) -> bool:
    """Whether a group is root's, or this user's alone: many systems give each user one of the same number."""
    if group_id == 0:
        return True
    if group_id != os.geteuid():
        return False
    try:
        return not grp.getgrgid(group_id).gr_mem
    except KeyError:
        return True
