"""From records to columns: a run of JSON values decoded in one go, then one numpy array a field.

Numbers that differ per event become columns. Everything that repeats (flag, arm, scope, source, λ, pins, outcome)
is looked up once per distinct combination: a ``EventClass`` says what such an event counts for.

Runs without any of the optional facts about assignment, caches, tools and reason steps are decoded into a smaller
struct, which costs less; the result is the same.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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
    NOT_VALID,
    REPEATING,
    SCOPE,
    EventClasses,
    _xxh3,
)

_LEAN = frozenset(
    (
        *(*REPEATING, *SCOPE, "ts", "event_id", "sticky_id", "versions", "query_id"),
        *("delta_s", "coverage", "latency_ms", "cost"),
    )
)
LEAN_AGAIN = 64
"""Runs after one with other fields before the small struct is tried again."""


def _wire_struct(*, lean: bool) -> type[Any]:
    """The event with its versions left as raw bytes: they are read once per group.

    ``lean``: only the fields of ``_LEAN``, and any other is an error.
    """
    hints = get_type_hints(TelemetryEvent, include_extras=True)
    hints["versions"] = msgspec.Raw
    fields: list[Any] = []
    for field in msgspec.structs.fields(TelemetryEvent):
        if lean and field.name not in _LEAN:
            continue
        default = msgspec.Raw() if field.name == "versions" else field.default
        fields.append((field.name, hints[field.name]) + (() if field.required else (default,)))
    return msgspec.defstruct("WireEvent", fields, kw_only=True, frozen=True, gc=False, forbid_unknown_fields=lean)


_decoder = msgspec.json.Decoder(_wire_struct(lean=False))
_lean_decoder = msgspec.json.Decoder(_wire_struct(lean=True))


@dataclass(frozen=True)
class Columns:
    """The valid records of a run, one entry each, in offset order; ``dead`` names the others.

    ``row``: index in the run. ``code``: group. ``event`` and ``sticky``: 64-bit xxh3 of the ids.
    ``delta_s``, ``coverage``, ``latency``, ``cost``: NaN where absent. ``query``: 64-bit xxh3 of the query id by
    position, for probes only. ``events``: the decoded records. ``lean``: none of them tells more than the columns do.
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
    events: list[Any]
    lean: bool
    dead: list[tuple[int, str]]

    def event_id(self, at: int) -> str:
        """The id of a row, by position; a label's is of what it labels."""
        event = self.events[at]
        return str(event.labels_event_id if event.kind == "label" else event.event_id)


def decode(values: Sequence[bytes | None], timestamps: Sequence[int] | None, table: EventClasses) -> Columns:
    """Decode a run of record values.

    ``timestamps``: the records' own, ms; None where a file gives none. A record that breaks the schema goes to
    ``dead`` with the error, in row order; the others are not touched by it.
    """
    if len(table) > GROUPS_CAP or table.bytes > GROUPS_BYTES:
        table.clear()
    known = len(table)
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
    code = np.array([codes[key] for key in keys], np.int64)
    if len(table) > known or known == 0:
        table.refresh()
    row = np.array(rows, np.int64)
    latency = np.array([e.latency_ms for e in events], np.float64)
    event = np.array(_hashes([e.event_id for e in events]), np.uint64)
    sticky = np.array(_hashes([e.sticky_id for e in events]), np.uint64)
    valid = _valid(table, code, event, sticky, latency, events)
    if timestamps is not None and len(row):
        stamps = np.array(timestamps, np.int64)[row]
        valid &= (stamps < 0) | (ts - FUTURE_MS <= stamps)
    delta_s = np.clip(np.array([e.delta_s for e in events], np.float64), 0.0, 2.0)
    coverage = np.clip(np.array([e.coverage for e in events], np.float64), 0.0, 1.0)
    cost = np.array([e.cost for e in events], np.float64)
    query: dict[int, int] = {}
    if len(code):
        probes = np.flatnonzero(table.run[code] >= 0)
        query = {i: _xxh3(q.encode()) for i in probes.tolist() if (q := events[i].query_id) is not None}
    if not valid.all():
        for i in np.flatnonzero(~valid).tolist():
            at = rows[i]
            stamp = timestamps[at] if timestamps is not None and timestamps[at] >= 0 else None
            dead[at] = _why(values[at], stamp)
        keep = np.flatnonzero(valid)
        moved = {old: new for new, old in enumerate(keep.tolist())}
        query = {moved[i]: q for i, q in query.items() if i in moved}
        row, ts, code, event, sticky = row[keep], ts[keep], code[keep], event[keep], sticky[keep]
        delta_s, coverage, latency, cost = delta_s[keep], coverage[keep], latency[keep], cost[keep]
        events = [events[i] for i in keep.tolist()]
    dead_rows = sorted(dead.items())
    return Columns(row, ts, code, event, sticky, delta_s, coverage, latency, cost, query, events, lean, dead_rows)


def _valid(
    table: EventClasses, code: Ints, event: Ids, sticky: Ids, latency: NDArray[np.float64], events: list[Any]
) -> NDArray[np.bool_]:
    """Which rows are whole; fills in the ids of labels, which may be known by what they label alone."""
    if not len(code):
        return np.ones(0, np.bool_)
    for i in np.flatnonzero(table.label[code]).tolist():
        labelled = getattr(events[i], "labels_event_id", None)
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
    valid &= ~(table.request[code] & np.isnan(latency))
    return valid


def _decode_joined(values: Sequence[bytes | None], decoder: Any) -> tuple[list[Any] | None, list[int]]:
    """All values in one call, if it is sure that each record is one value.

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
