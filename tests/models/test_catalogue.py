"""What is shown of the families that run is what runs."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from streamserve.checkpoint.gguf_config import ARCHITECTURES
from streamserve.commands.models import models
from streamserve.models.catalogue import CATALOGUE
from streamserve.models.registry import REGISTRY
from tests.models.transformers_families import RUNS
from tests.support.models_page import PAGE, page


def test_every_architecture_of_ours_is_in_the_catalogue_and_no_other() -> None:
    ours = [entry for entry in CATALOGUE if entry.implementation == "streamserve"]
    assert {name for entry in ours for name in entry.architectures} == REGISTRY.keys()


def test_what_transformers_layers_run_is_what_was_tried_with_them() -> None:
    by_transformers = [entry for entry in CATALOGUE if entry.implementation == "transformers"]
    assert {name for entry in by_transformers for name in entry.architectures} == RUNS.keys() - REGISTRY.keys()


def test_every_gguf_architecture_is_shown_with_its_family() -> None:
    shown = {(name, architecture) for entry in CATALOGUE for name in entry.gguf for architecture in entry.architectures}
    assert {(name, architecture) for name, (architecture, _) in ARCHITECTURES.items()} <= shown
    assert {name for name, _ in shown} == ARCHITECTURES.keys()


def test_families_are_listed_by_name() -> None:
    names = [(entry.implementation, entry.family.casefold()) for entry in CATALOGUE]
    assert names == sorted(names)


def test_the_page_shows_the_catalogue() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m tests.support.models_page writes it"


@pytest.mark.parametrize("columns", [80, 200])
def test_the_command_prints_every_name_whole(columns: int) -> None:
    printed = CliRunner(env={"COLUMNS": str(columns)}).invoke(models)
    assert printed.exit_code == 0
    for entry in CATALOGUE:
        names = (entry.family, *entry.architectures, *entry.gguf, *(entry.examples if columns == 200 else ()))
        assert all(name in printed.output for name in names)


def test_the_command_gives_programs_every_field() -> None:
    [*listed] = json.loads(CliRunner().invoke(models, ["--json"]).output)
    assert [entry["family"] for entry in listed] == [entry.family for entry in CATALOGUE]
    assert listed[0].keys() == {"family", "architectures", "implementation", "layers", "examples", "gguf", "limits"}
