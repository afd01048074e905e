"""The wheel holds the four packages, with their data, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_wheel_holds_the_packages_and_the_page(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, timeout=110)
    [wheel] = tmp_path.glob("*.whl")
    names = ZipFile(wheel).namelist()
    packages = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert packages == {"streamserve", "streamserve_client", "streamserve_kernels", "streamserve_web"}
    assert {"streamserve_web/index.html", "streamserve_client/py.typed", "streamserve/py.typed"} <= set(names)
