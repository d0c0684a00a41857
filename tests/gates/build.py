"""Events, panes, flags and ramps as the tests of the gates write them down.

Sums are made here event by event, in the plainest way, and not by the code that reads the stream.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import msgspec
import numpy as np
import xxhash
import yaml

from tidegate.gates.codec import StateCodec
from tidegate.gates.kinds import machine
from tidegate.gates.labels import ROW, SPOKEN, Known, Labels
from tidegate.gates.metrics import read_arms
from tidegate.gates.regions import Regions
from tidegate.gates.rules import Comparison
from tidegate.gates.sums import (
    CONVERGED,
    COUNTERS,
    COVERAGE_BITS,
    FLIPPED,
    WORST,
    Sums,
    Worst,
    cost_parts,
    square_parts,
)
from tidegate.gates.unit import Unit, begin
from tidegate.gates.window import Arm, PaneUnit
from tidegate.schemas.clockwork import Clockwork
from tidegate.schemas.decision import Command, Decision, GateResult, OperationBy, RuleResult
from tidegate.schemas.event import ToolCall
from tidegate.schemas.load import load_manifest
from tidegate.schemas.manifest import Flag

PANE = 10_000
WINDOW = 60_000
CLOCKWORK = Clockwork(pane_ms=PANE, lateness_ms=10_000, topic="tidegate.telemetry")
APPLIED = 2 * PANE
"""Lateness and settle after the first pane: services apply the first weights until then, and ids may move."""
PINNED = {
    "MODEL_VER": "m",
    "PROMPT_VER": "p",
    "INDEX_HASH": "i",
    "RERANK_CONF": "r",
    "TOK_VER": "t",
    "ANALYZER_CONF": "a",
}
STATES = {"→": CONVERGED, "←": FLIPPED, "<>": FLIPPED, "×": FLIPPED}


@dataclass(frozen=True)
class Event:
    """One accepted telemetry event; a healthy request unless it says otherwise.

    ``probe``: query, paraphrase, seed. ``reason``: how the reason step ended, ``mode``: how the answer was served.
    ``client``: a client chose the arm. ``hash``: of the manifest that the assignment came from. An event without a
    ``name`` has its offset for one; a label's is that of its request.
    """

    arm: str
    source: str = "traffic"
    kind: str = "request"
    sticky: str = "s"
    latency: float = 100.0
    error: bool = False
    delta_s: float | None = 0.05
    coverage: float | None = 0.8
    state: str | None = None
    probe: tuple[str, int, int] | None = None
    tool_calls: int = 0
    tool_ok: int | None = None
    cost: float | None = 0.5
    solved: bool | None = True
    pins: Mapping[str, str] = field(default_factory=lambda: PINNED)
    rate_limited: bool = False
    reason: str | None = None
    mode: str | None = None
    namespace: str | None = None
    tools: Sequence[ToolCall] = ()
    client: bool = False
    hash: str | None = None
    name: str = ""

    @property
    def place(self) -> str:
        """The sums that it counts in."""
        labels = {"traffic": "label", "gold": "gold_label", "shadow": "shadow_label"}
        return "client" if self.client else labels[self.source] if self.kind == "label" else self.source


def label(arm: str, **fields: Any) -> Event:
    """An evaluator's word on an earlier request: what it does not speak of is absent."""
    silent: dict[str, Any] = {"delta_s": None, "coverage": None, "solved": None, "cost": None}
    return Event(arm, kind="label", **silent | fields)


def labels(arm: str, n: int, **fields: Any) -> list[Event]:
    """``n`` labels of one arm."""
    return [label(arm, **fields) for _ in range(n)]


def requests(arm: str, n: int, **fields: Any) -> list[Event]:
    """``n`` requests of one arm, of three sticky ids: too few to show a share."""
    return [Event(arm, **{"sticky": f"{arm}-{i % 3}", **fields}) for i in range(n)]


def probes(arm: str, query: str = "q", states: Sequence[str | None] = ("→",) * 6, **fields: Any) -> list[Event]:
    """The runs of one λ group, in the order of paraphrase and seed."""
    runs = [(paraphrase, seed) for paraphrase in (1, 2, 3) for seed in (1, 2)]
    return [
        Event(arm, **{"sticky": f"{arm}-{query}", "state": state, "probe": (query, *run), **fields})
        for run, state in zip(runs, states, strict=False)
    ]


def exposures(events: Iterable[Event]) -> list[Event]:
    """An exposure of every sticky id in some events."""
    return [Event(arm, kind="exposure", sticky=sticky) for arm, sticky in sorted({(e.arm, e.sticky) for e in events})]


def healthy(n: int = 40, **canary: Any) -> list[Event]:
    """A window on which every gate passes; ``canary`` changes the canary's untagged requests."""
    both = requests("canary", n, **canary), probes("canary"), requests("baseline", n), probes("baseline")
    return [event for events in both for event in events]


def ids(names: Iterable[str]) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """The hashes under which sticky ids are followed."""
    return np.array([xxhash.xxh3_64_intdigest(name.encode()) for name in names], np.uint64)


def hashed(text: str) -> int:
    """The hash under which keys, effects and queries are followed."""
    return xxhash.xxh3_64_intdigest(text.encode())


def bucket(name: str, sticky: str) -> float:
    """Where assignment by hash puts an id of a flag."""
    return int.from_bytes(hashlib.sha256(f"{name}:{sticky}".encode()).digest()[:8], "big") / 2**64


def sums_of(events: Sequence[Event], pane: int = 0, partition: int = 0, offsets: Sequence[int] | None = None) -> Sums:
    """The sums of events of one arm and source; the offsets count from 0 if none are given."""
    sums, row = Sums(), dict.fromkeys(COUNTERS, 0)
    bad: dict[str, list[Worst]] = {}
    for offset, event in zip(offsets or range(len(events)), events, strict=True):
        if event.kind == "exposure" or event.client:
            row["exposures"] += 1
            continue
        _count_request(row, event)
        sums.see_pins(_written(tuple(event.pins.items())), 1, (pane, partition, offset))
        row["solved"] += bool(event.solved)
        row["solved_rows"] += event.solved is not None
        if event.coverage is not None:
            row["coverage_rows"] += 1
            row["coverage_sum"] += round(event.coverage * (1 << COVERAGE_BITS))
        if event.state is not None:
            flips = STATES[event.state] == FLIPPED
            row["lambda_rows"] += 1
            row["lambda_bad_rows"] += flips
            if event.probe is None:
                row["lambda_events"] += 1
                row["lambda_flips"] += flips
            else:
                query, paraphrase, seed = event.probe
                sums.probe(hashed(query), (paraphrase - 1) * 2 + seed - 1, STATES[event.state])
        for metric, badness, value in _badness(event):
            bad.setdefault(metric, []).append(Worst(badness, value, partition, offset, event.name or str(offset)))
    asked = [event for event in events if event.kind == "request" and not event.client]
    costs = np.array([event.cost for event in asked if event.cost is not None], np.float64)
    row["cost_known"] = len(costs)
    row["cost_high"], row["cost_low"] = (sum(part.tolist()) for part in cost_parts(costs))
    row["square_high"], row["square_mid"], row["square_low"] = (sum(part.tolist()) for part in square_parts(costs))
    solved = np.array([event.cost for event in asked if event.cost is not None and event.solved], np.float64)
    row["solved_cost_high"], row["solved_cost_low"] = (sum(part.tolist()) for part in cost_parts(solved))
    sums.count([row[counter] for counter in COUNTERS])
    told = [event for event in events if event.kind != "exposure" and not event.client]
    sums.delta_s.add(np.array([e.delta_s for e in told if e.delta_s is not None], np.float64))
    sums.latency.add(np.array([e.latency for e in asked], np.float64))
    named = zip(offsets or range(len(events)), events, strict=True)
    sums.requests.add(ids(event.name or str(offset) for offset, event in named if event in asked))
    if not events or events[0].place == "traffic":
        sums.sticky.add(ids(event.sticky for event in events))
        sums.exposed.add(ids(event.sticky for event in events if event.kind == "exposure"))
    if events and events[0].arm == "canary":
        for metric, found in bad.items():
            sums.worst[metric] = sorted(found, key=lambda worst: worst.rank)[:WORST]
    return sums


@cache
def _written(pins: tuple[tuple[str, str], ...]) -> str:
    """A set of pins as it is kept."""
    return msgspec.json.encode(dict(sorted(pins))).decode()


def _count_request(row: dict[str, int], event: Event) -> None:
    row["requests"] += 1
    row["errors"] += event.error
    row["rate_limited"] += event.rate_limited
    row["tool_rows"] += event.tool_calls > 0
    if event.tool_calls and event.tool_ok is None:
        row["tool_missing"] += 1
    else:
        row["tool_calls"] += event.tool_calls
        row["tool_ok"] += event.tool_ok or 0
    row["cost_rows"] += event.cost is not None and event.solved is not None
    row["reason_rows"] += event.reason is not None
    row["reason_failed"] += event.reason == "failed"
    row["reason_in_full"] += event.reason == "failed" and event.mode != "cite_only"


def _badness(event: Event) -> Iterable[tuple[str, float, float]]:
    """By metric, how bad an event is and what a reader is shown."""
    if event.delta_s is not None:
        yield "delta_s", event.delta_s, event.delta_s
    if event.coverage is not None:
        yield "coverage", -event.coverage, event.coverage
    if event.state is not None and STATES[event.state] == FLIPPED:
        yield "lambda", 1.0, 1.0
    if event.kind != "request":
        return
    yield "latency", event.latency, event.latency
    if event.cost is not None:
        yield "cost", event.cost, event.cost
    if event.error:
        yield "error", 1.0, 1.0
    if event.reason == "failed":
        yield "reason", 1.0, 1.0
        if event.mode != "cite_only":
            yield "reason_in_full", 1.0, 1.0
    failed = event.tool_calls - (event.tool_ok or 0) if event.tool_ok is not None else 0
    if failed:
        yield "tool", float(failed), float(failed)


def said(events: Sequence[Event], offsets: Sequence[int]) -> Labels:
    """Labels of one arm and source, one by one."""
    sets = list(dict.fromkeys(_written(tuple(event.pins.items())) for event in events))
    rows = []
    for event, offset in zip(events, offsets, strict=True):
        query, paraphrase, seed = event.probe or ("", 0, 0)
        says = {
            "solved": event.solved is True,
            "solved_rows": event.solved is not None,
            "lambda_rows": event.state is not None,
            "lambda_bad_rows": event.state is not None and STATES[event.state] == FLIPPED,
        }
        row = {
            "request": hashed(event.name or str(offset)),
            "offset": offset,
            "delta_s": math.nan if event.delta_s is None else event.delta_s,
            "coverage": math.nan if event.coverage is None else event.coverage,
            "query": hashed(query) if event.probe else 0,
            "spoken": sum(1 << SPOKEN.index(name) for name, true in says.items() if true),
            "run": (paraphrase - 1) * 2 + seed - 1 if event.probe else -1,
            "pins": sets.index(_written(tuple(event.pins.items()))),
        }
        rows.append(tuple(row[name] for name in ROW.names or ()))
    names = [event.name or str(offset) for event, offset in zip(events, offsets, strict=True)]
    return Labels(np.array(rows, ROW).tobytes(), names if events[0].arm == "canary" else [], sets, 0, len(rows))


LABELLED = {"label": "traffic", "gold_label": "gold", "shadow_label": "shadow"}
PLACES = ("traffic", "gold", "shadow", "label", "gold_label", "shadow_label", "client")


def seen(
    events: Sequence[Event],
    *,
    late: int = 0,
    duplicates: int = 0,
    pane: int = 0,
    partition: int = 0,
    first: int = 0,
    hashed_for: Flag | None = None,
) -> PaneUnit:
    """What one partition saw of a unit in one pane; the events have consecutive offsets from ``first``.

    ``hashed_for``: the flag, if its arms follow from the sticky id.
    """
    unit = PaneUnit(late=late, duplicates=duplicates)
    places: dict[tuple[str, str], list[int]] = {}
    for i, event in enumerate(events):
        places.setdefault((event.arm, event.place), []).append(i)
    for arm in ("baseline", "canary"):
        for place in PLACES:
            at = places.get((arm, place))
            mine, offsets = [events[i] for i in at or ()], [first + i for i in at or ()]
            if at and place in LABELLED:
                unit.labels.setdefault(arm, {})[LABELLED[place]] = said(mine, offsets)
            elif at:
                unit.of(arm).sources[place] = sums_of(mine, pane, partition, offsets)
                if hashed_for is not None and place == "traffic":
                    _misplace(unit, arm, mine, hashed_for)
    for i, event in enumerate(events):
        _tell(unit, event, partition, first + i)
    if events:
        unit.saw(first, first + len(events) - 1)
    return unit


def _misplace(unit: PaneUnit, arm: str, events: Sequence[Event], rules: Flag) -> None:
    buckets = [bucket(rules.name, event.sticky) for event in events]
    wrong = [sum((b < weight) != (arm == "canary") for b in buckets) for weight in rules.ramp_stages]
    unit.details().misplace(arm, wrong)


def _tell(unit: PaneUnit, event: Event, partition: int, offset: int) -> None:
    """What one event tells of the evidence itself."""
    if event.hash is not None and event.place not in LABELLED:
        unit.details().see_hash(event.hash, 1)
    if event.kind != "request" or event.client:
        return
    if event.namespace is not None:
        unit.details().see_namespace(event.namespace, [_written(tuple(event.pins.items()))])
    if not event.tools:
        return
    calls = Counter((tool.name, tool.args_hash) for tool in event.tools if tool.args_hash is not None)
    for tool in event.tools:
        if tool.idempotency_key is not None and tool.effect_id is not None:
            unit.details().effects.add(hashed(tool.idempotency_key), hashed(tool.effect_id))
        if tool.write and tool.idempotency_key is None:
            unit.details().unfenced.add(partition, offset, tool.name)
    for (name, _), count in calls.items():
        if count >= 10:
            unit.details().tool_loops.add(partition, offset, name)


def flag(body: str = "", *, name: str = "f") -> Flag:
    """A flag with 1 min windows, its other keys given as YAML; ``window`` in the body replaces the default.

    Evidence is by points unless the body says otherwise: a window's values then settle its gates, so that a test of
    anything else needs a handful of events.
    """
    if "window:" not in body:
        body = f"window: {{length: 1m}}\n{body}"
    return load_manifest(yaml.safe_dump({"flags": {name: by_points(yaml.safe_load(body))}}), pane_ms=PANE).flags[name]


def by_points(written: dict[str, Any]) -> dict[str, Any]:
    """A flag with point evidence, where it is a rollout and no evidence is written in it."""
    if written.get("kind", "progressive_rollout") != "progressive_rollout":
        return written
    return {**written, "policy": {"evidence": "point", **written.get("policy", {})}}


def arms_of(events: Sequence[Event]) -> tuple[Arm, Arm]:
    """Canary and baseline of one window, in which labels with the usual pins count."""
    unit = seen(events)
    for arm, by_source in unit.labels.items():
        for place, source in LABELLED.items():
            if source in by_source:
                sums = by_source[source].counted(Known([], followed=True), dict(PINNED), (arm, source, 0))
                unit.of(arm).sources[place] = sums
    return unit.of("canary"), unit.of("baseline")


def compare(rules: Flag, events: Sequence[Event]) -> Comparison:
    """Both arms of one window under a flag's rules."""
    canary, baseline = arms_of(events)
    arms = read_arms(canary, baseline, rules.policy.quality_source, rules.window.min_requests)
    return Comparison.of(rules, arms)


def gate(rules: Flag, events: Sequence[Event], name: str) -> GateResult:
    """One gate of a window."""
    return next(result for result in compare(rules, events).gates() if result.gate == name)


def rule(rules: Flag, events: Sequence[Event], kind: str, alpha: float | None = None) -> RuleResult:
    """One abort rule of a window; ``alpha``: while it is open."""
    comparison = compare(rules, events)
    return next(result for result in comparison.rules(comparison.gates(), alpha) if result.kind == kind)


_units = StateCodec(Unit)


class Drive:
    """One unit of a flag, fed pane by pane, with everything that it gave.

    ``restore``: between panes the unit is written out and read back, as after a crash.
    """

    def __init__(
        self,
        rules: Flag,
        start: int = 0,
        *,
        before: Unit | None = None,
        clockwork: Clockwork = CLOCKWORK,
        restore: bool = False,
        unit: Unit | None = None,
        region: str = "us",
        regions: Regions | None = None,
    ) -> None:
        self.flag, self.clockwork, self.restore, self.regions = rules, clockwork, restore, regions
        self.ramp = machine(rules, unit or begin(rules, region, start, clockwork, before), clockwork, regions)
        self.now = start
        self.offset = 0
        self.decisions: list[Decision] = []
        self.commands: list[Command] = []

    @property
    def unit(self) -> Unit:
        """The whole state."""
        return self.ramp.unit

    def took(self, made: Iterable[tuple[Decision, Command | None]]) -> list[Decision]:
        """Note what the unit gave."""
        outcomes = list(made)
        self.decisions += [decision for decision, _ in outcomes]
        self.commands += [command for _, command in outcomes if command is not None]
        return [decision for decision, _ in outcomes]

    def feed(self, events: Sequence[Event] = (), *, late: int = 0, dead_letters: int = 0) -> None:
        """Put these events of partition 0 into the next pane."""
        index = self.now // self.clockwork.pane_ms
        hashed_for = self.flag if self.flag.policy.assignment == "sha256" else None
        self.ramp.add(0, seen(events, late=late, pane=index, first=self.offset, hashed_for=hashed_for))
        self.offset += len(events)
        self.ramp.unit.window.dead_letters += dead_letters

    def close(self) -> list[Decision]:
        """Close the next pane; the decisions that follow."""
        self.now += self.clockwork.pane_ms
        made = self.took(self.ramp.close(self.now))
        if self.restore:
            self.ramp = machine(self.flag, _units.load(_units.dump(self.ramp.unit)), self.clockwork, self.regions)
        return made

    def pane(self, events: Sequence[Event] = (), *, late: int = 0, dead_letters: int = 0) -> list[Decision]:
        """Close the next pane with these events of partition 0 in it; the decisions that follow."""
        self.feed(events, late=late, dead_letters=dead_letters)
        return self.close()

    def until(self, end: int) -> list[Decision]:
        """Close empty panes up to a time."""
        return [decision for _ in range(self.now, end, self.clockwork.pane_ms) for decision in self.pane()]

    def window(self, events: Sequence[Event] = (), *, late: int = 0, dead_letters: int = 0) -> Decision:
        """One window (first what is left of settling) with these events in its last pane; its last decision."""
        if self.unit.settling:
            self.until(self.ramp.unit.window.end)
        self.until(self.ramp.unit.window.end - self.clockwork.pane_ms)
        return self.pane(events, late=late, dead_letters=dead_letters)[-1]

    def operate(self, kind: Literal["kill", "rearm"], ts: int | None = None) -> Decision:
        """An operator's action, ordered now unless ``ts`` says otherwise."""
        by = OperationBy(kind=kind, ts=self.now if ts is None else ts, actor="ada", reason="why not")
        return self.took(self.ramp.operate(by, self.now))[-1]

    def command(self) -> Command:
        """The last command; it must belong to the last decision."""
        assert self.commands, "no command yet"
        assert self.commands[-1].decision_id == self.decisions[-1].decision_id
        return self.commands[-1]

    def commanded(self) -> list[tuple[str, float]]:
        """What was commanded so far: action and the canary's weight."""
        return [(command.action, command.weights.canary) for command in self.commands]
