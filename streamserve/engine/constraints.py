"""Compiling structured outputs before admission: off the loop, and for a bounded time.

The compiler is injected by whoever builds the engine, since grammars belong to the text side. This module only bounds it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio

from streamserve.errors import InvalidParameter, UnsupportedParameter
from streamserve.scheduling.constraint import Constraint
from streamserve.types import SequenceSpec, StructuredOutputs

CompileConstraint = Callable[[StructuredOutputs], Awaitable[Constraint]]
"""Compiles off the event loop; raises `InvalidParameter` for what can't be compiled. Each call gives a fresh state."""

COMPILE_TIMEOUT_S = 10.0


def are_constrained(specs: list[SequenceSpec]) -> bool:
    """Whether any of the sequences must be compiled before it can be admitted."""
    return any(spec.structured_outputs is not None for spec in specs)


async def compile_constraints(
    specs: list[SequenceSpec], compile_one: CompileConstraint | None, *, timeout_s: float = COMPILE_TIMEOUT_S
) -> list[Constraint | None]:
    """One constraint per sequence, None where its output is free.

    Raises `UnsupportedParameter` without a compiler, `InvalidParameter` when compiling fails or takes longer than `timeout_s`.
    """
    constraints: list[Constraint | None] = []
    with anyio.move_on_after(timeout_s) as scope:
        for spec in specs:
            wanted = spec.structured_outputs
            constraints.append(None if wanted is None else await _compiled(wanted, compile_one))
    if scope.cancelled_caught:
        raise InvalidParameter("structured_outputs", f"took longer than {timeout_s:g} s to compile: simplify it")
    return constraints


async def _compiled(wanted: StructuredOutputs, compile_one: CompileConstraint | None) -> Constraint:
    if compile_one is None:
        raise UnsupportedParameter("structured_outputs", "this engine was started without a grammar compiler")
    return await compile_one(wanted)
