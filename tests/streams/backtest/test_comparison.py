"""B on A's evidence, window by window; and sham rollouts that are judged as real ones would be."""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from tests.streams.events import CLOCKWORK, NOON, draw_log, flags, fresh, healthy_pane, served, tick
from tidegate.gates.sums import CARRIES, COUNTERS, COVERAGE_BITS, Sums
from tidegate.schemas.clockwork import Clockwork
from tidegate.schemas.decision import Decision
from tidegate.schemas.errors import InputError
from tidegate.schemas.manifest import Flag
from tidegate.schemas.operation import Operation
from tidegate.schemas.timeline import Timeline
from tidegate.streams.audit.replay import replay
from tidegate.streams.backtest import rollouts as module
from tidegate.streams.backtest.arms import Effect, Groups, read_effect
from tidegate.streams.backtest.buckets import BUCKETED_SOURCES, BUCKETS, bucket_of, mixed
from tidegate.streams.backtest.comparison import ComparedWindow, OrderMark, compare, placed
from tidegate.streams.backtest.looks import looks
from tidegate.streams.backtest.rollouts import (
    WINDOWS_MAX,
    BaselineHistory,
    Lifetime,
    Rollout,
    aggregate,
    buckets_for,
    exact_interval,
    lifetime,
    outcomes,
    rehearse,
    rollout_length,
    sham_rollout,
    starts,
)
from tidegate.streams.dumps import log as reading
from tidegate.streams.dumps.log import read_lines
from tidegate.streams.engine.event_classes import hash_of
from tidegate.streams.engine.pipeline import Pipeline
from tidegate.streams.engine.runs import Run

ONE = Clockwork(10_000, 10_000, "tidegate.telemetry")
STAYS = """
flags:
  f:
    versions: {MODEL_VER: m1}
    traffic: {canary_weight: 0.4, baseline_weight: 0.6, stages: [0.4, 1.0]}
    window: {length: 20s, settle: 5s, min_requests: 6, min_lambda_groups: 1, hold_windows: 100}
    policy: {evidence: point}
"""
"""A ramp that holds on in its first stage."""
WHOLE = STAYS.replace("point", "sequential")
"""The same, judged by all windows of the stage."""
RAMPS = STAYS.replace("hold_windows: 100", "hold_windows: 1")


def log(path: Path, panes: dict[int, dict[str, Any]], count: int) -> Path:
    """``count`` healthy panes from noon on; ``panes``: how the canary of some of them differs."""
    lines = [json.dumps(e) for i in range(count) for e in healthy_pane(NOON + 10_000 * i, **panes.get(i, {}))]
    path.write_text("\n".join([*lines, tick(NOON + 10_000 * count + 10_000).decode()]))
    return path


def compared(path: Path, a: str, b: str) -> list[ComparedWindow]:
    ours, theirs = flags(a), flags(b)
    theirs = {name: placed(flag, ours[name])[0] for name, flag in theirs.items()}
    return list(compare([path], ours, theirs, 1, CLOCKWORK))


def verdicts(windows: list[ComparedWindow]) -> list[tuple[str | None, str | None]]:
    return [(w.a.verdict if w.a else None, w.b.verdict if w.b else None) for w in windows]


class TestComparison:
    SICK: tuple[dict[str, Any], ...] = (
        {"latency_ms": 150.0},
        {"status": 500},
        {"delta_s": 0.5},
        {"cost": 0.02},
        {"coverage": 0.5},
    )

    @pytest.mark.parametrize("text", [STAYS, RAMPS])
    def test_a_against_a_has_no_difference(self, tmp_path: Path, text: str) -> None:
        """Whatever happens to the canary, early aborts and freezes included."""
        for number, sick in enumerate(self.SICK):
            path = log(tmp_path / f"{number}", dict.fromkeys(range(2, 8), sick), 12)
            windows = compared(path, text, text)
            assert {"abort", "freeze", "rollback"} & {str(window.a and window.a.verdict) for window in windows}
            assert [window for window in windows if not window.same or window.differences] == []

    @pytest.mark.parametrize("text", [STAYS, WHOLE])
    @pytest.mark.parametrize(
        "kinds", [("kill",), ("kill", "rearm"), ("rearm",), ("promote",), ("pause", "resume"), ("pause", "kill")]
    )
    def test_operators_orders_are_carried_out_as_a_replay_does(
        self, tmp_path: Path, text: str, kinds: tuple[str, ...]
    ) -> None:
        """A decides what a replay of the same orders decides, B beside it the same, and each order is marked once."""
        path = log(tmp_path / "log", {}, 16)
        orders = [
            Operation(actor="Ada", flag="f", kind=kind, reason="drill", ts=NOON + 35_500 + 40_000 * number)  # type: ignore[arg-type]
            for number, kind in enumerate(kinds)
        ]
        timeline = Timeline.of(flags(text))
        expected = [d.to_bytes() for d, _ in replay([path], timeline, 1, CLOCKWORK, operations=orders)]
        told: list[bytes] = []
        marks: list[OrderMark] = []
        windows = list(
            compare(
                [path],
                flags(text),
                flags(text),
                1,
                CLOCKWORK,
                decisions=lambda decision: told.append(decision.to_bytes()),
                operations=orders,
                marks=marks.append,
            )
        )
        assert told == expected
        assert [(mark.unit, mark.kind, mark.ts) for mark in marks] == [("f|", one.kind, one.ts) for one in orders]
        assert [window for window in windows if not window.same or window.differences] == []

    @pytest.mark.parametrize("kind", ["quality_gated", "cost_guard", "safety_guard", "kill_switch"])
    def test_every_kind_of_flag_compares(self, tmp_path: Path, kind: str) -> None:
        """A against A is the same, and A as a replay has it; a switch has no windows."""
        text = RAMPS.replace("  f:\n", f"  f:\n    kind: {kind}\n").replace(", stages: [0.4, 1.0]", "")
        sick = {"status": 500, "cost": 0.1, "coverage": 0.3}
        path = log(tmp_path / "log", dict.fromkeys(range(3, 6), sick), 12)
        windows = compared(path, text, text)
        again = [d.verdict for d, _ in replay([path], Timeline.of(flags(text)), 1, CLOCKWORK)]
        assert [a for a, _ in verdicts(windows)] == again
        assert [window for window in windows if not window.same or window.differences] == []
        assert bool(windows) == (kind != "kill_switch")

    @pytest.mark.parametrize("sick", SICK)
    def test_a_is_judged_as_a_replay_judges_it(self, tmp_path: Path, sick: dict[str, Any]) -> None:
        """To the byte, and with B beside it: B leaves no trace in A's state."""
        path = log(tmp_path / "log", {4: sick, 5: sick}, 16)
        ours, told = flags(RAMPS), list[Decision]()
        strict = flags(RAMPS.replace("f:\n", "f:\n    gates: {coverage_min: 0.95, latency_p95_uplift_max: 0.0}\n"))
        theirs = {"f": placed(strict["f"], ours["f"])[0]}
        list(compare([path], ours, theirs, 1, CLOCKWORK, decisions=told.append))
        again = [decision.to_bytes() for decision, _ in replay([path], Timeline.of(ours), 1, CLOCKWORK)]
        assert len(again) > 3
        assert [decision.to_bytes() for decision in told] == again

    def test_a_stricter_b_differs_exactly_in_the_windows_that_it_would_fail(self, tmp_path: Path) -> None:
        """Also after the first of them: history went on, and so does B."""
        slow = {"latency_ms": 110.0}
        path = log(tmp_path / "log", dict.fromkeys((4, 5, 10, 11, 14), slow), 20)
        strict = STAYS.replace("f:\n", "f:\n    gates: {latency_p95_uplift_max: 0.05}\n")
        windows = compared(path, STAYS, strict)
        assert [window.start for window in windows] == [NOON + 20_000 * i for i in range(10)]
        differ = [i for i, window in enumerate(windows) if not window.same]
        assert differ == [2, 5, 7]
        assert {verdicts(windows)[i] for i in differ} == {("hold", "freeze")}
        for window in windows:
            names = {difference.name for difference in window.differences}
            assert names == (set() if window.same else {"latency_p95_uplift_max", "latency_p95_over_budget"})
        gate = windows[2].differences[0]
        assert (gate.limits, gate.said) == ((0.15, 0.05), ("pass", "fail"))
        assert gate.observed == (0.1, 0.1)

    def test_b_remembers_its_own_strikes_and_greens(self, tmp_path: Path) -> None:
        """A freeze is a first strike only until B's next green window; a stop starts afresh."""
        slow = {"latency_ms": 110.0}
        path = log(tmp_path / "log", dict.fromkeys((2, 3, 4, 5, 6, 7, 10, 11), slow), 16)
        strict = STAYS.replace("f:\n", "f:\n    gates: {latency_p95_uplift_max: 0.05}\n").replace("100", "2")
        said = [b for _, b in verdicts(compared(path, STAYS, strict))]
        assert said == ["hold", "freeze", "rollback", "freeze", "hold", "freeze", "hold", "promote"]

    def test_b_aborts_early_where_a_goes_on_to_the_windows_end(self, tmp_path: Path) -> None:
        """One window, two moments, and the rule with both limits."""
        few = {"status": 500}
        a, b = (
            STAYS.replace("  f:\n", "  f:\n    gates: {error_rate_max: null}\n").replace(
                "    window:", f"    abort_rules: {{hard: [{{kind: error_rate_over, value: {limit}}}]}}\n    window:"
            )
            for limit in ("1.0", "0.01")
        )
        path = log(tmp_path / "log", {2: few}, 8)
        windows = compared(path, a, b)
        (early,) = [window for window in windows if not window.same]
        assert verdicts([early]) == [("hold", "abort")]
        assert early.a is not None
        assert early.b is not None
        assert (early.a.at, early.b.at) == (NOON + 40_000, NOON + 30_000)
        (rule,) = early.differences
        assert (rule.name, rule.limits, rule.said) == ("error_rate_over", (1.0, 0.01), ("quiet", "fired"))
        assert verdicts(windows)[2:] == [("hold", "hold")] * 2
        # The other way round A is stopped for good, and B's limit is told although it said nothing.
        (first, cut, *rest) = compared(path, b, a)
        assert verdicts([first, cut]) == [("hold", "hold"), ("abort", None)]
        assert [(d.limits, d.said) for d in cut.differences] == [((0.01, 1.0), ("fired", "quiet"))]
        assert {(w.a and w.a.reasons[0], w.b and w.b.reasons[0]) for w in rest} == {("latched", "latched")}

    @pytest.mark.parametrize(("a", "b"), [(STAYS, WHOLE), (WHOLE, STAYS), (WHOLE, WHOLE)])
    @pytest.mark.parametrize("sick", [{}, *SICK])
    def test_b_of_another_kind_of_evidence_says_what_it_would_have_said_alone(
        self, tmp_path: Path, a: str, b: str, sick: dict[str, Any]
    ) -> None:
        """As long as neither stops or promotes: sequential evidence adds up the stage's windows, whatever A does."""
        path = log(tmp_path / "log", dict.fromkeys(range(6, 10), sick), 14)
        windows = [w for w in compared(path, a, b) if w.b is not None]
        alone = [d for d, _ in replay([path], Timeline.of(flags(b)), 1, CLOCKWORK)]
        told = [(w.b.verdict, w.b.at, w.b.gates) for w in windows if w.b is not None]
        stopped = next((d.decided_at for d in alone if d.verdict in ("abort", "rollback")), math.inf)
        theirs = next((w.a.at for w in compared(path, a, b) if w.a and w.a.verdict in ("abort", "rollback")), math.inf)
        until = min(stopped, theirs)
        expected = [(d.verdict, d.decided_at, d.gates) for d in alone if d.decided_at <= until]
        assert [one for one in told if one[1] <= until] == expected
        assert len(expected) >= 3
        if b == WHOLE:
            rows = [next(g.n_canary for g in gates if g.gate == "error_rate_max") for _, _, gates in expected]
            assert rows == sorted(rows), "the evidence of a stage shrinks"
            assert rows[0] < rows[-1]

    def test_b_begins_its_evidence_anew_where_a_s_ramp_goes_on(self, tmp_path: Path) -> None:
        """Whether or not B would have promoted there; what A's next stage shows is all that counts in it."""
        windows = compared(log(tmp_path / "log", {}, 12), RAMPS, RAMPS.replace("point", "sequential"))
        later = [w.b for w in windows if w.weight == 1.0 and w.b is not None]
        first = [w.b for w in windows if w.weight == 0.4 and w.b is not None]
        assert later
        rows = [next(g.n_canary for g in side.gates if g.gate == "error_rate_max") for side in (first[-1], later[0])]
        assert rows[1] <= rows[0], "evidence of the stage before is in it"

    def test_an_evidence_problem_of_one_side_is_told(self, tmp_path: Path) -> None:
        """Here more requests than a window has."""
        path = log(tmp_path / "log", {}, 4)
        windows = compared(path, STAYS, STAYS.replace("min_requests: 6", "min_requests: 13"))
        said = {d.name: d.said for d in windows[0].differences}
        assert said["insufficient_data"] == ("fine", "found")
        assert said["error_rate_max"] == ("pass", "unknown")

    def test_what_makes_the_history_is_taken_from_a(self) -> None:
        """Stages, spans, scope and pins; limits and policy are B's."""
        a = flags(RAMPS)["f"]
        other = RAMPS.replace("20s", "40s").replace("stages: [0.4, 1.0]", "stages: [0.4, 0.5, 1.0]")
        b = flags(other.replace("m1", "m2").replace("min_requests: 6", "min_requests: 9"))["f"]
        both, left = placed(b, a)
        assert left == ["versions", "traffic", "window.length"]
        assert (both.window.length_ms, both.ramp_stages, both.versions) == (20_000, (0.4, 1.0), {"MODEL_VER": "m1"})
        assert both.window.min_requests == 9
        assert placed(a, a)[1] == []

    def test_flags_of_two_kinds_do_not_compare(self) -> None:
        guard = flags("flags: {f: {kind: cost_guard}}")["f"]
        with pytest.raises(InputError, match="flag f is a progressive_rollout in A and a cost_guard in B"):
            placed(guard, flags(RAMPS)["f"])


# A service of 240 users in windows of a minute; every request is the baseline's.
WINDOWS, A_PANE, USERS = 16, 100, 240
BASE = NOON // 60_000 * 60_000
HALF = """
flags:
  f:
    traffic: {canary_weight: 0.5, baseline_weight: 0.5, stages: [%(stages)s]}
    window: {length: 60s, settle: 5s}
    gates: {delta_s: {median_max: %(delta_s)s, p95_max: 0.1}, error_rate_max: %(error)s, lambda_convergent: false}
    abort_rules:
      hard:
        - {kind: delta_s_p95_over, value: 0.1}
        - {kind: coverage_under, value: 0.7}
        - {kind: error_rate_over, value: %(error)s}
        - {kind: lambda_flip_rate_over, value: %(flips)s}
    policy: {evidence: %(evidence)s}
"""


def half(more: str = "", **limits: object) -> Flag:
    """``more``: of the window."""
    text = HALF % ({"error": 0.015, "delta_s": 0.03, "flips": 0.1, "stages": "0.5, 1.0", "evidence": "point"} | limits)
    return flags(text.replace("settle: 5s", f"settle: 5s, {more}") if more else text)["f"]


def service(*, gold: bool, errors: float = 0.003) -> list[dict[str, Any]]:
    rng = np.random.default_rng(7)
    events = []
    for i in range(WINDOWS * 6 * A_PANE):
        draw = rng.random(5)
        events.append(
            served(
                i,
                BASE + i * 10_000 // A_PANE,
                "baseline",
                sticky_id=f"user {rng.integers(USERS)}",
                status=500 if draw[0] < errors else 200,
                delta_s=round(0.1 + 0.1 * draw[1] ** 2, 3),
                coverage=round(0.75 + 0.2 * draw[2], 3),
                latency_ms=round(100 * math.exp(draw[3]), 1),
                cost=round(0.01 + 0.01 * draw[4], 4),
                lambda_state="×" if draw[4] < 0.02 else "→",
            )
        )
    for i in range(0, len(events), 15) if gold else ():
        run = i // 15
        tags = {"query_id": f"q{run % 3}", "paraphrase": run // 3 % 3 + 1, "seed": run // 9 % 2 + 1}
        events[i] |= {"source": "gold", **tags}
    return events


def written(path: Path, events: list[dict[str, Any]]) -> Path:
    end = tick(BASE + WINDOWS * 60_000 + 20_000).decode()
    path.write_text("\n".join([*map(json.dumps, events), end]))
    return path


RecordLike = tuple[list[dict[str, Any]], Path, BaselineHistory]


def recorded_service(folder: Path, **how: Any) -> Iterator[RecordLike]:
    events = service(**how)
    path = written(folder / "log", events)
    with closing(aggregate([path], {"f": half()}, 1, ONE, 1)) as history:
        yield events, path, history


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RecordLike]:
    yield from recorded_service(tmp_path_factory.mktemp("service"), gold=False)


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RecordLike]:
    yield from recorded_service(tmp_path_factory.mktemp("golden"), gold=True, errors=0.05)


@pytest.fixture
def history(recorded: RecordLike) -> BaselineHistory:
    return recorded[2]


@pytest.fixture
def path(recorded: RecordLike) -> Path:
    return recorded[1]


Change = dict[str, Callable[[Any], Any]]


def relabelled(
    events: list[dict[str, Any]], rollout: Rollout, start: int, order: Any, flag: Flag, change: Change
) -> list[bytes]:
    """The events as a router would have sent them, had the rollout been real: arms by bucket and stage."""
    promotes = [at for verdict, _, at in rollout.path if verdict == "promote"]
    begin = [start, *(ONE.stage_start(start + at, flag.window.settle_ms) for at in promotes)]
    chosen = [set(order[: buckets_for(weight)].tolist()) for weight in flag.ramp_stages]
    buckets = bucket_of(np.array([hash_of(event["sticky_id"]) for event in events], np.uint64), 1).tolist()
    end = start + rollout.path[-1][2]
    values = []
    for event, bucket in zip(events, buckets, strict=True):
        if not start <= event["ts"] < end:
            continue
        stage = sum(event["ts"] >= at for at in begin) - 1
        gold = event.get("source") == "gold"
        if gold or bucket not in chosen[stage]:
            values.append(event)
        if gold or bucket in chosen[stage]:
            regressed = {name: by(event[name]) for name, by in change.items()}
            values.append(event | {"arm": "canary", "event_id": event["event_id"] + "'"} | regressed)
    return [json.dumps(event).encode() for event in values] + [tick(end + 10_000)]


WHOLE_HALF = half(evidence="sequential", flips=0.3)
CASES: list[tuple[str | None, Change, Flag, bool, set[str]]] = [
    (None, {}, half(), False, {"pass"}),
    (None, {}, half(error=0.004), False, {"pass", "abort"}),
    (None, {}, half(flips=0.002), False, {"abort", "abort early"}),
    ("delta_s=0.015625", {"delta_s": lambda v: v + 0.015625}, half(delta_s=0.0152), False, {"pass", "rollback"}),
    ("delta_s=0.25", {"delta_s": lambda v: v + 0.25}, half(), False, {"abort early"}),
    ("coverage=-0.15625", {"coverage": lambda v: v - 0.15625}, half(), False, {"abort"}),
    ("coverage=-0.5", {"coverage": lambda v: v - 0.5}, half(), False, {"abort early"}),
    ("cost=1.125", {"cost": lambda v: v * 1.125}, half(), False, {"abort", "rollback"}),
    (None, {}, half(error=0.02, flips=1.0), True, {"abort", "abort early"}),
    (None, {}, half(error=0.2, flips=1.0, more="hold_windows: 2"), True, {"pass"}),
    ("delta_s=0.25", {"delta_s": lambda v: v + 0.25}, half(error=0.2, flips=1.0), True, {"abort early"}),
    (None, {}, half(evidence="sequential", error=0.005, flips=0.3), False, {"pass", "open"}),
    (None, {}, half(evidence="sequential", error=0.02, flips=1.0), True, {"abort early"}),
    ("delta_s=0.0625", {"delta_s": lambda v: v + 0.0625}, WHOLE_HALF, False, {"rollback", "rollback early"}),
    ("cost=1.5", {"cost": lambda v: v * 1.5}, WHOLE_HALF, False, {"rollback"}),
    ("latency=1.5", {"latency_ms": lambda v: v * 1.5}, WHOLE_HALF, False, {"rollback"}),
    ("coverage=-0.25", {"coverage": lambda v: v - 0.25}, WHOLE_HALF, False, {"abort early"}),
    ("latency=1.15625", {"latency_ms": lambda v: v * 1.15625}, half(error=0.2, flips=1.0), True, {"rollback"}),
]
"""Regression, the same for an event, flag, with gold or without, and how the rollouts end."""


class TestRollouts:
    @pytest.mark.parametrize(("effect", "change", "flag", "gold", "ends"), CASES)
    def test_a_sham_rollout_is_judged_as_the_worker_would_have_judged_the_same_requests(
        self,
        effect: str | None,
        change: Change,
        flag: Flag,
        gold: bool,
        ends: set[str],
        recorded: RecordLike,
        golden: RecordLike,
    ) -> None:
        """Every verdict, its moment and its reasons; the worker sees each request again."""
        events, _, history = golden if gold else recorded
        found = set()
        for number in range(3):
            start = BASE + number * 4 * 60_000
            order = np.argsort(mixed(np.arange(BUCKETS, dtype=np.uint64) + np.uint64(number)))
            rollout = sham_rollout(history, "f|", flag, ONE, start, order, read_effect(effect) if effect else None)
            pipeline = Pipeline(Timeline.of({"f": flag}), 1, ONE)
            run = Run(0, relabelled(events, rollout, start, order, flag, change))
            decisions = [decision for decision, _ in pipeline.step(0, run)]
            assert not any(d.evidence_problems for d in decisions)
            assert [(d.verdict, d.reasons, d.decided_at - start) for d in decisions] == rollout.path
            assert rollout.early == (not decisions[-1].window.closed)
            found.add(rollout.ended + " early" * rollout.early)
        assert found == ends

    @pytest.mark.parametrize("effect", [None, "latency=1.25", "cost=1.25", "delta_s=0.04", "error=0.02"])
    def test_no_stop_is_missed_between_the_panes_that_are_looked_at(
        self, effect: str | None, recorded: RecordLike, golden: RecordLike, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Near the limits, with gold and without: the same as if every pane were looked at, and far fewer are."""
        seen, every = [0, 0], looks

        def rollouts() -> list[Rollout]:
            made = []
            cases = (recorded[2], WHOLE_HALF), (golden[2], half(evidence="sequential", error=0.06, flips=0.3))
            for number in (8, 10):
                for history, flag in cases:
                    start = BASE + number * 60_000
                    order = np.argsort(mixed(np.arange(BUCKETS, dtype=np.uint64) + np.uint64(number)))
                    found = read_effect(effect) if effect else None
                    made.append(sham_rollout(history, "f|", flag, ONE, start, order, found))
            return made

        def few(split: Any, flag: Flag, *more: Any) -> Iterator[int]:
            for pane in every(split, flag, *more):
                seen[0] += 1
                yield pane

        def all_of_them(split: Any, *_: Any) -> Iterator[int]:
            for pane in range(split.span.plain.panes - 1):
                seen[1] += 1
                yield pane

        monkeypatch.setattr(module, "looks", few)
        quick = rollouts()
        monkeypatch.setattr(module, "looks", all_of_them)
        assert quick == rollouts()
        assert seen[0] < seen[1] / 2 or effect is not None

    def test_a_regression_of_errors_is_aborted_early(self, history: BaselineHistory) -> None:
        """Which requests fail is drawn, so no log shows the same."""
        effect = Effect("error", 0.1)
        found = rehearse(history, "f|", half(), ONE, 4, [effect])[effect]
        assert {(rollout.early, *rollout.path[-1][1]) for rollout in found} == {(True, "error_rate_over")}

    def test_a_healthy_history_is_aborted_early_no_more_often_than_alpha_allows(self, history: BaselineHistory) -> None:
        """Right at the limit too, where looking at the value itself would abort nearly every rollout."""
        flag = half(error=0.004, more="hold_windows: 2", stages="0.5")
        found = rehearse(history, "f|", flag, ONE, 200)[None]
        told = outcomes(found)
        assert told.aborted_early.of == 200
        assert told.aborted_early.interval[0] <= flag.policy.false_stop
        ends = (told.aborted_early, told.aborted_at_end, told.rolled_back, told.passed, told.open)
        assert sum(rate.count for rate in ends) == 200
        assert told.aborted_at_end.count > 20, "the history is no test of the bound"

    def test_a_healthy_history_is_stopped_by_sequential_evidence_no_more_often_than_false_stop(
        self, history: BaselineHistory
    ) -> None:
        """Aborted or rolled back, early or at a window's end, on the service's own requests."""
        flag = half(evidence="sequential", error=0.005, flips=0.3)
        found = rehearse(history, "f|", flag, ONE, 100)[None]
        told = outcomes(found)
        stopped = told.aborted_early.count + told.aborted_at_end.count + told.rolled_back.count
        assert exact_interval(stopped, 100)[0] <= flag.policy.false_stop

    def test_sequential_evidence_stops_a_regression_of_errors_early(self, history: BaselineHistory) -> None:
        effect = Effect("error", 0.3)
        found = rehearse(history, "f|", half(evidence="sequential"), ONE, 4, [effect])[effect]
        assert {rollout.ended for rollout in found} <= {"abort", "rollback"}
        assert all(rollout.early for rollout in found)

    def test_a_regression_of_two_percent_is_caught_sooner_than_one_of_one_percent(
        self, history: BaselineHistory
    ) -> None:
        one, two = Effect("error", 0.01), Effect("error", 0.02)
        found = rehearse(history, "f|", half(error=0.018, more="hold_windows: 5", stages="0.5"), ONE, 30, [one, two])
        small, large = (lifetime(found[effect], ONE.lateness_ms) for effect in (one, two))
        assert large.missed.value < 0.1
        assert small.missed.value > large.missed.value
        assert large.median is not None
        assert large.median < (small.median or math.inf)
        assert large.lived[0] > ONE.lateness_ms

    def test_the_same_seed_gives_the_same_rollouts_and_another_one_others(
        self, history: BaselineHistory, path: Path
    ) -> None:
        """Also from a history that is read again."""
        flag, effect = half(error=0.004), Effect("error", 0.01)
        found = rehearse(history, "f|", flag, ONE, 6, [effect])
        for seed in (1, 2):
            with closing(aggregate([path], {"f": flag}, 1, ONE, seed)) as again:
                assert (rehearse(again, "f|", flag, ONE, 6, [effect]) == found) == (seed == 1)

    def test_judging_reads_no_events(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """However many splits and regressions there are: each line is read once, before."""
        lines, read = [0], read_lines

        def counted(*arguments: Any) -> Iterator[tuple[Path, int, bytes]]:
            for line in read(*arguments):
                lines[0] += 1
                yield line

        monkeypatch.setattr(reading, "read_lines", counted)
        with closing(aggregate([path], {"f": half()}, 1, ONE, 1)) as history:
            written_lines = WINDOWS * 6 * A_PANE + 1
            assert lines == [written_lines]
            rehearse(history, "f|", half(), ONE, 4, [Effect("error", 0.02), Effect("latency", 1.3)])
            assert lines == [written_lines]

    def test_rollouts_begin_where_a_whole_one_still_fits(self, history: BaselineHistory) -> None:
        flag = half()
        assert rollout_length(flag, ONE) == 60_000 + 20_000 + 60_000
        found = starts(history, "f|", flag, ONE)
        assert found[0] == BASE
        assert found[-1] + 140_000 <= history.end
        assert found[-1] + 200_000 > history.end
        assert starts(history, "f|", half(more="hold_windows: 99"), ONE) == [BASE]

    def test_the_false_stop_rate_is_of_the_rollouts_that_came_to_an_end(self) -> None:
        """One that the history cuts short might yet have been stopped: to count it as healthy understates the rate."""
        cut, done = Rollout([("hold", ["x"], 1)]), Rollout([("pass", [], 1)])
        stops = [Rollout([("rollback", ["x"], 1)]), Rollout([("abort", ["x"], 1)], early=True)]
        told = outcomes([*[cut] * 6, *stops, done, done])
        assert (told.stopped.count, told.stopped.of) == (2, 4)
        assert told.open.count == 6
        assert outcomes([cut]).stopped.of == 0

    def test_sequential_rollouts_are_followed_as_long_as_the_history_goes(self, history: BaselineHistory) -> None:
        """Few requests take many windows: one that is given up is neither healthy nor stopped."""
        assert WINDOWS_MAX["sequential"] * 15 >= 7 * 24 * 60, "shorter than the manifest's patience"
        flag = half(evidence="sequential", error=0.0, flips=0.3)
        (rollout,) = rehearse(history, "f|", flag, ONE, 1)[None]
        assert rollout.ended in ("abort", "rollback", "open")

    def test_one_that_the_history_cuts_short_is_open(self, history: BaselineHistory) -> None:
        flag = half(error=1.0, more="hold_windows: 99")
        told = outcomes(rehearse(history, "f|", flag, ONE, 3)[None])
        assert (told.open.count, told.passed.count) == (3, 0)


class TestHistory:
    @pytest.mark.parametrize("seed", range(6))
    def test_its_buckets_add_up_to_what_the_panes_of_a_worker_hold(self, seed: int, tmp_path: Path) -> None:
        """Of any log: the same rows are late, repeated or refused."""
        values = [value for value in draw_log(seed, 600) if value is not None and b"\n" not in value and value.strip()]
        path = tmp_path / "log"
        path.write_bytes(b"\n".join([*values, tick(NOON + 10**7)]))
        kept = [value.strip() for value in values]
        partials = fresh().step(Run(0, [*kept, tick(NOON + 10**7)])).partials
        units = {name for partial in partials for name in partial.units}
        assert len(units) > 2
        with closing(aggregate([path], flags(), 1, CLOCKWORK, seed)) as history:
            for unit in units:
                arms = [partial.units[unit].arms.get("baseline") for partial in partials if unit in partial.units]
                for at, source in enumerate(BUCKETED_SOURCES):
                    sums = [arm.sources[source] for arm in arms if arm and source in arm.sources]
                    if sums:
                        self.same(history.span(unit, NOON - 10**6, NOON + 10**7).plain, at, sums)

    def same(self, groups: Groups, source: int, sums: list[Sums]) -> None:
        total = groups.totals[source].sum(axis=0)
        for counter in COUNTERS:
            if counter not in {part for carried in CARRIES for part in carried}:
                assert total[COUNTERS.index(counter)] == sum(one[counter] for one in sums), counter
        mine = groups.arm(np.ones(BUCKETS, np.bool_)).sources[BUCKETED_SOURCES[source]]
        whole = Sums()
        for one in sums:
            whole.merge(one)
        assert mine.exact_cost == whole.exact_cost
        assert mine.exact_square == whole.exact_square
        assert mine.exact_solved_cost == whole.exact_solved_cost
        assert mine.groups == whole.groups
        for q in (0.0, 0.5, 0.95, 1.0):
            assert mine.delta_s.quantile(q) == whole.delta_s.quantile(q)
            assert mine.latency.quantile(q) == whole.latency.quantile(q)

    def test_small_blocks_say_the_same_as_large_ones(
        self, history: BaselineHistory, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A span may take groups of one pane from several blocks."""
        monkeypatch.setattr(module, "BLOCK_ROWS", 2048)
        flag, asked = half(error=0.004), ("f|", BASE + 60_000, BASE + 180_000)
        with closing(aggregate([path], {"f": flag}, 1, ONE, 1)) as small:
            assert (small.span(*asked).plain.totals[0] == history.span(*asked).plain.totals[0]).all()
            assert rehearse(small, "f|", flag, ONE, 6) == rehearse(history, "f|", flag, ONE, 6)

    def test_effects_change_what_they_say(self, history: BaselineHistory) -> None:
        """A rate is added, factors multiply, shifts stay in range."""
        span = history.span("f|", BASE, BASE + 600_000)
        plain = span.plain
        all_of = np.ones(BUCKETS, np.bool_)

        def sums(effect: str) -> Any:
            return span.under(read_effect(effect)).arm(all_of).sources["traffic"]

        was = plain.arm(all_of).sources["traffic"]
        n = was["requests"]
        assert sums("error=0.02")["errors"] - was["errors"] == pytest.approx(0.02 * n, abs=4 * math.sqrt(0.02 * n))
        assert sums("error=1")["errors"] == n
        assert sums("error=0")["errors"] == was["errors"]
        assert sums("cost=1.2").cost == pytest.approx(1.2 * was.cost, rel=1e-9)
        assert sums("cost=1.2").exact_square == pytest.approx(1.44 * float(was.exact_square), rel=1e-9)
        assert sums("cost=1.2").exact_solved_cost == pytest.approx(1.2 * float(was.exact_solved_cost), rel=1e-9)
        largest = was.latency.quantile(1.0) or 0.0, was.delta_s.quantile(1.0) or 0.0
        assert sums("latency=1.25").latency.quantile(1) == largest[0] * 1.25
        assert sums("delta_s=0.0625").delta_s.quantile(1) == largest[1] + 0.0625
        assert sums("delta_s=2").delta_s.quantile(0) == 2
        assert sums("coverage=-0.1").coverage == pytest.approx((was.coverage or 0.0) - 0.1, abs=1e-9)
        assert sums("coverage=1")["coverage_sum"] == n << COVERAGE_BITS

    def test_extra_errors_do_not_depend_on_the_span_that_they_are_seen_in(self, history: BaselineHistory) -> None:
        effect = Effect("error", 0.02)
        all_of = np.ones(BUCKETS, np.bool_)
        both, first, second = (
            history.span("f|", BASE + start, BASE + end).under(effect).sums_until(all_of)[0][-1]
            for start, end in ((0, 120_000), (0, 60_000), (60_000, 120_000))
        )
        assert (both == first + second).all()

    def test_a_silent_partition_is_named(self, tmp_path: Path) -> None:
        """It holds the watermark, so nothing is closed."""
        path = tmp_path / "log"
        path.write_bytes(b'{"partition":0,"value":' + json.dumps(served(1, BASE, "baseline")).encode() + b"}")
        with pytest.raises(InputError, match="partition 1 closes no pane"):
            aggregate([path], {"f": half()}, 2, ONE, 1)

    def test_it_tells_whether_the_log_closes_a_window(self, tmp_path: Path, history: BaselineHistory) -> None:
        assert history.covers("f|", half())
        path = tmp_path / "log"
        path.write_bytes(json.dumps(served(1, BASE, "baseline")).encode() + b"\n" + tick(BASE + 69_999))
        with closing(aggregate([path], {"f": half()}, 1, ONE, 1)) as short:
            assert not short.covers("f|", half())


class TestNumbers:
    @pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 200), (3, 200), (200, 200), (57, 100), (1, 10_000)])
    def test_the_interval_is_the_exact_binomial_one(self, k: int, n: int) -> None:
        expected = binomtest(k, n).proportion_ci(method="exact")
        assert exact_interval(k, n) == pytest.approx((expected.low, expected.high), abs=1e-9)

    def test_quantiles_of_a_lifetime_count_those_never_caught(self) -> None:
        rollouts = [Rollout([("rollback", [], 60_000 * i)]) for i in range(1, 7)] + [Rollout([("pass", [], 1)])] * 4
        found = lifetime(rollouts, 10_000)
        assert (found.median, found.p90, found.missed.count) == (310_000, None, 4)
        assert found.by == {"rollback": 6}
        assert Lifetime([], 3, {}).median is None

    def test_a_freeze_catches_and_an_early_abort_is_told_apart(self) -> None:
        frozen = Rollout([("promote", [], 1), ("freeze", ["x"], 2), ("abort", ["y"], 3)], early=True)
        aborted = Rollout([("promote", [], 1), ("abort", ["y"], 3)], early=True)
        assert lifetime([frozen, aborted], 0).by == {"early abort": 1, "freeze": 1}
        assert outcomes([frozen, aborted]).causes == {"x": 1, "y": 1}

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("errors=0.1", "no regression of that name; write one of error="),
            ("error", "error takes a number from 0 to 1, such as error=0.02"),
            ("error=2", "from 0 to 1"),
            ("latency=nan", "latency takes a number"),
            ("coverage=x", "coverage takes a number from -1 to 1"),
        ],
    )
    def test_a_regression_that_is_none_is_refused_with_an_example(self, text: str, told: str) -> None:
        with pytest.raises(InputError, match=told) as refused:
            read_effect(text)
        assert str(refused.value).startswith(f"{text}: ")
