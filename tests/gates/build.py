"""Events, panes, flags and ramps as the tests of the gates write them down.

Sums are made here event by event, in the plainest way, and not by the code that reads the stream.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import indent
from typing import Any

import msgspec
import numpy as np
import xxhash

from gates.metrics import read_arms
from gates.ramp import Clockwork, Ramp, Unit, begin
from gates.rules import Comparison
from gates.sums import CONVERGED, COUNTERS, COVERAGE_BITS, FLIPPED, StateCodec, Sums, cost_parts
from gates.window import PaneUnit
from schemas.decision import Command, Decision, GateResult, RuleResult
from schemas.manifest import Flag, load_manifest

PANE = 10_000
WINDOW = 60_000
CLOCKWORK = Clockwork(pane_ms=PANE, lateness_ms=10_000, topic="tidegate.telemetry")
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
    """One accepted telemetry event; a healthy request unless it says otherwise. ``probe``: query, paraphrase, seed."""

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


def requests(arm: str, n: int, **fields: Any) -> list[Event]:
    """``n`` requests of one arm, each of a sticky id of its own."""
    return [Event(arm, **{"sticky": f"{arm}-{i}", **fields}) for i in range(n)]


def probes(arm: str, query: str = "q", states: Sequence[str | None] = ("→",) * 6, **fields: Any) -> list[Event]:
    """The runs of one λ group, in the order of paraphrase and seed."""
    runs = [(paraphrase, seed) for paraphrase in (1, 2, 3) for seed in (1, 2)]
    return [
        Event(arm, **{"sticky": f"{arm}-{query}", "state": state, "probe": (query, *run), **fields})
        for run, state in zip(runs, states, strict=False)
    ]


def healthy(n: int = 40, **canary: Any) -> list[Event]:
    """A window on which every gate passes; ``canary`` changes the canary's untagged requests."""
    both = requests("canary", n, **canary), probes("canary"), requests("baseline", n), probes("baseline")
    return [event for events in both for event in events]


def ids(names: Iterable[str]) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """The hashes under which sticky ids are followed."""
    return np.array([xxhash.xxh3_64_intdigest(name.encode()) for name in names], np.uint64)


def sums_of(events: Sequence[Event], pane: int = 0, partition: int = 0, offsets: Sequence[int] | None = None) -> Sums:
    """The sums of events of one arm and source; the offsets count from 0 if none are given."""
    sums, row = Sums(), dict.fromkeys(COUNTERS, 0)
    for offset, event in zip(offsets or range(len(events)), events, strict=True):
        if event.kind == "exposure":
            row["exposures"] += 1
            continue
        row["requests"] += 1
        row["errors"] += event.error
        if event.tool_calls and event.tool_ok is None:
            row["tool_missing"] += 1
        else:
            row["tool_calls"] += event.tool_calls
            row["tool_ok"] += event.tool_ok or 0
        row["solved"] += bool(event.solved)
        row["cost_rows"] += event.cost is not None and event.solved is not None
        if event.cost is not None:
            high, low = cost_parts(np.array([event.cost]))
            row["cost_high"] += int(high[0])
            row["cost_low"] += int(low[0])
        if event.coverage is not None:
            row["coverage_rows"] += 1
            row["coverage_sum"] += round(event.coverage * (1 << COVERAGE_BITS))
        if event.state is not None:
            bad = STATES[event.state] == FLIPPED
            row["lambda_rows"] += 1
            row["lambda_bad_rows"] += bad
            if event.probe is None:
                row["lambda_events"] += 1
                row["lambda_flips"] += bad
            else:
                query, paraphrase, seed = event.probe
                group = xxhash.xxh3_64_intdigest(query.encode())
                sums.probe(group, (paraphrase - 1) * 2 + seed - 1, STATES[event.state])
        pins = msgspec.json.encode(dict(sorted(event.pins.items()))).decode()
        sums.see_pins(pins, 1, (pane, partition, offset))
    asked = [event for event in events if event.kind == "request"]
    sums.count([row[counter] for counter in COUNTERS])
    sums.delta_s.add(np.array([e.delta_s for e in asked if e.delta_s is not None], np.float64))
    sums.latency.add(np.array([e.latency for e in asked], np.float64))
    sums.sticky.add(ids(event.sticky for event in events))
    return sums


def seen(
    events: Sequence[Event], *, late: int = 0, duplicates: int = 0, pane: int = 0, partition: int = 0, first: int = 0
) -> PaneUnit:
    """What one partition saw of a unit in one pane; the events have consecutive offsets from ``first``."""
    unit = PaneUnit(late=late, duplicates=duplicates)
    for arm in ("baseline", "canary"):
        for source in ("traffic", "gold", "shadow"):
            at = [i for i, event in enumerate(events) if (event.arm, event.source) == (arm, source)]
            if at:
                mine, offsets = [events[i] for i in at], [first + i for i in at]
                unit.of(arm).sources[source] = sums_of(mine, pane, partition, offsets)
    if events:
        unit.saw(first, first + len(events) - 1)
    return unit


def flag(body: str = "", *, name: str = "f") -> Flag:
    """A flag with 1 min windows, its other keys given as YAML; ``window`` in the body replaces the default."""
    if "window:" not in body:
        body = f"window: {{length: 1m}}\n{body}"
    return load_manifest(f"flags:\n  {name}:\n{indent(body, '    ')}", pane_ms=PANE).flags[name]


def compare(rules: Flag, events: Sequence[Event]) -> Comparison:
    """Both arms of one window under a flag's rules."""
    unit = seen(events)
    canary, baseline, _ = read_arms(unit.of("canary"), unit.of("baseline"), rules.policy.quality_source)
    return Comparison(rules, canary, baseline)


def gate(rules: Flag, events: Sequence[Event], name: str) -> GateResult:
    """One gate of a window."""
    return next(result for result in compare(rules, events).gates() if result.gate == name)


def rule(rules: Flag, events: Sequence[Event], kind: str, alpha: float | None = None) -> RuleResult:
    """One abort rule of a window; ``alpha``: while it is open."""
    comparison = compare(rules, events)
    return next(result for result in comparison.rules(comparison.gates(), alpha) if result.kind == kind)


_units = StateCodec(Unit)


class Drive:
    """One unit's ramp, fed pane by pane, with everything that it gave.

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
    ) -> None:
        self.flag, self.clockwork, self.restore = rules, clockwork, restore
        self.ramp = Ramp(rules, begin(rules, "us", start, before), clockwork)
        self.now = start
        self.offset = 0
        self.decisions: list[Decision] = []
        self.commands: list[Command] = []

    @property
    def unit(self) -> Unit:
        """The whole state."""
        return self.ramp.unit

    def pane(self, events: Sequence[Event] = (), *, late: int = 0, dead_letters: int = 0) -> list[Decision]:
        """Close the next pane with these events of partition 0 in it; the decisions that follow."""
        index = self.now // self.clockwork.pane_ms
        self.ramp.add(0, seen(events, late=late, pane=index, first=self.offset))
        self.offset += len(events)
        self.ramp.unit.window.dead_letters += dead_letters
        self.now += self.clockwork.pane_ms
        made = list(self.ramp.close(self.now))
        self.decisions += [decision for decision, _ in made]
        self.commands += [command for _, command in made if command is not None]
        if self.restore:
            self.ramp = Ramp(self.flag, _units.load(_units.dump(self.ramp.unit)), self.clockwork)
        return [decision for decision, _ in made]

    def until(self, end: int) -> list[Decision]:
        """Close empty panes up to a time."""
        return [decision for _ in range(self.now, end, self.clockwork.pane_ms) for decision in self.pane()]

    def window(self, events: Sequence[Event] = (), *, late: int = 0, dead_letters: int = 0) -> Decision:
        """One window (first what is left of settling) with these events in its last pane; its last decision."""
        if self.unit.settling:
            self.until(self.ramp.unit.window.end)
        self.until(self.ramp.unit.window.end - self.clockwork.pane_ms)
        return self.pane(events, late=late, dead_letters=dead_letters)[-1]

    def command(self) -> Command:
        """The last command; it must belong to the last decision."""
        assert self.commands, "no command yet"
        assert self.commands[-1].decision_id == self.decisions[-1].decision_id
        return self.commands[-1]
