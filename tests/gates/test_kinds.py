"""Flag kinds, sentence by sentence: a gate that opens and closes, guards that step in and out, a switch."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest

from tests.gates.build import (
    PANE,
    PINNED,
    WINDOW,
    Drive,
    Event,
    flag,
    healthy,
    labels,
    probes,
    requests,
)
from tidegate.gates.codec import StateCodec
from tidegate.gates.unit import Unit
from tidegate.schemas.decision import Decision

OPEN_AT_5 = [("open", 0.05)]
FAILED_IN_FULL = Event("canary", sticky="canary-0", reason="failed", mode="full")
FAILED_CITE_ONLY = Event("canary", sticky="canary-0", reason="failed", mode="cite_only")
DRIFTED = Event("canary", sticky="canary-0", pins={**PINNED, "INDEX_HASH": "j"})
MOSTLY_CONVERGENT = [
    *[event for i in range(8) for event in probes("canary", f"q{i}")],
    *probes("canary", "r", ("→",) * 5 + ("×",)),
]
UNKNOWN = [event for event in healthy() if event.probe is None]


def gate_of(decision: Decision, name: str) -> Any:
    return next(gate for gate in decision.gates if gate.gate == name)


def fired(decision: Decision) -> list[str]:
    return [rule.kind for rule in decision.abort_rules if rule.fired]


def verdicts(drive: Drive) -> list[str]:
    return [decision.verdict for decision in drive.decisions]


# Quality gated


def quality(body: str = "", **more: Any) -> Drive:
    return Drive(flag(f"kind: quality_gated\n{body}"), **more)


def opened(body: str = "", **more: Any) -> Drive:
    drive = quality(body, **more)
    assert drive.window(healthy()).verdict == "open"
    return drive


def test_a_quality_gate_starts_closed() -> None:
    """Before a quality gate opens, stage.canary_weight is 0, and nothing was commanded."""
    drive = quality()
    assert (drive.unit.weight, drive.unit.engaged) == (0, False)
    decision = drive.window()
    assert (decision.verdict, decision.stage.canary_weight, drive.commands) == ("close", 0, [])


def test_a_quality_gate_opens_with_a_command_to_its_first_weight() -> None:
    """open: ΔS, coverage and λ are inside bounds in the current window; the evidence was of a closed gate."""
    drive = quality()
    decision = drive.window(healthy())
    assert (decision.verdict, decision.reasons, decision.stage.canary_weight) == ("open", ["all_gates_pass"], 0)
    command = drive.command()
    assert (command.action, command.severity, command.rule) == ("open", None, None)
    assert (command.weights.canary, command.previous_weights.canary) == (0.05, 0)
    assert command.effective_from == WINDOW


def test_a_quality_gate_commands_on_each_change_alone() -> None:
    """A command on each change; each window has a verdict."""
    drive = quality()
    for events in ([], healthy(), healthy(), healthy(coverage=0.65), healthy(coverage=0.65), healthy()):
        drive.window(events)
    assert verdicts(drive) == ["close", "open", "open", "close", "close", "open"]
    assert drive.commanded() == [("open", 0.05), ("close", 0), ("open", 0.05)]
    assert [d.stage.canary_weight for d in drive.decisions] == [0, 0, 0.05, 0.05, 0, 0]


@pytest.mark.parametrize(
    ("events", "reasons"),
    [
        (healthy(delta_s=0.09), ["delta_s.median_max"]),
        (healthy(coverage=0.65), ["coverage_min"]),
        ([*healthy(), *MOSTLY_CONVERGENT], ["lambda_convergent"]),
    ],
)
def test_a_quality_gate_closes_when_one_of_the_three_fails(events: list[Event], reasons: list[str]) -> None:
    """Open only while ΔS, coverage and λ are inside bounds in the current window."""
    drive = opened()
    decision = drive.window(events)
    assert (decision.verdict, decision.reasons) == ("close", reasons)
    assert drive.command().weights.canary == 0


@pytest.mark.parametrize(
    "canary",
    [{"latency": 300.0}, {"cost": 5.0}, {"solved": False}, {"tool_calls": 2, "tool_ok": 0}],
    ids=["latency", "cost", "unsolved", "tools"],
)
def test_latency_cost_and_tools_are_not_consulted_by_a_quality_gate(canary: dict[str, Any]) -> None:
    """A quality gate is decided by ΔS, coverage and λ alone; the other gates are listed as they are."""
    drive = opened()
    decision = drive.window(healthy(**canary))
    assert (decision.verdict, decision.reasons) == ("open", ["all_gates_pass"])
    assert "fail" in {gate.status for gate in decision.gates}
    assert drive.commanded() == OPEN_AT_5


def test_errors_below_the_hard_rule_are_not_consulted_by_a_quality_gate() -> None:
    """errors are not consulted: the error gate fails and the gate stays open."""
    drive = opened()
    decision = drive.window([*healthy(200), *requests("canary", 2, error=True)])
    assert gate_of(decision, "error_rate_max").status == "fail"
    assert decision.verdict == "open"


def test_unknown_closes_a_quality_gate() -> None:
    """unknown closes: no complete λ group."""
    drive = opened()
    decision = drive.window(UNKNOWN)
    assert (decision.verdict, decision.reasons) == ("close", ["lambda_convergent"])
    assert drive.command().action == "close"


def test_an_unknown_gate_that_is_not_consulted_leaves_a_quality_gate_open() -> None:
    """Costs that nobody reports are unknown, and not of the three."""
    drive = opened()
    events = [dataclasses.replace(event, cost=None) for event in healthy()]
    decision = drive.window(events)
    assert gate_of(decision, "cost_uplift_max").status == "unknown"
    assert decision.verdict == "open"


def test_any_evidence_problem_closes_a_quality_gate() -> None:
    """Any evidence problem closes it, with the problem as reason; the next sound window opens it again."""
    drive = opened()
    for events, counts, problem in (
        ([*healthy(), DRIFTED], {}, "pins_drifted"),
        (healthy(), {"late": 9}, "window_unstable"),
    ):
        decision = drive.window(events, **counts)
        assert (decision.verdict, decision.reasons) == ("close", [problem])
        assert drive.window(healthy()).verdict == "open"
    assert [action for action, _ in drive.commanded()] == ["open", "close", "open", "close", "open"]


def test_hard_rules_apply_as_close_at_window_end() -> None:
    """Hard rules apply as `close`: on the value itself, naming the rule, without a latch."""
    drive = opened()
    decision = drive.window(healthy(coverage=0.5))
    assert (decision.verdict, decision.reasons, fired(decision)) == ("close", ["coverage_under"], ["coverage_under"])
    command = drive.command()
    assert (command.action, command.rule, command.weights.canary) == ("close", "coverage_under", 0)
    assert drive.window(healthy()).verdict == "open"


def test_the_error_rule_is_a_hard_rule_of_a_quality_gate_too() -> None:
    """Hard rules apply, whatever they read."""
    drive = opened()
    decision = drive.window(healthy(error=True))
    assert (decision.verdict, decision.reasons) == ("close", ["error_rate_over"])


def test_a_hard_rule_that_is_sure_closes_an_open_gate_at_the_pane_that_fired_it() -> None:
    """Hard rules are also checked each time a pane closes: an early close keeps the window's nominal end."""
    drive = opened()
    (decision,) = drive.pane(healthy(error=True))
    command = drive.command()
    assert (decision.verdict, decision.reasons) == ("close", ["error_rate_over"])
    assert (decision.window.start, decision.window.end, decision.window.closed) == (WINDOW, 2 * WINDOW, False)
    assert decision.decided_at == command.effective_from == WINDOW + PANE
    assert (command.action, command.rule, command.weights.canary) == ("close", "error_rate_over", 0)
    assert drive.pane(healthy(error=True)) == []


def test_a_closed_gate_has_nothing_to_close_early() -> None:
    """A command on each change: a closed gate looks at the window's end alone."""
    drive = quality()
    assert drive.pane(healthy(error=True)) == []
    assert (drive.window().verdict, drive.commands) == ("close", [])


@pytest.mark.parametrize("shadow", [False, True])
def test_the_window_that_an_early_close_cut_does_not_open_again(shadow: bool) -> None:
    """close = canary 0 and a later green window opens again: not the one that was cut, whatever follows in it."""
    body = (
        f"traffic: {{shadow: {str(shadow).lower()}}}\nabort_rules: {{hard: [{{kind: error_rate_over, value: 0.01}}]}}"
    )
    drive = quality(body)
    shadows = [dataclasses.replace(e, source="shadow") for e in healthy() if e.arm == "canary"]
    drive.window([*healthy(), *shadows])
    assert drive.commanded() == OPEN_AT_5
    assert [d.verdict for d in drive.pane(healthy(error=True))] == ["close"]
    decision = drive.window([*healthy(9000 if not shadow else 40), *shadows])
    assert (decision.verdict, decision.window.closed) == ("close", True)
    # Its evidence is what was served in it, not what was mirrored once it was closed.
    assert decision.reasons == (["error_rate_over"] if shadow else ["latched"])
    assert drive.window([*healthy(), *shadows]).verdict == "open"
    assert [action for action, _ in drive.commanded()] == ["open", "close", "open"]


def test_a_closed_gate_with_shadow_reads_the_shadow_rows() -> None:
    """A closed gate serves nobody: with traffic.shadow its evidence is mirrored requests, once open the served ones."""
    drive = quality("traffic: {shadow: true}")
    canary = [event for event in healthy() if event.arm == "canary"]
    baseline = [event for event in healthy() if event.arm == "baseline"]
    shadows = [dataclasses.replace(event, source="shadow") for event in canary]
    assert drive.window([*shadows, *baseline]).verdict == "open"
    still = drive.window([*shadows, *baseline])
    assert (still.verdict, still.reasons) == ("close", ["insufficient_data"])
    assert drive.window([*shadows, *baseline]).verdict == "open"
    bad = [dataclasses.replace(event, source="shadow", coverage=0.1) for event in canary]
    assert drive.window([*bad, *healthy()]).verdict == "open"


def test_a_quality_gate_has_no_sample_ratio_test() -> None:
    """no sample-ratio test: a gate that was closed for half a window has no share to hold."""
    drive = opened()
    crowd = [Event("baseline", sticky=f"b{i}") for i in range(3000)]
    decision = drive.window([*healthy(), *crowd])
    assert decision.verdict == "open"


def test_ids_move_when_a_quality_gate_opens_and_closes() -> None:
    """An id that moves as weights change violates nothing; one that moves while the gate stands open does."""
    drive = quality()
    mover = [Event("baseline", sticky="mover")]
    assert drive.window([*healthy(), *mover]).verdict == "open"
    assert drive.pane([Event("baseline", sticky="mover"), Event("canary", sticky="mover")]) == []
    drive.until(drive.unit.window.end - PANE)
    assert drive.window([*healthy(), Event("canary", sticky="mover")]).verdict == "open"
    assert drive.window(healthy(coverage=0.65)).verdict == "close"
    assert drive.window([*healthy(), *mover]).verdict == "open"
    drive.until(drive.unit.window.end - PANE)
    both = [Event("baseline", sticky="both"), Event("canary", sticky="both")]
    decision = drive.window([*healthy(), *both])
    assert (decision.verdict, decision.reasons) == ("close", ["sticky_violation"])
    assert drive.window(healthy()).verdict == "open"


def test_a_quality_gate_has_no_next_weight() -> None:
    """One weight, open or not."""
    drive = opened()
    drive.window(healthy())
    assert [d.stage.next_canary_weight for d in drive.decisions] == [None, None]
    assert [d.stage.index for d in drive.decisions] == [0, 0]


def test_a_killed_quality_gate_stays_closed_until_a_rearm() -> None:
    """After a kill windows are decided as `hold` with reason `latched`; a rearmed gate starts closed."""
    drive = opened()
    assert drive.operate("kill").verdict == "kill"
    assert drive.command().weights.canary == 0
    held = drive.window(healthy())
    assert (held.verdict, held.reasons, held.stage.canary_weight) == ("hold", ["latched"], 0)
    rearm = drive.operate("rearm")
    assert (drive.command().weights.canary, rearm.stage.canary_weight) == (0, 0)
    assert drive.window(healthy()).verdict == "open"


# Guards of any kind

GUARDS = ("cost_guard", "safety_guard")


def reasoned(n: int = 40, **canary: Any) -> list[Event]:
    """A healthy window whose canary tells of its reason steps."""
    return healthy(n, **{"reason": "ok", "mode": "full", **canary})


@pytest.mark.parametrize("kind", GUARDS)
def test_a_guard_says_pass_when_nothing_changes(kind: str) -> None:
    """Guards say pass when nothing changes, without a command."""
    drive = Drive(flag(f"kind: {kind}"))
    assert [drive.window(reasoned()).verdict for _ in range(3)] == ["pass"] * 3
    assert drive.commands == []


@pytest.mark.parametrize("kind", GUARDS)
def test_hard_rules_do_not_fire_on_a_guard(kind: str) -> None:
    """hard rules do not fire there: neither at a pane nor at the window's end, and they are listed unfired."""
    drive = Drive(flag(f"kind: {kind}\npolicy: {{on_pin_drift: abort}}"))
    bad = reasoned(error=True, coverage=0.1, delta_s=1.5, state="×")
    assert [drive.pane(bad) for _ in range(5)] == [[]] * 5
    (decision,) = drive.pane(bad)
    assert decision.verdict == "pass"
    rules = [rule for rule in decision.abort_rules if rule.severity == "hard"]
    assert [rule.kind for rule in rules][:4] == [rule.kind for rule in drive.flag.abort_rules.hard]
    assert fired(decision) == []


@pytest.mark.parametrize("kind", GUARDS)
def test_an_unsound_window_holds_a_guard(kind: str) -> None:
    """Guards hold when unsound, with the problem as reason."""
    drive = Drive(flag(f"kind: {kind}"))
    decision = drive.window([*reasoned(), DRIFTED])
    assert (decision.verdict, decision.reasons, drive.commands) == ("hold", ["pins_drifted"], [])


@pytest.mark.parametrize("kind", GUARDS)
def test_other_gates_than_its_own_do_not_move_a_guard(kind: str) -> None:
    """A slow canary that retrieves little is no guard's business."""
    drive = Drive(flag(f"kind: {kind}"))
    assert drive.window(reasoned(latency=900.0, coverage=0.1, delta_s=1.0)).verdict == "pass"


@pytest.mark.parametrize("kind", GUARDS)
def test_a_killed_guard_is_latched_and_a_rearm_starts_it_over(kind: str) -> None:
    """kill is canary 0; after it hold, latched, whatever is seen; rearm: the first stage's weights."""
    drive = Drive(flag(f"kind: {kind}"))
    bad = [*reasoned(cost=5.0), FAILED_IN_FULL]
    drive.window(bad)
    drive.operate("kill")
    held = drive.window(bad)
    assert (held.verdict, held.reasons) == ("hold", ["latched"])
    drive.operate("rearm")
    assert drive.command().weights.canary == 0.05
    assert drive.window(reasoned()).verdict == "pass"


@pytest.mark.parametrize("kind", GUARDS)
def test_a_guard_that_is_read_back_at_every_pane_gives_the_same_bytes(kind: str) -> None:
    """Its state is all in the unit."""
    runs = []
    for restore in (False, True):
        drive = Drive(flag(f"kind: {kind}"), restore=restore)
        for events in ([*reasoned(cost=0.9), FAILED_IN_FULL], reasoned(), [], reasoned()):
            drive.window(events)
        runs.append([d.to_bytes() for d in drive.decisions] + [c.to_bytes() for c in drive.commands])
    assert runs[0] == runs[1]


# Cost guard


def cost_guard(*costs: float | None, **more: Any) -> Drive:
    """Windows in which a canary's request costs that much, where a baseline's costs 0.5."""
    drive = Drive(flag("kind: cost_guard"), **more)
    for cost in costs:
        drive.window(healthy(600, cost=cost))
    return drive


def test_a_cost_guard_falls_back_when_the_cost_gate_fails() -> None:
    """`fallback` when the cost gate fails at window end, with the gate as reason."""
    drive = cost_guard(0.6)
    decision = drive.decisions[-1]
    assert (decision.verdict, decision.reasons) == ("fallback", ["cost_uplift_max"])
    command = drive.command()
    assert (command.action, command.severity, command.effective_from) == ("fallback", None, WINDOW)


def test_a_cost_guard_never_changes_weights() -> None:
    """Guards never change weights: every command repeats the ones before."""
    drive = cost_guard(0.6, 0.5, 0.9, 0.5)
    assert [c.action for c in drive.commands] == ["fallback", "restore", "fallback", "restore"]
    assert {(c.weights.canary, c.previous_weights.canary) for c in drive.commands} == {(0.05, 0.05)}
    assert {d.stage.canary_weight for d in drive.decisions} == {0.05}
    assert {d.stage.next_canary_weight for d in drive.decisions} == {None}


def test_a_lasting_fallback_is_repeated_without_a_command() -> None:
    """repeat a lasting state's verdict without a command."""
    drive = cost_guard(0.6, 0.6, 0.6)
    assert verdicts(drive) == ["fallback"] * 3
    assert drive.commanded() == [("fallback", 0.05)]


@pytest.mark.parametrize(("uplift", "verdict"), [(0.0895, "restore"), (0.0905, "hold"), (0.0995, "hold")])
def test_a_cost_guard_restores_at_nine_tenths_of_the_limit(uplift: float, verdict: str) -> None:
    """`restore` at ≤ 0.9 of the limit; inside the hysteresis it holds."""
    n = 6000
    canary = requests("canary", n, cost=0.5 * (1 + uplift))
    drive = Drive(flag("kind: cost_guard"))
    drive.window(healthy(cost=0.9))
    decision = drive.window([*canary, *requests("baseline", 40)])
    assert (decision.verdict, len(drive.commands)) == (verdict, 1 + (verdict == "restore"))


@pytest.mark.parametrize("limit", [0.1, 0.35, 0.6])
def test_exactly_nine_tenths_of_the_limit_restores(limit: float) -> None:
    """≤ 0.9 of the limit, with the same slack as every comparison: 1.09 ÷ 1 − 1."""
    drive = Drive(flag(f"kind: cost_guard\ngates: {{cost_uplift_max: {limit}}}"))
    drive.window(healthy(cost=0.9))
    dearer = round(1 + 0.9 * limit, 12)
    decision = drive.window([*requests("canary", 40, cost=dearer), *requests("baseline", 40, cost=1.0)])
    assert decision.verdict == "restore"


def test_a_cost_guard_that_has_not_stepped_in_passes_up_to_the_limit() -> None:
    """The hysteresis is for stepping out: 9.5 % over is a pass before, a hold after."""
    events = [*requests("canary", 40, cost=1.095), *requests("baseline", 40, cost=1.0)]
    drive = Drive(flag("kind: cost_guard"))
    assert drive.window(events).verdict == "pass"
    drive.window(healthy(cost=0.9))
    assert drive.window(events).verdict == "hold"


def test_a_hold_between_does_not_end_a_fallback() -> None:
    """Unknown in between: the state lasts, so the next bad window repeats it without a command."""
    drive = Drive(flag("kind: cost_guard"))
    drive.window(healthy(cost=0.9))
    unknown = drive.window([dataclasses.replace(event, cost=None) for event in healthy()])
    assert (unknown.verdict, unknown.reasons) == ("hold", ["cost_uplift_max"])
    assert drive.window([]).reasons == ["insufficient_data", "no_pinned_baseline"]
    assert drive.window(healthy(cost=0.9)).verdict == "fallback"
    assert drive.window(healthy()).verdict == "restore"
    assert [c.action for c in drive.commands] == ["fallback", "restore"]


def test_a_canary_that_solves_nothing_falls_back() -> None:
    """Zero solved in the canary fails the cost gate."""
    assert cost_guard().window(healthy(solved=False)).verdict == "fallback"


def test_a_waived_cost_gate_does_not_fail() -> None:
    """or a clear quality gain: a dearer canary that retrieves more is let pass."""
    drive = Drive(flag("kind: cost_guard"))
    decision = drive.window(
        [*requests("canary", 40, cost=0.6, coverage=0.9), *probes("canary", cost=0.6, coverage=0.9)]
        + [event for event in healthy() if event.arm == "baseline"]
    )
    assert (gate_of(decision, "cost_uplift_max").status, decision.verdict) == ("waived", "pass")


def test_only_the_window_s_end_moves_a_cost_guard() -> None:
    """At window end: no pane before it says anything."""
    drive = Drive(flag("kind: cost_guard"))
    assert [drive.pane(healthy(cost=0.9)) for _ in range(5)] == [[]] * 5
    assert [d.verdict for d in drive.pane()] == ["fallback"]


# Safety guard


def safety(*windows: Sequence[Event], body: str = "") -> Drive:
    drive = Drive(flag(f"kind: safety_guard\n{body}"))
    for events in windows:
        drive.window(events)
    return drive


def test_a_failed_reason_step_served_in_full_degrades() -> None:
    """`degrade` when a failed reason step was served in full: one is enough, and it is listed."""
    drive = safety([*reasoned(600), FAILED_IN_FULL])
    decision = drive.decisions[-1]
    assert (decision.verdict, decision.reasons) == ("degrade", ["reason_failed_served_in_full"])
    assert fired(decision) == ["reason_failed_served_in_full"]
    command = drive.command()
    assert (command.action, command.rule) == ("degrade", "reason_failed_served_in_full")
    assert (command.weights.canary, command.previous_weights.canary) == (0.05, 0.05)


def test_a_failed_reason_step_without_an_output_mode_counts_as_served_in_full() -> None:
    """output_mode absent: nothing says that it was cite-only."""
    drive = safety([*reasoned(600), dataclasses.replace(FAILED_IN_FULL, mode=None)])
    assert drive.decisions[-1].reasons == ["reason_failed_served_in_full"]


def test_the_events_served_in_full_are_named() -> None:
    """a failed reason step served in full is a violation, listed: not the ones that were served cite-only."""
    cite_only = [dataclasses.replace(FAILED_CITE_ONLY, name=f"cited {i}") for i in range(5)]
    drive = safety([*cite_only, *reasoned(600), dataclasses.replace(FAILED_IN_FULL, name="the one")])
    shown = drive.decisions[-1].exemplars["reason_failed_served_in_full"]
    assert [exemplar.event_id for exemplar in shown] == ["the one"]


@pytest.mark.parametrize(("failures", "verdict"), [(6, "pass"), (7, "degrade")])
def test_failures_over_1_percent_of_requests_degrade(failures: int, verdict: str) -> None:
    """failures exceed 1 % of requests; 6 of 600 do not, and cite-only is no violation."""
    ok = requests("canary", 600 - failures, reason="ok", mode="full")
    drive = safety([*ok, *[FAILED_CITE_ONLY] * failures])
    decision = drive.decisions[-1]
    assert decision.verdict == verdict
    assert fired(decision) == ["reason_failure_rate_over"] * (verdict == "degrade")


def test_the_failure_rate_waits_for_min_requests() -> None:
    """Too few requests show no rate; a violation needs none."""
    few = [*requests("canary", 10, reason="ok"), FAILED_CITE_ONLY]
    assert safety(few).decisions[-1].verdict == "hold"
    assert safety([*few, FAILED_IN_FULL]).decisions[-1].verdict == "degrade"


def test_a_clean_window_restores() -> None:
    """`restore` after a clean window, once; then nothing changes."""
    drive = safety([*reasoned(), FAILED_IN_FULL], [*reasoned(), FAILED_IN_FULL], reasoned(), reasoned())
    assert verdicts(drive) == ["degrade", "degrade", "restore", "pass"]
    assert drive.commanded() == [("degrade", 0.05), ("restore", 0.05)]


def test_a_window_that_says_nothing_of_reason_steps_is_not_clean() -> None:
    """hold when unknown: no reason_status is no clean window."""
    drive = safety([*reasoned(), FAILED_IN_FULL], healthy(), [])
    assert verdicts(drive) == ["degrade", "hold", "hold"]
    assert drive.decisions[1].reasons == ["reason_status"]
    assert drive.decisions[2].reasons == ["insufficient_data"]
    assert drive.window(reasoned()).verdict == "restore"


def test_the_safety_guard_reads_the_canary() -> None:
    """the safety guard reads the canary: it needs no baseline, and a baseline's failures are not its."""
    alone = [event for event in reasoned() if event.arm == "canary"]
    assert safety(alone).decisions[-1].verdict == "pass"
    baseline = requests("baseline", 40, reason="failed", mode="full")
    assert safety([*alone, *baseline]).decisions[-1].verdict == "pass"


def test_a_safety_guard_degrades_on_unsound_evidence_too() -> None:
    """A problem of the evidence suppresses no abort, and no step into safety."""
    drive = safety([*reasoned(), DRIFTED, FAILED_IN_FULL])
    assert drive.decisions[-1].verdict == "degrade"


# Kill switch


def test_a_kill_switch_flag_has_no_windows() -> None:
    """A kill-switch flag has no windows: nothing is decided, however long and bad its telemetry."""
    drive = Drive(flag("kind: kill_switch"))
    for _ in range(20):
        assert drive.pane(healthy(error=True)) == []
    assert drive.ramp.deadline is None
    assert not drive.ramp.windowed


def test_a_kill_switch_keeps_nothing_of_its_telemetry() -> None:
    """Without windows nothing would ever be let go of: its state is as large after a thousand queries as before."""
    drive = Drive(flag("kind: kill_switch"))
    codec = StateCodec(Unit)
    before = len(codec.dump(drive.unit))
    for i in range(20):
        drive.pane([*healthy(5), *probes("canary", f"q{i}"), Event("canary", kind="exposure", sticky=f"x{i}")])
    assert len(codec.dump(drive.unit)) == before


def test_an_operator_kills_a_kill_switch() -> None:
    """An operator kills it: canary 0, with who and why, and no telemetry needed."""
    drive = Drive(flag("kind: kill_switch"))
    decision = drive.operate("kill", 123)
    assert (decision.verdict, decision.kind, decision.decided_at) == ("kill", "kill_switch", 123)
    assert decision.operation is not None
    assert (decision.operation.actor, decision.operation.reason) == ("ada", "why not")
    assert drive.commanded() == [("kill", 0)]
    drive.operate("rearm", 456)
    assert drive.commanded() == [("kill", 0), ("rearm", 1.0)]


def test_a_kill_switch_may_start_at_0_and_others_may_not() -> None:
    """`canary_weight: 0` kills it."""
    drive = Drive(flag("kind: kill_switch\ntraffic: {canary_weight: 0}"))
    assert drive.unit.weight == 0
    assert list(drive.ramp.begun()) == []


@pytest.mark.parametrize(
    ("traffic", "weight"),
    [
        ("{}", 1.0),
        ("{canary_weight: 0.25}", 0.25),
        ("{baseline_weight: 0.4}", 0.6),
        ("{canary_weight: 0.5, baseline_weight: 0.5}", 0.5),
        ("{stages: [0.1, 1.0]}", 0.1),
    ],
)
def test_a_kill_switch_has_no_ramp(traffic: str, weight: float) -> None:
    """On is everybody, or the one weight that is written: that is what a rearm gives back."""
    drive = Drive(flag(f"kind: kill_switch\ntraffic: {traffic}"))
    assert drive.unit.weight == weight
    drive.operate("kill", 123)
    drive.operate("rearm", 456)
    assert drive.commanded() == [("kill", 0), ("rearm", weight)]


# All kinds


@pytest.mark.parametrize("kind", ["progressive_rollout", "quality_gated", "cost_guard", "safety_guard"])
def test_every_decision_names_its_kind_and_lists_all_gates(kind: str) -> None:
    """All gates are evaluated and listed, whichever of them the kind is decided by."""
    decision = Drive(flag(f"kind: {kind}")).window(reasoned())
    assert decision.kind == kind
    assert len(decision.gates) == 8


@pytest.mark.parametrize("kind", ["quality_gated", "cost_guard", "safety_guard"])
def test_only_a_rollout_has_settling_panes_and_stages(kind: str) -> None:
    """Windows follow one another without a gap, at stage 0."""
    drive = Drive(flag(f"kind: {kind}"))
    for events in (reasoned(), [*reasoned(cost=2.0), FAILED_IN_FULL], reasoned()):
        drive.window(events)
    assert [(d.window.start, d.stage.index) for d in drive.decisions] == [(i * WINDOW, 0) for i in range(3)]


def test_labels_alone_decide_no_guard() -> None:
    """Labels are no requests: a window of them is too little data."""
    events = labels("canary", 40, solved=True) + labels("baseline", 40, solved=True)
    assert Drive(flag("kind: cost_guard")).window(events).reasons == ["insufficient_data", "no_pinned_baseline"]


def test_the_machine_of_each_kind_is_told_by_its_flag() -> None:
    """Kinds share their windows: what one does not decide on is still in its record."""
    decision = Drive(flag("kind: safety_guard")).window(reasoned())
    assert decision.arms["canary"].reason_rows == 40
    assert (decision.arms["canary"].reason_failed, decision.arms["canary"].reason_in_full) == (0, 0)
