"""Sequences for tests: the fields of a spec and of its sampling, told apart by name."""

from __future__ import annotations

from typing import Any

from msgspec import structs

from streamserve.types import Sampling, SequenceSpec


def make_spec(sequence_id: str, prompt_token_ids: list[int], **fields: Any) -> SequenceSpec:
    """A sequence; `fields` are those of `SequenceSpec` and of `Sampling`."""
    sampling = {name: value for name, value in fields.items() if name in Sampling.__struct_fields__}
    others = {name: value for name, value in fields.items() if name not in sampling}
    return SequenceSpec(
        sequence_id=sequence_id, prompt_token_ids=prompt_token_ids, sampling=Sampling(**{"seed": 0, **sampling}), **others
    )


def flat(spec: SequenceSpec) -> dict[str, Any]:
    """Every field of a spec and of its sampling, by name."""
    return structs.asdict(spec) | structs.asdict(spec.sampling)
