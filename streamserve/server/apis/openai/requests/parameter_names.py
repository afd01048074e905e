"""What a request calls the parameters that are checked under another name: the maps of `naming_parameters`.

Pure functions of the request.
"""

from __future__ import annotations

from collections.abc import Mapping

from streamserve.server.apis.openai.requests.schemas import ChatRequest, GenerationRequest

_RESPONSE_NAMES = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "response_format.json_schema.schema": "text.format.schema",
    "reasoning_effort": "reasoning.effort",
}


def completion_names(request: GenerationRequest) -> dict[str, str]:
    """What this request calls the parameters that have several names."""
    return {"structured_outputs": _constraint(request) or "structured_outputs"}


def chat_names(request: ChatRequest) -> dict[str, str]:
    """As `completion_names`, for a chat."""
    return {
        "prompt": "messages",
        "max_tokens": "max_tokens" if request.max_completion_tokens is None else "max_completion_tokens",
        "structured_outputs": _constraint(request) or "tools",
        **({} if request.thinking_token_budget is not None else {"thinking_token_budget": "reasoning.max_tokens"}),
    }


def response_names(names: Mapping[str, str]) -> dict[str, str]:
    """The names of the chat that answers a response request, as that request has them."""
    return {**_RESPONSE_NAMES, **{name: _RESPONSE_NAMES.get(theirs, theirs) for name, theirs in names.items()}}


def _constraint(request: GenerationRequest) -> str | None:
    """The parameter that confines the answer to a language; None where none of its own does."""
    constraints = [
        name
        for name in ("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar")
        if getattr(request, name) is not None
    ]
    if request.response_format is not None and request.response_format.type != "text":
        constraints.append("response_format")
    return constraints[0] if len(constraints) == 1 else "structured_outputs" if constraints else None
