"""A YAML document as plain values, with the place of every path and whatever could not be read."""

import json
import re
from typing import NamedTuple

import yaml

Loc = tuple[str | int, ...]
"""A path into the document: keys and list indices."""

_TAGS = {"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"}


class _Place(NamedTuple):
    """A path's place in reading order, and a scalar as it is written there."""

    rank: int
    text: str


class Fault(NamedTuple):
    """A fault at a path, and the way out."""

    at: Loc
    problem: str
    fix: str


class _Loader(yaml.SafeLoader):
    """SafeLoader in which ``1e-3`` and ``-.1`` are numbers, as in YAML 1.2."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.[0-9]+([eE][-+]?[0-9]+)?|[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+)$"),
    list("-+.0123456789"),
)


class Document:
    """A composed document. Keys are text, and no key stands twice in a mapping.

    Every node is read once, also where aliases repeat it, so that a small file stays small.

    Attributes: ``value`` the plain values, None for an empty document; ``faults`` what could not
    be read, its place taken by None. Raises yaml.YAMLError, ValueError, OverflowError or
    RecursionError for text that is no YAML at all.
    """

    def __init__(self, text: str) -> None:
        self.faults: list[Fault] = []
        self._places: dict[Loc, _Place] = {}
        self._seen: dict[int, object] = {}
        self._open: set[int] = set()
        self._loader = _Loader(text)
        root = self._loader.get_single_node()
        self.value = None if root is None else self._plain(root, ())

    def text(self, at: Loc) -> str:
        """Return a scalar as it is written in the file."""
        return self._places[at].text if at in self._places else ""

    def rank(self, at: Loc) -> int:
        """Return a path's place in reading order; a key that is not there comes after its siblings."""
        if at in self._places:
            return self._places[at].rank
        above = at[:-1]
        while above and above not in self._places:
            above = above[:-1]
        inside = (place.rank for path, place in self._places.items() if path[: len(above)] == above)
        return max(inside, default=0)

    def _plain(self, node: yaml.Node, at: Loc) -> object:
        self._note(at, node)
        if id(node) in self._open:
            self._refuse(at, "an alias that contains itself", "write the value out")
            return None
        if id(node) not in self._seen:
            self._open.add(id(node))
            self._seen[id(node)] = self._read(node, at)
            self._open.remove(id(node))
        return self._seen[id(node)]

    def _read(self, node: yaml.Node, at: Loc) -> object:
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, at)
        if node.tag not in _TAGS:
            self._refuse(at, f"the tag {quoted(node.tag)} means nothing here", "take it away")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, at)
        return [self._plain(one, (*at, i)) for i, one in enumerate(node.value)]

    def _scalar(self, node: yaml.ScalarNode, at: Loc) -> object:
        try:
            value: object = self._loader.construct_object(node)
            str(value).encode()
        # PyYAML's constructors fail in all these ways, on 2025-13-45 and !!int "" for instance.
        except (
            yaml.YAMLError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            ArithmeticError,
        ):
            self._refuse(at, f"{quoted(node.value)} cannot be read", "write a number, or text in quotes")
            return None
        return value

    def _mapping(self, node: yaml.MappingNode, at: Loc) -> dict[str, object]:
        own: dict[str, object] = {}
        merged: dict[str, object] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == "tag:yaml.org,2002:merge":
                source = self._plain(value_node, (*at, "<<"))
                for part in source if isinstance(source, list) else [source]:
                    if isinstance(part, dict):
                        merged = {**part, **merged}
                    else:
                        self._refuse((*at, "<<"), "not a mapping", "merge an alias of a mapping")
                continue
            scalar = isinstance(key_node, yaml.ScalarNode)
            written = key_node.value if scalar else "?"
            key = self._scalar(key_node, (*at, written)) if scalar else None
            if not isinstance(key, str):
                self._note((*at, written), key_node)
                fix = f"quote it: {quoted(written)}" if scalar else "write text"
                self._refuse((*at, written), f"the key on line {line} is not text", fix)
                key = written
            if key in lines:
                problem = f"duplicate key on line {line}, first on line {lines[key]}"
                self._refuse((*at, key), problem, "keep one of the two")
            else:
                lines[key] = line
                own[key] = self._plain(value_node, (*at, key))
        return {**merged, **own}

    def _note(self, at: Loc, node: yaml.Node) -> None:
        text = node.value if isinstance(node, yaml.ScalarNode) else ""
        self._places.setdefault(at, _Place(len(self._places), text))

    def _refuse(self, at: Loc, problem: str, fix: str) -> None:
        self.faults.append(Fault(at, problem, fix))


def quoted(text: str) -> str:
    """Text in JSON quotes, on one line, shortened to 60 characters."""
    short = text if len(text) <= 60 else text[:57] + "..."
    return json.dumps(short, ensure_ascii=not short.isprintable())


def dotted(at: Loc) -> str:
    """Return the YAML path as a user reads it: ``flags.x.abort_rules.hard[1].value``."""
    path = ""
    for part in at:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += "." * bool(path) + (part if part and part.isprintable() else json.dumps(part))
    return path


def kind_of(value: object) -> str:
    """Name the type of a value in the words of a message."""
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case str():
            return f"the text {quoted(value)}"
        case int() | float():
            return quoted(str(value))[1:-1]
        case dict():
            return "a mapping"
        case list():
            return "a list"
    return f"a {type(value).__name__}"
