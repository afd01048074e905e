"""Compiling structured outputs before admission: off the loop, and for a bounded time.

The compiler is injected by the engine's host, since grammars belong to the text side. It bounds its own time, because only it
can distinguish a request's own work from waiting for another's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from anyio.lowlevel import checkpoint

from streamserve.errors import UnsupportedParameter
from streamserve.scheduling.constraint import Constraint
from streamserve.types import SequenceSpec, StructuredOutputs

CompileConstraint = Callable[[StructuredOutputs], Awaitable[Constraint]]
"""Compiles off the event loop and for a bounded time; raises `InvalidParameter` for what can't be compiled, `QueueFull` while
others' take long. Each call gives a fresh state."""


def are_constrained(specs: list[SequenceSpec]) -> bool:
    """Whether any of the sequences must be compiled before it can be admitted."""
    return any(spec.structured_outputs is not None for spec in specs)


async def compile_constraints(specs: list[SequenceSpec], compile_one: CompileConstraint | None) -> list[Constraint | None]:
    """One constraint per sequence, None where its output is free.

    Raises `UnsupportedParameter` without a compiler, and whatever the compiler raises.
    """
    constraints: list[Constraint | None] = []
    for spec in specs:
        constraints.append(None if spec.structured_outputs is None else await _compile(spec.structured_outputs, compile_one))
        if len(specs) > 1:
            # What is compiled already is copied, which takes milliseconds.
            await checkpoint()
    return constraints


async def _compile(outputs: StructuredOutputs, compile_one: CompileConstraint | None) -> Constraint:
    if compile_one is None:
        raise UnsupportedParameter("structured_outputs", "this engine was started without a grammar compiler")
    return await compile_one(outputs)
