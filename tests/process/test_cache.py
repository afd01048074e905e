"""Folders of code: what another user could have written is not run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from streamserve.errors import ConfigError
from streamserve.process.cache import make_private, require_private
from streamserve.worker.startup.triton_cache import require_private_cache


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder below one that anybody may enter; pytest's own are closed to others."""
    with TemporaryDirectory() as temporary:
        below = Path(temporary) / "shared" / "compiled"
        below.mkdir(parents=True)
        for place in (below, *below.parents[:2]):
            place.chmod(0o755)
        yield below


def test_a_folder_of_ones_own_is_accepted(folder: Path) -> None:
    require_private(folder)
    (folder / "code.so").touch(mode=0o644)
    require_private(folder / "code.so")


@pytest.mark.parametrize("writable", ["file", "folder", "parent"])
def test_what_others_can_write_or_replace_is_refused(folder: Path, writable: str) -> None:
    """Machine code was loaded from wherever the cache was said to be."""
    code = folder / "code.so"
    code.touch(mode=0o644)
    {"file": code, "folder": folder, "parent": folder.parent}[writable].chmod(0o777)
    with pytest.raises(PermissionError, match="other users can write to"):
        require_private(code)


def test_what_others_could_write_and_do_not_reach_is_accepted(folder: Path) -> None:
    folder.parent.chmod(0o700)
    folder.chmod(0o777)
    require_private(folder)


def test_a_link_counts_by_where_it_leads(folder: Path, tmp_path: Path) -> None:
    folder.chmod(0o777)
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(PermissionError):
        require_private(tmp_path / "link")


def test_a_new_folder_is_its_users_alone(tmp_path: Path) -> None:
    make_private(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700


def test_kernels_that_others_can_replace_keep_a_server_from_starting(folder: Path) -> None:
    require_private_cache(folder / "not there")
    folder.chmod(0o777)
    with pytest.raises(ConfigError, match="TRITON_CACHE_DIR"):
        require_private_cache(folder)
