"""The model that the room's tests run."""

from __future__ import annotations

import pytest

from tests.support.tiny_model import TinyLlama


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyLlama:
    return TinyLlama(tmp_path_factory.mktemp("tiny"))
