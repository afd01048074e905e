"""`streamserve collect-env`: what a report needs, and nothing that is secret."""

from __future__ import annotations

from importlib import metadata

import pytest

from streamserve.cli import run


def test_versions_hardware_and_settings_are_printed_and_secrets_are_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STREAMSERVE_API_KEY", "plugh")
    monkeypatch.setenv("HF_TOKEN", "plugh")
    monkeypatch.setenv("STREAMSERVE_PORT", "8123")
    monkeypatch.setenv("UNRELATED", "xyzzy")
    monkeypatch.setenv("PATH", "")
    assert run(["collect-env"]) == 0
    printed = capsys.readouterr().out
    assert f"msgspec {metadata.version('msgspec')}" in printed
    assert f"torch {metadata.version('torch')}" in printed
    for words in ("streamserve  ", "Python  ", "GiB available", "cores usable", "GPU          none", "STREAMSERVE_PORT=8123"):
        assert words in printed
    assert "HF_TOKEN=(set, not shown)" in printed
    assert "plugh" not in printed
    assert "xyzzy" not in printed
