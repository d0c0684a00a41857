"""The native decoder, where it is installed: what it is told of an event's fields, and whether it is used.

It is a package of its own, ``tidegate_native``, built from ``native/``. It reads records that are plainly well-formed
and leaves every other one to the Python path in columns.py, which says what is right.
"""

import importlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
from msgspec import inspect
from numpy.typing import NDArray

from tidegate.gates.arrays import Ids, Ints
from tidegate.schemas.errors import SettingsError
from tidegate.schemas.event import TelemetryEvent

SEAM = 1
"""The form of what is said between the two; a native module of another one is not used."""
LONGEST = 1 << 16
"""Bytes of the largest record that the native decoder reads."""
TOLD, DETAILED = 1, 2
"""Marks of a row: it has a field beyond those of a lean run; it has a cache namespace or tools."""

Described = tuple[str, str, str, float | None, float | None, bool, bool, int]
Arrays = tuple[bytearray, list[bytearray], list[bytearray], list[bytearray], list[bytearray], bytearray]


class NativeScanner(Protocol):
    """Reads runs of values; remembers the keys that it met."""

    def __len__(self) -> int: ...
    def scan(self, values: Sequence[bytes | None]) -> Arrays:
        """Keys, integers, numbers, texts, their spans and marks, one entry a value."""

    def size(self) -> int:
        """Return what the keys take, in bytes."""

    def clear(self) -> None:
        """Forget every key."""


def _load() -> Any:
    try:
        found = importlib.import_module("tidegate_native")
    except ImportError:
        return None
    return found if found.SEAM == SEAM else None


_found = _load()
_used = _found


def choose(mode: str | None) -> None:
    """Use the native decoder if it is there (None), never (``off``), or fail without it (``require``).

    Raises SettingsError. Takes effect for tables made afterwards.
    """
    global _used
    if mode not in (None, "", "off", "require"):
        raise SettingsError(
            f"TIDEGATE_NATIVE: {mode!r} is not one of off and require; leave it out to use the native decoder if it "
            "is installed"
        )
    if mode == "require" and _found is None:
        raise SettingsError(
            "TIDEGATE_NATIVE=require: the native decoder is not installed, or is of another version; install "
            "tidegate-native beside tidegate, or build it with `make venv` where cargo is there"
        )
    _used = None if mode == "off" else _found


def available() -> bool:
    """Tell whether it is installed."""
    return _found is not None


def running() -> str:
    """Return the decoder in use, with its version if it is the native one."""
    return "python" if _used is None else f"native {_used.VERSION}"


def _kind(wanted: inspect.Type) -> tuple[str, float | None, float | None, bool]:
    """Kind, least, most, and whether null is allowed, of a field's type."""
    if isinstance(wanted, inspect.Metadata):
        return _kind(wanted.type)
    if isinstance(wanted, inspect.UnionType):
        others = [of for of in wanted.types if not isinstance(of, inspect.NoneType)]
        kind, least, most, _ = _kind(others[0]) if len(others) == 1 else ("other", None, None, False)
        return kind, least, most, len(others) < len(wanted.types)
    if isinstance(wanted, inspect.IntType | inspect.FloatType):
        if wanted.gt is None and wanted.lt is None and wanted.multiple_of is None:
            kind = "integer" if isinstance(wanted, inspect.IntType) else "number"
            return kind, wanted.ge, wanted.le, False
    elif isinstance(wanted, inspect.StrType) and wanted.pattern is None:
        return "text", wanted.min_length, wanted.max_length, False
    elif isinstance(wanted, inspect.BoolType):
        return "truth", None, None, False
    return "other", None, None, False


class Layout:
    """The use of each field: part of the key, a column, or only checked; and the places of the columns.

    ``keys``, ``columns``: names of fields. ``told``: names of those that mark a row as ``TOLD``, ``detailed`` as
    ``DETAILED``.
    """

    def __init__(
        self, keys: Collection[str], columns: Collection[str], told: Collection[str], detailed: Collection[str]
    ) -> None:
        self.fields: list[Described] = []
        self.at: dict[str, int] = {}
        met = {"integer": 0, "number": 0, "text": 0}
        for field in cast(inspect.StructType, inspect.type_info(TelemetryEvent)).fields:
            name = field.encode_name
            kind, least, most, nullable = _kind(field.type)
            role = "key" if name in keys else "column" if name in columns else "checked"
            if role == "column":
                self.at[name] = met[kind]
                met[kind] += 1
            marks = TOLD * (name in told) | DETAILED * (name in detailed)
            self.fields.append((name, role, kind, least, most, nullable, field.required, marks))

    def table(self, revisions: int) -> "NativeTable | None":
        """Keys of these fields, of which none was met yet; None where the native decoder is not used."""
        return None if _used is None else NativeTable(self, _used.Scanner(self.fields, LONGEST), revisions)


@dataclass(frozen=True)
class Scan:
    """The native decoder's result for a run, one entry a value; ``key``: negative where Python has to read it.

    ``event``, ``sticky``, ``query``: 64-bit xxh3, 0 where absent. ``sticky_at``: where the sticky id begins and ends in
    its value. ``delta_s`` and the like: NaN where absent. ``marks``: bits.
    """

    key: Ints
    ts: Ints
    event: Ids
    sticky: Ids
    query: Ids
    sticky_at: NDArray[np.uint32]
    delta_s: NDArray[np.float64]
    coverage: NDArray[np.float64]
    latency: NDArray[np.float64]
    cost: NDArray[np.float64]
    marks: NDArray[np.uint8]


class NativeTable:
    """The codes of the keys that the native decoder met, by revision of the manifest. A cache of ``EventClasses``."""

    def __init__(self, layout: Layout, scanner: NativeScanner, revisions: int) -> None:
        self._layout, self._scanner, self._revisions = layout, scanner, revisions
        self._forget()

    def __len__(self) -> int:
        return len(self._scanner)

    def _forget(self) -> None:
        # The last row is that of no revision, the last column that of no key.
        self._codes = np.full((self._revisions + 1, 64), -1, np.int64)

    def scan(self, values: Sequence[bytes | None], most: int, most_bytes: int) -> Scan:
        """Read a run. Keys are forgotten before, if there are more than ``most`` or they take ``most_bytes``."""
        scanner, at = self._scanner, self._layout.at
        if len(scanner) > most or scanner.size() > most_bytes:
            scanner.clear()
            self._forget()
        key, integers, numbers, texts, spans, marks = scanner.scan(values)
        while len(scanner) >= self._codes.shape[1]:
            self._codes = np.hstack([self._codes, np.full_like(self._codes, -1)])

        def number(name: str) -> NDArray[np.float64]:
            return np.frombuffer(numbers[at[name]], np.float64)

        def text(name: str) -> Ids:
            return np.frombuffer(texts[at[name]], np.uint64)

        return Scan(
            key=np.frombuffer(key, np.int32).astype(np.int64),
            ts=np.frombuffer(integers[at["ts"]], np.int64),
            event=text("event_id"),
            sticky=text("sticky_id"),
            query=text("query_id"),
            sticky_at=np.frombuffer(spans[at["sticky_id"]], np.uint32).reshape(-1, 2),
            delta_s=number("delta_s"),
            coverage=number("coverage"),
            latency=number("latency_ms"),
            cost=number("cost"),
            marks=np.frombuffer(marks, np.uint8),
        )

    def codes_of(self, key: Ints, revision: Ints) -> Ints:
        """Return the codes of keys, negative where they are not known."""
        found: Ints = self._codes[revision, key]
        return found

    def learn(self, key: Ints, revision: Ints, code: Ints) -> None:
        """Note the codes that keys were found to have; those of no key are passed over."""
        real = key >= 0
        self._codes[revision[real], key[real]] = code[real]
