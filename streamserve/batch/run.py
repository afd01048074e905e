"""Answers the lines of a batch by the app that a server has, in this process and without a socket.

Runs on one event loop. A line is sent when an earlier one is done, and its result is written at once: in the order in which
lines finish.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import anyio
import httpx
import msgspec

from streamserve.batch.lines import BatchLine, BatchResult, answer, read_custom_id, read_line, refusal
from streamserve.batch.results_file import ResultsFile
from streamserve.errors import InvalidParameter, InvalidRequest, Unavailable, quoted

_TOO_MANY, _UNAVAILABLE = 429, 503
_HEADERS = {"content-type": "application/json"}


@dataclass
class Counts:
    """Lines so far.

    answered  with status 200
    refused   with an error of their own
    skipped   had a result in the file
    failure   why the others have no result: the engine is gone
    """

    answered: int = 0
    refused: int = 0
    skipped: int = 0
    failure: str | None = None


async def run_batch(
    app: Any,
    lines: Iterable[bytes],
    results: ResultsFile,
    counts: Counts,
    *,
    concurrency: int,
    on_result: Callable[[], None],
) -> None:
    """Answer every line that has no result yet.

    app          an ASGI app with the paths that lines call
    counts       kept up to date, also for a caller that cancels this
    concurrency  lines that are answered at a time

    Returns early, with a `failure`, when the engine is gone: the lines that were not answered have no results then.
    """
    pending = _pending(lines, results, counts, on_result)
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with (
        httpx.AsyncClient(transport=transport, base_url="http://batch", timeout=None) as client,
        anyio.create_task_group() as tasks,
    ):

        async def answer_lines() -> None:
            for line in pending:
                try:
                    _record(await _answer(client, line), results, counts, on_result)
                except Unavailable as error:
                    counts.failure = error.message
                    tasks.cancel_scope.cancel()

        for _ in range(concurrency):
            tasks.start_soon(answer_lines)


def _pending(
    lines: Iterable[bytes], results: ResultsFile, counts: Counts, on_result: Callable[[], None]
) -> Iterator[BatchLine]:
    """The lines to send; those that can't be sent get their results here."""
    done = frozenset(results.custom_ids)
    seen: set[str] = set()
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        custom_id: str | None = None
        try:
            name = read_custom_id(text)
            if name in seen:
                raise InvalidParameter("custom_id", f"{quoted(name)} is that of an earlier line")
            seen.add(name)
            custom_id = name
            line = read_line(text)
        except InvalidRequest as error:
            if number in results.numbers or custom_id in done:
                counts.skipped += 1
            else:
                _record(refusal(error, custom_id=custom_id, number=number), results, counts, on_result)
            continue
        if custom_id in done:
            counts.skipped += 1
        else:
            yield line


def _record(result: BatchResult, results: ResultsFile, counts: Counts, on_result: Callable[[], None]) -> None:
    results.add(result)
    if result.error is None:
        counts.answered += 1
    else:
        counts.refused += 1
    on_result()


async def _answer(client: httpx.AsyncClient, line: BatchLine) -> BatchResult:
    """Send a line until it is answered, or refused for good. Raises `Unavailable`."""
    while True:
        response = await client.post(line.url, content=msgspec.json.encode(line.body), headers=_HEADERS)
        if response.status_code == _UNAVAILABLE:
            raise Unavailable(response.json()["error"]["message"])
        if response.status_code != _TOO_MANY:
            return answer(line.custom_id, response.status_code, response.headers.get("x-request-id", ""), response.content)
        await anyio.sleep(float(response.headers.get("retry-after", 1)))
