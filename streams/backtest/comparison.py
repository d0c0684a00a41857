"""Decisions of another manifest: B looks wherever A looks, on the evidence that A's ramp produced."""

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from msgspec.structs import replace

from tidegate.gates.kinds import machine
from tidegate.gates.machine import Machine
from tidegate.gates.regions import Regions
from tidegate.gates.samples import IdSample
from tidegate.gates.stage import StageEvidence
from tidegate.gates.staged import StagedRamp, unsound
from tidegate.gates.unit import Pinned, Unit, begin
from tidegate.gates.window import UnitWindow as Evidence
from tidegate.schemas.clockwork import Clockwork
from tidegate.schemas.decision import Decision, GateResult, OperationBy, RuleResult
from tidegate.schemas.errors import InputError
from tidegate.schemas.manifest import Flag, Rule
from tidegate.schemas.operation import Operation
from tidegate.schemas.timeline import Timeline
from tidegate.streams.dumps.log import runs
from tidegate.streams.engine.event_classes import EventClasses
from tidegate.streams.engine.gate_log import Partial
from tidegate.streams.engine.runs import NEVER
from tidegate.streams.engine.source_partition import SourcePartition


@dataclass(frozen=True)
class Side:
    """The judgement of one manifest at ``at`` ms, and the numbers it rests on."""

    verdict: str
    reasons: list[str]
    at: int
    gates: list[GateResult]
    rules: list[RuleResult]
    problems: list[str]

    @classmethod
    def of(cls, decision: Decision) -> Self:
        """Return the part of a decision that is compared."""
        found = list(dict.fromkeys(problem.problem for problem in decision.evidence_problems))
        return cls(decision.verdict, decision.reasons, decision.decided_at, decision.gates, decision.abort_rules, found)


@dataclass(frozen=True)
class Difference:
    """A gate, abort rule or evidence problem on which A and B do not agree; A's part first.

    ``said``: a gate's status; ``fired``, ``quiet`` or ``no rule``; ``found`` or ``fine`` for an evidence problem.
    """

    name: str
    observed: tuple[float | None, float | None]
    limits: tuple[float | bool | None, float | bool | None]
    said: tuple[str, str]


@dataclass(frozen=True)
class ComparedWindow:
    """One window of one unit, as A and B judge it. A side is None where that manifest said nothing and went on.

    A window in which a side freezes before its end stands there twice, once for the freeze.
    ``weight``: the canary's in A's stage.
    """

    unit: str
    start: int
    end: int
    weight: float
    a: Side | None
    b: Side | None
    differences: list[Difference]

    @property
    def same(self) -> bool:
        """True if both say the same at the same moment."""
        return self.a is not None and self.b is not None and (self.a.verdict, self.a.at) == (self.b.verdict, self.b.at)


def counted(windows: Iterable[ComparedWindow]) -> int:
    """Count the windows; one that is listed twice counts once."""
    return len({(window.unit, window.start) for window in windows})


def placed(b: Flag, a: Flag) -> tuple[Flag, list[str]]:
    """B's flag with what makes the history taken from A's, and the names of the settings of B that go by that.

    Raises InputError for flags of two kinds.
    """
    if a.kind != b.kind:
        raise InputError(f"flag {a.name} is a {a.kind} in A and a {b.kind} in B; only flags of one kind compare")
    history: dict[str, tuple[Any, Any]] = {
        "scope": (a.scope, b.scope),
        "versions": (a.versions, b.versions),
        "baseline_versions": (a.baseline_versions, b.baseline_versions),
        "traffic": (a.ramp_stages, b.ramp_stages),
        "window.length": (a.window.length_ms, b.window.length_ms),
        "window.settle": (a.window.settle_ms, b.window.settle_ms),
        "policy.assignment": (a.policy.assignment, b.policy.assignment),
    }
    span = {"length_ms": a.window.length_ms, "settle_ms": a.window.settle_ms}
    changed = {
        "scope": a.scope,
        "versions": a.versions,
        "baseline_versions": a.baseline_versions,
        "traffic": a.traffic,
        "window": b.window.model_copy(update=span),
        "policy": b.policy.model_copy(update={"assignment": a.policy.assignment}),
    }
    return b.model_copy(update=changed), [name for name, (one, other) in history.items() if one != other]


@dataclass(frozen=True)
class OrderMark:
    """An operator's order that was carried out on a unit at ``ts``, ms."""

    unit: str
    ts: int
    kind: str
    actor: str


class Shadow:
    """B beside one unit of A. It sees A's windows, stages and ids, and remembers only what is its own.

    Its evidence of a stage is that of A's stage, without the windows that B itself would have left out. After a stop B
    goes on as if it had not stopped, and adds up evidence from there on.
    """

    def __init__(self, flag: Flag, clockwork: Clockwork) -> None:
        self.flag, self._clockwork = flag, clockwork
        self._green, self._strike, self._engaged = 0, False, False
        self._evidence = StageEvidence()
        self._pinned: Pinned | None = None
        self.stopped: Decision | None = None

    def look(self, unit: Unit, end: int, regions: Regions) -> Decision | None:
        """B's decision at the end of a pane, on A's state before A decides; None where it says nothing."""
        if self.stopped is not None:
            return None
        # Of what B's copy shares with A's unit, a promote would change this in place.
        earlier = IdSample(unit.earlier_canary.level, unit.earlier_canary.ids)
        own = {"green": self._green, "strike": self._strike, "engaged": self._engaged, "evidence": self._evidence}
        pinned = None if unit.pinned is None else self._pinned or unit.pinned
        mine = replace(
            unit, earlier_canary=earlier, assignments=replace(unit.assignments), closed=None, pinned=pinned, **own
        )
        window, judge = unit.window, machine(self.flag, mine, self._clockwork, regions)
        outcome = next(judge.close(end), None)
        self._green, self._strike, self._engaged = mine.green, mine.strike, mine.engaged
        self._evidence, before = mine.evidence, self._evidence
        if outcome is None:
            return None
        decision = outcome[0]
        if decision.verdict == "promote" and isinstance(judge, StagedRamp):
            # A may stay in its stage: what B knows of it is no less for that.
            self._evidence = before.with_window(window, sound=not unsound(decision.evidence_problems))
        if decision.verdict in ("abort", "rollback"):
            self._green, self._strike = 0, False
        if decision.verdict == "abort" and not decision.window.closed:
            self.stopped = decision
        return decision

    def restart(self) -> None:
        """Forget everything: an operator has stopped or restarted A's rollout."""
        self._green, self._strike, self._engaged, self.stopped = 0, False, False, None
        self._evidence, self._pinned = StageEvidence(), None

    def promoted(self, window: Evidence, pinned: Pinned | None) -> None:
        """Follow A to its next stage at the end of a window; ``pinned``: what stands in for the baseline from then on.

        B would have pinned the baseline of that window, or of the whole stage.
        """
        self._green = 0
        whole, self._evidence = self._evidence, StageEvidence()
        if pinned is not None:
            staged = whole.since is not None and bool(whole.windows)
            arm, start = (whole.baseline, whole.since or 0) if staged else (window.baseline, window.start)
            self._pinned = replace(pinned, arm=arm, start=start)


class SideBySide:
    """Every unit under A with B beside it, fed with partials as they close."""

    def __init__(self, a: Mapping[str, Flag], b: Mapping[str, Flag], partitions: int, clockwork: Clockwork) -> None:
        self._a, self._b, self._clockwork = a, b, clockwork
        self._closed = [NEVER] * partitions
        self._waiting: dict[int, dict[int, Partial]] = {}
        self._machines: dict[str, Machine] = {}
        self._regions: defaultdict[str, Regions] = defaultdict(Regions)
        self._shadows: dict[str, Shadow] = {}
        self.decisions: Callable[[Decision], None] = lambda _: None
        self.marks: list[OrderMark] = []
        self._scheduled: deque[Operation] = deque()
        self._kills: dict[str, OperationBy] = {}
        self._pauses: dict[str, OperationBy] = {}
        self._done = NEVER

    def schedule(self, operations: Iterable[Operation]) -> None:
        """Take what operators ordered: each is carried out before the first pane whose end + lateness is past its ts.

        B was not there to be ordered anything: an order that stops, starts or moves A's ramp does so to its evidence.
        """
        self._scheduled = deque(sorted(operations, key=lambda operation: operation.ts))

    def finish(self) -> None:
        """Carry out the orders that are still scheduled."""
        while self._scheduled:
            self._carry_out(min(self._closed), min(self._closed))

    def _carry_out(self, done: int, end: int) -> None:
        """Carry out the next order, which came when panes from ``done`` up to ``end`` were closed."""
        operation = self._scheduled.popleft()
        at = (operation.ts - self._clockwork.lateness_ms) // self._clockwork.pane_ms
        closed, by = min(max(at, done), end), operation.by
        known = {"kill": self._kills, "rearm": self._kills, "pause": self._pauses, "resume": self._pauses}.get(by.kind)
        if known is not None:
            known.pop(operation.flag, None)
            if by.kind in ("kill", "pause"):
                known[operation.flag] = by
        for name in sorted(self._machines):
            if name.split("|", 1)[0] == operation.flag:
                self._operate(name, by, closed * self._clockwork.pane_ms)

    def _operate(self, name: str, by: OperationBy, at: int) -> None:
        """Carry out an order on a unit of A; B goes on from what it leaves."""
        ramp, shadow = self._machines[name], self._shadows.get(name)
        window = ramp.unit.window
        for decision, _ in list(ramp.operate(by, at)):
            self.decisions(decision)
            if decision.operation == by:
                self.marks.append(OrderMark(name, decision.decided_at, by.kind, by.actor))
            if shadow is not None and decision.verdict == "promote":
                shadow.promoted(window, ramp.unit.pinned)
        if shadow is not None and by.kind in ("kill", "rearm"):
            shadow.restart()

    def step(self, partial: Partial) -> Iterator[ComparedWindow]:
        """Take in a partial; give the windows that end with it."""
        self._done = max(self._done, min(self._closed))
        self._closed[partial.partition] = partial.pane + 1
        if partial.units or partial.dead_letters or partial.records:
            self._waiting.setdefault(partial.pane, {})[partial.partition] = partial
        closed, pane_ms = min(self._closed), self._clockwork.pane_ms
        while True:
            ends = [pane + 1 for pane in self._waiting if pane < closed]
            deadlines = [ramp.deadline for ramp in self._machines.values() if ramp.deadline is not None]
            ends += [deadline // pane_ms for deadline in deadlines if deadline <= closed * pane_ms]
            if not ends:
                return
            end = min(ends)
            while self._scheduled and self._scheduled[0].ts < end * pane_ms + self._clockwork.lateness_ms:
                self._carry_out(self._done, end)
            self._merge((end - 1) * pane_ms, self._waiting.pop(end - 1, {}))
            for name, ramp in sorted(self._machines.items()):
                yield from self._close(name, ramp, end * pane_ms)
            self._done = end

    def _merge(self, start: int, partials: dict[int, Partial]) -> None:
        shown = {name for partial in partials.values() for name, seen in partial.units.items() if seen.accepted}
        for name in sorted(shown):
            if name not in self._machines:
                flag_name, region = name.split("|", 1)
                flag = self._a[flag_name]
                unit = begin(flag, region, start, self._clockwork)
                self._machines[name] = machine(flag, unit, self._clockwork, self._regions[flag_name])
                if flag_name in self._b:
                    self._shadows[name] = Shadow(self._b[flag_name], self._clockwork)
                for standing in (self._kills.get(flag_name), self._pauses.get(flag_name)):
                    if standing is not None:
                        self._operate(name, standing, start)
            elif self._machines[name].asleep:
                self._machines[name].wake(start)
        for partition, partial in sorted(partials.items()):
            for name, seen in partial.units.items():
                if name in self._machines:
                    self._machines[name].add(partition, seen)
        for partition, partial in partials.items():
            for ramp in self._machines.values():
                ramp.unit.window.read(partition, partial.records, partial.dead_letters)

    def _close(self, name: str, ramp: Machine, end: int) -> Iterator[ComparedWindow]:
        shadow, window, cut = self._shadows.get(name), ramp.unit.window, ramp.unit.cut
        weight = 0.0 if ramp.unit.latched else ramp.stages[ramp.unit.stage]
        theirs = shadow.look(ramp.unit, end, ramp.regions) if shadow else None
        outcomes = list(ramp.close(end))
        ours = outcomes[0][0] if outcomes else None
        if ours is not None:
            self.decisions(ours)
        if shadow is None:
            return
        over = ramp.unit.window is not window
        theirs = theirs or shadow.stopped
        stops = theirs is not None and theirs is shadow.stopped
        if not cut and (ours is not None or (theirs is not None and (over or not stops))):
            a, b = Side.of(ours) if ours else None, Side.of(theirs) if theirs else None
            yield ComparedWindow(name, window.start, window.end, weight, a, b, self._differences(name, a, b))
        if over or (ours is not None and ours.verdict == "abort"):
            shadow.stopped = None
        if ours is not None and ours.verdict == "promote":
            shadow.promoted(window, ramp.unit.pinned)

    def _differences(self, name: str, a: Side | None, b: Side | None) -> list[Difference]:
        flag = name.split("|", 1)[0]
        return differences((a, b), (self._a[flag], self._b[flag]))


def differences(sides: tuple[Side | None, Side | None], flags: tuple[Flag, Flag]) -> list[Difference]:
    """Return the differences of two judgements of a window; if made at two moments, the hard rules that fired."""
    a, b = sides
    if any(side and side.reasons == ["latched"] for side in sides):
        return []
    found: list[Difference] = []
    together = a is not None and b is not None and a.at == b.at
    if a and b and together:
        for one, other in zip(a.gates, b.gates, strict=True):
            if one.status != other.status:
                observed, limits = (one.observed, other.observed), (one.threshold, other.threshold)
                found.append(Difference(one.gate, observed, limits, (one.status, other.status)))
    rules = [rule for side in sides if side for rule in side.rules if rule.fired]
    for kind in dict.fromkeys(rule.kind for rule in rules if together or rule.severity == "hard"):
        here, there = (_rule(kind, side, flag) for side, flag in zip(sides, flags, strict=True))
        if here[2] != there[2] or not together:
            found.append(Difference(kind, (here[0], there[0]), (here[1], there[1]), (here[2], there[2])))
    if a and b and together:
        for problem in dict.fromkeys((*a.problems, *b.problems)):
            said = ["found" if problem in side.problems else "fine" for side in (a, b)]
            if said[0] != said[1]:
                found.append(Difference(problem, (None, None), (None, None), (said[0], said[1])))
    return found


def _rule(kind: str, side: Side | None, flag: Flag) -> tuple[float | None, float | None, str]:
    """Return a rule's value, its limit and what it said; a side that went on has a limit, but no value."""
    seen = next((rule for rule in side.rules if rule.kind == kind), None) if side else None
    if seen is not None:
        return seen.observed, seen.value, "fired" if seen.fired else "quiet"
    rules: tuple[Rule, ...] = (*flag.abort_rules.hard, *flag.abort_rules.soft)
    limit = next((rule.value for rule in rules if rule.kind == kind), None)
    return None, limit, "quiet" if side is None and limit is not None else "no rule"


def compare(
    paths: Sequence[Path],
    a: Mapping[str, Flag],
    b: Mapping[str, Flag],
    partitions: int,
    clockwork: Clockwork,
    progress: Callable[[int], None] = lambda _: None,
    decisions: Callable[[Decision], None] = lambda _: None,
    operations: Iterable[Operation] = (),
    marks: Callable[[OrderMark], None] = lambda _: None,
) -> Iterator[ComparedWindow]:
    """Yield every window that A decides in the files, with what B says to it; units of flags that B lacks are left out.

    ``b``: flags as ``placed`` gives them. ``decisions`` is told each decision of A, which is what a replay gives,
    and ``marks`` where an order of ``operations`` was carried out.
    """
    table = EventClasses(Timeline.of(a))
    beside = SideBySide(a, b, partitions, clockwork)
    beside.decisions = decisions
    beside.schedule(operations)
    states: dict[int, SourcePartition] = {}
    for partition, run in runs(paths, partitions, progress):
        if partition not in states:
            states[partition] = SourcePartition.fresh(partition, clockwork, table, run.first)
        for partial in states[partition].step(run).partials:
            yield from beside.step(partial)
    beside.finish()
    for mark in beside.marks:
        marks(mark)
