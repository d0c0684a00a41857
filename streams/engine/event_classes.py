"""Event classes: one for each combination of repeating fields, with all that its events count for."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import msgspec
import numpy as np
import xxhash
from numpy.typing import NDArray

from tidegate.gates.labels import SPOKEN
from tidegate.gates.sums import CONVERGED, COUNTERS, FLIPPED
from tidegate.gates.window import CLIENT, LABELS
from tidegate.schemas.event import (
    CONVERGENT,
    KNOWN_LAMBDA,
    PINS,
    TelemetryEvent,
    Versions,
)
from tidegate.schemas.manifest import Flag, Scope
from tidegate.schemas.timeline import Timeline
from tidegate.streams.engine.native import Layout

GROUPS_CAP = 1 << 16
"""Distinct combinations remembered; beyond it the table is emptied and fills again."""
GROUPS_BYTES = 64 << 20
"""The same for what their texts take: one combination may be as large as a record."""

UNKNOWN_MAX = 20
"""Flags that no manifest names, but that are told by name in one count: anybody may invent more of them."""
FLAG_SHOWN = 100
"""Characters of their names."""

SCOPE = {"tenant": "tenants", "endpoint": "endpoints", "cohort": "cohorts", "surface": "surfaces"}
"""Fields that matter only where a flag's scope names some of their values."""
REPEATING = (
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
COLUMNS = ("ts", "event_id", "sticky_id", "query_id", "delta_s", "coverage", "latency_ms", "cost")
"""Fields that become a column each."""
LEAN = frozenset((*REPEATING, *SCOPE, *COLUMNS, "versions"))
"""Fields of events without optional facts about assignment, caches, tools and reason steps."""
_FACTS = ("evaluated_by", "manifest_hash", "reason_status", "output_mode")
"""Repeating fields that a lean run does not have."""
NOT_VALID, _NOTHING = -1, -2
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
class EventClass:
    """Everything that an event of one combination counts for.

    ``cell``: index of (unit, arm, source) in ``EventClasses.cells``, or a negative reason why it counts for nothing.
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

    def __init__(self, table: "EventClasses") -> None:
        super().__init__()
        self._table = table

    def __missing__(self, key: Any) -> int:
        code = self[key] = self._table.intern(*key)
        return code


class EventClasses:
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
            field for field, names in SCOPE.items() if any("all" not in getattr(flag.scope, names) for flag in flags)
        ]
        self._lean_fields = (*REPEATING, *scoped)
        self._full_fields = (*self._lean_fields, *_FACTS)
        self.lean, self.full = attrgetter(*self._lean_fields), attrgetter(*self._full_fields)
        self._layout = Layout(
            keys={*self._full_fields, "versions"},
            columns=COLUMNS,
            told=set(TelemetryEvent.__struct_fields__) - LEAN,
            detailed={"cache_namespace", "tools"},
        )
        self.clear()

    def clear(self) -> None:
        """Forget every combination."""
        self.codes = _Codes(self)
        self.native = self._layout.table(len(self.timeline.revisions))
        self.bytes = 0
        self._groups: list[EventClass] = []
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

    def _group(self, event: dict[str, Any], versions: bytes, flags: Mapping[str, Flag] | None) -> EventClass:
        try:
            pins = (_pins_decoder.decode(versions) if versions else None) or {}
        except (msgspec.MsgspecError, UnicodeError):
            return EventClass(NOT_VALID)
        if event["kind"] == "tick":
            return EventClass(_NOTHING, tick=True)
        request, label = event["kind"] in ("request", None), event["kind"] == "label"
        outcome = event["error"] is not None or event["status"] is not None
        if (
            event["flag"] is None
            or event["arm"] is None
            or (request and not outcome)
            or (event["tool_ok"] or 0) > (event["tool_calls"] or 0)
        ):
            return EventClass(NOT_VALID)
        if flags is None:
            return EventClass(_NOTHING, request=request, label=label, early=True)
        flag = flags.get(event["flag"])
        if flag is None:
            return EventClass(_NOTHING, request=request, label=label, unknown=event["flag"])
        source = event["source"] or "traffic"
        warmup = source == "warmup"
        outside = "" if warmup else ", ".join(self._scope(flag).left_by(event))
        if warmup or outside:
            return EventClass(_NOTHING, request=request, label=label, warmup=warmup, outside=outside)
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

    def _counting(self, flag: Flag, event: dict[str, Any], pins: dict[str, str], source: str) -> EventClass:
        request, label, known_hash = event["kind"] in ("request", None), event["kind"] == "label", self._hash(event)
        sticky = source == "traffic"
        if event["evaluated_by"] == "client":
            exposure = _counters(exposures=1)
            client = self._cell(flag, event, CLIENT)
            return EventClass(client, exposure, exposure, request=request, label=label, hash=known_hash)
        cell = self._cell(flag, event, LABELS[source] if label else source)
        if not request and not label:
            exposure = _counters(exposures=1)
            return EventClass(cell, exposure, exposure, sticky=sticky, exposure=sticky, hash=known_hash)
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
        return EventClass(
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
    """Return a number above 0, or NaN for others: how bad an event of a group is."""
    return count if count > 0 else math.nan


def _counters(**counts: int) -> tuple[int, ...]:
    return tuple(int(counts.pop(name, 0)) for name in COUNTERS)


class _Wanted:
    """A flag's scope, to look an event up in, however many regions it names; ``wanted``: by field not open to all."""

    def __init__(self, scope: Scope) -> None:
        named = {field: frozenset(getattr(scope, names)) for field, names in {"region": "regions", **SCOPE}.items()}
        self.wanted = {field: names for field, names in named.items() if "all" not in names}

    def left_by(self, event: Mapping[str, Any]) -> list[str]:
        """Return those of an event's region, tenant, endpoint, cohort and surface that are not among the flag's."""
        return [field for field, names in self.wanted.items() if (event[field] or "") not in names]


def hash_of(text: str) -> int:
    """64-bit xxh3."""
    return _xxh3(text.encode())
