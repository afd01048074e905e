"""What a chat template's source says about the messages that it expects. Pure functions of its syntax tree."""

from __future__ import annotations

from jinja2 import nodes

_CONTENT = "content"


def iterates_over_content(template: nodes.Template) -> bool:
    """Whether it loops over the parts of a message's content, and so needs a list rather than a string."""
    return any(_is_content(loop.iter, {_CONTENT}) for loop in template.find_all(nodes.For))


def tests_content_for_none(template: nodes.Template) -> bool:
    """Whether it distinguishes absent content (`content is none`, `content != none`) from empty text."""
    names = {_CONTENT} | _names_of_content(template)
    tested = [test.node for test in template.find_all(nodes.Test) if test.name == "none"]
    for comparison in template.find_all(nodes.Compare):
        sides = [comparison.expr, *(operand.expr for operand in comparison.ops)]
        if any(isinstance(side, nodes.Const) and side.value is None for side in sides):
            tested += sides
    return any(_is_content(expression, names) for expression in tested)


def _names_of_content(template: nodes.Template) -> set[str]:
    """Variables that are set to a message's content."""
    assignments = [each for each in template.find_all(nodes.Assign) if isinstance(each.target, nodes.Name)]
    return {each.target.name for each in assignments if _is_content(each.node, {_CONTENT})}  # type: ignore[attr-defined]


def _is_content(expression: nodes.Node, names: set[str]) -> bool:
    if isinstance(expression, nodes.Getattr):
        return expression.attr == _CONTENT
    if isinstance(expression, nodes.Getitem):
        return isinstance(expression.arg, nodes.Const) and expression.arg.value == _CONTENT
    return isinstance(expression, nodes.Name) and expression.name in names
