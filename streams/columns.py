"""From records to columns: a run of JSON values decoded in one go, then one numpy array a field.

Numbers that differ per event become columns. Everything that repeats (flag, arm, scope, source, λ, pins, outcome)
is looked up once per distinct combination: a ``Group`` says what such an event counts for.

Runs without any of the optional facts about assignment, caches, tools and reason steps are decoded into a smaller
struct, which costs less; the result is the same.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, get_type_hints

import msgspec
import numpy as np
import xxhash
from numpy.typing import NDArray

from gates.labels import SPOKEN
from gates.sums import CONVERGED, COUNTERS, FLIPPED, Ids, Ints
from gates.window import CLIENT, LABELS
from schemas.errors import EventError
from schemas.event import (
    CONVERGENT,
    FUTURE_MS,
    KNOWN_LAMBDA,
    MAX_DEPTH,
    PINS,
    TelemetryEvent,
    Text,
    Versions,
    not_read,
    parse,
)
from schemas.manifest import Flag, Scope
from schemas.timeline import Timeline

GROUPS_CAP = 1 << 16
"""Distinct combinations remembered; beyond it the table is emptied and fills again."""
GROUPS_BYTES = 64 << 20
"""The same for what their texts take: one combination may be as large as a record."""

UNKNOWN_MAX = 20
"""Flags that no manifest names, but that are told by name in one count: anybody may invent more of them."""
FLAG_SHOWN = 100
"""Characters of their names."""

_SCOPE = {"tenant": "tenants", "endpoint": "endpoints", "cohort": "cohorts", "surface": "surfaces"}
"""Fields that matter only where a flag's scope names some of their values."""
_REPEATING = (
    "kind",
    "flag",
    "arm",
    "region",
    "source",
    "lambda_state",
    "paraphrase",
    "seed",
    "error",
    "status",
    "rate_limited",
    "tool_calls",
    "tool_ok",
    "solved",
)
_FACTS = ("evaluated_by", "manifest_hash", "reason_status", "output_mode")
"""What repeats among the fields that a lean run has none of."""
_LEAN = frozenset(
    (
        *(*_REPEATING, *_SCOPE, "ts", "event_id", "sticky_id", "versions", "query_id"),
        *("delta_s", "coverage", "latency_ms", "cost"),
    )
)
LEAN_AGAIN = 64
"""Runs after one with other fields before the small struct is tried again."""
_NOT_VALID, _NOTHING = -1, -2
_ROW_COUNTERS = ("cost_rows", "cost_high", "cost_low", "coverage_rows", "coverage_sum")


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
_pins_decoder = msgspec.json.Decoder(Versions | None)
_xxh3 = xxhash.xxh3_64_intdigest


class LeftOut(msgspec.Struct, array_like=True):
    """Valid events that count for no unit.

    ``outside``: of those out of their flag's scope, by the fields that are not among its own. ``unknown``: of those of
    flags that no manifest names, by flag; ``unnamed``: of further ones, once ``UNKNOWN_MAX`` have a name here.
    ``early``: of a time at which no manifest was in force yet.
    """

    warmup: int = 0
    outside: dict[str, int] = msgspec.field(default_factory=dict)
    unknown: dict[str, int] = msgspec.field(default_factory=dict)
    unnamed: int = 0
    early: int = 0

    @property
    def unknown_flag(self) -> int:
        """Events of flags that no manifest names, though there is one."""
        return sum(self.unknown.values()) + self.unnamed

    def count_unknown(self, flag: str, count: int) -> None:
        """Count events of a flag that no manifest names."""
        name = flag[:FLAG_SHOWN]
        if name in self.unknown or len(self.unknown) < UNKNOWN_MAX:
            self.unknown[name] = self.unknown.get(name, 0) + count
        else:
            self.unnamed += count

    def count_outside(self, fields: str, count: int) -> None:
        """Count events whose ``fields`` are not among their flag's."""
        self.outside[fields] = self.outside.get(fields, 0) + count

    def add(self, other: "LeftOut") -> None:
        """Count what came after."""
        self.warmup += other.warmup
        self.unnamed += other.unnamed
        self.early += other.early
        for fields, count in other.outside.items():
            self.count_outside(fields, count)
        for flag, count in other.unknown.items():
            self.count_unknown(flag, count)


@dataclass(frozen=True)
class Group:
    """What every event of one combination counts for.

    ``cell``: index of (unit, arm, source) in ``GroupTable.cells``, or a negative reason why it counts for nothing.
    ``tagged``, ``untagged``: the counters it adds to, as a run of a λ group and otherwise.
    ``run``: which of a λ group's six runs it is if it has a query id, else -1. ``hash``: index of the manifest hash
    that its assignment came from, or -1. ``heard``: a label that may count, ``spoken``: what it says, as bits of
    ``SPOKEN``. ``warmup``: it counts for nothing for that reason, ``outside``: for the fields of it that are not among
    its flag's, ``unknown``: because no manifest names this flag, ``early``: because none was in force at its time.
    """

    cell: int
    tagged: tuple[int, ...] = (0,) * len(COUNTERS)
    untagged: tuple[int, ...] = (0,) * len(COUNTERS)
    pins: int = -1
    run: int = -1
    state: int = 0
    tick: bool = False
    request: bool = False
    label: bool = False
    heard: bool = False
    spoken: int = 0
    solved_known: bool = False
    sticky: bool = False
    exposure: bool = False
    hash: int = -1
    error: bool = False
    warmup: bool = False
    outside: str = ""
    unknown: str | None = None
    early: bool = False


class _Codes(dict[Any, int]):
    """Group codes by combination; a missing one is worked out and kept."""

    def __init__(self, table: "GroupTable") -> None:
        super().__init__()
        self._table = table

    def __missing__(self, key: Any) -> int:
        code = self[key] = self._table.intern(*key)
        return code


class GroupTable:
    """Combinations met so far, as codes into arrays. A cache: it holds nothing that the log does not.

    ``lean`` and ``full`` give the part of an event that a combination is made of, its versions apart. Where more than
    one revision of the manifest is in force, a combination is of one of them. By cell, ``cells``: unit, arm and source;
    ``weights``: of the ramp, where assignment can be checked; ``reach``: how long late events count, ms; ``unnamed``:
    the flag's scope names no regions.
    """

    def __init__(self, timeline: Timeline) -> None:
        self.runs_until_lean = 0
        self.renew(timeline)

    def renew(self, timeline: Timeline) -> None:
        """Take another timeline of manifests."""
        self.timeline = timeline
        flags = [flag for revision in timeline.revisions for flag in revision.flags.values()]
        scoped = [
            field for field, names in _SCOPE.items() if any("all" not in getattr(flag.scope, names) for flag in flags)
        ]
        self._lean_fields = (*_REPEATING, *scoped)
        self._full_fields = (*self._lean_fields, *_FACTS)
        self.lean, self.full = attrgetter(*self._lean_fields), attrgetter(*self._full_fields)
        self.clear()

    def clear(self) -> None:
        """Forget every combination."""
        self.codes = _Codes(self)
        self.bytes = 0
        self._groups: list[Group] = []
        self._in_arrays = 0
        self._salts: list[int] = []
        self._cells: dict[tuple[str, str, str, str], int] = {}
        self._pins: dict[str, int] = {}
        self.pin_names: list[str] = []
        self._hashes: dict[str, int] = {}
        self.hash_names: list[str] = []
        self.cells: list[tuple[str, str, str]] = []
        self.weights: list[tuple[float, ...] | None] = []
        self._reach: list[int] = []
        self.unnamed: list[bool] = []
        self._scopes: dict[str, _Wanted] = {}

    def __len__(self) -> int:
        return len(self._groups)

    def leave_out(self, code: int, count: int, onto: LeftOut) -> None:
        """Note that ``count`` events of a combination count for no unit, and why."""
        group = self._groups[code]
        if group.early:
            onto.early += count
        elif group.unknown is not None:
            onto.count_unknown(group.unknown, count)
        elif group.warmup:
            onto.warmup += count
        else:
            onto.count_outside(group.outside, count)

    def refresh(self) -> None:
        """Extend the arrays by the combinations that came in since, of which there are some."""
        at, groups = self._in_arrays, self._groups[self._in_arrays :]
        calls, ok = COUNTERS.index("tool_calls"), COUNTERS.index("tool_ok")
        failed, in_full = COUNTERS.index("reason_failed"), COUNTERS.index("reason_in_full")

        def extended(name: str, values: Iterable[Any], kind: Any = np.int64) -> NDArray[Any]:
            new = np.array(list(values), kind)
            return np.concatenate([getattr(self, name), new]) if at else new

        self.cell = extended("cell", (g.cell for g in groups))
        self.tagged = extended("tagged", (g.tagged for g in groups))
        self.untagged = extended("untagged", (g.untagged for g in groups))
        self.pins = extended("pins", (g.pins for g in groups))
        self.run = extended("run", (g.run for g in groups))
        self.state = extended("state", (g.state for g in groups))
        self.tick = extended("tick", (g.tick for g in groups), np.bool_)
        self.request = extended("request", (g.request for g in groups), np.bool_)
        self.label = extended("label", (g.label for g in groups), np.bool_)
        self.heard = extended("heard", (g.heard for g in groups), np.bool_)
        self.spoken = extended("spoken", (g.spoken for g in groups), np.uint8)
        self.exposure = extended("exposure", (g.exposure for g in groups), np.bool_)
        self.hash = extended("hash", (g.hash for g in groups))
        self.salt = extended("salt", self._salts[at:], np.uint64)
        self.solved = extended("solved", (g.untagged[COUNTERS.index("solved")] for g in groups))
        self.solved_known = extended("solved_known", (g.solved_known for g in groups), np.bool_)
        self.sticky = extended("sticky", (g.sticky for g in groups), np.bool_)
        self.errors = extended("errors", map(_badness, (g.error for g in groups)), np.float64)
        self.flips = extended("flips", map(_badness, (g.state == FLIPPED for g in groups)), np.float64)
        tool_failures = map(_badness, (g.untagged[calls] - g.untagged[ok] for g in groups))
        self.tool_failures = extended("tool_failures", tool_failures, np.float64)
        reason_failures = map(_badness, (g.untagged[failed] for g in groups))
        self.reason_failures = extended("reason_failures", reason_failures, np.float64)
        reasons_in_full = map(_badness, (g.untagged[in_full] for g in groups))
        self.reasons_in_full = extended("reasons_in_full", reasons_in_full, np.float64)
        self.measured = self.request | self.label
        self.reach = np.array(self._reach, np.int64)
        self._in_arrays = len(self._groups)

    def intern(self, repeating: tuple[Any, ...], versions: bytes, revision: int = 0) -> int:
        """Work out a combination seen for the first time; ``revision``: its index in the timeline, -1 for none."""
        self.bytes += len(versions) + sum(len(field) for field in repeating if isinstance(field, str))
        lean = len(repeating) == len(self._lean_fields)
        fields = self._lean_fields if lean else self._full_fields
        event = dict.fromkeys(_FACTS) | dict(zip(fields, repeating, strict=True))
        revisions = self.timeline.revisions
        flags = revisions[revision].flags if revisions and revision >= 0 else None
        self._groups.append(self._group(event, versions, flags))
        # Ids are told apart by flag and kind: a request of two flags may have one id for both.
        self._salts.append(hash_of(f"{event['kind'] or 'request'}\0{event['flag']}"))
        return len(self._groups) - 1

    def _group(self, event: dict[str, Any], versions: bytes, flags: Mapping[str, Flag] | None) -> Group:
        try:
            pins = (_pins_decoder.decode(versions) if versions else None) or {}
        except (msgspec.MsgspecError, UnicodeError):
            return Group(_NOT_VALID)
        if event["kind"] == "tick":
            return Group(_NOTHING, tick=True)
        request, label = event["kind"] in ("request", None), event["kind"] == "label"
        outcome = event["error"] is not None or event["status"] is not None
        if (
            event["flag"] is None
            or event["arm"] is None
            or (request and not outcome)
            or (event["tool_ok"] or 0) > (event["tool_calls"] or 0)
        ):
            return Group(_NOT_VALID)
        if flags is None:
            return Group(_NOTHING, request=request, label=label, early=True)
        flag = flags.get(event["flag"])
        if flag is None:
            return Group(_NOTHING, request=request, label=label, unknown=event["flag"])
        source = event["source"] or "traffic"
        warmup = source == "warmup"
        outside = "" if warmup else ", ".join(self._scope(flag).left_by(event))
        if warmup or outside:
            return Group(_NOTHING, request=request, label=label, warmup=warmup, outside=outside)
        return self._counting(flag, event, pins, source)

    def _scope(self, flag: Flag) -> "_Wanted":
        if flag.manifest_hash not in self._scopes:
            self._scopes[flag.manifest_hash] = _Wanted(flag.scope)
        return self._scopes[flag.manifest_hash]

    def _cell(self, flag: Flag, event: dict[str, Any], source: str) -> int:
        unit, arm = f"{flag.name}|{event['region'] or ''}", event["arm"]
        key = unit, arm, source, flag.manifest_hash
        if key not in self._cells:
            self._cells[key] = len(self.cells)
            self.cells.append((unit, arm, source))
            hashed = flag.policy.assignment == "sha256" and source == "traffic"
            self.weights.append(flag.ramp_stages if hashed else None)
            self.unnamed.append("region" not in self._scope(flag).wanted)
            self._reach.append(2 * flag.window.length_ms + flag.window.settle_ms)
        return self._cells[key]

    def _hash(self, event: dict[str, Any]) -> int:
        name = event["manifest_hash"]
        if name is None:
            return -1
        if name not in self._hashes:
            self._hashes[name] = len(self.hash_names)
            self.hash_names.append(name)
        return self._hashes[name]

    def _counting(self, flag: Flag, event: dict[str, Any], pins: dict[str, str], source: str) -> Group:
        request, label, known_hash = event["kind"] in ("request", None), event["kind"] == "label", self._hash(event)
        sticky = source == "traffic"
        if event["evaluated_by"] == "client":
            exposure = _counters(exposures=1)
            client = self._cell(flag, event, CLIENT)
            return Group(client, exposure, exposure, request=request, label=label, hash=known_hash)
        cell = self._cell(flag, event, LABELS[source] if label else source)
        if not request and not label:
            exposure = _counters(exposures=1)
            return Group(cell, exposure, exposure, sticky=sticky, exposure=sticky, hash=known_hash)
        too_many = event["status"] == 429
        state = event["lambda_state"]
        bad = state is not None and state not in CONVERGENT
        calls, good = event["tool_calls"] or 0, event["tool_ok"]
        counters: dict[str, int] = {
            "solved": bool(event["solved"]),
            "solved_rows": event["solved"] is not None,
            "lambda_rows": state is not None,
            "lambda_bad_rows": bad,
            "lambda_misspelt": state is not None and state not in KNOWN_LAMBDA,
        }
        error = bool(event["error"]) or too_many or (event["status"] or 0) >= 500
        failed = event["reason_status"] == "failed"
        if label:
            counters["labels"] = 1
        else:
            counters |= {
                "requests": 1,
                "errors": error,
                "rate_limited": bool(event["rate_limited"]) or too_many,
                "tool_calls": calls if good is not None else 0,
                "tool_ok": good or 0,
                "tool_rows": calls > 0,
                "tool_missing": calls > 0 and good is None,
                "reason_rows": event["reason_status"] is not None,
                "reason_failed": failed,
                "reason_in_full": failed and event["output_mode"] != "cite_only",
            }
        kept = {k: v for k, v in sorted(pins.items()) if k in PINS or k in flag.versions or k in flag.baseline_versions}
        name = msgspec.json.encode(kept).decode()
        if name not in self._pins:
            self._pins[name] = len(self.pin_names)
            self.pin_names.append(name)
        tagged = event["paraphrase"] is not None and event["seed"] is not None
        return Group(
            cell,
            _counters(**counters),
            _counters(**counters, lambda_events=state is not None, lambda_flips=bad),
            pins=self._pins[name],
            run=(event["paraphrase"] - 1) * 2 + event["seed"] - 1 if tagged else -1,
            state=0 if state is None else FLIPPED if bad else CONVERGED,
            request=request,
            label=label,
            heard=label,
            spoken=sum(bool(counters[said]) << bit for bit, said in enumerate(SPOKEN)) if label else 0,
            solved_known=event["solved"] is not None,
            sticky=sticky and request,
            hash=-1 if label else known_hash,
            error=error and request,
        )


def _badness(count: float) -> float:
    """A number above 0, or NaN for others: how bad an event of a group is."""
    return count if count > 0 else math.nan


def _counters(**counts: int) -> tuple[int, ...]:
    return tuple(int(counts.pop(name, 0)) for name in COUNTERS)


class _Wanted:
    """A flag's scope, to look an event up in, however many regions it names; ``wanted``: by field not open to all."""

    def __init__(self, scope: Scope) -> None:
        named = {field: frozenset(getattr(scope, names)) for field, names in {"region": "regions", **_SCOPE}.items()}
        self.wanted = {field: names for field, names in named.items() if "all" not in names}

    def left_by(self, event: Mapping[str, Any]) -> list[str]:
        """Those of an event's region, tenant, endpoint, cohort and surface that are not among the flag's."""
        return [field for field, names in self.wanted.items() if (event[field] or "") not in names]


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


def decode(values: Sequence[bytes | None], timestamps: Sequence[int] | None, table: GroupTable) -> Columns:
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
    table: GroupTable, code: Ints, event: Ids, sticky: Ids, latency: NDArray[np.float64], events: list[Any]
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
    valid: NDArray[np.bool_] = cell != _NOT_VALID
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


def hash_of(text: str) -> int:
    """64-bit xxh3."""
    return _xxh3(text.encode())


def _hashes(ids: Iterable[str | None]) -> list[int]:
    return [_xxh3(i.encode()) if i else 0 for i in ids]
