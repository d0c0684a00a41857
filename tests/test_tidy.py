"""The code says each thing once, in small pieces and in plain words."""

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("schemas", "gates", "streams")
OUTSIDE = [path for room in ("tidegate", "bench") for path in (ROOT / room).glob("*.py")]
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
CONVENTIONAL = {"command", "log"}
"""Names that a module may have for itself: a subcommand, which is found by its module's name, and a logger."""
LINES_MAX = 400
LONG_CLASSES = {"GatePartition", "Machine", "Worker"}
PRONOUNS = re.compile(r"(What|Whether|Where|How|Those|Which|Who|Whose|That|As)\b")
BANNED = re.compile(
    r"(?<!there )\bis no (?!longer\b|more\b|evidence\b)|\banew\b|cannot be had|taken up|in haste|since ever"
)


def parsed(path: Path) -> ast.Module:
    """Read a module."""
    return ast.parse(path.read_text())


@cache
def trees() -> dict[Path, ast.Module]:
    """Read all modules, once and not before a test asks: so many objects slow down whatever runs meanwhile."""
    return {path.relative_to(ROOT): parsed(path) for room in ROOMS for path in (ROOT / room).rglob("*.py")}


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


def documented(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Give line and text of each docstring, those of variables and fields too."""
    for node in ast.walk(tree):
        for statement in (
            node.body if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) else []
        ):
            match statement:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    yield statement.lineno, text


def test_no_name_stands_unused() -> None:
    known = Counter(name for tree in [*trees().values(), *map(parsed, OUTSIDE)] for name in used(tree))
    unused = [f"{path}: {name}" for path, tree in trees().items() for name in defined(tree) if not known[name]]
    assert [name for name in unused if not name.endswith((": command", "__"))] == []


def test_a_public_name_means_one_thing() -> None:
    places: dict[str, set[str]] = defaultdict(set)
    for path, tree in trees().items():
        for name in defined(tree):
            if not name.startswith("_") and name not in CONVENTIONAL:
                places[name].add(str(path))
    assert {name: sorted(where) for name, where in places.items() if len(where) > 1} == {}


def test_no_class_is_longer_than_a_reader_can_hold() -> None:
    classes = [node for tree in trees().values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    assert {node.name for node in classes if (node.end_lineno or 0) - node.lineno >= LINES_MAX} == LONG_CLASSES


@pytest.mark.parametrize("room", ROOMS)
def test_docstrings_begin_with_a_verb_or_a_noun(room: str) -> None:
    texts = [(f"{path}:{line}", text) for path, tree in trees().items() for line, text in documented(tree)]
    assert [(where, text[:60]) for where, text in texts if where.startswith(room) and PRONOUNS.match(text)] == []


def test_messages_are_plain_english() -> None:
    banned = []
    for path, tree in trees().items():
        comments = {text for _, text in documented(tree)}
        for node in ast.walk(tree):
            match node:
                case ast.Constant(value=str(text)) if text not in comments and BANNED.search(text):
                    banned.append(f"{path}:{node.lineno}: {text}")
    assert banned == []
