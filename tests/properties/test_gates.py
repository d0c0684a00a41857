"""What holds of a window's verdict for any telemetry: the plain predicate of the rule page, and evidence."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st

from tests.gates.build import APPLIED, PINNED, WINDOW, Drive, Event, flag, healthy, probes, requests
from tidegate.schemas.decision import Decision

NO_RULES = "abort_rules: {hard: []}\npolicy: {quality_gain: off}"
FLAG = flag(NO_RULES)
EDGE = 1e-6

LIMITS = {
    "delta_s.median_max": 0.03,
    "delta_s.p95_max": 0.10,
    "coverage_min": 0.70,
    "lambda_convergent": True,
    "latency_p95_uplift_max": 0.15,
    "error_rate_max": 0.005,
    "tool_success_min": 0.99,
    "cost_uplift_max": 0.10,
}


def beyond(events: Sequence[Event]) -> dict[str, tuple[bool, float]]:
    """The rule page, from the raw events: by gate, whether it is beyond its limit, and by how much it is not at it."""
    use = (
        "gold"
        if all(any(e.arm == a and e.source == "gold" for e in events) for a in ("canary", "baseline"))
        else "traffic"
    )
    canary, baseline = ([e for e in events if e.arm == arm and e.source != "shadow"] for arm in ("canary", "baseline"))
    c_quality, b_quality = ([e for e in arm if e.source == use] for arm in (canary, baseline))

    def spread(name: str, q: float) -> float:
        c, b = ([getattr(e, name) for e in arm] for arm in (c_quality, b_quality))
        return float(np.quantile(c, q) - np.quantile(b, q))

    def per_solved(arm: list[Event]) -> float:
        return sum(e.cost or 0.0 for e in arm) / sum(bool(e.solved) for e in arm)

    groups: dict[str, list[str | None]] = {}
    for e in c_quality:
        if e.probe is not None:
            groups.setdefault(e.probe[0], []).append(e.state)
    complete = [states for states in groups.values() if len(states) == 6]
    latency = [float(np.quantile([e.latency for e in arm], 0.95)) for arm in (canary, baseline)]
    calls = sum(e.tool_calls for e in canary)
    rises = {
        "delta_s.median_max": spread("delta_s", 0.5),
        "delta_s.p95_max": spread("delta_s", 0.95),
        "latency_p95_uplift_max": latency[0] / latency[1] - 1,
        "error_rate_max": sum(e.error for e in canary) / len(canary),
        "cost_uplift_max": per_solved(canary) / per_solved(baseline) - 1,
    }
    falls = {
        "coverage_min": float(np.mean([e.coverage for e in c_quality if e.coverage is not None])),
        "tool_success_min": sum(e.tool_ok or 0 for e in canary) / calls,
    }
    found = {gate: (value > LIMITS[gate], abs(value - LIMITS[gate])) for gate, value in rises.items()}
    found |= {gate: (value < LIMITS[gate], abs(value - LIMITS[gate])) for gate, value in falls.items()}
    found["lambda_convergent"] = (any(state != "→" for states in complete for state in states), 1.0)
    return found


@dataclass(frozen=True)
class Shape:
    """How one arm's telemetry is drawn; gold rows an arm, or none."""

    n: int
    gold: int
    delta_s: float
    coverage: float
    latency: float
    errors: int
    tool_misses: int
    cost: float
    solved: float
    bad_groups: int


def shapes(arm: str) -> st.SearchStrategy[Shape]:
    """Mostly healthy, so that all gates pass often enough; each metric may be moved across its limit."""
    same = arm == "baseline"
    return st.builds(
        Shape,
        n=st.integers(30, 120),
        gold=st.sampled_from([0, 0, 25]),
        delta_s=st.just(0.1) if same else st.sampled_from([0.1, 0.1, 0.1, 0.05, 0.12, 0.14, 0.2]),
        coverage=st.sampled_from([0.8, 0.8, 0.75, 0.9] if same else [0.8, 0.8, 0.8, 0.75, 0.72, 0.68]),
        latency=st.just(100.0) if same else st.sampled_from([80.0, 95.0, 100.0, 108.0, 130.0]),
        errors=st.sampled_from([0, 0, 0, 0, 0, 1, 2]),
        tool_misses=st.sampled_from([0, 0, 0, 0, 1, 3]),
        cost=st.just(1.0) if same else st.sampled_from([0.8, 1.0, 1.0, 1.05, 1.3]),
        solved=st.just(0.9) if same else st.sampled_from([0.9, 0.9, 1.0, 0.7]),
        bad_groups=st.sampled_from([0, 0, 0, 0, 1]),
    )


def telemetry(arm: str, shape: Shape, rng: np.random.Generator) -> list[Event]:
    """Events of one arm: traffic and gold rows with every metric, λ groups in both, shadow rows that must not count."""

    def rows(n: int, source: str, first: Event) -> list[Event]:
        return [
            replace(
                first,
                sticky=f"{arm}-{source}-{i % 3}",
                source=source,
                delta_s=float(min(2.0, rng.gamma(9.0, shape.delta_s / 9.0))),
                coverage=float(np.clip(rng.normal(shape.coverage, 0.05), 0, 1)),
                latency=float(shape.latency * rng.lognormal(0.0, 0.05)),
                error=i < shape.errors and source == "traffic",
                cost=float(shape.cost * rng.uniform(0.8, 1.2)),
                solved=bool(rng.random() < shape.solved) or i == 0,
                tool_calls=3,
                tool_ok=2 if i < shape.tool_misses else 3,
            )
            for i in range(n)
        ]

    events = []
    for source, n in (("traffic", shape.n), ("gold", shape.gold)):
        events += rows(n, source, Event(arm))
        for group in range(3 if n else 0):
            states = ["→"] * 6
            if group < shape.bad_groups:
                states[int(rng.integers(6))] = str(rng.choice(["←", "<>", "×"]))
            runs = probes(arm, f"{source}-{group}", states)
            events += [
                replace(e, state=p.state, probe=p.probe) for e, p in zip(rows(6, source, Event(arm)), runs, strict=True)
            ]
        if n:
            events += [replace(rows(1, source, Event(arm))[0], state="×", probe=("half", 1, 1))]
    events += [replace(e, error=True, latency=1e6) for e in rows(9, "shadow", Event(arm))]
    return [events[i] for i in rng.permutation(len(events))]


def spread_over_panes(drive: Drive, events: Sequence[Event], rng: np.random.Generator) -> Decision:
    """Close one window, each event in a pane drawn at random; the decision at its end."""
    panes = rng.integers(6, size=len(events))
    made: list[Decision] = []
    for pane in range(6):
        made += drive.pane([e for e, at in zip(events, panes, strict=True) if at == pane])
    assert drive.now == WINDOW
    return made[-1]


@settings(max_examples=100, deadline=None)
@given(shapes("canary"), shapes("baseline"), st.integers(0, 2**32 - 1))
def test_all_gates_pass_exactly_if_nothing_is_beyond_its_limit(canary: Shape, baseline: Shape, seed: int) -> None:
    """With everything known and away from the edges: the verdict is promote, and each gate is as the page says."""
    rng = np.random.default_rng(seed)
    events = telemetry("canary", canary, rng) + telemetry("baseline", baseline, rng)
    expected = beyond(events)
    assume(all(distance > EDGE for _, distance in expected.values()))
    decision = spread_over_panes(Drive(FLAG), events, rng)
    assert {gate.gate: gate.status == "fail" for gate in decision.gates} == {
        gate: bad for gate, (bad, _) in expected.items()
    }
    assert {gate.status for gate in decision.gates} <= {"pass", "fail"}
    failed = {gate for gate, (bad, _) in expected.items() if bad}
    event(f"{len(failed)} gates beyond their limit")
    soft = failed <= {"latency_p95_uplift_max", "cost_uplift_max"}
    assert decision.verdict == ("promote" if not failed else "freeze" if soft else "rollback")


# Evidence: each problem, added to any window.

Change = Callable[[list[Event]], tuple[list[Event], dict[str, int]]]


def add(*more: Event) -> Change:
    return lambda events: ([*events, *more], {})


def counted(**counts: int) -> Change:
    return lambda events: (events, counts)


def keep(arm: str, n: int) -> Change:
    def change(events: list[Event]) -> tuple[list[Event], dict[str, int]]:
        mine = [e for e in events if e.arm == arm][:n]
        return [*mine, *(e for e in events if e.arm != arm)], {}

    return change


UNTOKENED = {pin: value for pin, value in PINNED.items() if pin != "TOK_VER"}
PROBLEMS: dict[str, tuple[str, Change]] = {
    "too few in the baseline": ("insufficient_data", keep("baseline", 19)),
    "no baseline": ("no_pinned_baseline", keep("baseline", 0)),
    "two pin sets in the baseline": ("no_pinned_baseline", add(Event("baseline", pins={**PINNED, "MODEL_VER": "n"}))),
    "a pin missing in the canary": ("pins_missing", add(Event("canary", pins=UNTOKENED))),
    "a pin moved in the canary": ("pins_drifted", add(Event("canary", pins={**PINNED, "INDEX_HASH": "j"}))),
    "a pin moved in the baseline": ("pins_drifted", add(Event("baseline", pins={**PINNED, "RERANK_CONF": "s"}))),
    "an id in both arms": ("sticky_violation", add(Event("canary", sticky="two"), Event("baseline", sticky="two"))),
    "late events": ("window_unstable", counted(late=50)),
    "dead letters": ("window_unstable", counted(dead_letters=50)),
}
NEEDS_BASELINE = {"too few in the baseline", "no baseline"}

RULES: dict[str, dict[str, Any]] = {
    "delta_s_p95_over": {"delta_s": 1.9},
    "coverage_under": {"coverage": 0.05},
    "lambda_flip_rate_over": {"state": "×"},
    "error_rate_over": {"error": True},
}
N = 400
"""Enough for every hard rule to be sure in one pane."""


def driven(problems: Sequence[str], canary: dict[str, Any], *, early: bool) -> tuple[Drive, Decision | None]:
    """One window with these problems in one pane, once ids are followed or at its end; the decision there, if any."""
    events = healthy(N if canary else 40, **canary)
    counts: dict[str, int] = {}
    for problem in sorted(problems, key=lambda name: name not in NEEDS_BASELINE):
        events, more = PROBLEMS[problem][1](events)
        counts |= more
    drive = Drive(flag())
    drive.until(APPLIED if early else WINDOW - 10_000)
    made = drive.pane(events, **counts)
    return drive, made[-1] if made else None


@pytest.mark.parametrize("early", [True, False], ids=["open", "ended"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_no_evidence_problem_suppresses_an_abort(problem: str, rule: str, early: bool) -> None:
    """Every pair of a problem and a hard rule aborts; only ΔS cannot be known without a baseline."""
    drive, decision = driven([problem], RULES[rule], early=early)
    if rule == "delta_s_p95_over" and problem in NEEDS_BASELINE:
        assert decision is None if early else decision is not None and decision.verdict == "hold"
        assert drive.commands == []
        return
    assert decision is not None
    assert decision.verdict == "abort"
    assert rule in decision.reasons
    assert drive.command().weights.canary == 0
    assert PROBLEMS[problem][0] in {found.problem for found in decision.evidence_problems}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_every_evidence_problem_blocks_a_promote(problem: str) -> None:
    """A window that would be promoted is held, for that problem among the reasons, without a command."""
    drive, decision = driven([problem], {}, early=False)
    assert decision is not None
    assert decision.verdict == "hold"
    assert PROBLEMS[problem][0] in decision.reasons
    assert drive.commands == []


@settings(max_examples=40, deadline=None)
@given(
    st.sets(st.sampled_from(sorted(PROBLEMS)), min_size=1),
    st.sets(st.sampled_from(sorted(RULES))),
    st.booleans(),
)
def test_any_mix_of_problems_holds_and_any_mix_with_a_hard_rule_aborts(
    problems: set[str], rules: set[str], early: bool
) -> None:
    """Whatever comes together: never a promote, and an abort exactly if a hard rule can fire."""
    if problems & NEEDS_BASELINE:
        rules = rules - {"delta_s_p95_over"}
    canary = {name: value for rule in sorted(rules) for name, value in RULES[rule].items()}
    drive, decision = driven(sorted(problems), canary, early=early)
    if rules:
        assert decision is not None
        assert decision.verdict == "abort"
        assert set(decision.reasons) == rules
        assert [command.action for command in drive.commands] == ["abort"]
    else:
        assert decision is None if early else decision is not None and decision.verdict == "hold"
        assert drive.commands == []


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.sampled_from(["healthy", "slow", "dear", "thin", "broken", "unknown", "empty", "late"]),
        min_size=1,
        max_size=7,
    ),
    st.integers(1, 3),
    st.sampled_from(["rollback", "hold"]),
)
def test_any_course_of_windows_keeps_the_promises_of_a_ramp(course: list[str], hold: int, on_fail: str) -> None:
    """Chain and numbers go on; commands follow their weights; nothing is promoted after the canary was taken to 0."""
    windows: dict[str, list[Event]] = {
        "healthy": healthy(30),
        "slow": healthy(30, latency=200.0),
        "dear": healthy(30, cost=0.9),
        "thin": healthy(30, coverage=0.65),
        "broken": healthy(30, error=True),
        "unknown": requests("canary", 30) + requests("baseline", 30),
        "empty": [],
        "late": healthy(30),
    }
    drive = Drive(flag(f"window: {{length: 1m, hold_windows: {hold}}}\npolicy: {{on_gate_fail: {on_fail}}}"))
    for step in course:
        drive.window(windows[step], late=50 if step == "late" else 0)
    ended, green, previous, weight = False, 0, None, 0.05
    commands = {command.decision_id: command for command in drive.commands}
    for decision in drive.decisions:
        assert decision.previous_hash == previous
        previous = decision.hash
        green = green + 1 if decision.reasons in (["hold_windows"], ["all_gates_pass"]) else 0
        command = commands.pop(decision.decision_id, None)
        assert (command is None) == (decision.verdict in ("hold", "pass"))
        if ended:
            assert (decision.verdict, decision.reasons) == ("hold", ["latched"])
        if decision.verdict in ("promote", "pass"):
            assert green >= hold
            assert all(gate.status in ("pass", "not_applicable") for gate in decision.gates)
            assert not decision.evidence_problems
        if command is not None:
            assert command.previous_weights.canary == weight
            weight = command.weights.canary
            assert command.weights.baseline + weight == pytest.approx(1)
        if decision.verdict == "promote":
            green = 0
            assert weight == decision.stage.next_canary_weight
        if decision.verdict in ("rollback", "abort"):
            ended = True
            assert weight == 0
    assert not commands
    assert [command.seq for command in drive.commands] == list(range(1, len(drive.commands) + 1))
