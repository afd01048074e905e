"""Temporary folders of owners that were killed: whoever comes next removes them, and what still runs for them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from streamserve.process.owned_folder import OwnedFolder

OWNER = """
import subprocess, sys
from streamserve.process.owned_folder import OwnedFolder
folder = OwnedFolder()
child = subprocess.Popen(["sleep", "600"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
folder.name_process(child.pid)
print(folder.path, child.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


def start_owner() -> tuple[subprocess.Popen[str], Path, int]:
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    path, pid = owner.stdout.readline().split()
    return owner, Path(path), int(pid)


def end(owner: subprocess.Popen[str]) -> None:
    owner.kill()
    owner.communicate()


def is_running(pid: int) -> bool:
    """Not so for a process that has ended and is waited for by nobody."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_what_a_killed_owner_left_goes_with_the_next_start_and_what_others_own_stays() -> None:
    """Folders of killed engines stayed for ever, and a stopped engine outlived the server that started it."""
    killed, abandoned, stopped = start_owner()
    other, owned, running = start_owner()
    os.kill(stopped, signal.SIGSTOP)
    end(killed)
    assert abandoned.is_dir()
    folder = OwnedFolder()
    try:
        assert (abandoned.exists(), owned.is_dir(), is_running(running)) == (False, True, True)
        assert not is_running(stopped)
    finally:
        end(other)
        os.kill(running, signal.SIGKILL)
        folder.remove()


def test_a_process_that_has_the_number_of_an_old_one_is_let_alone() -> None:
    killed, abandoned, other = start_owner()
    end(killed)
    (abandoned / "processes").write_text(f"{other} 1\n{os.getpid()} 2\nnonsense\n")
    OwnedFolder().remove()
    assert not abandoned.exists()
    assert is_running(other)
    os.kill(other, signal.SIGKILL)


def test_folders_of_anybody_else_stay(tmp_path: Path) -> None:
    (tmp_path / "streamserve-not-ours").mkdir()
    OwnedFolder().remove()
    assert [path.name for path in tmp_path.iterdir()] == ["streamserve-not-ours"]
