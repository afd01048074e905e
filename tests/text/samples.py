"""Texts that break tokenizers: scripts, emoji, digits, white space, code; some as they are, the rest composed of them."""

from __future__ import annotations

import random

FRAGMENTS = [
    *("Hello", "world", " the", "don't", "I'LL", "we've", "it's", "'s", "ABCdef", " GHI", "a_b", "camelCase", "HTTPServer"),
    *("  ", "   ", "\n", "\n\n", "\t", " \n ", "\r\n", "\u200b", "\u00a0", "\u3000", "\ufeff", "\x00", "\x7f"),
    *("1", "23", "2026", " 42", "  7", "3.14", "1,000", "007", "²", "½", "٣", "x = 1  2"),
    *("--", "...", "!?", "(", ")", "{}", "[0]", "=>", "::", "#", "//", "/*", "*/", "https://example.org/?q=1&r=2"),
    *("def f(x):\n    return x  1", "for i in range(10):", "<|im_end|>", "<|im_start|>", "<s>", "</s>", "<0x41>", "▁", "Ġ"),
    *("你好", "世界", "描述一下北京的秋天", "，", "。", "こんにちは", "カタカナ", "한국어", "𠀀", "ไทย", "हिन्दी"),
    *("Привет", "мир", "Ελληνικά", "עברית", "العربية", "é", "e\u0301", "ﬁ", "İ", "ß", "\ufffd"),
    *("👍", "👍🏽", "👨‍👩‍👧‍👦", "🇨🇳", "🏳️‍🌈"),
]


def texts(count: int, *, seed: int = 0) -> list[str]:
    """`count` texts: every fragment alone, then random sequences of them."""
    source = random.Random(seed)
    composed = ["".join(source.choices(FRAGMENTS, k=source.randrange(2, 24))) for _ in range(count)]
    return ["", *FRAGMENTS, *composed][:count]
