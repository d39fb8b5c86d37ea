"""Every reason that the source can give, read from the source: what is put into it is a 7."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import narrows

ROOMS = ("plan/**/*.py", "train/*.py")
HOLE = "7"
REASONS = {"why", "whys", "reasons", "message"}
"""Names of tables of reasons, those of `reasons` its keys; and of what is noted of an event."""
KEYWORDS = {"why", "twice", "verdict"}
GIVING = {"why", "threads_why", "_verdict", "_reason", "_habit", "_ended", "all"}
"""Functions whose result is a reason."""

Known = dict[str, set[str]]


def templates() -> set[str]:
    """The sentences of all rooms that give reasons; a word alone is a key, or a hole."""
    root = Path(narrows.__file__).parent
    files = [path for room in ROOMS for path in sorted(root.glob(room))]
    found = {text for path in files for text in _given(ast.parse(path.read_text("utf-8")))}
    return {text for text in found if " " in text}


def _given(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            yield from _of(node)


def _of(function: ast.FunctionDef) -> Iterator[str]:
    """What a function puts among reasons, its names' values read from top to bottom."""
    known: Known = {}
    nodes = [node for node in ast.walk(function) if hasattr(node, "lineno")]
    for node in sorted(nodes, key=lambda each: each.lineno):
        match node:
            case ast.Assign(targets=[target], value=value):
                _learn(known, target, value)
            case ast.AugAssign(target=target, value=value):
                name = ast.unparse(target)
                begun = known.get(name, set())
                joined = _joined([begun, _said(value, known)])
                # Under a condition, what it was before may be said, too.
                known[name] = joined if node in function.body else begun | joined
            case ast.keyword(arg=str(arg), value=value) if arg in KEYWORDS:
                yield from _within(value, known)
            case ast.Return(value=ast.expr() as value) if function.name in GIVING:
                yield from _within(value, known)
    for name, texts in known.items():
        if name.partition("[")[0].rpartition(".")[2] in REASONS:
            yield from texts


def _learn(known: Known, target: ast.expr, value: ast.expr) -> None:
    """A name's values; where they are chosen among, all of them."""
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        for each, own in zip(target.elts, value.elts, strict=True):
            _learn(known, each, own)
        return
    name = ast.unparse(target)
    if isinstance(target, ast.Subscript) and ast.unparse(target.value) == "reasons":
        known[name] = _said(target.slice, known)
        return
    known[name] = known.get(name, set()) | set(_within(value, known))
    if name == "reasons" and isinstance(value, ast.Dict):
        known[name] |= {text for key in value.keys if key for text in _said(key, known)}


def _within(value: ast.expr, known: Known) -> Iterator[str]:
    """Of a text itself, of a pair's texts, or of those that a table of reasons has."""
    match value:
        case ast.Tuple(elts=several):
            for each in several:
                yield from _said(each, known)
        case ast.Dict(values=several):
            for each in several:
                yield from _within(each, known)
        case ast.BinOp(left=ast.expr() as left, op=ast.BitOr(), right=right):
            yield from (*_within(left, known), *_within(right, known))
        case _:
            yield from _said(value, known)


def _said(value: ast.expr, known: Known) -> set[str]:
    """All that an expression may say."""
    match value:
        case ast.Constant(value=str(text)):
            return {text}
        case ast.JoinedStr(values=parts):
            return _joined([_said(part, known) for part in parts])
        case ast.FormattedValue(value=inner):
            return _said(inner, known)
        case ast.IfExp(body=body, orelse=other):
            return _said(body, known) | _said(other, known)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _joined([_said(left, known), _said(right, known)])
        case ast.Name() | ast.Subscript():
            return known.get(ast.unparse(value)) or {HOLE}
    return {HOLE}


def _joined(parts: list[set[str]]) -> set[str]:
    return {"".join(each) for each in product(*parts)}
