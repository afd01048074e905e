"""A tokenizer built from the metadata of a GGUF file.

GGUF keeps vocabulary, merges or scores, and the *name* of a pre-tokenizer (`tokenizer.ggml.pre`); what that name means is a
table here. A name that is not in the table is refused rather than guessed: a wrong split changes token ids silently. Knows no
model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from streamserve.errors import ModelNotSupported

_CONTROL, _USER_DEFINED = 3, 4

_CONTRACTIONS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_REST_WITH_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_EDGE = r"[^\r\n\p{L}\p{N}]?"


@dataclass(frozen=True)
class _PreTokenizer:
    """The meaning of a `tokenizer.ggml.pre` name.

    split          the regular expression whose matches are the words; None for GPT-2's own
    single_digits  digits are cut off one by one first
    whole_words    a word that is in the vocabulary is taken without merging
    adds_bos       whether the text gets a beginning-of-sequence token when the file does not specify it
    composes       the text is normalised to Unicode's composed form (NFC) first
    """

    split: str | None = None
    single_digits: bool = False
    whole_words: bool = False
    adds_bos: bool = False
    composes: bool = False


_GPT2 = _PreTokenizer()
_SINGLE_DIGITS = _PreTokenizer(single_digits=True)
_LLAMA3 = _PreTokenizer(
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}", whole_words=True, adds_bos=True
)
_QWEN2_SPLIT = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}"
_TEKKEN = _PreTokenizer(rf"{_EDGE}{_UPPER}*{_LOWER}+|{_EDGE}{_UPPER}+{_LOWER}*|\p{{N}}|{_REST_WITH_SLASH}", whole_words=True)
_GPT4O = _PreTokenizer(
    rf"{_EDGE}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_EDGE}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?|\p{{N}}{{1,3}}|{_REST_WITH_SLASH}",
    whole_words=True,
)

PRE_TOKENIZERS: dict[str, _PreTokenizer] = {
    "gpt-2": _GPT2,
    "olmo": _GPT2,
    "phi-2": _GPT2,
    "smollm": _SINGLE_DIGITS,
    "starcoder": _SINGLE_DIGITS,
    "refact": _SINGLE_DIGITS,
    "command-r": _SINGLE_DIGITS,
    "codeshell": _SINGLE_DIGITS,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "falcon3": _LLAMA3,
    "smaug-bpe": _LLAMA3,
    "qwen2": _PreTokenizer(_QWEN2_SPLIT, composes=True),
    "deepseek-r1-qwen": _PreTokenizer(_QWEN2_SPLIT),
    "stablelm2": _PreTokenizer(_QWEN2_SPLIT),
    "tekken": _TEKKEN,
    "gpt-4o": _GPT4O,
    "llama4": _GPT4O,
}


def build_tokenizer(metadata: dict[str, Any]) -> Tokenizer:
    """The tokenizer that a GGUF file's metadata describes.

    Raises `ModelNotSupported` for a vocabulary type or pre-tokenizer that is not supported.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        pre = _pre_tokenizer(metadata)
        tokenizer, adds_bos = _byte_level_bpe(metadata, pre), pre.adds_bos
    elif kind == "llama":
        tokenizer, adds_bos = _sentencepiece_bpe(metadata), True
    else:
        raise ModelNotSupported(
            f"GGUF tokenizer model {kind!r} is not supported; supported: gpt2, llama. Name a tokenizer instead"
        )
    _add_special_tokens(tokenizer, metadata)
    _wrap_texts(tokenizer, metadata, adds_bos)
    return tokenizer


def _pre_tokenizer(metadata: dict[str, Any]) -> _PreTokenizer:
    name = metadata.get("tokenizer.ggml.pre", "default")
    if name not in PRE_TOKENIZERS:
        raise ModelNotSupported(
            f"GGUF pre-tokenizer {name!r} is not supported; supported: {', '.join(sorted(PRE_TOKENIZERS))}. "
            "Name the model's original tokenizer instead (--tokenizer)"
        )
    return PRE_TOKENIZERS[name]


def _byte_level_bpe(metadata: dict[str, Any], pre: _PreTokenizer) -> Tokenizer:
    vocabulary = {token: token_id for token_id, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=pre.whole_words))
    if pre.composes:
        tokenizer.normalizer = normalizers.NFC()
    steps: list[pre_tokenizers.PreTokenizer] = []
    if pre.single_digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if pre.split is not None:
        steps.append(pre_tokenizers.Split(Regex(pre.split), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre.split is None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece_bpe(metadata: dict[str, Any]) -> Tokenizer:
    tokens = metadata["tokenizer.ggml.tokens"]
    vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
    merges = _merges_of_scores(vocabulary, metadata["tokenizer.ggml.scores"])
    unknown = tokens[metadata.get("tokenizer.ggml.unknown_token_id", 0)]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    spaces: list[normalizers.Normalizer] = [normalizers.Replace(" ", "▁")]
    text: list[decoders.Decoder] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
        spaces.insert(0, normalizers.Prepend("▁"))
        text.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer = normalizers.Sequence(spaces)
    tokenizer.decoder = decoders.Sequence(text)
    return tokenizer


def _merges_of_scores(vocabulary: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """The merges in the order in which sentencepiece scores make them, best first (Kudo & Richardson, 2018)."""
    merges: list[tuple[float, int, int, str, str]] = []
    for token, token_id in vocabulary.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocabulary and right in vocabulary:
                merges.append((-scores[token_id], vocabulary[left], vocabulary[right], left, right))
    merges.sort(key=lambda merge: merge[:3])
    return [(left, right) for _, _, _, left, right in merges]


def _add_special_tokens(tokenizer: Tokenizer, metadata: dict[str, Any]) -> None:
    """Mark control tokens (special) and user-defined ones (whole, but text): neither is ever split."""
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata.get("tokenizer.ggml.token_type", [])
    for kind, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        found = [token for token, token_kind in zip(tokens, kinds, strict=False) if token_kind == kind]
        tokenizer.add_tokens([AddedToken(token, special=special, normalized=False) for token in found])


def _wrap_texts(tokenizer: Tokenizer, metadata: dict[str, Any], adds_bos: bool) -> None:
    """Put beginning- and end-of-sequence tokens around texts, by the file's settings or its pre-tokenizer's."""
    tokens = metadata["tokenizer.ggml.tokens"]
    template, used = ["$A"], []
    for role, default in (("bos", adds_bos), ("eos", False)):
        token_id = metadata.get(f"tokenizer.ggml.{role}_token_id")
        if token_id is None or not metadata.get(f"tokenizer.ggml.add_{role}_token", default):
            continue
        template.insert(0 if role == "bos" else len(template), tokens[token_id])
        used.append((tokens[token_id], token_id))
    if used:
        tokenizer.post_processor = processors.TemplateProcessing(single=" ".join(template), special_tokens=used)
