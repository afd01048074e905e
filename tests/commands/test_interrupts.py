"""Ctrl-C in the middle of a command."""

from __future__ import annotations

import pytest

from streamserve import cli


def test_what_fails_on_the_way_out_after_ctrl_c_is_no_failure_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise ImportError("half of a module")

    monkeypatch.setattr(cli.cli, "main", interrupted)
    assert cli.run(["serve"]) == cli.EXIT_INTERRUPTED


def test_any_other_failure_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ImportError("no such module")

    monkeypatch.setattr(cli.cli, "main", broken)
    with pytest.raises(ImportError):
        cli.run(["serve"])
