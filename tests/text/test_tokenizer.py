"""Tokenizers: what they load, how fast, and that their ids are those of the libraries the models were made with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from streamserve.checkpoint.files import Checkpoint
from streamserve.checkpoint.names import demo_path, resolve
from streamserve.errors import ConfigError, ModelNotSupported
from streamserve.text.tokenizers.gguf_tokenizer import build_tokenizer
from streamserve.text.tokenizers.tokenizer import Tokenizer, load_tokenizer
from tests.text.samples import texts

GOLDEN = {
    "x = 1  2": [104, 446, 216, 33, 256, 34],
    "  7": [256, 39],
    "def f(x):\n    return x  1": [1604, 275, 24, 104, 727, 472, 1003, 1792, 256, 33],
    "描述一下北京的秋天": [46980, 233, 18276, 125, 22924, 42080, 30158, 241, 16736, 122, 11567, 37145, 229, 18614, 119],
    "👍🏽 2026<|im_end|>": [10813, 235, 231, 10813, 233, 138, 216, 34, 32, 34, 38, 2],
    "I'LL don't\r\n\t3.14": [57, 23, 16421, 1326, 982, 15290, 35, 30, 33, 36],
}
"""From transformers' tokenizer for the demo model, with the digit splitter that its GGUF conversion drops."""


@pytest.mark.parametrize("text", GOLDEN)
def test_the_demo_tokenizers_ids_are_transformers(demo: Tokenizer, text: str) -> None:
    assert demo.encode(text) == GOLDEN[text]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_seven_hundred_texts_tokenise_as_transformers_does(demo: Tokenizer) -> None:
    from transformers import AutoTokenizer

    path = demo_path()
    theirs = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    wrong = [text for text in texts(700) if theirs.encode(text) != demo.encode(text)]
    assert wrong == []


def test_loading_the_demo_tokenizer_is_quick_and_light() -> None:
    code = (
        "import sys, time; started = time.process_time()\n"
        "from streamserve.checkpoint.names import resolve\n"
        "from streamserve.text.tokenizers.tokenizer import load_tokenizer\n"
        "load_tokenizer(resolve('demo'))\n"
        "print(time.process_time() - started, *sys.modules)"
    )
    seconds, *modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert float(seconds) < 2.0
    assert not {"torch", "transformers"} & set(modules)


def test_a_tokens_bytes_are_the_true_ones(demo: Tokenizer) -> None:
    text = "秋天 🍂 autumn"
    assert b"".join(map(demo.token_bytes, demo.encode(text))) == text.encode()
    assert demo.token_bytes(demo.encode("<|im_end|>")[0]) == b"<|im_end|>"
    assert demo.token_bytes(10**9) == b""
    assert demo.decode([10**9]) == ""


def test_a_token_inside_a_character_reads_as_a_replacement(demo: Tokenizer) -> None:
    assert demo.token_text(demo.encode("🍂")[0]) == "\ufffd"


def test_half_a_surrogate_pair_is_refused(demo: Tokenizer) -> None:
    with pytest.raises(UnicodeEncodeError):
        demo.encode("\ud83c")


def test_an_unknown_gguf_pre_tokenizer_is_refused_by_name() -> None:
    metadata = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "klingon", "tokenizer.ggml.tokens": ["a"]}
    with pytest.raises(ModelNotSupported, match=r"'klingon' is not supported; supported: .*llama-bpe.*qwen2.*smollm"):
        build_tokenizer(metadata)


def test_an_unknown_gguf_tokenizer_model_is_refused_by_name() -> None:
    with pytest.raises(ModelNotSupported, match="'bert'"):
        build_tokenizer({"tokenizer.ggml.model": "bert"})


@pytest.mark.parametrize(
    ("pre", "text", "words"),
    [
        ("gpt-2", "abc  12'LL", ["abc", "Ġ", "Ġ12", "'", "LL"]),
        ("smollm", "abc  12", ["abc", "ĠĠ", "1", "2"]),
        ("llama-bpe", "abc 12345 we'LL x\n\ny", ["abc", "Ġ", "123", "45", "Ġwe", "'LL", "Ġx", "ĊĊ", "y"]),
        ("qwen2", "abc 12 (e\u0301", ["abc", "Ġ", "1", "2", "Ġ(", "Ã©"]),
        ("tekken", "camelCase //\n", ["camel", "Case", "Ġ//Ċ"]),
        ("gpt-4o", "We'll go1234", ["We'll", "Ġgo", "123", "4"]),
    ],
)
def test_gguf_pre_tokenizers_split_as_their_models_were_trained(pre: str, text: str, words: list[str]) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": alphabet,
        "tokenizer.ggml.merges": [],
    }
    tokenizer = build_tokenizer(metadata)
    composed = text if tokenizer.normalizer is None else tokenizer.normalizer.normalize_str(text)
    assert tokenizer.pre_tokenizer is not None
    assert [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(composed)] == words


PIECES = [
    "<unk>",
    "<s>",
    "</s>",
    *(f"<0x{byte:02X}>" for byte in range(256)),
    "▁",
    "a",
    "b",
    "c",
    "ab",
    "bc",
    "▁a",
    "abc",
    "ca",
]
SCORES = [0.0] * 259 + [-5.0, -6.0, -7.0, -8.0, -2.0, -1.0, -3.0, -4.0, -2.5]
SENTENCEPIECE = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": PIECES,
    "tokenizer.ggml.scores": SCORES,
    "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * 9,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
}


def merged_by_score(text: str) -> list[str]:
    """Sentencepiece's rule: merge the neighbours whose union scores best, leftmost first, until none is a piece."""
    symbols = list("▁" + text.replace(" ", "▁"))
    while True:
        pairs = [
            (SCORES[PIECES.index(joined)], -at)
            for at in range(len(symbols) - 1)
            if (joined := "".join(symbols[at : at + 2])) in PIECES
        ]
        if not pairs:
            return symbols
        at = -max(pairs)[1]
        symbols[at : at + 2] = ["".join(symbols[at : at + 2])]


@settings(deadline=None)
@given(text=st.text(alphabet="abc ", min_size=1, max_size=12))
def test_a_gguf_sentencepiece_vocabulary_merges_by_score(text: str) -> None:
    tokens = build_tokenizer(SENTENCEPIECE).encode(text).tokens
    assert tokens == ["<s>", *merged_by_score(text)]


def test_a_gguf_sentencepiece_vocabulary_falls_back_to_bytes() -> None:
    tokenizer = build_tokenizer(SENTENCEPIECE)
    encoding = tokenizer.encode("a秋")
    assert encoding.tokens == ["<s>", "▁a", "<0xE7>", "<0xA7>", "<0x8B>"]
    assert tokenizer.decode(encoding.ids) == "a秋"


@dataclass(frozen=True)
class Folder:
    """A model folder to load a tokenizer from."""

    path: Path

    def write(self, **files: Any) -> None:
        for name, value in files.items():
            (self.path / name.replace("__", ".")).write_text(value if isinstance(value, str) else json.dumps(value))

    def load(self) -> Tokenizer:
        return load_tokenizer(Checkpoint(source="here", path=self.path, format="dummy", config={}))


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """A folder with a byte-level tokenizer.json of single bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE({letter: place for place, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<bos>", "<eos>"])
    backend.enable_truncation(4)
    backend.save(str(tmp_path / "tokenizer.json"))
    return Folder(tmp_path)


def test_a_folder_is_read_without_its_truncation(folder: Folder) -> None:
    tokenizer = folder.load()
    assert tokenizer.decode(tokenizer.encode("longer than four")) == "longer than four"
    assert tokenizer.bos_token_id is None
    assert tokenizer.chat_templates == {}


def test_special_tokens_are_read_as_strings_or_objects(folder: Folder) -> None:
    folder.write(tokenizer_config__json={"bos_token": "<bos>", "eos_token": {"content": "<eos>"}, "pad_token": None})
    tokenizer = folder.load()
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (256, 257)
    assert tokenizer.special_tokens == {"bos_token": "<bos>", "eos_token": "<eos>"}


def test_bos_and_eos_are_added_where_the_configuration_says_so(folder: Folder) -> None:
    folder.write(tokenizer_config__json={"bos_token": "<bos>", "eos_token": "<eos>", "add_bos_token": True})
    tokenizer = folder.load()
    assert tokenizer.decode(tokenizer.encode("a"), skip_special_tokens=False) == "<bos>a"
    assert tokenizer.decode(tokenizer.encode("a", add_special_tokens=False), skip_special_tokens=False) == "a"


def test_tokens_that_only_the_configuration_lists_are_added(folder: Folder) -> None:
    folder.write(tokenizer_config__json={"added_tokens_decoder": {"258": {"content": "<think>", "special": False}}})
    tokenizer = folder.load()
    assert tokenizer.encode("<think>") == [258]
    assert tokenizer.decode([258]) == "<think>"
    folder.write(tokenizer_config__json={"added_tokens_decoder": {"300": {"content": "<think>"}}})
    with pytest.raises(ConfigError, match="300"):
        folder.load()


def test_chat_templates_come_from_the_configuration_or_files_of_their_own(folder: Folder) -> None:
    folder.write(
        tokenizer_config__json={"chat_template": [{"name": "default", "template": "A"}, {"name": "tool_use", "template": "B"}]}
    )
    assert folder.load().chat_templates == {"default": "A", "tool_use": "B"}
    folder.write(chat_template__jinja="C")
    assert folder.load().chat_templates == {"default": "C", "tool_use": "B"}
    (folder.path / "additional_chat_templates").mkdir()
    (folder.path / "additional_chat_templates" / "rag.jinja").write_text("D")
    assert folder.load().chat_templates == {"default": "C", "tool_use": "B", "rag": "D"}


def test_a_processors_chat_template_counts_only_where_there_is_no_other(folder: Folder) -> None:
    """transformers' tokenizers don't read chat_template.json: it overrode tokenizer_config.json here."""
    folder.write(chat_template__json={"chat_template": "P"})
    assert folder.load().chat_templates == {"default": "P"}
    folder.write(tokenizer_config__json={"chat_template": "T"})
    assert folder.load().chat_templates == {"default": "T"}


def test_special_tokens_of_a_models_own_are_named_for_templates(folder: Folder) -> None:
    """google/gemma-3: `boi_token`, `image_token` and the like are variables of its template, and were undefined."""
    folder.write(
        tokenizer_config__json={
            "bos_token": "<s>",
            "boi_token": {"content": "<image>"},
            "add_bos_token": True,
            "extra_special_tokens": {"audio_token": "<audio>"},
            "chat_template": "{{ bos_token }}{{ boi_token }}{{ audio_token }}",
        }
    )
    assert folder.load().apply_chat_template([{"role": "user", "content": "a"}], tokenize=False) == "<s><image><audio>"


def test_a_broken_folder_says_which_file(folder: Folder) -> None:
    folder.write(tokenizer_config__json="{")
    with pytest.raises(ConfigError, match=r"tokenizer_config\.json"):
        folder.load()
    folder.write(tokenizer__json="{")
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        folder.load()


def test_a_tokenizer_may_be_named(folder: Folder) -> None:
    checkpoint = resolve("demo")
    assert load_tokenizer(checkpoint, tokenizer=str(folder.path)).vocab_size == 258
    assert load_tokenizer(checkpoint, tokenizer=str(folder.path / "tokenizer.json")).vocab_size == 258
    with pytest.raises(ConfigError, match="nobody/nothing"):
        load_tokenizer(checkpoint, tokenizer="nobody/nothing")


@pytest.mark.slow
def test_a_folder_without_tokenizer_json_is_read_by_transformers(tmp_path: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: place for place, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *alphabet])}
    Folder(tmp_path).write(
        vocab__json=vocabulary,
        merges__txt="#version: 0.2\n",
        config__json={"model_type": "opt"},
        tokenizer_config__json={
            "tokenizer_class": "GPT2Tokenizer",
            "add_bos_token": True,
            "bos_token": "</s>",
            "eos_token": "</s>",
        },
    )
    tokenizer = Folder(tmp_path).load()
    assert tokenizer.encode("ab") == [2, vocabulary["a"], vocabulary["b"]]
    assert tokenizer.has_true_bytes


REMOTE_CODE = """
from transformers import PreTrainedTokenizer

class LetterTokenizer(PreTrainedTokenizer):
    @property
    def vocab_size(self): return 26
    def get_vocab(self): return {chr(97 + i): i for i in range(26)}
    def _tokenize(self, text, **options): return list(text)
    def _convert_token_to_id(self, token): return ord(token) - 97
    def _convert_id_to_token(self, token_id): return chr(97 + token_id)
    def convert_tokens_to_string(self, tokens): return "".join(tokens).upper()
    def save_vocabulary(self, folder, filename_prefix=None): return ()
"""


def remote_code_folder(path: Path) -> Folder:
    folder = Folder(path)
    folder.write(
        tokenization_letters__py=REMOTE_CODE,
        config__json={"model_type": "llama"},
        tokenizer_config__json={"auto_map": {"AutoTokenizer": ["tokenization_letters.LetterTokenizer", None]}},
    )
    return folder


def test_code_that_is_not_trusted_is_not_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--trust-remote-code"):
        remote_code_folder(tmp_path).load()


@pytest.mark.slow
def test_trusted_code_tokenises(tmp_path: Path) -> None:
    remote_code_folder(tmp_path)
    code = (
        "import sys; from pathlib import Path; from streamserve.checkpoint.files import Checkpoint\n"
        "from streamserve.text.detokenizer import detokenizer_for\n"
        "from streamserve.text.tokenizers.tokenizer import load_tokenizer\n"
        "checkpoint = Checkpoint(source='x', path=Path(sys.argv[1]), format='dummy', config={})\n"
        "tokenizer = load_tokenizer(checkpoint, trust_remote_code=True)\n"
        "ids = tokenizer.encode('abcab'); detokenizer = detokenizer_for(tokenizer, [])\n"
        "print(ids, tokenizer.decode(ids), [*map(detokenizer.push, ids)], tokenizer.token_bytes(2))"
    )
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == "[0, 1, 2, 0, 1] ABCAB ['A', 'B', 'C', 'A', 'B'] b'C'\n", done.stderr
