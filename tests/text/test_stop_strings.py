"""Stop strings are found wherever text is cut, and nothing else is held back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from streamserve.text.stop_strings import StopIndex, StopStrings

LETTERS = st.text(alphabet="ab", max_size=12)
STOPS = st.lists(st.text(alphabet="ab", min_size=1, max_size=4), min_size=1, max_size=3)


def expected(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """Letter by letter: the first point where some stop string is complete, the longest of those there."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            stop = max(complete, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


@given(pieces=st.lists(LETTERS, max_size=8), stops=STOPS, include=st.booleans())
def test_the_first_stop_string_is_found_however_the_text_is_cut(pieces: list[str], stops: list[str], include: bool) -> None:
    matcher = StopStrings(StopIndex(stops), include_in_output=include)
    shown, found = "", None
    for piece in pieces:
        text, found = matcher.push(piece)
        shown += text
        if found is not None:
            break
    else:
        shown += matcher.finish()
    assert (shown, found) == expected("".join(pieces), stops, include)


@given(pieces=st.lists(LETTERS, max_size=8), stops=STOPS)
def test_no_more_is_held_back_than_could_still_match(pieces: list[str], stops: list[str]) -> None:
    matcher = StopStrings(StopIndex(stops))
    shown = sofar = ""
    for piece in pieces:
        sofar += piece
        text, found = matcher.push(piece)
        if found is not None:
            return
        shown += text
        held = sofar[len(shown) :]
        assert shown + held == sofar
        assert not held or any(stop.startswith(held) and stop != held for stop in stops)
        starts = [
            size for size in range(1, len(sofar) + 1) if any(s.startswith(sofar[-size:]) and len(s) > size for s in stops)
        ]
        assert len(held) == max(starts, default=0)


def test_an_unarmed_match_is_shown_and_may_begin_one() -> None:
    matcher = StopStrings(StopIndex(["aa"]))
    assert matcher.push("aa", armed=False) == ("a", None)
    assert matcher.push("a") == ("", "aa")


def test_without_stop_strings_everything_passes() -> None:
    matcher = StopStrings(StopIndex([]))
    assert matcher.push("anything") == ("anything", None)
    assert matcher.finish() == ""
