"""What a test can have fail, where and how often."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamserve.fail_points import arm, cut_point, disarm, fail_point, faults_from


def is_failing(size: int = 0) -> bool:
    try:
        fail_point("disk", BlockingIOError, "full", size=size)
    except BlockingIOError:
        return True
    return False


def test_nothing_fails_outside_of_a_test_that_asks_for_it(tmp_path: Path) -> None:
    arm(tmp_path, "disk")
    assert not is_failing()
    with faults_from(tmp_path):
        assert is_failing()


def test_a_fault_is_had_as_often_as_it_was_armed_and_by_work_that_is_large_enough(tmp_path: Path) -> None:
    with faults_from(tmp_path):
        arm(tmp_path, "disk", times=2, at_least=10)
        assert [is_failing(size) for size in (9, 10, 9, 11, 12)] == [False, True, False, True, False]
        arm(tmp_path, "disk", times=3)
        assert is_failing()
        assert disarm(tmp_path, "disk") == 2
        assert not is_failing()


def test_half_of_what_is_written_is_cut_off(tmp_path: Path) -> None:
    with faults_from(tmp_path):
        arm(tmp_path, "link")
        assert [cut_point("link", b"frames"), cut_point("link", b"frames")] == [b"fra", b"frames"]


@pytest.mark.parametrize("name", ["disk", "link"])
def test_a_fault_of_another_place_stays(tmp_path: Path, name: str) -> None:
    with faults_from(tmp_path):
        arm(tmp_path, name)
        assert is_failing() is (name == "disk")
        assert disarm(tmp_path, name) == (name == "link")
