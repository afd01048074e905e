"""docs/ERRORS.md has the errors and bounds that there are."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

from streamserve import server
from streamserve.errors import ConfigError, StreamserveError
from streamserve.server.apis.openai.prepared_request import MAX_CHOICES
from streamserve.server.apis.openai.requests.messages import MAX_MESSAGES
from streamserve.server.apis.openai.requests.tools import MAX_TOOLS
from streamserve.server.http.bodies.json_body import MAX_ELEMENTS
from streamserve.server.http.bodies.request_body import MAX_DEPTH
from streamserve.text.grammars.digit_bound import MAX_DIGITS
from streamserve.text.grammars.grammar import MAX_GBNF_CHARS, MAX_SOURCE_CHARS
from streamserve.types import sampling

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "ERRORS.md").read_text(encoding="utf-8")


def below(error: type[StreamserveError]) -> Iterator[type[StreamserveError]]:
    yield error
    for each in error.__subclasses__():
        yield from below(each)


def test_every_error_of_an_answer_is_in_the_table_with_its_status() -> None:
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| (\d+) \|", PAGE, re.MULTILINE)
    listed = {(code, int(status)) for codes, status in rows for code in re.findall(r"\w+", codes)}
    for module in pkgutil.walk_packages(server.__path__, f"{server.__name__}."):
        importlib.import_module(module.name)
    ours = [
        error
        for error in below(StreamserveError)
        if error.__module__.startswith("streamserve.") and not issubclass(error, ConfigError)
    ]
    assert listed == {(error.code, error.status) for error in ours}


def test_the_bounds_in_the_table_are_those_of_the_program() -> None:
    bounds = PAGE.partition("## Bounds")[2]
    for bound in (
        sampling.MAX_BAD_WORDS, sampling.MAX_TEXT_CHARS, MAX_CHOICES, MAX_MESSAGES, MAX_TOOLS, MAX_SOURCE_CHARS, MAX_GBNF_CHARS,
        MAX_DIGITS, MAX_ELEMENTS, MAX_DEPTH,
    ):  # fmt: skip
        assert re.search(rf"\b{bound}\b", bounds), bound
