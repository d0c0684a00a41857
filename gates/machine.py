"""The state machine of one unit, as every kind of flag shares it: windows filled pane by pane, and judged.

``add`` takes what each partition saw of a pane, in order; ``close`` ends a pane and gives the decisions and commands
that follow, if any. Nothing here knows a clock, a topic or another flag.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import msgspec

from tidegate.gates.assignments import Assignments
from tidegate.gates.corrections import as_it_was, correction, remembered
from tidegate.gates.evidence import Evidence, judged, pin_sets, pins_drifted, problems, reread
from tidegate.gates.labels import LABEL_FATES, Known
from tidegate.gates.metrics import read_arms
from tidegate.gates.recorder import Outcome, Recorder
from tidegate.gates.records import Assessment, Judgement, Reading, unfired
from tidegate.gates.regions import Regions
from tidegate.gates.samples import IdSample, shared
from tidegate.gates.stage import StageEvidence
from tidegate.gates.unit import Unit, first_weight
from tidegate.gates.window import LABELS, REQUEST_SOURCES, PaneUnit, UnitWindow
from tidegate.schemas.catalogue import GUARDS, MANIFEST_REVISION, VERDICTS
from tidegate.schemas.clockwork import Clockwork
from tidegate.schemas.correction import Correction
from tidegate.schemas.decision import (
    ChangeFreeze,
    Decision,
    GateResult,
    OperationBy,
    Problem,
    RuleResult,
    Stage,
    Verdict,
)
from tidegate.schemas.manifest import Flag


class Machine(ABC):
    """One unit's state machine; ``unit`` is its whole state.

    ``regions``: what the regions of the flag assign by, kept together by their machines.
    """

    windowed = True
    """True if windows are decided at all."""
    staged = False
    """True if sticky ids and pins are followed over windows, for as long as a stage or the rollout lasts."""

    def __init__(self, flag: Flag, unit: Unit, clockwork: Clockwork, regions: Regions | None = None) -> None:
        self.flag, self.unit, self.clockwork = flag, unit, clockwork
        self.regions = Regions() if regions is None else regions
        self._note_region()
        self.corrections: list[Correction] = []
        self.labels: Counter[str] = Counter()
        """Labels that came in time, by whether they count."""
        self._rereads: list[Problem] | None = None
        self._pane: list[tuple[int, PaneUnit]] = []
        self.at: int | None = None
        """Up to when the window is judged, ms; None: to its end. Set for each judgement, as no restart keeps it."""

    @property
    def asleep(self) -> bool:
        """True while the unit waits for an event: its windows stand still."""
        return self.unit.asleep

    @property
    def deadline(self) -> int | None:
        """The next end of a window or of a settling span, ms; None while asleep."""
        return None if self.asleep or not self.windowed else self.unit.window.end

    def wake(self, start: int) -> None:
        """Go on after sleep, with a window from ``start``, ms, or what is left of a settling span."""
        self.unit.idle = 0
        self.unit.start_at(start, self.flag)
        self.unit.moving_until = self.clockwork.stage_start(start, self.flag.window.settle_ms)

    def begun(self, before: Unit | None = None) -> Iterator[Outcome]:
        """Yield the records that follow when a new revision takes over a unit: its first stage's weights."""
        weight, flag = first_weight(self.flag), self.flag
        steps_out = before is not None and before.kind in GUARDS and before.engaged and not self.unit.engaged
        if (self.unit.weight == weight and not steps_out) or (flag.kind == "kill_switch" and weight == 0):
            return
        action: Literal["close", "rearm"] = "close" if flag.kind == "quality_gated" else "rearm"
        yield self._standing(action, [MANIFEST_REVISION], self.unit.window.start, weight, None)

    def cut(self, at: int) -> Iterator[Outcome]:
        """End the unit at ``at`` ms, as its flag has changed: a window under two manifests is not judged."""
        found = Problem(problem="window_unstable", detail={"manifest": self.unit.manifest_hash, "changed_at": at})
        reasons = ["latched"] if self.unit.latched or self.unit.cut else ["window_unstable"]
        yield from self._end_window(at, reasons, [found])

    def _end_window(self, at: int, reasons: list[str], found: Sequence[Problem] = ()) -> Iterator[Outcome]:
        """Say of the window that runs at ``at`` ms what it showed, and that it is not judged."""
        unit = self.unit
        if self.asleep or not self.windowed:
            return
        self._correct(at)
        if at <= unit.window.start or unit.settling:
            return
        self.at = at
        seen = self._assess()
        judgement = seen.judgement("hold", reasons, rules=list(map(unfired, seen.rules)), found=found)
        yield self._recorder.judged(judgement, at, at)

    def operate(self, operation: OperationBy, at: int) -> Iterator[Outcome]:
        """Carry out an operator's action, at once; ``at``: the end of the last pane that is closed, ms.

        A rearm ends the window that runs, and the new rollout's first one begins after lateness and settling, as
        after a promote: nothing that was served before the rearm is evidence for it.
        """
        unit, flag, at = self.unit, self.flag, max(at, self.unit.window.start)
        if operation.kind == "kill":
            yield self._standing("kill", ["kill"], operation.ts, 0.0, operation)
            self._latch()
            return
        if operation.kind != "rearm":
            yield from self.hold_or_move(operation, at)
            return
        yield from self._end_window(at, ["rearm"])
        unit.restart(flag, at, self.clockwork.stage_start(max(operation.ts, at), flag.window.settle_ms))
        self._note_region()
        yield self._standing("rearm", ["rearm"], operation.ts, first_weight(flag), operation)

    def hold_or_move(self, operation: OperationBy, at: int) -> Iterator[Outcome]:
        """Carry out a pause, a resume or a promote by hand; nothing for a flag that has no stages."""
        yield from ()

    def retire(self, by: OperationBy, at: int) -> Iterator[Outcome]:
        """Yield the unit's last word, at ``at`` ms: its flag has left the manifest, and the canary goes to 0."""
        yield self._standing("retire", ["retire"], at, 0.0, by)
        self._latch()
        self.unit.retired, self.unit.paused = True, False

    def add(self, partition: int, seen: PaneUnit) -> None:
        """Take in what one partition saw of the pane that is about to close; in partition order."""
        unit = self.unit
        unit.window.merge(partition, seen)
        arms = {name: seen.arms[name] for name in ("baseline", "canary") if name in seen.arms}
        for name, arm in arms.items():
            for pins, _ in pin_sets(arm):
                for pin in judged(self.flag, pins):
                    unit.locked[name].setdefault(pin, pins[pin])
        if self.staged and not (unit.latched or unit.settling or self.canary_weight) and "canary" in arms:
            served = arms["canary"].sources.get("traffic")
            unit.window.unexpected += served["requests"] if served else 0
        traffic = {name: arm.sources["traffic"] for name, arm in arms.items() if "traffic" in arm.sources}
        for sums in traffic.values():
            unit.exposed.merge(sums.exposed)
        for name, sums in traffic.items():
            self._count_orphans(sums.sticky)
            if not (unit.settling or unit.latched):
                unit.assignments.see(name, sums.sticky)
        if seen.detail is not None and seen.detail.hashes:
            self.regions.note(unit.region, unit.window.detail.hashes)
        for window in [unit.window] if unit.closed is None else [unit.closed.window, unit.window]:
            window.left_out += seen.left_out
        self._follow(unit.window.start, seen)
        for pane, late in seen.behind.items():
            self._follow(pane * self.clockwork.pane_ms, late)
        if seen.labels or seen.behind:
            self._pane.append((partition, seen))

    def _follow(self, start: int, seen: PaneUnit) -> None:
        """Note the ids of requests of a pane from ``start``, ms, in the span that it is of."""
        unit = self.unit
        span = unit.requests if start >= unit.requests.since else unit.earlier
        if unit.latched or span is None or start < span.since:
            return
        for name, arm in seen.arms.items():
            for source in REQUEST_SOURCES:
                if source in arm.sources:
                    span.see(name, source, arm.sources[source].requests)

    def _hear(self, start: int) -> None:
        """Count the labels of the pane from ``start``, ms, now that all its requests are known, and its late events."""
        unit, pane, self._pane = self.unit, self._pane, []
        for partition, seen in pane:
            self._count_labels(unit.window, partition, seen, start, unit.locked)
        for partition, seen in pane:
            for index, late in seen.behind.items():
                at = index * self.clockwork.pane_ms
                if unit.closed is not None:
                    behind = unit.closed.window.note_late(partition, at, late)
                    self._count_labels(behind, partition, late, at, unit.closed.locked)
                self._count_labels(unit.window.note_late(partition, at, late), partition, late, at, unit.locked)

    def _count_labels(
        self,
        window: UnitWindow | None,
        partition: int,
        seen: PaneUnit,
        start: int,
        locked: Mapping[str, dict[str, str]],
    ) -> None:
        """Add to a window what those labels of a pane from ``start``, ms, say whose requests its stage has seen."""
        if window is None or not seen.labels:
            return
        known = self._known(start)
        for arm, by_source in seen.labels.items():
            for source, labels in by_source.items():
                sums = labels.counted(known, locked[arm], (arm, source, partition))
                window.arm(arm).of(LABELS[source]).merge(sums)
                if window is self.unit.window:
                    self.labels.update({what: sums[what] for what in LABEL_FATES})

    def _known(self, start: int) -> Known:
        """Return the requests that labels of a pane from ``start``, ms, may be of: its stage's, or two windows'."""
        unit = self.unit
        spans = [unit.requests] if unit.earlier is None else [unit.requests, unit.earlier]
        if self.staged:
            spans = [span for span in spans if span.since <= start][:1]
        return Known(spans, followed=not unit.latched)

    def _count_orphans(self, ids: IdSample) -> None:
        exposed, window = self.unit.exposed, self.unit.window
        if len(exposed.ids):
            known, level = shared(exposed, ids)
            followed = len(ids.within(level))
            window.ids += followed
            window.orphans += followed - len(known)

    def close(self, end: int) -> Iterator[Outcome]:
        """End the pane that ends at ``end`` ms; give the decisions and commands that follow, if any."""
        unit, self.at = self.unit, end
        self._hear(end - self.clockwork.pane_ms)
        if self.asleep or not self.windowed:
            return
        assert unit.window.start < end <= unit.window.end, "a pane ends within the window or the span that runs"
        assert 0 <= unit.stage <= unit.coming < len(self.stages), "stages are taken one by one, in order"
        assert not (unit.latched and unit.engaged), "what is over is not engaged"
        if end <= unit.moving_until:
            self._forget_ids()
            unit.window.detail.misplaced, unit.window.unexpected = {}, 0
        self._test_ratio()
        self._correct(end)
        if end == unit.window.end and not unit.settling:
            before = msgspec.structs.replace(unit)
            decision, command = self._decide(self.judge_window(), None)
            yield decision, command
            unit.closed = None if before.latched or before.cut else remembered(before, decision)
            if self.staged and (unit.closed is None or unit.closed.window.start >= unit.requests.since):
                unit.earlier = None
            self._correct(end)
            self._note_region()
            return
        if not (unit.latched or unit.cut):
            early = self.judge_pane()
            if early is not None:
                yield self._decide(early, end)
        if end == unit.window.end:
            self._start_stage(end)
            self._note_region()

    def _note_region(self) -> None:
        self.regions.note(self.unit.region, self.unit.window.detail.hashes or self.unit.hashes)

    @abstractmethod
    def judge_window(self) -> Judgement:
        """Return the verdict at a window's end."""

    def judge_pane(self) -> Judgement | None:
        """Return a verdict while the window is open, if there is one."""
        return None

    def _correct(self, at: int) -> None:
        """Say so if late events would have changed the last window's verdict; nothing else comes of it."""
        closed = self.unit.closed
        if closed is None or closed.window.behind is None or closed.seen == closed.window.behind.accepted:
            return
        closed.seen = closed.window.behind.accepted
        again = type(self)(self.flag, as_it_was(self.unit, closed), self.clockwork)
        again._rereads = closed.problems
        judgement = again.judge_window()
        if judgement.verdict != closed.told:
            closed.told = judgement.verdict
            self.corrections.append(correction(self.flag, again.unit, self.clockwork, judgement, closed, at))

    def _test_ratio(self) -> None:
        unit = self.unit
        if self.flag.kind == "progressive_rollout" and not (unit.settling or unit.latched):
            unit.assignments.test_ratio(self.stages[unit.stage])

    def _start_stage(self, start: int) -> None:
        unit = self.unit
        if not unit.latched:
            unit.stage = unit.coming
        # An abort while the stage settled cut the span that ends here, not the window that begins.
        unit.settling = unit.cut = False
        unit.turn(start, start + self.flag.window.length_ms)
        unit.follow_anew(start)
        if not self.staged:
            # What was served while the unit settled is no evidence of its first window.
            unit.earlier = None

    # Reading

    @property
    def stages(self) -> tuple[float, ...]:
        """The canary's weight by stage."""
        return self.flag.ramp_stages

    @property
    def canary_weight(self) -> float:
        """The canary's weight in the stage that is judged; 0 where it serves nobody."""
        unit = self.unit
        if unit.latched or (self.flag.kind == "quality_gated" and not unit.engaged):
            return 0.0
        return self.stages[unit.stage]

    def _read(self) -> Reading:
        unit, window = self.unit, self.unit.window
        pinned = None if unit.settling else unit.pinned
        arm = pinned.arm if pinned else window.baseline
        shadow = self.flag.traffic.shadow and self.shadowed
        policy, least = self.flag.policy, self.flag.window.min_requests
        return Reading(
            read_arms(window.canary, arm, policy.quality_source, least, shadow=shadow),
            window.canary,
            arm,
            pinned,
            shadow,
        )

    @property
    def shadowed(self) -> bool:
        """Tell whether mirrored requests may stand for the canary's traffic now, if the flag wants it."""
        return False

    def _evidence(self, reading: Reading, stage: Reading | None = None) -> Evidence:
        """Gather the detectors' evidence: the window, and the ``stage`` where more is judged together."""
        pinned, together = reading.pinned is not None, stage or reading
        pair = together.canary, together.baseline
        return Evidence(
            self.flag, self.unit, reading.canary, reading.baseline, pinned, self.regions, self.canary_weight, pair
        )

    def _problems(self, evidence: Evidence) -> list[Problem]:
        return problems(evidence) if self._rereads is None else reread(evidence, self._rereads)

    def _judged(
        self, reading: Reading, alpha: float | None
    ) -> tuple[list[GateResult], list[RuleResult], list[Problem]]:
        """Return all gates, all rules and all evidence problems; ``alpha`` as for ``Comparison.rules``."""
        comparison = reading.comparison(self.flag)
        evidence = self._evidence(reading)
        gates = comparison.gates()
        return gates, comparison.rules(gates, alpha, self._drift_rule(evidence)), self._problems(evidence)

    def _assess(self) -> Assessment:
        """Return all that a window's end is judged by."""
        reading = self._read()
        return Assessment(reading, *self._judged(reading, None))

    def _drift_rule(self, evidence: Evidence) -> list[RuleResult]:
        """Pin drift as a hard rule, where the policy says so."""
        if self.flag.policy.on_pin_drift != "abort":
            return []
        drifts = sum(1 for _ in pins_drifted(evidence))
        return [
            RuleResult(
                kind="pins_drifted",
                severity="hard",
                value=None,
                observed=float(drifts),
                n=evidence.canary.rows,
                fired=drifts > 0,
            )
        ]

    # Writing

    def _decide(self, judgement: Judgement, at: int | None) -> Outcome:
        """Write the records of a judgement and move the unit on; ``at``: the window is still open."""
        decided_at = self.unit.window.end if at is None else at
        effective_from = self._stage_start() if judgement.action == "promote" else decided_at
        decision, command = self._recorder.judged(judgement, at, effective_from)
        if at is None:
            self.unit.last_window = (self.unit.window.start, self.unit.window.end)
        self.moved(judgement, decision, at)
        return decision, command

    @property
    def _recorder(self) -> Recorder:
        """The writer of the unit's next records, in the stage that it is in."""
        unit, flag = self.unit, self.flag
        following = unit.stage + 1 < len(self.stages) and not unit.latched and flag.kind == "progressive_rollout"
        stage = Stage(
            index=unit.stage,
            canary_weight=self.canary_weight,
            next_canary_weight=self.stages[unit.stage + 1] if following else None,
        )
        return Recorder(flag, unit, self.clockwork, stage)

    def _standing(
        self,
        action: Literal["kill", "rearm", "close", "retire"],
        reasons: list[str],
        ts: int,
        weight: float,
        by: OperationBy | None,
    ) -> Outcome:
        """Return a decision that rests on no window: an operator's, or a new revision's."""
        outcome = self._recorder.standing(action, reasons, ts, weight, by)
        self._let_move(ts)
        return outcome

    def moved(self, judgement: Judgement, decision: Decision, at: int | None) -> None:
        """Move the unit on after a decision; ``at``: the window is still open."""
        if at is None:
            self._next_window(judgement)

    def _next_window(self, judgement: Judgement) -> None:
        unit, ended = self.unit, self.unit.window
        unit.number += 1
        unit.idle = 0 if ended.accepted else unit.idle + 1
        unit.cut = False
        unit.turn(ended.end, ended.end + self.flag.window.length_ms)
        if self.staged:
            held = any(problem.problem == "sticky_violation" for problem in judgement.problems)
            unit.assignments = unit.assignments.next_window(held_for_bounces=held)
        else:
            self._forget_ids()
            unit.lock(self.flag)
            unit.follow_anew(ended.end)

    def _stage_start(self) -> int:
        return self.clockwork.stage_start(self.unit.window.end, self.flag.window.settle_ms)

    def _let_move(self, at: int) -> None:
        """Weights change at ``at`` ms, within a window: whoever moves until they are applied everywhere may."""
        self._forget_ids()
        self.unit.moving_until = self.clockwork.stage_start(at, self.flag.window.settle_ms)

    def _forget_ids(self) -> None:
        """Follow sticky ids from the start, in the same stage."""
        self.unit.assignments = Assignments(odds=self.unit.assignments.odds)

    def _engage(self, verdict: Verdict) -> None:
        left = VERDICTS[verdict].engaged
        if left is not None:
            self.unit.engaged = left

    def _latch(self) -> None:
        unit = self.unit
        unit.latched, unit.engaged = True, False
        unit.evidence = StageEvidence()
        unit.assignments = Assignments()
        unit.earlier_canary = IdSample()

    def frozen(self, at: int) -> ChangeFreeze | None:
        """Return the change freeze that a promote at ``at`` ms would fall into."""
        window = self.flag.frozen_at(at)
        if window is None:
            return None
        return ChangeFreeze(start=window.start, end=window.end, reason=window.reason, by=window.by)
