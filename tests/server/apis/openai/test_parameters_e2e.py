"""Every sampling parameter over HTTP, against transformers' logits and its formula: streamed, whole, alone, in a crowd."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import anyio
import numpy as np
import pytest

from tests.support.oracle import READABLE, Answer, Oracle
from tests.support.raw_http import events, request
from tests.support.sampling import Line
from tests.support.tiny_server import tiny_server

pytestmark = pytest.mark.anyio

PROMPT = "The river rose"
MAX_TOKENS = 18
TOP = 4
CLOSE = 2e-4


class Case(NamedTuple):
    """One request; `asked` are its parameters beside the prompt."""

    name: str
    prompt: str
    asked: dict[str, Any]


class Endpoint(NamedTuple):
    """A server on a random model, and what it must say."""

    port: int
    oracle: Oracle


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def endpoint(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Endpoint]:
    async with tiny_server(tmp_path_factory.mktemp("tiny-llama")) as server:
        yield Endpoint(server.port, Oracle(server.model))


def cases(oracle: Oracle) -> list[Case]:
    """Requests that exercise one parameter each, and some that mix them."""
    greedy = {"temperature": 0, "allowed_token_ids": READABLE}
    free = oracle.answer(PROMPT, {**greedy, "max_tokens": MAX_TOKENS})
    sampled = {"allowed_token_ids": READABLE, "seed": 11}
    asked: dict[str, dict[str, Any]] = {
        "greedy": {"temperature": 0},
        "presence": {**greedy, "presence_penalty": 1.7},
        "frequency": {**greedy, "frequency_penalty": 1.3},
        "negative frequency": {**greedy, "frequency_penalty": -1.0},
        "repetition": {**greedy, "repetition_penalty": 1.6},
        "bias": {**greedy, "logit_bias": {str(ord("e")): 6.0, str(free.token_ids[0]): -100}},
        "allowed": {"temperature": 0, "allowed_token_ids": [ord("a"), ord("b"), ord("c")]},
        "bad word": {**greedy, "bad_words": [free.text[2:4]]},
        "bad letter": {**greedy, "bad_words": [free.text[1]]},
        "stop id": {**greedy, "stop_token_ids": [free.token_ids[5]]},
        "min tokens": {**greedy, "stop_token_ids": [free.token_ids[2]], "min_tokens": 7},
        "min tokens and a stop string": {**greedy, "stop": [free.text[3]], "min_tokens": 5},
        "stop string": {**greedy, "stop": ["nothing like it", free.text[6:9]]},
        "stop string that stays": {**greedy, "stop": [free.text[6:9]], "include_stop_str_in_output": True},
        "seed": {**sampled},
        "another seed": {**sampled, "seed": 2**40 + 5},
        "cold": {**sampled, "temperature": 0.4},
        "hot": {**sampled, "temperature": 1.8},
        "top_k": {**sampled, "top_k": 3},
        "top_p": {**sampled, "top_p": 0.7, "temperature": 1.5},
        "min_p": {**sampled, "min_p": 0.2, "temperature": 1.5},
        "several choices": {**sampled, "n": 3},
        "all at once": {
            **sampled,
            "n": 2,
            "temperature": 1.2,
            "top_k": 20,
            "top_p": 0.9,
            "min_p": 0.01,
            "presence_penalty": 0.5,
            "frequency_penalty": 0.4,
            "repetition_penalty": 1.2,
            "logit_bias": {str(ord("e")): 2.0},
            "bad_words": ["e"],
            "min_tokens": 4,
            "stop_token_ids": [ord("t")],
        },
    }
    prompts = [PROMPT, PROMPT + " in the night", "And", PROMPT + " " + "again and again " * 4]
    return [
        Case(
            name,
            PROMPT if "stop" in name or "min" in name or "bad" in name else prompts[place % 4],
            {**fields, "max_tokens": MAX_TOKENS},
        )
        for place, (name, fields) in enumerate(asked.items())
    ]


class Said(NamedTuple):
    """What a client got of one choice."""

    token_ids: list[int]
    text: str
    tops: list[dict[str, float]]
    chosen: list[float]
    finish_reason: str
    stop_reason: int | str | None


async def ask(port: int, case: Case, *, stream: bool) -> list[Said]:
    """Send a case, and its choices as they came."""
    body = {
        "model": "tiny",
        "prompt": case.prompt,
        **case.asked,
        "stream": stream,
        "logprobs": TOP,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }
    async with request(port, "POST", "/v1/completions", body) as response:
        raw = await response.body()
    assert response.status == 200, raw
    parts = [chunk["choices"][0] for chunk in events(raw)[:-1]] if stream else json.loads(raw)["choices"]
    return [joined([part for part in parts if part["index"] == index]) for index in range(case.asked.get("n", 1))]


def joined(parts: list[dict[str, Any]]) -> Said:
    """One choice, whole or put together from a stream."""
    assert [part["finish_reason"] is not None for part in parts] == [False] * (len(parts) - 1) + [True]
    return Said(
        [token_id for part in parts for token_id in part["token_ids"]],
        "".join(part["text"] for part in parts),
        [top for part in parts for top in part["logprobs"]["top_logprobs"]],
        [chosen for part in parts for chosen in part["logprobs"]["token_logprobs"]],
        parts[-1]["finish_reason"],
        parts[-1]["stop_reason"],
    )


def check(oracle: Oracle, case: Case, said: list[Said]) -> None:
    for choice, got in enumerate(said):
        expected = oracle.answer(case.prompt, case.asked, choice=choice)
        assert got.token_ids == expected.token_ids, case.name
        assert (got.text, got.finish_reason, got.stop_reason) == (
            expected.text,
            expected.finish_reason,
            expected.stop_reason,
        ), case.name
        check_logprobs(got, expected)


def check_logprobs(got: Said, expected: Answer) -> None:
    assert len(got.chosen) == len(got.tops) == len(expected.token_ids)
    for token_id, chosen, top, line in zip(expected.token_ids, got.chosen, got.tops, expected.logprobs, strict=True):
        assert abs(chosen - line[token_id]) < CLOSE
        check_top(top, token_id, line)


def check_top(top: dict[str, float], token_id: int, line: Line) -> None:
    """The likeliest tokens and the one that was taken, each with its log-probability."""
    assert len(top) == len({f"token_id:{token_id}", *list(top)[:TOP]})
    assert sorted(top.values(), reverse=True)[:TOP] == pytest.approx(np.sort(line)[::-1][:TOP], abs=CLOSE)
    for name, logprob in top.items():
        assert abs(logprob - line[int(name.removeprefix("token_id:"))]) < CLOSE


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_every_parameter_alone(endpoint: Endpoint, stream: bool) -> None:
    for case in cases(endpoint.oracle):
        check(endpoint.oracle, case, await ask(endpoint.port, case, stream=stream))


async def test_every_parameter_in_a_crowd(endpoint: Endpoint) -> None:
    """All at once, some streamed and some not, more than fit: what one requests changes no other's answer."""
    crowd = cases(endpoint.oracle)
    said: dict[tuple[int, bool], list[Said]] = {}

    async def send(place: int, stream: bool) -> None:
        said[place, stream] = await ask(endpoint.port, crowd[place], stream=stream)

    async with anyio.create_task_group() as tasks:
        for place in range(len(crowd)):
            for stream in (False, True):
                tasks.start_soon(send, place, stream)
    for (place, _), choices in said.items():
        check(endpoint.oracle, crowd[place], choices)


def random_case(rng: np.random.Generator, number: int) -> Case:
    """A request with a mixture of parameters, each left out as often as not."""
    allowed = sorted(rng.choice(READABLE, size=rng.integers(20, 90), replace=False).tolist())
    letters = [chr(token_id) for token_id in rng.choice(allowed, size=6)]
    choices: dict[str, Any] = {
        "presence_penalty": round(float(rng.uniform(-2, 2)), 2),
        "frequency_penalty": round(float(rng.uniform(-2, 2)), 2),
        "repetition_penalty": round(float(rng.uniform(0.6, 1.8)), 2),
        "logit_bias": {str(token_id): round(float(rng.uniform(-5, 5)), 2) for token_id in rng.choice(allowed, size=5)},
        "bad_words": [letters[0], letters[1] + letters[2]],
        "stop": ["".join(letters[3:5]), letters[5]],
        "stop_token_ids": rng.choice(allowed, size=2).tolist(),
        "min_tokens": int(rng.integers(1, 12)),
        "include_stop_str_in_output": True,
    }
    if rng.random() < 0.75:
        sampling = {
            "n": int(rng.integers(1, 4)),
            "top_k": int(rng.integers(1, 40)),
            "top_p": round(float(rng.uniform(0.3, 1.0)), 2),
            "min_p": round(float(rng.uniform(0.0, 0.3)), 2),
        }
        sampling = {name: value for name, value in sampling.items() if rng.random() < 0.5}
        sampling |= {"temperature": round(float(rng.uniform(0.2, 2.0)), 2), "seed": int(rng.integers(0, 2**62))}
    else:
        sampling = {"temperature": 0}
    mixed = {name: value for name, value in choices.items() if rng.random() < 0.4}
    prompt = "".join(map(chr, rng.choice(READABLE, size=rng.integers(1, 70))))
    asked = {"max_tokens": int(rng.integers(12, 24)), "allowed_token_ids": allowed, **sampling, **mixed}
    return Case(f"{number}: {asked}", prompt, asked)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_any_mixture_of_parameters_in_a_crowd(endpoint: Endpoint) -> None:
    rng = np.random.default_rng(5)
    crowd = [random_case(rng, number) for number in range(300)]
    said: dict[int, list[Said]] = {}
    limiter = anyio.CapacityLimiter(24)

    async def send(place: int) -> None:
        async with limiter:
            said[place] = await ask(endpoint.port, crowd[place], stream=place % 2 == 0)

    async with anyio.create_task_group() as tasks:
        for place in range(len(crowd)):
            tasks.start_soon(send, place)
    for place, choices in said.items():
        check(endpoint.oracle, crowd[place], choices)


async def test_the_cases_reach_what_they_are_for(endpoint: Endpoint) -> None:
    """A parameter that never came into play would be no test of it."""
    answers = {case.name: endpoint.oracle.answer(case.prompt, case.asked) for case in cases(endpoint.oracle)}
    free = endpoint.oracle.answer(PROMPT, {"temperature": 0, "allowed_token_ids": READABLE, "max_tokens": MAX_TOKENS})
    assert answers["stop id"].finish_reason == answers["stop string"].finish_reason == "stop"
    assert free.text[2:4] not in answers["bad word"].text
    assert free.text[1] not in answers["bad letter"].text
    assert len(answers["min tokens"].token_ids) >= 7
    assert len(answers["min tokens and a stop string"].token_ids) > 5
    assert answers["stop string that stays"].text.endswith(free.text[6:9])
    assert len({answer.text for answer in answers.values()}) > len(answers) * 0.7


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_list_of_prompts_with_several_choices_and_echo(endpoint: Endpoint, stream: bool) -> None:
    prompts = [PROMPT, "And", "A longer one than both of them"]
    asked = {"seed": 5, "max_tokens": 6, "allowed_token_ids": READABLE, "n": 2}
    body = {**asked, "model": "tiny", "prompt": prompts, "echo": True, "stream": stream, "logprobs": TOP}
    body["return_tokens_as_token_ids"] = body["return_token_ids"] = True
    async with request(endpoint.port, "POST", "/v1/completions", body) as response:
        raw = await response.body()
    parts = [chunk["choices"][0] for chunk in events(raw)[:-1]] if stream else json.loads(raw)["choices"]
    for index in range(6):
        prompt = prompts[index // 2]
        expected = endpoint.oracle.answer(prompt, asked, choice=index % 2)
        got = joined([part for part in parts if part["index"] == index])
        assert got.text == prompt + expected.text
        assert got.token_ids == expected.token_ids
        assert (got.chosen[0], got.tops[0]) == (None, None)
        lines = endpoint.oracle.prompt_logprobs(prompt) + expected.logprobs
        tokens = [*prompt.encode()[1:], *expected.token_ids]
        assert len(got.chosen) == len(tokens) + 1
        for token_id, chosen, top, line in zip(tokens, got.chosen[1:], got.tops[1:], lines, strict=True):
            assert abs(chosen - line[token_id]) < CLOSE
            check_top(top, token_id, line)


async def test_prompt_logprobs_have_the_rank_of_each_token(endpoint: Endpoint) -> None:
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 1, "prompt_logprobs": TOP}
    async with request(endpoint.port, "POST", "/v1/completions", body) as response:
        [choice] = json.loads(await response.body())["choices"]
    first, *rest = choice["prompt_logprobs"]
    assert first is None
    for token_id, entry, line in zip(PROMPT.encode()[1:], rest, endpoint.oracle.prompt_logprobs(PROMPT), strict=True):
        ranking = np.argsort(-line)
        assert {int(name) for name in entry} == {token_id, *ranking[:TOP].tolist()}
        for name, shown in entry.items():
            assert abs(shown["logprob"] - line[int(name)]) < CLOSE
            assert ranking[shown["rank"] - 1] == int(name)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_chat_samples_as_its_prompt_would(endpoint: Endpoint, stream: bool) -> None:
    asked = {"seed": 3, "allowed_token_ids": READABLE, "temperature": 0.9, "presence_penalty": 0.4, "max_tokens": 10}
    body = {**asked, "model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "logprobs": True, "top_logprobs": 2}
    async with request(endpoint.port, "POST", "/v1/chat/completions", {**body, "stream": stream}) as response:
        raw = await response.body()
    choices = [chunk["choices"][0] for chunk in events(raw)[:-1]] if stream else json.loads(raw)["choices"]
    told = [token for choice in choices if choice["logprobs"] for token in choice["logprobs"]["content"]]
    text = "".join(choice["delta"].get("content", "") if stream else choice["message"]["content"] for choice in choices)
    expected = endpoint.oracle.answer("<user>Hi\n<assistant>", asked)
    assert text == expected.text
    for token_id, token, line in zip(expected.token_ids, told, expected.logprobs, strict=True):
        assert token["bytes"] == [token_id]
        assert abs(token["logprob"] - line[token_id]) < CLOSE
        best = np.sort(line)[::-1][:2]
        assert [other["logprob"] for other in token["top_logprobs"]] == pytest.approx(best, abs=CLOSE)
