"""Structured outputs: whatever tokens a mask allows, the text belongs to the language; what can't be compiled is refused."""

from __future__ import annotations

import contextlib
import json
import random
import re
import threading
from typing import Any

import anyio
import jsonschema
import pytest

from streamserve.config import EngineConfig
from streamserve.errors import InvalidParameter, UnsupportedParameter
from streamserve.text.grammars.call_grammar import AnswerForm
from streamserve.text.grammars.digit_bound import MAX_DIGITS, DigitBound, DigitTable
from streamserve.text.grammars.grammar import MAX_GBNF_CHARS, MAX_SOURCE_CHARS, GrammarCompiler, GrammarConstraint, compiler_for
from streamserve.text.loading import TokenizerParts
from streamserve.text.parsing.dialects.known import CALL_FORMATS
from streamserve.text.schemas.call_schema import Function
from streamserve.text.tokenizers.tokenizer import Tokenizer
from streamserve.types import StructuredOutputs
from tests.support.byte_tokenizer import EOS, VOCAB_SIZE, ByteVocabulary, byte_tokenizer
from tests.text.allowed import allowed
from tests.text.schemas import random_schema

pytestmark = pytest.mark.anyio


@pytest.fixture
def compiler() -> GrammarCompiler:
    return GrammarCompiler(byte_tokenizer, vocab_size=VOCAB_SIZE + 40, eos_token_ids=[EOS])


def sample(constraint: GrammarConstraint, source: random.Random, *, limit: int = 20_000) -> str:
    """A text of random allowed tokens. Ends whatever can be ended soon, since free strings may go on for ever."""
    said = bytearray()
    while not constraint.is_complete:
        tokens = allowed(constraint)
        assert tokens, "nothing may follow, yet the text is not finished"
        if EOS in tokens and source.random() < 0.5:
            break
        tokens = [token for token in tokens if token != EOS]
        closing = [token for token in tokens if token in b'"}]' and source.random() < 0.5]
        token = source.choice(closing or tokens)
        constraint.accept(token)
        said.append(token)
        assert len(said) < limit
    return said.decode()


@pytest.mark.parametrize("seed", range(200))
async def test_every_text_of_a_random_schema_parses_and_validates(compiler: GrammarCompiler, seed: int) -> None:
    source = random.Random(seed)
    schema = random_schema(source)
    constraint = await compiler.compile(StructuredOutputs(json=schema))
    jsonschema.validate(json.loads(sample(constraint, source)), schema)


async def test_a_schema_may_come_as_text(compiler: GrammarCompiler) -> None:
    constraint = await compiler.compile(StructuredOutputs(json='{"const": 7}'))
    assert sample(constraint, random.Random(0)) == "7"


async def test_any_json_object_parses(compiler: GrammarCompiler) -> None:
    for seed in range(20):
        constraint = await compiler.compile(StructuredOutputs(json_object=True))
        assert isinstance(json.loads(sample(constraint, random.Random(seed))), dict)


async def test_white_space_in_json_is_free_but_bounded(compiler: GrammarCompiler) -> None:
    constraint = await compiler.compile(StructuredOutputs(json_object=True))
    constraint.accept(ord("{"))
    spaces = 0
    while ord(" ") in allowed(constraint):
        constraint.accept(ord(" "))
        spaces += 1
    assert 8 <= spaces <= 64


def follow(constraint: GrammarConstraint, text: str) -> str:
    """What of a text the language takes."""
    for at, byte in enumerate(text.encode()):
        if byte not in allowed(constraint):
            return text[:at]
        constraint.accept(byte)
    return text


@pytest.mark.parametrize(
    ("schema", "begin"),
    [
        ({}, ""),
        ({"type": "number"}, "-"),
        ({"type": "number"}, "0."),
        ({"type": "number"}, "1e"),
        ({"type": "integer"}, ""),
        ({"type": "array", "items": {"type": "number"}}, "[1, 2."),
        ({"type": "object"}, '{"a": '),
        ({"type": "string", "format": "duration"}, '"P'),
        ({"type": "string", "format": "date-time"}, '"2026-01-01T00:00:00.'),
    ],
)
async def test_a_number_in_json_ends(compiler: GrammarCompiler, schema: dict[str, Any], begin: str) -> None:
    """A small model that was asked for a number repeated a digit until max_tokens, and its JSON never ended."""
    constraint = await compiler.compile(StructuredOutputs(json=schema))
    written = follow(constraint, begin + "7" * 500)
    assert written == begin + "7" * MAX_DIGITS
    sample(constraint, random.Random(1))


async def test_digits_of_strings_and_of_a_clients_own_expression_are_not_bounded(compiler: GrammarCompiler) -> None:
    digits = "7" * 300
    for wanted, text in (
        ({"json": {"type": "string"}}, f'"{digits}"'),
        ({"json": {"type": "string", "pattern": "^[0-9]+$"}}, f'"{digits}"'),
        ({"json": {"type": "string", "pattern": "^[0-9]{300}$"}}, f'"{digits}"'),
        ({"regex": "[0-9]+"}, digits),
    ):
        constraint = await compiler.compile(StructuredOutputs(**wanted))
        assert follow(constraint, text) == text


async def test_tokens_of_several_digits_count_as_many() -> None:
    table = DigitTable([b"1", b"22", b"a3", b",", b"4,", b'"'])
    bound = DigitBound(table)
    bound.accept(2)
    for _ in range(MAX_DIGITS // 2):
        assert bound.bounded(b"\x1f\x00\x00\x00") == b"\x1f\x00\x00\x00"
        bound.accept(1)
    assert bound.bounded(b"\x1f\x00\x00\x00") == b"\x0c\x00\x00\x00"
    assert bound.bounded(b"\x3f\x00\x00\x00") == b"\x3f\x00\x00\x00"
    bound.accept(3)
    assert bound.bounded(b"\x1f\x00\x00\x00") == b"\x1f\x00\x00\x00"


@pytest.mark.parametrize(
    ("pattern", "text", "taken"),
    [
        ({"^f": {"type": "integer"}}, '{"foo": 1, "fa": 2}', True),
        ({"^f": {"minimum": 3}}, '{"foo": 1}', False),
        ({"^foo$": {"enum": [2, "x"]}}, '{"foo": 2}', True),
    ],
)
async def test_a_declared_property_that_a_pattern_matches_keeps_to_both(
    compiler: GrammarCompiler, pattern: dict[str, Any], text: str, taken: bool
) -> None:
    schema = {"type": "object", "properties": {"foo": {"type": "integer"}}, "patternProperties": pattern}
    constraint = await compiler.compile(StructuredOutputs(json=schema))
    assert (follow(constraint, text) == text) is taken
    with pytest.raises(InvalidParameter, match="can't be compiled"):
        await compiler.compile(
            StructuredOutputs(json={**schema, "patternProperties": {"^f": {"type": "null"}}, "required": ["foo"]})
        )


CITY = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"], "additionalProperties": False}


def with_city(reference: str, fields: dict[str, Any]) -> dict[str, Any]:
    """A schema of {"city": …} whose property refers to a schema in it."""
    return {"type": "object", "properties": {"city": {"$ref": reference}}, "required": ["city"], **fields}


@pytest.mark.parametrize(
    "schema",
    [
        with_city("#/$defs/城市", {"$defs": {"城市": CITY}}),
        with_city("#/$defs/Page[City]", {"$defs": {"Page[City]": CITY}}),
        with_city("#/$defs/a%20b", {"$defs": {"a b": CITY}}),
        with_city("#/$defs/a~1b", {"$defs": {"a/b": CITY}}),
        with_city("#city", {"$defs": {"x": {"$anchor": "city", **CITY}}}),
        with_city("#city", {"definitions": {"x": {"$id": "#city", **CITY}}}),
        with_city("https://a.org/s#city", {"$id": "https://a.org/s", "$defs": {"x": {"$anchor": "city", **CITY}}}),
        with_city("city", {"$id": "https://a.org/s/all", "$defs": {"x": {"$id": "https://a.org/s/city", **CITY}}}),
        with_city("city.json", {"$defs": {"x": {"$id": "city.json", **CITY}}}),
        with_city(
            "other#/$defs/y", {"$id": "urn:example:all", "$defs": {"x": {"$id": "other", "$defs": {"y": CITY}}, "y": {}}}
        ),
        with_city("outer", {"$defs": {"x": {"$id": "outer", "$ref": "#/$defs/y", "$defs": {"y": CITY}}, "y": {}}}),
        with_city("#/$defs/x", {"$schema": "https://example.org/their/own/dialect", "$defs": {"x": CITY}}),
    ],
)
async def test_references_lead_where_json_schema_says(compiler: GrammarCompiler, schema: dict[str, Any]) -> None:
    """pydantic writes `#/$defs/城市` for a class of that name: unquoted, it was refused as no URI."""
    for outputs in (StructuredOutputs(json=schema), StructuredOutputs(json=json.dumps(schema))):
        text = '{"city": {"name": "x"}}'
        assert follow(await compiler.compile(outputs), text) == text
        assert follow(await compiler.compile(outputs), '{"city": 1}') == '{"city": '


async def test_a_reference_out_of_a_schema_is_refused_by_its_name(compiler: GrammarCompiler) -> None:
    with pytest.raises(InvalidParameter, match=r"example\.org/other"):
        await compiler.compile(StructuredOutputs(json=with_city("https://example.org/other", {})))


@pytest.mark.parametrize("pattern", ["^foo$", "^f", ".*"])
async def test_a_declared_property_that_contradicts_a_pattern_is_refused(compiler: GrammarCompiler, pattern: str) -> None:
    """Such a schema was compiled, and its texts ended in an error behind a comma that nothing could follow."""
    inner = {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/s"}, "foo": {"type": "integer"}},
        "required": ["a"],
        "patternProperties": {pattern: {"$ref": "#/$defs/s"}},
        "additionalProperties": False,
    }
    schema = {"type": "object", "properties": {"list": {"type": "array", "items": inner}}, "$defs": {"s": {"type": "string"}}}
    with pytest.raises(InvalidParameter, match="'foo' contradicts"):
        await compiler.compile(StructuredOutputs(json=schema))


@pytest.mark.parametrize(
    "place",
    [
        lambda inner: {"type": "object", "properties": {"default": inner}},
        lambda inner: {"type": "object", "properties": {"s": {"type": "string"}, "x": inner}},
        lambda inner: {"$ref": "#inner", "$defs": {"x": {"$anchor": "inner", **inner}}},
    ],
)
@pytest.mark.parametrize("reference", ["#/$defs/s", "#s", "https://example.org/all#s"])
async def test_such_a_property_is_found_wherever_it_stands_and_whatever_it_refers_to(
    compiler: GrammarCompiler, place: Any, reference: str
) -> None:
    inner = {
        "type": "object",
        "properties": {"foo": {"type": "integer"}},
        "patternProperties": {"^f": {"$ref": reference}},
    }
    schema = place(inner)
    schema |= {"$id": "https://example.org/all", "$defs": {"s": {"$anchor": "s", "type": "string"}, **schema.get("$defs", {})}}
    with pytest.raises(InvalidParameter, match="'foo' contradicts"):
        await compiler.compile(StructuredOutputs(json=schema))


@pytest.mark.parametrize("dialect", ["hermes", "llama3_json", "mistral"])
async def test_so_it_is_in_the_arguments_of_a_strict_tool(compiler: GrammarCompiler, dialect: str) -> None:
    """Only response_format was checked: a strict tool's arguments ended in an error that nothing could prevent."""
    arguments = {
        "type": "object",
        "properties": {"foo": {"$ref": "#n"}},
        "patternProperties": {"^f": {"type": "string"}},
        "$defs": {"x": {"$anchor": "n", "type": "integer"}},
    }
    form = AnswerForm(calls=CALL_FORMATS[dialect], functions=[Function("a", {"type": "object"}), Function("b", arguments)])
    with pytest.raises(InvalidParameter, match="'foo' contradicts"):
        await compiler.compile(StructuredOutputs(grammar=form.lark()))
    arguments["patternProperties"] = {"^f": {"minimum": 3}}
    await compiler.compile(StructuredOutputs(grammar=form.lark()))


async def test_a_grammar_may_have_the_word_for_a_schema_in_a_text(compiler: GrammarCompiler) -> None:
    constraint = await compiler.compile(StructuredOutputs(grammar='start: "%json {" "x" // %json {'))
    assert follow(constraint, "%json {x") == "%json {x"


async def test_texts_match_a_regular_expression(compiler: GrammarCompiler) -> None:
    pattern = r"[a-c]{2}-\d+(秋|天)?"
    for seed in range(20):
        constraint = await compiler.compile(StructuredOutputs(regex=pattern))
        assert re.fullmatch(pattern, sample(constraint, random.Random(seed)))


async def test_texts_are_one_of_the_choices(compiler: GrammarCompiler) -> None:
    choices = ["yes", "no", "也许", 'a "quoted"\n\\ one']
    texts = [sample(await compiler.compile(StructuredOutputs(choice=choices)), random.Random(seed)) for seed in range(40)]
    assert set(texts) == set(choices)


@pytest.mark.parametrize("grammar", ['start: "a" /[0-9]+/ "b"', 'root ::= "a" [0-9]+ "b"'])
async def test_texts_follow_lark_and_gbnf_grammars(compiler: GrammarCompiler, grammar: str) -> None:
    constraint = await compiler.compile(StructuredOutputs(grammar=grammar))
    assert re.fullmatch("a[0-9]+b", sample(constraint, random.Random(1)))


@pytest.mark.parametrize(
    "wanted",
    [
        {"json": {"type": "nonsense"}},
        {"json": {"type": "array", "uniqueItems": True}},
        {"json": "{"},
        {"json": "[]"},
        {"json_object": False},
        {"regex": "[0-9"},
        {"choice": []},
        {"grammar": "start: missing_rule"},
        {"grammar": "root ::= ("},
        {"grammar": "::="},
        {"grammar": 'other ::= "a"'},
        {"grammar": "root ::= missing"},
        {"grammar": "root ::= " + "(" * 5000},
        {"regex": "x" * (MAX_SOURCE_CHARS + 1)},
        {"json": '{"not":' * 10_000},
        {"grammar": "\n" * MAX_SOURCE_CHARS},
        {"grammar": 'root ::= "a"\n' + "# comment\n" * (MAX_GBNF_CHARS // 10)},
    ],
)
async def test_what_cannot_be_compiled_is_a_bad_request(compiler: GrammarCompiler, wanted: dict[str, Any]) -> None:
    with anyio.fail_after(20), pytest.raises(InvalidParameter) as raised:
        await compiler.compile(StructuredOutputs(**wanted))
    assert raised.value.param == "structured_outputs"
    assert len(raised.value.message) < 1000


@pytest.mark.parametrize(
    "regex", ["((((((a{1,99}){1,99}){1,99}){1,99}){1,99}){1,99})b", "(a|b)*a(a|b){400}c", r"\w{1,2000}\d{1,2000}"]
)
async def test_an_expression_that_explodes_costs_little(compiler: GrammarCompiler, regex: str) -> None:
    with anyio.fail_after(5):
        constraint = await compiler.compile(StructuredOutputs(regex=regex))
        with contextlib.suppress(ValueError):  # too complex to follow: the sequence ends with an error
            for _ in range(50):
                constraint.accept(allowed(constraint)[0])


def _references(length: int) -> dict[str, Any]:
    definitions = {f"d{i}": {"items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(length)}
    return {"json": {"$ref": "#/$defs/d0", "$defs": {**definitions, f"d{length}": {"type": "string"}}}}


def _rules(length: int) -> dict[str, Any]:
    rules = (f'r{i}: "x" | r{i + 1} "y"' for i in range(length))
    return {"grammar": "\n".join(("start: r0", *rules, f'r{length}: "z"'))}


@pytest.mark.parametrize("wanted", [_references(2_500), _rules(4_500)])
async def test_a_long_chain_of_references_is_followed_to_its_end(compiler: GrammarCompiler, wanted: dict[str, Any]) -> None:
    """The library recurses: on a stack of the usual size this ends the process, and every stream of the server with it."""
    with contextlib.suppress(InvalidParameter):  # too large may be said, too
        await compiler.compile(StructuredOutputs(**wanted))


async def test_the_time_limit_is_for_compiling_not_for_loading_the_tokenizer() -> None:
    came = threading.Event()

    def load() -> Tokenizer:
        assert came.wait(10)
        return byte_tokenizer()

    compiler = GrammarCompiler(load, vocab_size=VOCAB_SIZE, eos_token_ids=[EOS], timeout_s=0.4)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(compiler.compile, StructuredOutputs(choice=["yes"]))
        await anyio.sleep(0.5)  # longer than the limit
        came.set()
    assert compiler.num_compiled == 1


async def test_compiling_has_a_time_limit() -> None:
    hurried = GrammarCompiler(byte_tokenizer, vocab_size=VOCAB_SIZE, eos_token_ids=[EOS], timeout_s=0.05)
    wanted = {"type": "object", "properties": {f"property_{i}": {"type": "string"} for i in range(3_000)}}
    with pytest.raises(InvalidParameter, match="simplify"):
        await hurried.compile(StructuredOutputs(json=wanted))


async def test_a_token_outside_the_language_is_an_error(compiler: GrammarCompiler) -> None:
    constraint = await compiler.compile(StructuredOutputs(choice=["yes"]))
    assert allowed(constraint) == [ord("y")]
    with pytest.raises(ValueError, match="doesn't satisfy the grammar"):
        constraint.accept(ord("n"))
    assert EOS not in allowed(constraint)
    with pytest.raises(ValueError, match="grammar"):
        constraint.accept(ord("y"))


async def test_sequences_of_one_schema_do_not_see_each_other(compiler: GrammarCompiler) -> None:
    first = await compiler.compile(StructuredOutputs(choice=["ab", "cd"]))
    first.accept(ord("a"))
    second = await compiler.compile(StructuredOutputs(choice=["ab", "cd"]))
    assert allowed(first) == [ord("b")]
    assert allowed(second) == [ord("a"), ord("c")]


async def test_masks_are_as_long_as_the_models_vocabulary(compiler: GrammarCompiler) -> None:
    constraint = await compiler.compile(StructuredOutputs(regex="(?s:.*)"))
    assert len(constraint.bitmask()) == 4 * -(-(VOCAB_SIZE + 40) // 32)
    assert max(allowed(constraint)) == EOS


async def test_the_end_is_allowed_only_where_the_language_may_end(compiler: GrammarCompiler) -> None:
    constraint = await compiler.compile(StructuredOutputs(regex=r"\d+"))
    assert EOS not in allowed(constraint)
    constraint.accept(ord("7"))
    assert EOS in allowed(constraint)
    assert not constraint.is_complete


async def test_the_cache_forgets_the_least_recently_used(demo: Tokenizer) -> None:
    loads = []

    def load() -> Tokenizer:
        loads.append(1)
        return demo

    compiler = GrammarCompiler(load, vocab_size=demo.vocab_size, eos_token_ids=[2], cache_size=2)
    for choice in ("a", "b", "a", "c", "a"):
        await compiler.compile(StructuredOutputs(choice=[choice]))
    assert compiler.cached == 2
    assert compiler.num_compiled == 3
    assert loads == [1]


async def test_a_model_that_never_ends_a_text_takes_no_structures() -> None:
    endless = Tokenizer(TokenizerParts(ByteVocabulary()))
    compiler = GrammarCompiler(lambda: endless, vocab_size=VOCAB_SIZE, eos_token_ids=[])
    with pytest.raises(UnsupportedParameter):
        await compiler.compile(StructuredOutputs(choice=["a"]))


async def test_a_structure_ends_with_the_tokenizers_own_end_where_no_configuration_names_one() -> None:
    """Structured output was refused for models whose end of sequence only tokenizer_config.json names."""
    compiler = GrammarCompiler(byte_tokenizer, vocab_size=VOCAB_SIZE, eos_token_ids=[])
    constraint = await compiler.compile(StructuredOutputs(regex="a*"))
    assert constraint.bitmask()[EOS // 8] >> EOS % 8 & 1


async def test_an_engine_process_makes_a_compiler_of_its_configuration() -> None:
    from streamserve.checkpoint.names import resolve

    compile_one = compiler_for(EngineConfig(model="demo"), resolve("demo"))
    constraint = await compile_one(StructuredOutputs(choice=["yes"]))
    assert len(constraint.bitmask()) == 49152 // 8
