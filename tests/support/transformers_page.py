"""Writes docs/TRANSFORMERS_MODELS.md: `python -m tests.support.transformers_page`. Tests compare its rows with the checks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from streamserve.errors import ModelNotSupported
from streamserve.models.implementation import describe
from streamserve.models.transformers_model.arch import TransformersArch
from tests.models.transformers_families import REFUSED, RUNS, config_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "TRANSFORMERS_MODELS.md"

_INTRODUCTION = """\
# Models that run by transformers' layers

`--model-impl transformers` (vLLM's flag, and `LLM(model, model_impl="transformers")`) runs a model by transformers' own
modules: in the same step as every other, over the same cache, replayed from CUDA graphs. `auto`, the default, does so for
architectures that have no layers here. The server's log names whose layers run, and so does `EngineInfo.model_impl`.

Any decoder of the installed transformers runs that attends through its attention interface and keeps nothing of a sequence but
keys and values. Windows, soft caps, sinks, scales of scores and values smaller than keys (latent attention, expanded) are as
the model asks. All have prefix caching, chunked prompts, preemption, drafts, log-probabilities and structured output.

## What is checked at a start

Nobody's word is taken for it. Before weights are read, which takes some 0.2 s beside importing transformers:

1. The model runs without memory, on torch's meta device. Each attention must pass by ours exactly once, without a mask of its
   own, and nothing may read a number on the host.
2. A small model of the class, with every kind of layer that the real one has, computes two sequences in chunks, side by side,
   and must give the logits that transformers computes of each alone, at the first positions and at the last.
3. Modules that return what ours return for the same inputs, small and large, are replaced by ours: RMS norms, gated MLPs (gate
   and up in one product), attention between its projections (q, k and v in one product; norms of heads, rotation, cache and
   attention in one launch), layers of nothing but these, and every linear. With them the second check is made again.

What fails is refused by name. Not served: more than one device (`-tp`), .gguf files, code that comes with a checkpoint.

"""

_RUNS = """\
## What runs

Two or three random layers of each in the tests: greedy tokens equal transformers' alone, in a crowd, in chunks and on a prefix
hit. The last column says which modules are ours beside linears. Where whole layers are, a step costs what it costs with layers
of this library; where attention is not among them, it is something else between its projections, and takes more launches.

| class | modules of ours |
| --- | --- |
"""

_REFUSED = """\

## What is refused

| class | because it |
| --- | --- |
"""


def row_of_a_model_that_runs(arch: TransformersArch, name: str) -> str:
    known = arch.known
    parts = (("norms", known.norms), ("MLPs", known.mlps), ("attention", known.attentions), ("whole layers", known.layers))
    return f"| `{name}` | {', '.join(part for part, found in parts if found)} |"


def row_of_a_model_that_is_refused(error: ModelNotSupported, name: str) -> str:
    reason = str(error).removeprefix(name).removeprefix(":").strip()
    return f"| `{name}` | {reason} |"


def page() -> str:
    """The whole page, for the installed transformers."""
    runs = [row_of_a_model_that_runs(_described(config_of(name)), name) for name in sorted(RUNS)]
    refused = [row_of_a_model_that_is_refused(_refusal(config_of(name)), name) for name in sorted(REFUSED)]
    return _INTRODUCTION + _RUNS + "\n".join(runs) + "\n" + _REFUSED + "\n".join(refused) + "\n"


def _described(config: dict[str, Any]) -> TransformersArch:
    arch = describe(config, "transformers")
    assert isinstance(arch, TransformersArch)
    return arch


def _refusal(config: dict[str, Any]) -> ModelNotSupported:
    try:
        describe(config, "transformers")
    except ModelNotSupported as error:
        return error
    raise AssertionError(f"{config['architectures']} runs")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
