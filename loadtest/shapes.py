"""How many users there are when. Pure functions of the time, by the name of their shape."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import NamedTuple


class Course(NamedTuple):
    """What a shape goes by.

    users   at its height
    run_s   how long the test takes
    step_s  between two steps of `steps`
    """

    users: int
    run_s: float
    step_s: float


def steps(course: Course, now_s: float) -> int | None:
    """Twice as many users every `step_s`, from 1 on: where TTFT leaves its plateau is the server's capacity."""
    users = 2 ** int(now_s // course.step_s)
    return users if users <= course.users else None


def ramp(course: Course, now_s: float) -> int | None:
    """From one user evenly up to all of them."""
    return max(1, round(course.users * now_s / course.run_s)) if now_s < course.run_s else None


def spike(course: Course, now_s: float) -> int | None:
    """A tenth of the users, but for the middle fifth of the time, when all are there."""
    if now_s >= course.run_s:
        return None
    is_spike = 0.4 <= now_s / course.run_s < 0.6
    return course.users if is_spike else max(1, course.users // 10)


def soak(course: Course, now_s: float) -> int | None:
    """All users, all the time."""
    return course.users if now_s < course.run_s else None


def poisson(course: Course, now_s: float) -> int | None:
    """Users come and go at random: every ten seconds as many as a Poisson distribution around `users` / 2 draws."""
    if now_s >= course.run_s:
        return None
    # The same ten seconds draw the same number.
    drawing, limit, product, count = random.Random(int(now_s // 10)), math.exp(-course.users / 2), 1.0, -1
    while product > limit:
        product *= drawing.random()
        count += 1
    return min(max(1, count), course.users)


SHAPES: dict[str, Callable[[Course, float], int | None]] = {
    shape.__name__: shape for shape in (steps, ramp, spike, soak, poisson)
}
