"""The code says each thing once, in small pieces and in plain words."""

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = ("schemas", "gates", "streams")
OUTSIDE = [path for room in ("tidegate", "bench") for path in (ROOT / room).glob("*.py")]
CONVENTIONAL = {"command", "log"}
"""Names that a module may have for itself: a subcommand, which is found by its module's name, and a logger."""


def parsed(path: Path) -> ast.Module:
    """Read a module."""
    return ast.parse(path.read_text())


TREES = {path.relative_to(ROOT): parsed(path) for room in ROOMS for path in (ROOT / room).rglob("*.py")}


def defined(tree: ast.Module) -> Iterator[str]:
    """Give the names that a module defines: classes, functions, variables."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        for target in node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]:
            if target is not None:
                yield from (name.id for name in ast.walk(target) if isinstance(name, ast.Name))


def used(tree: ast.AST) -> Iterator[str]:
    """Give every name that is read, imported, or spelled in a text, as a quoted type is."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Load()) | ast.Attribute(attr=name) | ast.alias(name=name):
                yield name
            case ast.Constant(value=str(text)) if re.fullmatch(r"[\w\[\], |.]+", text):
                yield from re.findall(r"\w+", text)


def test_no_name_stands_unused() -> None:
    known = Counter(name for tree in [*TREES.values(), *map(parsed, OUTSIDE)] for name in used(tree))
    unused = [f"{path}: {name}" for path, tree in TREES.items() for name in defined(tree) if not known[name]]
    assert [name for name in unused if not name.endswith((": command", "__"))] == []


def test_a_public_name_means_one_thing() -> None:
    places: dict[str, set[str]] = defaultdict(set)
    for path, tree in TREES.items():
        for name in defined(tree):
            if not name.startswith("_") and name not in CONVENTIONAL:
                places[name].add(str(path))
    assert {name: sorted(where) for name, where in places.items() if len(where) > 1} == {}
