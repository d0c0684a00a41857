"""From records to columns: a run of JSON values decoded in one go, then one numpy array a field.

Numbers that differ per event become columns. Everything that repeats (flag, arm, scope, source, λ, pins, outcome)
is looked up once per distinct combination: a ``EventClass`` says what such an event counts for.

Runs without any of the optional facts about assignment, caches, tools and reason steps are decoded into a smaller
struct, which costs less; the result is the same.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_type_hints

import msgspec
import numpy as np
from numpy.typing import NDArray

from tidegate.gates.arrays import Ids, Ints
from tidegate.schemas.errors import EventError
from tidegate.schemas.event import (
    FUTURE_MS,
    MAX_DEPTH,
    TelemetryEvent,
    Text,
    not_read,
    parse,
)
from tidegate.streams.engine.event_classes import (
    GROUPS_BYTES,
    GROUPS_CAP,
    LEAN,
    NOT_VALID,
    EventClasses,
    _xxh3,
)
from tidegate.streams.engine.native import DETAILED, TOLD, NativeTable

LEAN_AGAIN = 64
"""Runs after one with other fields before the small struct is tried again."""


def _wire_struct(*, lean: bool) -> type[Any]:
    """Return the event with its versions left as raw bytes: they are read once per group.

    ``lean``: only the fields of ``LEAN``, and any other is an error.
    """
    hints = get_type_hints(TelemetryEvent, include_extras=True)
    hints["versions"] = msgspec.Raw
    fields: list[Any] = []
    for field in msgspec.structs.fields(TelemetryEvent):
        if lean and field.name not in LEAN:
            continue
        default = msgspec.Raw() if field.name == "versions" else field.default
        fields.append((field.name, hints[field.name]) + (() if field.required else (default,)))
    return msgspec.defstruct("WireEvent", fields, kw_only=True, frozen=True, gc=False, forbid_unknown_fields=lean)


_decoder = msgspec.json.Decoder(_wire_struct(lean=False))
_lean_decoder = msgspec.json.Decoder(_wire_struct(lean=True))


class _Unread:
    """The records behind rows that the native decoder read, decoded when they are asked for.

    ``row``: index in ``values``. ``sticky``: by row, where in its value the sticky id begins and ends. ``read``: by
    row, those that are decoded already.
    """

    def __init__(
        self, values: Sequence[bytes | None], row: Ints, sticky: NDArray[np.uint32], read: dict[int, Any]
    ) -> None:
        self._values, self._row, self._sticky, self._read = values, row, sticky, read

    def __getitem__(self, at: int) -> Any:
        row = int(self._row[at])
        if row not in self._read:
            self._read[row] = _decoder.decode(self._values[row] or b"")
        return self._read[row]

    def sticky_id(self, at: int) -> str:
        """Return the sticky id of a row, by position."""
        row = int(self._row[at])
        if row in self._read:
            return str(self._read[row].sticky_id)
        begin, end = self._sticky[row].tolist()
        return str((self._values[row] or b"")[begin:end], "utf-8")

    def __iter__(self) -> Iterator[Any]:
        return map(self.__getitem__, range(len(self._row)))

    def take(self, keep: Ints) -> "_Unread":
        """Some of the rows, by position."""
        return _Unread(self._values, self._row[keep], self._sticky, self._read)


class _Read(list[Any]):
    """Decoded records."""

    def sticky_id(self, at: int) -> str:
        """Return the sticky id of a row, by position."""
        return str(self[at].sticky_id)

    def take(self, keep: Ints) -> "_Read":
        """Some of the rows, by position."""
        return _Read(self[i] for i in keep.tolist())


@dataclass(frozen=True)
class Columns:
    """The valid records of a run, one entry each, in offset order; ``dead`` names the others.

    ``row``: index in the run. ``code``: group. ``event`` and ``sticky``: 64-bit xxh3 of the ids.
    ``delta_s``, ``coverage``, ``latency``, ``cost``: NaN where absent. ``query``: 64-bit xxh3 of the query id by
    position, for probes only. ``detailed``: rows with a cache namespace or tools. ``events``: the decoded records.
    ``lean``: none of them tells more than the columns do.
    """

    row: Ints
    ts: Ints
    code: Ints
    event: Ids
    sticky: Ids
    delta_s: NDArray[np.float64]
    coverage: NDArray[np.float64]
    latency: NDArray[np.float64]
    cost: NDArray[np.float64]
    query: dict[int, int]
    detailed: NDArray[np.bool_]
    events: _Read | _Unread
    lean: bool
    dead: list[tuple[int, str]]

    def event_id(self, at: int) -> str:
        """Return the id of a row, by position; a label's is of what it labels."""
        event = self.events[at]
        return str(event.labels_event_id if event.kind == "label" else event.event_id)


@dataclass
class _Found:
    """Everything read of a run: columns as in ``Columns``, of every record that could be decoded.

    ``query``: 64-bit xxh3 of the query ids, 0 where absent; None where they are still in ``events`` alone.
    """

    row: Ints
    ts: Ints
    code: Ints
    event: Ids
    sticky: Ids
    delta_s: NDArray[np.float64]
    coverage: NDArray[np.float64]
    latency: NDArray[np.float64]
    cost: NDArray[np.float64]
    query: Ids | None
    detailed: NDArray[np.bool_]
    events: _Read | _Unread
    lean: bool
    dead: dict[int, str]

    def put(self, rows: Ints, other: "_Found") -> None:
        """Take rows, by position, from what was found of them alone."""
        self.lean = self.lean and other.lean
        self.ts[rows], self.code[rows], self.detailed[rows] = other.ts, other.code, other.detailed
        self.event[rows], self.sticky[rows] = other.event, other.sticky
        self.delta_s[rows], self.coverage[rows] = other.delta_s, other.coverage
        self.latency[rows], self.cost[rows] = other.latency, other.cost
        if self.query is not None:
            queries = [e.query_id for e in other.events]
            self.query[rows] = [0 if query is None else _xxh3(query.encode()) for query in queries]

    def of(self, rows: Ints) -> "_Found":
        """Some of the rows, by position."""
        return replace(
            self,
            row=self.row[rows],
            ts=self.ts[rows],
            code=self.code[rows],
            event=self.event[rows],
            sticky=self.sticky[rows],
            delta_s=self.delta_s[rows],
            coverage=self.coverage[rows],
            latency=self.latency[rows],
            cost=self.cost[rows],
            query=None if self.query is None else self.query[rows],
            detailed=self.detailed[rows],
            events=self.events.take(rows),
        )


def decode(values: Sequence[bytes | None], timestamps: Sequence[int] | None, table: EventClasses) -> Columns:
    """Decode a run of record values.

    ``timestamps``: the records' own, ms; None where a file gives none. A record that breaks the schema goes to
    ``dead`` with the error, in row order; the others are not touched by it.
    """
    if len(table) > GROUPS_CAP or table.bytes > GROUPS_BYTES:
        table.clear()
    known = len(table)
    found = _read(values, table) if table.native is None else _scanned(values, table, table.native)
    if len(table) > known or known == 0:
        table.refresh()
    valid = _valid(table, found)
    if timestamps is not None and len(found.row):
        stamps = np.array(timestamps, np.int64)[found.row]
        valid &= (stamps < 0) | (found.ts - FUTURE_MS <= stamps)
    if not valid.all():
        for at in found.row[~valid].tolist():
            stamp = timestamps[at] if timestamps is not None and timestamps[at] >= 0 else None
            found.dead[at] = _why(values[at], stamp)
        found = found.of(np.flatnonzero(valid))
    return Columns(
        row=found.row,
        ts=found.ts,
        code=found.code,
        event=found.event,
        sticky=found.sticky,
        delta_s=np.clip(found.delta_s, 0.0, 2.0),
        coverage=np.clip(found.coverage, 0.0, 1.0),
        latency=found.latency,
        cost=found.cost,
        query=_queries(table, found),
        detailed=found.detailed,
        events=found.events,
        lean=found.lean,
        dead=sorted(found.dead.items()),
    )


def _queries(table: EventClasses, found: _Found) -> dict[int, int]:
    if not len(found.code):
        return {}
    probes = np.flatnonzero(table.run[found.code] >= 0).tolist()
    if found.query is None:
        return {i: _xxh3(q.encode()) for i in probes if (q := found.events[i].query_id) is not None}
    return {i: q for i in probes if (q := int(found.query[i]))}


def _read(values: Sequence[bytes | None], table: EventClasses) -> _Found:
    """Read a run in Python, which says what is right."""
    dead: dict[int, str] = {}
    # Each level takes two bytes, so most runs have no record that is worth a look.
    worth = max(map(len, filter(None, values)), default=0) > 2 * MAX_DEPTH
    unread = {row for row, value in enumerate(values) if value and not_read(value)} if worth else set[int]()
    lean_now = table.runs_until_lean == 0 and not unread
    events, rows = _decode_joined(values, _lean_decoder) if lean_now else (None, [])
    lean = events is not None
    if events is None:
        if not unread:
            events, rows = _decode_joined(values, _decoder)
        table.runs_until_lean = LEAN_AGAIN if table.runs_until_lean == 0 else table.runs_until_lean - 1
    if events is None:
        events, rows = _decode_singly(values, unread, dead)
    versions = [bytes(e.versions) for e in events]
    codes, repeating = table.codes, map(table.lean if lean else table.full, events)
    keys: Iterable[tuple[Any, ...]]
    ts = np.array([e.ts for e in events], np.int64)
    starts = table.timeline.starts
    # Where one is in force at all these times, it need not be looked up.
    if len(starts) > 1 or (starts and len(ts) and int(ts.min()) < starts[0]):
        keys = zip(repeating, versions, [table.timeline.index(e.ts) for e in events], strict=True)
    else:
        keys = zip(repeating, versions, strict=True)
    if lean:
        detailed = np.zeros(len(events), np.bool_)
    else:
        detailed = np.array([e.cache_namespace is not None or bool(e.tools) for e in events], np.bool_)
    return _Found(
        row=np.array(rows, np.int64),
        ts=ts,
        code=np.array([codes[key] for key in keys], np.int64),
        event=np.array(_hashes([e.event_id for e in events]), np.uint64),
        sticky=np.array(_hashes([e.sticky_id for e in events]), np.uint64),
        delta_s=np.array([e.delta_s for e in events], np.float64),
        coverage=np.array([e.coverage for e in events], np.float64),
        latency=np.array([e.latency_ms for e in events], np.float64),
        cost=np.array([e.cost for e in events], np.float64),
        query=None,
        detailed=detailed,
        events=_Read(events),
        lean=lean,
        dead=dead,
    )


def _scanned(values: Sequence[bytes | None], table: EventClasses, native: NativeTable) -> _Found:
    """Read a run natively, but for the records that are not plain, and one of each combination not met before.

    Those are read in Python, in the order of their rows, so that combinations are met in the order of the log.
    """
    scan = native.scan(values, GROUPS_CAP, GROUPS_BYTES)
    row, starts = np.arange(len(values), dtype=np.int64), table.timeline.starts
    revision = np.zeros(len(values), np.int64)
    if len(starts) > 1 or (starts and len(values) and int(scan.ts.min()) < starts[0]):
        revision = np.searchsorted(starts, scan.ts, side="right") - 1
    read: dict[int, Any] = {}
    whole = _Found(
        row=row,
        ts=scan.ts,
        code=native.codes_of(scan.key, revision),
        event=scan.event,
        sticky=scan.sticky,
        delta_s=scan.delta_s,
        coverage=scan.coverage,
        latency=scan.latency,
        cost=scan.cost,
        query=scan.query,
        detailed=(scan.marks & DETAILED) != 0,
        events=_Unread(values, row, scan.sticky_at, read),
        lean=not (scan.marks & TOLD).any(),
        dead={},
    )
    left = np.flatnonzero(whole.code < 0)
    asked = left[_first_of_each(scan.key[left], revision[left])]
    # Where the first of a combination is refused for what it shares with others, each of them has to be asked about.
    while len(asked):
        found = _read([values[at] for at in asked.tolist()], table)
        at = asked[found.row]
        read.update(zip(at.tolist(), found.events, strict=True))
        whole.dead.update((int(asked[row]), error) for row, error in found.dead.items())
        whole.put(at, found)
        native.learn(scan.key[at], revision[at], found.code)
        left = np.setdiff1d(left, asked, assume_unique=True)
        whole.code[left] = native.codes_of(scan.key[left], revision[left])
        asked = left = left[whole.code[left] < 0]
    return whole.of(np.flatnonzero(whole.code >= 0)) if whole.dead else whole


def _first_of_each(key: Ints, revision: Ints) -> NDArray[np.bool_]:
    """Mark the first row of each key and revision; every row without a key is one."""
    first = key < 0
    first[np.unique((revision << 32) + key, return_index=True)[1]] = True
    return first


def _valid(table: EventClasses, found: _Found) -> NDArray[np.bool_]:
    """Mark the rows that are whole; fill in the ids of labels that have none, from the events they label."""
    code, event, sticky = found.code, found.event, found.sticky
    if not len(code):
        return np.ones(0, np.bool_)
    for i in np.flatnonzero(table.label[code]).tolist():
        labelled = getattr(found.events[i], "labels_event_id", None)
        if labelled is None:
            event[i] = 0
        elif event[i] == 0:
            event[i] = _xxh3(b"label\0" + labelled.encode())
    cell = table.cell[code]
    valid: NDArray[np.bool_] = cell != NOT_VALID
    # An absent id hashes to 0; of ticks nothing but the time is asked.
    nameless = np.flatnonzero((event == 0) | (sticky == 0))
    ticks = table.tick[code[nameless]]
    valid[nameless[~ticks]] = False
    valid &= ~(table.request[code] & np.isnan(found.latency))
    return valid


def _decode_joined(values: Sequence[bytes | None], decoder: Any) -> tuple[list[Any] | None, list[int]]:
    """Return all values in one call, if it is sure that each record is one value.

    Between records that all run from { to } stands "}\\n{", which no JSON value has inside: n results of n records
    then are one each.
    """
    n = len(values)
    try:
        joined = b"\n".join(values)  # type: ignore[arg-type]  # a null value raises TypeError
        sizes = np.fromiter(map(len, values), np.int64, n)  # type: ignore[arg-type]
        nexts = np.cumsum(sizes + 1)
        text = np.frombuffer(joined, np.uint8)
        if text[0] == ord("{") and (text[nexts - 2] == ord("}")).all() and (text[nexts[:-1]] == ord("{")).all():
            events = decoder.decode_lines(joined)
            if len(events) == n:
                return events, list(range(n))
    except (msgspec.MsgspecError, UnicodeError, TypeError, IndexError):
        pass
    return None, []


def _decode_singly(
    values: Sequence[bytes | None], unread: set[int], dead: dict[int, str]
) -> tuple[list[Any], list[int]]:
    events, rows = [], []
    for row, value in enumerate(values):
        try:
            if value is None or row in unread:
                raise TypeError
            events.append(_decoder.decode(value))
            rows.append(row)
        except (msgspec.MsgspecError, UnicodeError, TypeError):
            dead[row] = _why(value, None)
    return events, rows


def _why(value: bytes | None, timestamp: int | None) -> str:
    try:
        parse(value, timestamp)
    except EventError as error:
        return str(error)
    raise AssertionError(f"the column decoder and the schema disagree about {value!r}")


class _Whose(msgspec.Struct):
    flag: Text
    region: Text | None = None


_whose = msgspec.json.Decoder(_Whose)


def whose(value: bytes | None) -> str | None:
    """``flag|region`` of a record that is no event; None if they cannot be read."""
    if value is None or not_read(value):
        return None
    try:
        found = _whose.decode(value)
        found.flag.encode(), (found.region or "").encode()
    except (msgspec.MsgspecError, UnicodeError):
        return None
    return f"{found.flag}|{found.region or ''}"


def _hashes(ids: Iterable[str | None]) -> list[int]:
    return [_xxh3(i.encode()) if i else 0 for i in ids]
