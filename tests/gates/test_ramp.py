"""One unit's ramp, sentence by sentence: windows, verdicts in their order, latch, strikes, records and commands."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import pytest

from tests.gates.build import (
    CLOCKWORK,
    PANE,
    PINNED,
    WINDOW,
    Drive,
    Event,
    flag,
    healthy,
    probes,
    requests,
)
from tidegate.gates.bounds import excludes_from_below
from tidegate.gates.digest import SKETCH
from tidegate.schemas.canonical import canonical, sha256_of
from tidegate.schemas.clockwork import Clockwork
from tidegate.schemas.decision import Command, Decision

BASELINE = [event for event in healthy() if event.arm == "baseline"]
CANARY = [event for event in healthy() if event.arm == "canary"]
SLOW = healthy(latency=200.0)
DEAR = healthy(cost=0.9)
THIN = healthy(coverage=0.65)
"""Below the coverage gate, above its hard limit."""
BROKEN = healthy(error=True)
UNKNOWN = [event for event in healthy() if event.probe is None]
DRIFTED = [*healthy(), Event("canary", pins={**PINNED, "INDEX_HASH": "j"})]
HARD = ("delta_s_p95_over", "coverage_under", "lambda_flip_rate_over", "error_rate_over")
SETTLED = PANE * 2
"""S - E with the lateness and settle of these tests."""


def gates_of(decision: Decision, status: str) -> list[str]:
    return [gate.gate for gate in decision.gates if gate.status == status]


def fired(decision: Decision) -> list[str]:
    return [rule.kind for rule in decision.abort_rules if rule.fired]


def drive_to_full(rules: str = "traffic: {stages: [0.05, 1.0]}", last: Sequence[Event] = ()) -> Drive:
    """A unit at its window at 100 %."""
    drive = Drive(flag(rules))
    assert drive.window(last or healthy()).verdict == "promote"
    drive.until(drive.ramp.unit.window.end)
    assert drive.unit.weight == 1.0
    return drive


# Windows and stages (§3)


def test_windows_last_their_length_and_each_begins_where_the_last_ended() -> None:
    """Windows last window.length; the next begins where the last ended."""
    drive = Drive(flag("window: {length: 1m, hold_windows: 9}"), start=70_000)
    for _ in range(3):
        drive.window(healthy())
    spans = [(d.window.start, d.window.end, d.decided_at, d.window.closed) for d in drive.decisions]
    assert spans == [(70_000 + i * WINDOW, 130_000 + i * WINDOW, 130_000 + i * WINDOW, True) for i in range(3)]


@pytest.mark.parametrize(
    ("pane", "lateness", "settle", "gap"),
    [
        (10_000, 10_000, "10s", 20_000),
        (10_000, 10_000, "11s", 30_000),
        (10_000, 1, "10s", 20_000),
        (10_000, 0, "1ms", 10_000),
        (20_000, 10_000, "10s", 20_000),
        (10_000, 0, "0ms", 0),
        (10_000, 90_000, "15m", 990_000),
    ],
)
def test_a_new_stage_is_effective_after_lateness_and_settling_rounded_up_to_a_pane(
    pane: int, lateness: int, settle: str, gap: int
) -> None:
    """S = E + lateness + settle rounded up to a pane; its windows start at S."""
    drive = Drive(flag(f"window: {{length: 1m, settle: {settle}}}"), clockwork=Clockwork(pane, lateness, "t"))
    assert drive.window(healthy()).verdict == "promote"
    assert drive.command().effective_from == WINDOW + gap
    second = drive.window(healthy())
    assert (second.window.start, second.window.end) == (WINDOW + gap, 2 * WINDOW + gap)
    assert second.stage.index == 1


def test_a_healthy_canary_climbs_every_stage_and_then_passes() -> None:
    """5 → 25 → 50 → 100 % while all targets stay green; pass is the same at the last stage, without a command."""
    drive = Drive(flag())
    verdicts = [drive.window(healthy()).verdict for _ in range(5)]
    assert verdicts == ["promote", "promote", "promote", "pass", "pass"]
    assert [d.stage.index for d in drive.decisions] == [0, 1, 2, 3, 3]
    assert [d.stage.canary_weight for d in drive.decisions] == [0.05, 0.25, 0.5, 1.0, 1.0]
    assert [d.stage.next_canary_weight for d in drive.decisions] == [0.25, 0.5, 1.0, None, None]
    assert [c.action for c in drive.commands] == ["promote"] * 3
    assert [(c.weights.baseline, c.weights.canary) for c in drive.commands] == [(0.75, 0.25), (0.5, 0.5), (0, 1)]
    assert [(c.previous_weights.baseline, c.previous_weights.canary) for c in drive.commands] == [
        (0.95, 0.05),
        (0.75, 0.25),
        (0.5, 0.5),
    ]


def test_settling_panes_have_sums_of_their_own() -> None:
    """Panes in [E, S) count neither for the window before them nor for the one after."""
    drive = Drive(flag())
    first = drive.window(healthy())
    drive.pane([*healthy(100), Event("canary", error=True)], late=50, dead_letters=50)
    second = drive.window(healthy())
    assert first.arms["canary"].requests == second.arms["canary"].requests == 46
    assert (second.late, second.dead_letters, second.arms["canary"].errors) == (0, 0, 0)
    assert second.source[0].first == 92 + 213
    assert second.verdict == "promote"


@pytest.mark.parametrize("events", [healthy(), SLOW, DEAR, THIN, DRIFTED, UNKNOWN, []])
def test_settling_panes_are_watched_by_the_abort_rules_only(events: list[Event]) -> None:
    """Gates, evidence and soft rules say nothing there."""
    drive = Drive(flag())
    drive.window(healthy())
    assert drive.pane(events, late=50) == []
    assert drive.pane() == []
    assert drive.window(healthy()).verdict in ("promote", "hold")


@pytest.mark.parametrize("pane", [0, 1])
def test_a_hard_rule_in_a_settling_pane_aborts_under_the_old_stage(pane: int) -> None:
    """Panes in [E, S) are under the old stage, watched by the abort rules."""
    drive = Drive(flag())
    drive.window(healthy())
    drive.until(WINDOW + pane * PANE)
    (decision,) = drive.pane(BROKEN)
    at = WINDOW + (pane + 1) * PANE
    assert (decision.verdict, decision.decided_at, decision.reasons) == ("abort", at, ["error_rate_over"])
    assert (decision.stage.index, decision.stage.canary_weight) == (0, 0.05)
    assert (decision.window.start, decision.window.end, decision.window.closed) == (WINDOW, WINDOW + SETTLED, False)
    command = drive.command()
    assert (command.effective_from, command.weights.canary, command.severity) == (at, 0, "hard")
    after = drive.window(healthy())
    assert (after.verdict, after.reasons, after.window.start) == ("hold", ["latched"], WINDOW + SETTLED)


def test_a_lambda_group_is_complete_only_within_one_window() -> None:
    """Three runs in one window and three in the next are two incomplete groups."""
    rest, six = [event for event in healthy() if event.probe is None], probes("canary")
    drive = Drive(flag())
    for half in (six[:3], six[3:]):
        decision = drive.window([*rest, *half])
        assert (decision.verdict, decision.reasons) == ("hold", ["lambda_convergent"])
    assert drive.window([*rest, *six]).verdict == "promote"


# Shadow


def shadow_window() -> list[Event]:
    canary = [dataclasses.replace(event, source="shadow") for event in CANARY]
    return [*canary, *BASELINE]


def test_without_shadow_shadow_rows_are_no_evidence() -> None:
    """A served stage is not judged on mirrored requests."""
    broken = [dataclasses.replace(event, source="shadow", error=True) for event in CANARY]
    assert Drive(flag()).window([*healthy(), *broken]).verdict == "promote"
    decision = Drive(flag()).window(shadow_window())
    assert (decision.verdict, decision.reasons) == ("hold", ["insufficient_data"])


# Verdicts, one by one (§5)


def test_all_gates_pass_promotes() -> None:
    """promote: window end, all gates pass, stage held, evidence sound; weights to the next stage."""
    drive = Drive(flag())
    decision = drive.window(healthy())
    command = drive.command()
    assert (decision.verdict, decision.reasons) == ("promote", ["all_gates_pass"])
    assert (command.action, command.severity, command.rule) == ("promote", None, None)
    assert (command.weights.baseline, command.weights.canary) == (0.75, 0.25)


def test_something_unknown_holds_without_a_command() -> None:
    """hold: something unknown; the reasons are the unknown gates."""
    drive = Drive(flag())
    decision = drive.window(UNKNOWN)
    assert (decision.verdict, decision.reasons, drive.commands) == ("hold", ["lambda_convergent"], [])
    assert drive.unit.stage == 0


@pytest.mark.parametrize(
    ("events", "reasons"),
    [
        (SLOW, ["latency_p95_uplift_max", "latency_p95_over_budget"]),
        (DEAR, ["cost_uplift_max", "cost_per_solved_over_budget"]),
        (healthy(solved=False), ["cost_uplift_max", "cost_per_solved_over_budget"]),
        (
            healthy(latency=200.0, cost=0.9),
            [
                "latency_p95_uplift_max",
                "cost_uplift_max",
                "latency_p95_over_budget",
                "cost_per_solved_over_budget",
            ],
        ),
    ],
)
def test_only_latency_or_cost_failing_freezes(events: list[Event], reasons: list[str]) -> None:
    """freeze: only latency or cost gates fail; weights unchanged, no promotion, effective from E."""
    drive = Drive(flag())
    decision = drive.window(events)
    command = drive.command()
    assert (decision.verdict, decision.reasons) == ("freeze", reasons)
    assert (command.action, command.severity, command.rule) == (
        "freeze",
        "soft",
        reasons[-1] if len(reasons) == 2 else reasons[2],
    )
    assert command.weights == command.previous_weights
    assert (command.weights.canary, command.effective_from) == (0.05, WINDOW)
    assert not drive.unit.latched


@pytest.mark.parametrize(
    ("gate", "events"),
    [
        ("coverage_min", THIN),
        ("delta_s.median_max", healthy(delta_s=0.09)),
        (
            "lambda_convergent",
            [*healthy(), *probes("canary", "r", ["<>"] + ["→"] * 5), *requests("canary", 9, state="→")],
        ),
        ("tool_success_min", healthy(tool_calls=10, tool_ok=9)),
        ("error_rate_max", [*healthy(), *requests("canary", 100), Event("canary", error=True)]),
    ],
)
def test_another_gate_failing_rolls_back(gate: str, events: list[Event]) -> None:
    """rollback: another gate fails, no hard rule; canary 0 from E on."""
    drive = Drive(flag("abort_rules: {hard: [{kind: error_rate_over, value: 0.01}]}"))
    decision = drive.window(events)
    command = drive.command()
    assert (decision.verdict, decision.reasons) == ("rollback", [gate])
    assert (command.action, command.severity, command.rule) == ("rollback", None, None)
    assert (command.weights.baseline, command.weights.canary, command.effective_from) == (1, 0, WINDOW)


def test_latency_failing_beside_another_gate_rolls_back_at_once() -> None:
    """Freeze is for latency and cost alone."""
    drive = Drive(flag())
    decision = drive.window(healthy(latency=200.0, coverage=0.65))
    assert decision.verdict == "rollback"
    assert set(decision.reasons) >= {"coverage_min", "latency_p95_uplift_max"}
    assert fired(decision) == ["latency_p95_over_budget"]
    assert drive.command().rule == "latency_p95_over_budget"


def test_on_gate_fail_hold_holds_instead_of_rolling_back() -> None:
    """With on_gate_fail: hold a failed gate holds, without a command, and latches nothing."""
    drive = Drive(flag("policy: {on_gate_fail: hold}"))
    decision = drive.window(THIN)
    assert (decision.verdict, decision.reasons, drive.commands) == ("hold", ["coverage_min"], [])
    assert drive.window(healthy()).verdict == "promote"


def test_on_gate_fail_hold_still_aborts() -> None:
    """It speaks of gates, not of hard rules."""
    drive = Drive(flag("policy: {on_gate_fail: hold}"))
    assert drive.window(BROKEN).verdict == "abort"


@pytest.mark.parametrize("kind", HARD)
def test_a_hard_rule_aborts_at_window_end_on_the_value_itself(kind: str) -> None:
    """abort: canary 0 at once, from E when the window has ended."""
    bad: dict[str, dict[str, Any]] = {
        "delta_s_p95_over": {"delta_s": 0.5},
        "coverage_under": {"coverage": 0.55},
        "lambda_flip_rate_over": {"state": "×"},
        "error_rate_over": {"error": True},
    }
    drive = Drive(flag())
    decision = drive.window(healthy(**bad[kind]))
    command = drive.command()
    assert (decision.verdict, decision.reasons, fired(decision)) == ("abort", [kind], [kind])
    assert (decision.window.closed, decision.decided_at) == (True, WINDOW)
    assert (command.action, command.severity, command.rule) == ("abort", "hard", kind)
    assert (command.weights.canary, command.effective_from) == (0, WINDOW)


def test_every_fired_rule_is_listed_with_exactly_one_command() -> None:
    """Two hard and a soft rule fire: one abort that lists them, and names the first hard one as its rule."""
    drive = Drive(flag())
    decision = drive.window(healthy(error=True, coverage=0.1, latency=500.0))
    assert fired(decision) == ["coverage_under", "error_rate_over", "latency_p95_over_budget"]
    assert {"coverage_under", "error_rate_over"} <= set(decision.reasons)
    assert [(c.action, c.rule) for c in drive.commands] == [("abort", "coverage_under")]


# Order


def test_an_abort_comes_before_evidence_problems_failed_and_unknown_gates() -> None:
    """Order: abort, evidence problems, freeze or rollback, promote."""
    events = [*requests("canary", 40, error=True, coverage=0.65, latency=900.0), *requests("baseline", 5)]
    assert Drive(flag()).window(events, late=99).verdict == "abort"


def test_an_evidence_problem_beats_a_failed_gate() -> None:
    """An evidence problem beats a failed gate: hold, for hard and soft ones."""
    for events in (THIN, SLOW, UNKNOWN, healthy()):
        drive = Drive(flag())
        decision = drive.window(events, late=99)
        assert (decision.verdict, decision.reasons, drive.commands) == ("hold", ["window_unstable"], [])


def test_a_failed_gate_beats_an_unknown_one() -> None:
    """Coverage fails and λ is unknown: rollback; latency fails and λ is unknown: freeze."""
    thin, slow = ([e for e in events if e.probe is None] for events in (THIN, SLOW))
    assert Drive(flag()).window(thin).verdict == "rollback"
    assert Drive(flag()).window(slow).verdict == "freeze"


def test_all_gates_and_rules_are_listed_in_every_decision() -> None:
    """All are evaluated and listed, whatever the verdict."""
    drive = Drive(flag())
    for events in (healthy(), SLOW, UNKNOWN, [], BROKEN, healthy()):
        drive.window(events)
    assert {(len(d.gates), len(d.abort_rules)) for d in drive.decisions} == {(8, 6)}


# Latch


@pytest.mark.parametrize("events", [THIN, BROKEN], ids=["rollback", "abort"])
def test_after_rollback_or_abort_a_unit_promotes_nothing(events: list[Event]) -> None:
    """Windows are still decided, as hold with reason latched, without commands; the weight is 0."""
    drive = Drive(flag())
    drive.window(events)
    assert drive.decisions[-1].stage.canary_weight == 0.05
    commands = list(drive.commands)
    for after in (healthy(), BROKEN, SLOW, []):
        decision = drive.window(after)
        assert (decision.verdict, decision.reasons) == ("hold", ["latched"])
        assert (decision.stage.canary_weight, decision.stage.next_canary_weight) == (0, None)
        assert decision.window.closed
    assert drive.pane(BROKEN) == []
    assert drive.commands == commands


def test_a_new_manifest_revision_starts_over_and_goes_on_with_the_chain() -> None:
    """A new revision ends the latch at the first stage; hashes and numbers go on."""
    drive = Drive(flag())
    drive.window(healthy())
    last = drive.window(THIN)
    assert last.verdict == "rollback"
    again = Drive(flag("gates: {coverage_min: 0.71}"), drive.now, before=drive.unit)
    decision = again.window(healthy())
    assert (decision.verdict, decision.stage.index, decision.stage.canary_weight) == ("promote", 0, 0.05)
    assert decision.previous_hash == last.hash
    assert decision.manifest_hash != last.manifest_hash
    assert again.command().seq == drive.commands[-1].seq + 1
    assert again.command().previous_weights.canary == 0


def test_a_freeze_leaves_the_weights_as_they_are_after_a_new_revision_too() -> None:
    """Weights unchanged: a canary at 0 stays there until something promotes it."""
    drive = Drive(flag())
    assert drive.window(THIN).verdict == "rollback"
    again = Drive(flag("gates: {coverage_min: 0.71}"), drive.now, before=drive.unit)
    assert again.window(SLOW).verdict == "freeze"
    assert again.command().weights == again.command().previous_weights
    assert again.command().weights.canary == 0


# Strikes


def test_a_second_failing_window_after_a_freeze_rolls_back() -> None:
    """The next window failing again → rollback, severity soft."""
    drive = Drive(flag())
    assert [drive.window(events).verdict for events in (SLOW, SLOW)] == ["freeze", "rollback"]
    command = drive.command()
    assert (command.severity, command.rule) == ("soft", "latency_p95_over_budget")
    assert (command.weights.canary, command.effective_from) == (0, 2 * WINDOW)
    assert drive.window(healthy()).reasons == ["latched"]


def test_a_strike_counts_whichever_soft_gate_fails_next() -> None:
    """Latency, then cost: failing again."""
    drive = Drive(flag())
    assert [drive.window(events).verdict for events in (SLOW, DEAR)] == ["freeze", "rollback"]


@pytest.mark.parametrize("between", [UNKNOWN, DRIFTED, []], ids=["unknown", "evidence", "empty"])
def test_a_freeze_stays_a_first_strike_until_a_green_window(between: list[Event]) -> None:
    """A window that holds in between does not clear it."""
    drive = Drive(flag())
    assert [drive.window(events).verdict for events in (SLOW, between, SLOW)] == ["freeze", "hold", "rollback"]


def test_a_green_window_after_a_freeze_promotes_and_clears_the_strike() -> None:
    """A green one promotes."""
    drive = Drive(flag())
    verdicts = [drive.window(events).verdict for events in (SLOW, healthy(), SLOW, healthy(), SLOW, SLOW)]
    assert verdicts == ["freeze", "promote", "freeze", "promote", "freeze", "rollback"]


def test_a_green_window_that_is_still_held_clears_the_strike_too() -> None:
    """Until a green window, promoted or not."""
    drive = Drive(flag("window: {length: 1m, hold_windows: 2}"))
    verdicts = [drive.window(events).verdict for events in (SLOW, healthy(), SLOW, SLOW)]
    assert verdicts == ["freeze", "hold", "freeze", "rollback"]


def test_a_second_strike_with_on_gate_fail_hold_holds() -> None:
    """rollback (with on_gate_fail: hold: hold)."""
    drive = Drive(flag("policy: {on_gate_fail: hold}"))
    verdicts = [drive.window(events).verdict for events in (SLOW, SLOW, SLOW, healthy())]
    assert verdicts == ["freeze", "hold", "hold", "promote"]
    assert [command.action for command in drive.commands] == ["freeze", "promote"]


def test_a_strike_at_the_last_stage_counts_as_at_any_other() -> None:
    """At 100 % too a freeze is followed by a rollback to 0."""
    drive = drive_to_full()
    verdicts = [drive.window([e for e in SLOW if e.arm == "canary"]).verdict for _ in range(2)]
    assert verdicts == ["freeze", "rollback"]
    assert drive.command().weights.canary == 0


@pytest.mark.parametrize(
    "body",
    ["abort_rules: {soft: []}", "abort_rules: {soft: [{kind: latency_p95_over_budget, value: 9.0}]}"],
    ids=["no soft rules", "soft limit above the value"],
)
def test_a_freeze_is_a_first_strike_whether_or_not_a_soft_rule_fired(body: str) -> None:
    """A freeze stays a first strike; the next window failing again → rollback."""
    drive = Drive(flag(body))
    first, second = drive.window(SLOW), drive.window(SLOW)
    assert first.verdict in ("freeze", "rollback")
    assert second.verdict == "rollback" or second.reasons == ["latched"]


# Hold windows


def test_a_stage_is_held_for_hold_windows_consecutive_green_windows() -> None:
    """Green but not yet served is hold with reason hold_windows; each stage counts anew."""
    drive = Drive(flag("window: {length: 1m, hold_windows: 3}"))
    made = [drive.window(healthy()) for _ in range(6)]
    assert [d.verdict for d in made] == ["hold", "hold", "promote"] * 2
    assert {tuple(d.reasons) for d in made if d.verdict == "hold"} == {("hold_windows",)}
    assert [d.stage.index for d in made] == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("between", [UNKNOWN, DRIFTED, SLOW, []], ids=["unknown", "evidence", "freeze", "empty"])
def test_green_windows_that_something_comes_between_are_not_consecutive(between: list[Event]) -> None:
    """hold_windows are consecutive."""
    drive = Drive(flag("window: {length: 1m, hold_windows: 2}"))
    assert [drive.window(e).reasons for e in (healthy(), between, healthy())][2] == ["hold_windows"]
    assert drive.window(healthy()).verdict == "promote"


def test_the_last_stage_is_held_too_before_it_passes() -> None:
    """pass: the same at the last stage."""
    drive = Drive(flag("traffic: {canary_weight: 0.5, stages: [0.5]}\nwindow: {length: 1m, hold_windows: 2}"))
    assert [drive.window(healthy()).verdict for _ in range(3)] == ["hold", "pass", "pass"]
    assert drive.commands == []


# Early abort


def test_a_hard_rule_that_is_sure_aborts_at_the_pane_that_fired_it() -> None:
    """decided_at = the end of that pane = effective_from; the window keeps its nominal end, closed: false."""
    drive = Drive(flag())
    assert drive.pane(healthy(10)) == []
    (decision,) = drive.pane(BROKEN)
    command = drive.command()
    assert (decision.verdict, decision.reasons, fired(decision)) == ("abort", ["error_rate_over"], ["error_rate_over"])
    assert (decision.window.start, decision.window.end, decision.window.closed) == (0, WINDOW, False)
    assert decision.decided_at == command.effective_from == 2 * PANE
    assert (command.action, command.severity, command.rule) == ("abort", "hard", "error_rate_over")
    assert (command.weights.canary, command.previous_weights.canary) == (0, 0.05)
    assert (len(decision.gates), len(decision.abort_rules)) == (8, 6)


def test_the_window_that_an_early_abort_cut_is_decided_latched_at_its_nominal_end() -> None:
    """The abort's record holds nothing that came after its pane; the later one holds all."""
    drive = Drive(flag())
    (abort,) = drive.pane(BROKEN)
    later = drive.window(healthy())
    assert abort.arms["canary"].requests == 46
    assert (abort.source[0].first, abort.source[0].last) == (0, 91)
    assert later.arms["canary"].requests == 92
    assert (later.verdict, later.reasons, later.window.closed, later.decided_at) == ("hold", ["latched"], True, WINDOW)
    assert (later.window.start, later.window.end) == (0, WINDOW)
    assert later.decision_id != abort.decision_id
    assert later.previous_hash == abort.hash
    assert len(drive.commands) == 1


def test_an_open_window_aborts_only_once() -> None:
    """Further broken panes of a latched unit say nothing."""
    drive = Drive(flag())
    made = [decision for _ in range(5) for decision in drive.pane(BROKEN)]
    assert [decision.verdict for decision in made] == ["abort"]


def test_an_open_window_says_nothing_of_soft_rules_gates_or_evidence() -> None:
    """Only hard rules are looked at before the window's end."""
    drive = Drive(flag())
    for events in (SLOW, DEAR, THIN, DRIFTED, UNKNOWN):
        assert drive.pane(events, late=99, dead_letters=99) == []


def test_an_early_abort_waits_for_min_requests() -> None:
    """Before window end a hard rule fires only if n ≥ min_requests."""
    drive = Drive(flag("window: {length: 1m, min_requests: 90}"))
    assert drive.pane(BROKEN) == []
    assert [decision.verdict for decision in drive.pane(BROKEN)] == ["abort"]


def test_the_last_pane_of_a_window_is_its_end() -> None:
    """There the rules fire on the value, and one decision is made."""
    drive = Drive(flag())
    drive.until(WINDOW - PANE)
    made = drive.pane([*healthy(), *requests("canary", 1, error=True)])
    assert [(d.verdict, d.window.closed) for d in made] == [("abort", True)]


def spent(errors: int, n: int, part: float) -> bool:
    return excludes_from_below(errors, n, 0.01, part, 300)


def borderline(weak: float, strong: float) -> tuple[int, int]:
    """(errors, requests) that prove the error rate at level ``weak`` and not at the smaller ``strong``."""
    pairs = ((k, n) for n in range(40, 1_000) for k in range(2, n // 10))
    return next((k, n) for k, n in pairs if spent(k, n, weak) and not spent(k, n, strong))


def errors_of(k: int, n: int) -> list[Event]:
    return [*requests("canary", k, error=True), *requests("canary", n - k)]


ALL_RULES, ONE_RULE = "", "abort_rules: {hard: [{kind: error_rate_over, value: 0.01}]}"


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_jth_window_has_alpha_over_j_times_j_plus_1_split_over_the_hard_rules(number: int) -> None:
    """A rollout's alpha is split evenly over its hard rules, and over windows j as alpha / (j (j + 1))."""
    part = 0.05 / (number * (number + 1)) / 4
    for weak, strong, verdicts in ((part, part * 0.8, ["abort"]), (part * 1.25, part * 0.999, [])):
        drive = Drive(flag("window: {length: 1m, hold_windows: 9}"))
        for _ in range(number - 1):
            drive.window(healthy())
        assert [d.verdict for d in drive.pane(errors_of(*borderline(weak, strong)))] == verdicts


def test_a_single_hard_rule_has_the_whole_level() -> None:
    """Split evenly over its hard rules: one rule, one part."""
    events = errors_of(*borderline(0.05 / 2, 0.05 / 2 / 4))
    assert [d.verdict for d in Drive(flag(ONE_RULE)).pane(events)] == ["abort"]
    assert Drive(flag(ALL_RULES)).pane(events) == []


def test_the_level_is_the_manifest_s() -> None:
    """early_abort_alpha: 0.5 fires on less than 0.05 does."""
    events = errors_of(*borderline(0.5 / 2 / 4, 0.05 / 2 / 4))
    assert [d.verdict for d in Drive(flag("policy: {early_abort_alpha: 0.5}")).pane(events)] == ["abort"]
    assert Drive(flag()).pane(events) == []


def test_settling_panes_take_the_coming_window_s_share_of_the_level() -> None:
    """Settling panes take the coming window's j: after the first window, 2."""
    part = 0.05 / 6 / 4
    for weak, strong, verdicts in ((part, part * 0.8, ["abort"]), (part * 1.25, part * 0.999, [])):
        drive = Drive(flag())
        drive.window(healthy())
        assert [d.verdict for d in drive.pane(errors_of(*borderline(weak, strong)))] == verdicts


def test_windows_without_a_promote_spend_the_level_too() -> None:
    """Holds and freezes count as windows: j goes on over all of a rollout's windows."""
    events = errors_of(*borderline(0.05 / 2 / 4, 0.05 / 6 / 4))
    for first in ([], SLOW, UNKNOWN):
        drive = Drive(flag())
        drive.window(first)
        assert drive.pane(events) == []


def test_evidence_adds_up_over_the_panes_of_a_window_and_starts_anew_with_the_next() -> None:
    """What a settling pane and a window's first pane show apart proves nothing; in one window it does."""
    k, n = borderline(0.05 / 6 / 4, 0.05 / 6 / 8)
    half, rest = errors_of(k // 2, n // 2), errors_of(k - k // 2, n - n // 2)
    apart, together = Drive(flag()), Drive(flag())
    for drive in (apart, together):
        drive.window(healthy())
    assert apart.pane(half) == []
    apart.until(apart.ramp.unit.window.end)
    assert apart.pane(rest) == []
    together.until(together.ramp.unit.window.end)
    assert together.pane(half) == []
    assert [d.verdict for d in together.pane(rest)] == ["abort"]


def test_manifests_without_hard_rules_never_abort() -> None:
    """hard: [] means none: the error gate then rolls back at the window's end."""
    drive = Drive(flag("abort_rules: {hard: []}"))
    assert drive.pane(BROKEN) == []
    assert drive.window(BROKEN).verdict == "rollback"


# Pin drift as a hard rule


def test_pin_drift_holds_by_default() -> None:
    """on_pin_drift: hold: an evidence problem at window end, no rule."""
    drive = Drive(flag())
    assert drive.pane(DRIFTED) == []
    decision = drive.window()
    assert (decision.verdict, decision.reasons) == ("hold", ["pins_drifted"])
    assert "pins_drifted" not in {rule.kind for rule in decision.abort_rules}


def test_pin_drift_can_abort_at_the_pane_that_shows_it() -> None:
    """on_pin_drift: abort acts as a hard rule pins_drifted at each pane, without alpha."""
    drive = Drive(flag("policy: {on_pin_drift: abort}"))
    assert drive.pane(healthy()) == []
    (decision,) = drive.pane(DRIFTED)
    command = drive.command()
    assert (decision.verdict, decision.reasons, decision.window.closed) == ("abort", ["pins_drifted"], False)
    assert decision.decided_at == command.effective_from == 2 * PANE
    assert (command.rule, command.severity, command.weights.canary) == ("pins_drifted", "hard", 0)
    assert [problem.problem for problem in decision.evidence_problems] == ["pins_drifted"]
    rules = {rule.kind: rule for rule in decision.abort_rules}
    assert (rules["pins_drifted"].severity, rules["pins_drifted"].fired) == ("hard", True)


def test_pin_drift_can_abort_at_the_window_s_end_and_in_a_settling_pane() -> None:
    """At each pane: also the last of a window, and those of [E, S)."""
    drive = Drive(flag("policy: {on_pin_drift: abort}"))
    assert drive.window(DRIFTED).verdict == "abort"
    drive = Drive(flag("policy: {on_pin_drift: abort}"))
    assert drive.window(healthy()).verdict == "promote"
    (decision,) = drive.pane(DRIFTED)
    assert (decision.verdict, decision.stage.index) == ("abort", 0)


def test_an_abort_for_pin_drift_names_the_drift_though_a_soft_rule_fired_too() -> None:
    """`rule` is the first fired rule, hard ones first: a soft one is not what an abort is for."""
    drive = Drive(flag("policy: {on_pin_drift: abort}"))
    decision = drive.window([*SLOW, Event("canary", pins={**PINNED, "INDEX_HASH": "j"})])
    assert decision.verdict == "abort"
    assert set(fired(decision)) == {"pins_drifted", "latency_p95_over_budget"}
    assert drive.command().rule == "pins_drifted"
    assert "pins_drifted" in decision.reasons


def test_the_drift_rule_takes_no_part_of_the_level() -> None:
    """Without alpha: the other rules keep their quarter."""
    events = errors_of(*borderline(0.05 / 2 / 4, 0.05 / 2 / 5))
    assert [d.verdict for d in Drive(flag("policy: {on_pin_drift: abort}")).pane(events)] == ["abort"]


# Pinned baseline


def test_at_100_percent_the_last_baseline_before_the_promote_stays_pinned() -> None:
    """Digests, pins and hash of the last window before the promote to it stand in, window after window."""
    drive = drive_to_full()
    promote = drive.decisions[0]
    for _ in range(3):
        decision = drive.window(CANARY)
        assert (decision.verdict, decision.evidence_problems) == ("pass", [])
        baseline = decision.arms["baseline"]
        assert baseline.requests == len(BASELINE)
        assert baseline.pinned_from is not None
        assert (baseline.pinned_from.start, baseline.pinned_from.end) == (0, WINDOW)
        assert baseline.pinned_from.hash == promote.hash
        assert decision.versions["baseline"] == PINNED


def test_only_the_last_window_before_the_promote_is_pinned() -> None:
    """Not the whole stage: with hold_windows 2 the second window's baseline."""
    drive = Drive(flag("traffic: {stages: [0.05, 1.0]}\nwindow: {length: 1m, hold_windows: 2}"))
    drive.window([*healthy(), *requests("baseline", 500)])
    assert drive.window([*healthy(), *requests("baseline", 7)]).verdict == "promote"
    decision = drive.window(CANARY)
    assert decision.arms["baseline"].requests == len(BASELINE) + 7
    assert decision.arms["baseline"].pinned_from is not None
    assert decision.arms["baseline"].pinned_from.start == WINDOW


def test_at_100_percent_gates_and_rules_compare_with_the_pinned_baseline() -> None:
    """Latency, ΔS and cost are held against it, also against the stragglers of the old arm."""
    slow = [event for event in SLOW if event.arm == "canary"]
    assert drive_to_full().window(slow).verdict == "freeze"
    assert drive_to_full().window([*slow, *requests("baseline", 90, latency=1e4)]).verdict == "freeze"
    far = [event for event in healthy(delta_s=0.5) if event.arm == "canary"]
    decision = drive_to_full().window(far)
    assert (decision.verdict, decision.reasons) == ("abort", ["delta_s_p95_over"])
    drive = drive_to_full(last=healthy(400))
    (early,) = drive.pane([event for event in healthy(400, delta_s=1.9) if event.arm == "canary"])
    assert (early.verdict, early.arms["baseline"].requests) == ("abort", 406)


def test_below_100_percent_nothing_is_pinned() -> None:
    """Each window has its own baseline; one without has none."""
    drive = Drive(flag())
    drive.window(healthy())
    decision = drive.window(CANARY)
    assert decision.verdict == "hold"
    assert "no_pinned_baseline" in decision.reasons
    assert decision.arms["baseline"].pinned_from is None


def test_the_panes_that_settle_before_100_percent_have_their_own_baseline() -> None:
    """[E, S) has sums of its own, under the old stage."""
    drive = Drive(flag("traffic: {stages: [0.05, 1.0]}"))
    drive.window(healthy())
    (decision,) = drive.pane([*BROKEN, *requests("baseline", 3)])
    assert decision.verdict == "abort"
    assert decision.arms["baseline"].requests == len(BASELINE) + 3
    assert decision.arms["baseline"].pinned_from is None


def test_a_ramp_that_starts_at_100_percent_has_no_baseline_to_pin() -> None:
    """Nothing came before: no_pinned_baseline holds."""
    drive = Drive(flag("traffic: {canary_weight: 1.0, baseline_weight: 0.0}"))
    decision = drive.window(CANARY)
    assert (decision.verdict, "no_pinned_baseline" in decision.reasons) == ("hold", True)


# Records (§6)


def every_verdict() -> Drive:
    """A run through hold, freeze, promote, pass and rollback, with some of everything in it."""
    drive = Drive(flag("traffic: {stages: [0.05, 1.0]}"), restore=True)
    drive.window(UNKNOWN, late=1)
    drive.window(SLOW)
    drive.window([*healthy(700), *requests("canary", 30, source="gold"), *requests("baseline", 30, source="gold")])
    drive.window(healthy())
    drive.window(DRIFTED)
    drive.window(healthy())
    drive.pane(BROKEN)
    drive.window(healthy())
    return drive


DRIVEN = every_verdict()


def test_the_driven_run_shows_every_verdict() -> None:
    """What the tests on records rest on."""
    assert {d.verdict for d in DRIVEN.decisions} == {"hold", "freeze", "promote", "pass", "abort"}


def test_a_decision_has_the_contract_s_fields() -> None:
    """Every field of the contract's example, and ours: why a hold waits, the worst events, who ordered it."""
    names = (
        "schema decision_id flag region kind verdict reasons window decided_at stage gates abort_rules "
        "evidence_problems arms late duplicates dead_letters warnings relaxed source manifest_hash versions engine "
        "previous_hash hash forecast exemplars change_freeze operation evidence"
    )
    for decision in DRIVEN.decisions:
        record = json.loads(decision.to_bytes())
        assert set(record) == set(names.split())
        assert (record["schema"], record["flag"], record["region"]) == ("tidegate.decision/1", "f", "us")
        assert (record["kind"], record["manifest_hash"]) == ("progressive_rollout", DRIVEN.flag.manifest_hash)
        assert set(record["window"]) == {"start", "end", "closed"}
        assert set(record["stage"]) == {"index", "canary_weight", "next_canary_weight"}
        assert record["engine"] == {"pane_ms": PANE, "lateness_ms": CLOCKWORK.lateness_ms, "sketch": SKETCH}
        gate = "gate status observed threshold canary baseline n_canary n_baseline lower upper rule_out forecast"
        assert {frozenset(g) for g in record["gates"]} == {frozenset(gate.split())}
        rule = "kind severity value observed n fired"
        assert {frozenset(r) for r in record["abort_rules"]} == {frozenset(rule.split())}
        assert set(record["arms"]) == {"canary", "baseline"}


def test_a_command_has_the_contract_s_fields() -> None:
    """Every field of the contract's example, and ours: why a hold waits, the worst events, who ordered it."""
    names = (
        "schema command_id seq flag region action severity weights previous_weights effective_from reasons rule "
        "decision_id manifest_hash"
    )
    for command in DRIVEN.commands:
        record = json.loads(command.to_bytes())
        assert set(record) == set(names.split())
        assert record["schema"] == "tidegate.command/1"
        assert record["weights"]["baseline"] + record["weights"]["canary"] == pytest.approx(1)


def test_records_are_canonical_json() -> None:
    """RFC 8785: 1.0 is 1, keys sorted, UTF-8 unescaped."""
    records: list[Decision | Command] = [*DRIVEN.decisions, *DRIVEN.commands]
    for record in records:
        assert record.to_bytes() == canonical(json.loads(record.to_bytes()))
    full = Drive(flag(name="λ"))
    decision = full.window(healthy())
    assert '"flag":"λ"'.encode() in decision.to_bytes()
    assert b"1.0" not in decision.to_bytes()


def test_hashes_chain_the_decisions_of_a_unit() -> None:
    """hash over the record without itself, chained through previous_hash, null first."""
    previous = None
    for decision in DRIVEN.decisions:
        record = json.loads(decision.to_bytes())
        assert record["previous_hash"] == previous
        previous = record.pop("hash")
        assert sha256_of(record) == previous


def test_ids_are_over_what_the_contract_names() -> None:
    """A decision's id is over eight fields (stage = its index), a command's over {decision_id, action}."""
    for d in DRIVEN.decisions:
        assert d.decision_id == sha256_of(
            {
                "flag": d.flag,
                "region": d.region,
                "manifest_hash": d.manifest_hash,
                "stage": d.stage.index,
                "start": d.window.start,
                "end": d.window.end,
                "decided_at": d.decided_at,
                "verdict": d.verdict,
            }
        )
    for c in DRIVEN.commands:
        assert c.command_id == sha256_of({"decision_id": c.decision_id, "action": c.action})
    assert len({d.decision_id for d in DRIVEN.decisions}) == len(DRIVEN.decisions)


def test_commands_count_from_1_and_belong_to_their_decision() -> None:
    """seq counts per unit from 1; flag, region, reasons and manifest hash are the decision's."""
    assert [command.seq for command in DRIVEN.commands] == list(range(1, len(DRIVEN.commands) + 1))
    decisions = {decision.decision_id: decision for decision in DRIVEN.decisions}
    for command in DRIVEN.commands:
        decision = decisions[command.decision_id]
        assert command.action == decision.verdict
        assert command.reasons == decision.reasons
        assert (command.flag, command.region) == (decision.flag, decision.region)
        assert command.manifest_hash == decision.manifest_hash
    told = {command.decision_id for command in DRIVEN.commands}
    assert {d.verdict for d in DRIVEN.decisions if d.decision_id not in told} == {"hold", "pass"}


def test_each_command_s_previous_weights_are_the_command_s_before() -> None:
    """A router can check that it missed none."""
    weights = 0.05
    for command in DRIVEN.commands:
        assert command.previous_weights.canary == weights
        weights = command.weights.canary


def test_weights_are_numbers_as_people_write_them() -> None:
    """1 − 0.9 is 0.1, not 0.09999999999999998."""
    drive = Drive(flag("traffic: {canary_weight: 0.1, stages: [0.1, 0.3, 0.9]}"))
    drive.window(healthy())
    drive.window(healthy())
    assert [b'"weights":{"baseline":0.7,"canary":0.3}' in drive.commands[0].to_bytes()] == [True]
    assert [b'"weights":{"baseline":0.1,"canary":0.9}' in drive.commands[1].to_bytes()] == [True]


def test_reasons_are_gate_ids_rule_kinds_problem_names_or_one_of_three_words() -> None:
    """Nothing else is a reason, none is said twice, and none is missing."""
    for decision in DRIVEN.decisions:
        known = {gate.gate for gate in decision.gates} | {rule.kind for rule in decision.abort_rules}
        known |= {problem.problem for problem in decision.evidence_problems}
        known |= {"all_gates_pass", "hold_windows", "latched"}
        assert set(decision.reasons) <= known
        assert len(set(decision.reasons)) == len(decision.reasons) > 0


def test_arms_show_counts_sums_and_quantiles() -> None:
    """Requests of traffic and gold, the others by their own names."""
    events = [
        *requests("canary", 30, cost=0.25, tool_calls=2, tool_ok=1, coverage=0.5, latency=80.0),
        *requests("canary", 4, source="shadow"),
        *requests("canary", 1, error=True, solved=False, cost=None, delta_s=None, coverage=None, latency=80.0),
        *requests("canary", 3, kind="exposure"),
        *requests("canary", 2, state="×", latency=80.0),
        *probes("canary", "p", latency=80.0),
        *probes("canary", "q", ["<>"], latency=80.0),
        *BASELINE,
    ]
    arm = Drive(flag()).window(events).arms["canary"]
    assert (arm.requests, arm.traffic, arm.gold, arm.shadow, arm.exposures) == (40, 40, 0, 4, 3)
    assert (arm.errors, arm.solved, arm.cost_rows, arm.cost) == (1, 39, 39, 30 * 0.25 + 9 * 0.5)
    assert (arm.tool_calls, arm.tool_ok, arm.coverage_rows, arm.delta_s_rows) == (60, 30, 39, 39)
    assert arm.coverage_mean == pytest.approx((30 * 0.5 + 9 * 0.8) / 39)
    assert (arm.delta_s_p50, arm.delta_s_p95, arm.latency_p50, arm.latency_p95) == (0.05, 0.05, 80.0, 80.0)
    assert (arm.lambda_groups, arm.lambda_complete, arm.lambda_convergent, arm.lambda_events) == (2, 1, 1, 2)
    assert (arm.quality_source, arm.pinned_from) == ("traffic", None)


def test_lambda_flips_are_what_their_schema_says() -> None:
    """`lambda_flips`: groups and untagged events that flipped."""
    events = [*healthy(), *probes("canary", "r", ["×"] * 6), *requests("canary", 3, state="×")]
    assert Drive(flag()).window(events).arms["canary"].lambda_flips == 4


def test_warnings_and_relaxed_are_in_every_decision() -> None:
    """`unpinned` counts the pins that the manifest leaves open; `relaxed` lists what is looser than the page."""
    four = "versions: {MODEL_VER: m, PROMPT_VER: p, INDEX_HASH: i, RERANK_CONF: r}"
    drive = Drive(flag(f"{four}\ngates: {{coverage_min: 0.65, cost_uplift_max: null}}\nabort_rules: {{soft: []}}"))
    for events in (healthy(), [], BROKEN):
        decision = drive.window(events)
        assert {w.code: w.count for w in decision.warnings}["unpinned"] == 2
        assert decision.relaxed == list(drive.flag.relaxed)
        assert {"coverage_min", "cost_uplift_max"} <= set(decision.relaxed)


def test_source_names_the_offsets_of_each_partition() -> None:
    """First and last offset, by partition."""
    decision = DRIVEN.decisions[1]
    (span,) = decision.source
    assert (span.topic, span.partition) == ("tidegate.telemetry", 0)
    assert (span.first, span.last) == (len(UNKNOWN), len(UNKNOWN) + len(SLOW) - 1)


def test_versions_are_the_pins_that_each_arm_is_held_to() -> None:
    """Manifest pins first, then what was locked."""
    decision = Drive(flag("versions: {MODEL_VER: other}")).window(healthy())
    assert decision.versions == {"baseline": PINNED, "canary": {**PINNED, "MODEL_VER": "other"}}


def test_a_record_is_written_whatever_latency_a_service_reports() -> None:
    """Any finite latency is valid telemetry, so it must never stop the worker."""
    for latency in (0.0, 5e-324, 1e9):
        for n in (40, 1_500):
            canary = [*requests("canary", n, latency=latency), *probes("canary", latency=latency)]
            drive = Drive(flag())
            drive.window([*canary, *requests("baseline", n, latency=1e-300)])
            assert drive.decisions[-1].to_bytes()
            assert drive.decisions[-1].verdict != "promote" or latency < 1e-300


def test_a_unit_that_is_written_down_and_read_back_at_every_pane_gives_the_same_bytes() -> None:
    """State survives a crash at any point."""
    script: list[list[Event]] = [healthy(700), SLOW, healthy(30), [], healthy(), BROKEN, healthy()]
    runs = [Drive(flag(), restore=restore) for restore in (False, True)]
    for drive in runs:
        for events in script:
            for at in range(0, len(events), 200):
                drive.pane(events[at : at + 200])
            drive.window()
    plain, restored = (
        [d.to_bytes() for d in drive.decisions] + [c.to_bytes() for c in drive.commands] for drive in runs
    )
    assert len(plain) > 7
    assert plain == restored


# Graduation


def graduated(body: str = "traffic: {stages: [0.05, 1.0]}") -> Drive:
    """A unit that has passed at 100 %."""
    drive = Drive(flag(body))
    assert [drive.window(healthy()).verdict for _ in range(2)] == ["promote", "pass"]
    return drive


def at_full(**canary: Any) -> list[Event]:
    return [event for event in healthy(**canary) if event.arm == "canary"]


@pytest.mark.parametrize("canary", [{"latency": 200.0}, {"cost": 5.0}, {"delta_s": 0.14}], ids=str)
def test_a_graduated_unit_is_not_stopped_by_what_its_pinned_baseline_shows(canary: dict[str, Any]) -> None:
    """The daily peak, for everybody, weeks later: the gates are listed and fail, a warning says so, nothing moves."""
    drive = graduated()
    for _ in range(4):
        decision = drive.window(at_full(**canary))
        assert decision.verdict == "pass"
        assert [gate.gate for gate in decision.gates if gate.status == "fail"]
        assert {w.code for w in decision.warnings} == {"unpinned", "drifted_from_pinned_baseline"}
        assert not [rule.kind for rule in decision.abort_rules if rule.fired]
    assert [command.action for command in drive.commands] == ["promote"]


@pytest.mark.parametrize(
    ("canary", "verdict"),
    [({"error": True}, "abort"), ({"coverage": 0.65}, "rollback"), ({"delta_s": 0.9}, "abort")],
    ids=str,
)
def test_absolute_gates_and_hard_rules_act_on_a_graduated_unit(canary: dict[str, Any], verdict: str) -> None:
    """absolute gates and hard rules act as ever."""
    assert graduated().window(at_full(**canary)).verdict == verdict


def test_a_unit_is_graduated_by_its_first_pass_at_100_percent_and_not_before() -> None:
    """At 100 % the first window is still held against the pinned baseline; so is a ramp that ends below 100 %."""
    drive = Drive(flag("traffic: {stages: [0.05, 1.0]}"))
    drive.window(healthy())
    assert drive.window(at_full(latency=200.0)).verdict == "freeze"
    drive = Drive(flag("traffic: {stages: [0.05, 0.5]}"))
    assert [drive.window(healthy()).verdict for _ in range(3)] == ["promote", "pass", "pass"]
    assert drive.window(healthy(latency=200.0)).verdict == "freeze"


def test_a_rearm_ends_a_graduation() -> None:
    """It is a new rollout."""
    drive = graduated()
    drive.operate("rearm")
    assert drive.window(healthy(latency=200.0)).verdict == "freeze"
