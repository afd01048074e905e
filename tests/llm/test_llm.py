"""The offline LLM on the demo model: vLLM's interface, in its order, and a clean end of the program."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamserve import LLM, PoolingParams, SamplingParams, StructuredOutputs
from streamserve.errors import ConfigError, ContextLengthExceeded, InvalidParameter, Unavailable, UnsupportedParameter
from streamserve.offline.arguments import engine_settings

ROOT = Path(__file__).resolve().parents[2]
GREEDY = SamplingParams(temperature=0, max_tokens=3)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(model="demo", dtype="float32", max_model_len=256, max_num_seqs=8, kv_cache_memory=64 << 20) as llm:
        yield llm


def test_outputs_come_in_the_order_of_the_prompts(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = ["The capital of France is", "Hello, my name is", "1 2 3 4"]
    outputs = llm.generate(prompts, [SamplingParams(temperature=0, max_tokens=count) for count in (9, 1, 5)])
    assert [output.prompt for output in outputs] == prompts
    assert [len(output.outputs[0].token_ids) for output in outputs] == [9, 1, 5]
    assert outputs[0].outputs[0].text.startswith(" Paris")
    assert all(output.finished and output.outputs[0].finish_reason == "length" for output in outputs)
    assert [int(output.request_id) for output in outputs] == list(
        range(int(outputs[0].request_id), int(outputs[0].request_id) + 3)
    )
    written = capsys.readouterr()
    assert "3/3" in written.err
    assert "tok/s" in written.err
    assert written.out == ""


THINKING = "{% for message in messages %}{{ message.content }}{% endfor %}<think>\n{# </think> #}"


def test_a_chat_thinks_as_long_as_its_budget_says_and_other_prompts_refuse_one(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=20, thinking_token_budget=3)
    question = [{"role": "user", "content": "Why?"}]
    [output] = llm.chat(question, params, chat_template=THINKING, use_tqdm=False)
    ending = llm.get_tokenizer().encode("</think>", add_special_tokens=False)
    assert output.outputs[0].token_ids[3 : 3 + len(ending)] == ending
    for ask in (lambda: llm.generate("Why?", params), lambda: llm.chat(question, params)):
        with pytest.raises(UnsupportedParameter, match="thinking_token_budget"):
            ask()


def test_prompts_have_embeddings(llm: LLM) -> None:
    prompts = ["The capital of France is", "Hello"]
    outputs = llm.embed(prompts, use_tqdm=False)
    vectors = [output.outputs.embedding for output in outputs]
    assert [sum(number * number for number in vector) for vector in vectors] == pytest.approx([1, 1])
    assert [output.prompt_token_ids for output in outputs] == [llm.get_tokenizer().encode(prompt) for prompt in prompts]
    [short] = llm.embed(prompts[0], pooling_params=PoolingParams(dimensions=3, normalize=False), use_tqdm=False)
    [whole] = llm.embed(prompts[0], pooling_params=PoolingParams(normalize=False), use_tqdm=False)
    assert short.outputs.embedding == pytest.approx(whole.outputs.embedding[:3])
    with pytest.raises(InvalidParameter, match="dimensions"):
        llm.embed(prompts, pooling_params=PoolingParams(dimensions=1 << 20))
    with pytest.raises(ContextLengthExceeded):
        llm.embed([[5] * 257])


def test_prompts_may_be_token_ids(llm: LLM) -> None:
    ids = llm.get_tokenizer().encode("The capital of France is")
    expected = llm.generate("The capital of France is", GREEDY, use_tqdm=False)[0].outputs[0].text
    for outputs in (
        llm.generate(ids, GREEDY, use_tqdm=False),
        llm.generate([ids], GREEDY, use_tqdm=False),
        llm.generate({"prompt_token_ids": ids}, GREEDY, use_tqdm=False),
        llm.generate(prompt_token_ids=[ids], sampling_params=GREEDY, use_tqdm=False),
    ):
        [output] = outputs
        assert output.prompt is None
        assert output.prompt_token_ids == ids
        assert output.outputs[0].text == expected


def test_several_outputs_per_prompt_differ_and_can_be_repeated(llm: LLM) -> None:
    params = SamplingParams(n=3, seed=11, max_tokens=6)
    first, second = (llm.generate("Once upon a time", params, use_tqdm=False)[0] for _ in range(2))
    texts = [output.text for output in first.outputs]
    assert len(set(texts)) == 3
    assert texts == [output.text for output in second.outputs]
    assert [output.index for output in first.outputs] == [0, 1, 2]


def test_logprobs_are_vllms(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=4, logprobs=2, prompt_logprobs=1)
    [output] = llm.generate("The capital of France is", params, use_tqdm=False)
    [completion] = output.outputs
    assert completion.logprobs is not None
    assert len(completion.logprobs) == 4
    chosen = [entry[token_id] for entry, token_id in zip(completion.logprobs, completion.token_ids, strict=True)]
    assert all(
        entry.rank == 1 and entry.logprob == max(e.logprob for e in all_.values())
        for entry, all_ in zip(chosen, completion.logprobs, strict=True)
    )
    assert completion.cumulative_logprob == pytest.approx(sum(entry.logprob for entry in chosen))
    assert "".join(entry.decoded_token or "" for entry in chosen) == completion.text
    assert output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None
    assert [
        token_id in entry
        for token_id, entry in zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True)
        if entry
    ] == [True] * (len(output.prompt_token_ids) - 1)


def test_a_chat_is_answered(llm: LLM) -> None:
    messages = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
    outputs = llm.chat([messages, messages], SamplingParams(temperature=0, max_tokens=16), use_tqdm=False)
    assert len(outputs) == 2
    assert "Paris" in outputs[0].outputs[0].text
    assert outputs[0].prompt is not None
    assert outputs[0].prompt.endswith("<|im_start|>assistant\n")
    [single] = llm.chat(messages, GREEDY, use_tqdm=False)
    assert single.prompt == outputs[0].prompt


def test_outputs_follow_a_schema(llm: LLM) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "maximum": 99}},
        "required": ["n"],
        "additionalProperties": False,
    }
    params = SamplingParams(max_tokens=60, structured_outputs=StructuredOutputs(json=schema))
    for output in llm.generate(["A number: "] * 3, params, use_tqdm=False):
        assert json.loads(output.outputs[0].text)["n"] <= 99
        assert output.outputs[0].finish_reason == "stop"


def test_the_output_ends_where_the_context_does(llm: LLM) -> None:
    [output] = llm.generate([[1] * 250], SamplingParams(max_tokens=100, ignore_eos=True), use_tqdm=False)
    assert len(output.outputs[0].token_ids) == 6


def test_a_bad_prompt_is_refused_before_anything_runs(llm: LLM) -> None:
    with pytest.raises(ContextLengthExceeded):
        llm.generate(["fine", [1] * 256], GREEDY, use_tqdm=False)
    with pytest.raises(InvalidParameter, match="2 entries for 1 prompts"):
        llm.generate(["one"], [GREEDY, GREEDY], use_tqdm=False)
    with pytest.raises(InvalidParameter, match="prompts"):
        llm.generate()
    for wrong in (5, None, b"bytes", [None], [[1.5]]):
        with pytest.raises(InvalidParameter):
            llm.generate(wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidParameter, match="sampling_params: expected SamplingParams, got dict"):
        llm.generate("one", {"temperature": 0})  # type: ignore[arg-type]
    assert llm.generate([], GREEDY) == []


def test_without_parameters_the_models_recommendations_are_used(llm: LLM) -> None:
    assert llm.get_default_sampling_params() == SamplingParams(temperature=0.2, top_p=0.9)
    [output] = llm.generate("Hello", use_tqdm=False)
    assert len(output.outputs[0].token_ids) <= 16


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        ({"tensor_parallel_size": 1, "dtype": "half"}, {"tensor_parallel_size": 1, "dtype": "half"}),
        ({"kv_cache_memory_bytes": 5, "async_scheduling": False}, {"kv_cache_memory": 5, "overlap": False}),
        ({"tokenizer_mode": "auto", "swap_space": 4, "quantization": None}, {}),
        ({"quantization": "int4"}, {"quantization": "int4"}),
    ],
)
def test_vllms_arguments_are_understood(arguments: dict[str, Any], settings: dict[str, Any]) -> None:
    assert engine_settings(arguments) == settings


@pytest.mark.parametrize("arguments", [{"tokenizer_mode": "slow"}, {"enable_lora": True}, {"gpu_memory_utilisation": 0.9}])
def test_what_is_not_supported_is_refused_by_name(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        LLM(model="demo", **arguments)


TUTORIAL = """
from streamserve import LLM, SamplingParams

prompts = [
    "Hello, my name is",
    "The president of the United States is",
    "The capital of France is",
    "The future of AI is",
]
sampling_params = SamplingParams(temperature=0.8, top_p=0.95)

llm = LLM(model="demo")
outputs = llm.generate(prompts, sampling_params)

for output in outputs:
    prompt = output.prompt
    generated_text = output.outputs[0].text
    print(f"Prompt: {prompt!r}, Generated text: {generated_text!r}")
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=100, check=False)


def test_vllms_tutorial_runs_with_only_its_import_changed_and_exits_by_itself() -> None:
    done = run(TUTORIAL)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Prompt: ") == 4
    assert "4/4" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_closed_model_says_so() -> None:
    with LLM(model="demo", load_format="dummy", max_model_len=64, max_num_seqs=2, kv_cache_memory=16 << 20) as llm:
        assert len(llm.generate([[1, 2]], GREEDY, use_tqdm=False)) == 1
    with pytest.raises(Unavailable):
        llm.generate([[1, 2]], GREEDY, use_tqdm=False)
    llm.close()


def test_a_program_that_fails_ends_too() -> None:
    done = run("from streamserve import LLM\nllm = LLM(model='demo', load_format='dummy')\nraise SystemExit(3)")
    assert done.returncode == 3, done.stderr
