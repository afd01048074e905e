"""An answer read by a parser, as a whole."""

from __future__ import annotations

from streamserve.text.parsing.pieces import Content, Parser, Piece, Reasoning, ToolCallArguments, ToolCallStart

Read = tuple[str, str, list[tuple[str, str]]]


def read(parser: Parser, parts: list[str], *, is_cut: bool = False) -> Read:
    """(reasoning, content, [(name, arguments)])"""
    pieces: list[Piece] = []
    for part in parts:
        pieces += parser.push(part)
    pieces += parser.finish(is_cut=is_cut)
    reasoning, content, calls = "", "", []
    for piece in pieces:
        match piece:
            case Reasoning(text):
                reasoning += text
            case Content(text):
                content += text
            case ToolCallStart(index, name, _):
                assert index == len(calls)
                calls.append((name, ""))
            case ToolCallArguments(index, text):
                assert index == len(calls) - 1
                calls[index] = (calls[index][0], calls[index][1] + text)
    return reasoning, content, calls
