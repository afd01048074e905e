"""Keys of prefixes: shared exactly as far as tokens and salt are."""

from __future__ import annotations

from itertools import pairwise

from streamserve.routing.prefix_keys import KEYS_PER_STRIDE, prefix_keys


def test_prompts_share_keys_as_far_as_they_share_whole_blocks() -> None:
    one, other = list(range(100)), [*range(40), *range(900, 960)]
    shared = [a == b for a, b in zip(prefix_keys(one).keys, prefix_keys(other).keys, strict=True)]
    assert shared == [True, True, False, False, False, False], "40 tokens are two blocks of 16, and a part"


def test_a_key_stands_for_all_tokens_before_its_end() -> None:
    middle_differs = [7, *range(1, 64)]
    assert not set(prefix_keys(list(range(64))).keys) & set(prefix_keys(middle_differs).keys)


def test_what_follows_the_last_whole_block_has_no_key() -> None:
    assert prefix_keys(list(range(15))).keys == []
    assert prefix_keys(list(range(33))).ends == [16, 32]
    assert prefix_keys(list(range(33))).num_tokens == 33


def test_prompts_with_different_salts_share_no_key() -> None:
    prompt = list(range(64))
    assert not set(prefix_keys(prompt, salt="one").keys) & set(prefix_keys(prompt, salt="two").keys)


def test_a_salt_is_no_part_of_the_tokens() -> None:
    text = list(b"ab" * 16)
    assert prefix_keys(text, salt="a").keys != prefix_keys(text[1:] + text[:1], salt="").keys


def test_keys_of_a_long_prompt_are_further_apart_towards_its_end() -> None:
    ends = prefix_keys(range(64 * KEYS_PER_STRIDE)).ends
    distances = [after - before for before, after in pairwise(ends)]
    assert set(distances) == {16, 32, 64}
    assert distances == sorted(distances)
    assert all(end % 16 == 0 for end in ends), "no key ends inside a block"


def test_a_million_tokens_have_few_keys() -> None:
    assert len(prefix_keys(range(1 << 20)).keys) < 2100


def test_a_longer_prompt_has_the_keys_of_its_start() -> None:
    start, whole = prefix_keys(range(10_000)), prefix_keys(range(30_000))
    assert whole.keys[: len(start.keys)] == start.keys
