"""Names of parameters in refusals: what is checked once for all APIs may have another name in the request.

Runs wherever a request is checked; knows no API.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from streamserve.errors import InvalidRequest


@contextmanager
def naming_parameters(names: Mapping[str, str]) -> Iterator[None]:
    """Rename refused parameters: a refusal of one in `names` leaves under its name there."""
    try:
        yield
    except InvalidRequest as error:
        name = error.param or ""
        if name in names:
            _rename(error, name, names[name])
        raise


def _rename(error: InvalidRequest, name: str, new_name: str) -> None:
    if error.message.startswith(name):
        error.message = new_name + error.message[len(name) :]
        error.args = (error.message,)
    error.param = new_name
