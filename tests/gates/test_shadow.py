"""The shadow stage: the canary is judged on mirrored requests before it serves anyone; warm-up is nothing."""

import dataclasses
from typing import Any

import pytest

from tests.gates.build import APPLIED, PANE, PINNED, WINDOW, Drive, Event, flag, healthy, labels, probes, requests

SHADOW = "traffic: {shadow: true}"
BASELINE = [event for event in healthy() if event.arm == "baseline"]
CANARY = [event for event in healthy() if event.arm == "canary"]


def mirrored(events: list[Event], **changes: Any) -> list[Event]:
    return [dataclasses.replace(event, source="shadow", **changes) for event in events]


def shadow_window(**canary: Any) -> list[Event]:
    """A window of the shadow stage on which every gate passes; ``canary`` changes its mirrored requests."""
    return [*mirrored(CANARY, **canary), *BASELINE]


def test_a_shadow_stage_of_weight_0_comes_first() -> None:
    """With traffic.shadow: true a stage of canary weight 0 comes first (index 0)."""
    drive = Drive(flag(SHADOW))
    assert drive.unit.weight == 0
    decision = drive.window(shadow_window())
    assert (decision.stage.index, decision.stage.canary_weight, decision.stage.next_canary_weight) == (0, 0, 0.05)


def test_shadow_rows_are_the_canary_s_evidence_in_the_shadow_stage() -> None:
    """In the shadow stage the canary's shadow rows promote it to the first served weight."""
    drive = Drive(flag(SHADOW))
    decision = drive.window(shadow_window())
    assert (decision.verdict, decision.evidence_problems) == ("promote", [])
    assert {gate.gate: gate.n_canary for gate in decision.gates}["error_rate_max"] == len(CANARY)
    assert (drive.command().weights.canary, drive.command().previous_weights.canary) == (0.05, 0)
    second = drive.window(healthy())
    assert (second.stage.index, second.stage.canary_weight, second.verdict) == (1, 0.05, "promote")


def test_after_the_shadow_stage_the_ramp_goes_its_usual_way() -> None:
    """then the ramp: 0 → 5 → 25 → 50 → 100 %, each after settling."""
    drive = Drive(flag(SHADOW))
    decisions = [drive.window(shadow_window()), *[drive.window(healthy()) for _ in range(4)]]
    assert [d.verdict for d in decisions] == ["promote"] * 4 + ["pass"]
    assert [d.stage.canary_weight for d in decisions] == [0, 0.05, 0.25, 0.5, 1]
    assert [d.stage.index for d in decisions] == [0, 1, 2, 3, 4]
    assert decisions[1].window.start == WINDOW + 2 * PANE


@pytest.mark.parametrize(
    ("canary", "verdict", "reason"),
    [
        ({"delta_s": 0.09}, "rollback", "delta_s.median_max"),
        ({"coverage": 0.65}, "rollback", "coverage_min"),
        ({"latency": 200.0}, "freeze", "latency_p95_uplift_max"),
        ({"cost": 0.9}, "freeze", "cost_uplift_max"),
        ({"tool_calls": 2, "tool_ok": 0}, "rollback", "tool_success_min"),
        ({"error": True}, "abort", "error_rate_over"),
        ({"coverage": 0.3}, "abort", "coverage_under"),
    ],
)
def test_every_gate_and_rule_reads_the_shadow_rows(canary: dict[str, Any], verdict: str, reason: str) -> None:
    """Shadow rows are the canary's evidence: for latency, errors, tools and cost as for quality."""
    decision = Drive(flag(SHADOW)).window(shadow_window(**canary))
    assert decision.verdict == verdict
    assert decision.reasons[0] == reason


def test_shadow_rows_can_abort_the_shadow_stage_at_a_pane() -> None:
    """Hard rules read the stage's evidence too, each time a pane closes."""
    drive = Drive(flag(SHADOW))
    (decision,) = drive.pane(shadow_window(error=True))
    assert (decision.verdict, decision.window.closed, drive.command().weights.canary) == ("abort", False, 0)


def test_errors_of_shadow_rows_are_the_canary_s_and_not_the_users() -> None:
    """their errors are the canary's, not the users': the baseline's arm has none of them."""
    decision = Drive(flag(SHADOW)).window(shadow_window(error=True))
    assert decision.arms["canary"].errors == len(CANARY)
    assert decision.arms["baseline"].errors == 0


def test_the_record_tells_mirrored_from_served_requests() -> None:
    """Counts by source are shown as they came."""
    decision = Drive(flag(SHADOW)).window([*shadow_window(), *requests("canary", 3)])
    canary = decision.arms["canary"]
    assert (canary.requests, canary.shadow, canary.traffic) == (len(CANARY), len(CANARY), 3)


def test_served_canary_requests_are_no_evidence_of_the_shadow_stage() -> None:
    """At weight 0 nobody should be served by the canary: its traffic rows stand for nothing, and are a problem."""
    decision = Drive(flag(SHADOW)).window(healthy())
    assert (decision.verdict, decision.reasons) == ("hold", ["insufficient_data", "served_at_weight_zero"])
    mixed = [*shadow_window(), *requests("canary", 7)]
    decision = Drive(flag(SHADOW)).window(mixed)
    assert (decision.verdict, decision.reasons) == ("hold", ["served_at_weight_zero"])
    assert decision.evidence_problems[0].detail == {"requests": 7}
    assert Drive(flag(SHADOW)).window(shadow_window()).verdict == "promote"


def test_served_canary_requests_of_the_shadow_stage_that_fail_are_an_abort() -> None:
    """200 users who all get an error are seen, at once and at the window's end."""
    drive = Drive(flag(SHADOW))
    drive.until(APPLIED)
    (early,) = drive.pane([*shadow_window(), *requests("canary", 200, error=True)])
    assert (early.verdict, early.reasons) == ("abort", ["error_rate_over"])
    rule = next(rule for rule in early.abort_rules if rule.kind == "error_rate_over")
    assert (rule.n, rule.observed) == (200, 1)
    few = [*shadow_window(), *requests("canary", 20, delta_s=1.5)]
    assert Drive(flag(SHADOW)).window(few).reasons == ["delta_s_p95_over"]


def test_what_was_served_before_the_weights_were_applied_is_no_problem_of_the_shadow_stage() -> None:
    """A rollout that begins after another: its first panes may still bring users of the one before."""
    drive = Drive(flag(SHADOW))
    drive.pane(requests("canary", 5))
    assert drive.window(shadow_window()).verdict == "promote"


def test_shadow_rows_are_no_evidence_of_a_served_stage() -> None:
    """shadow: mirrored, not served; after the shadow stage they count for nothing again."""
    drive = Drive(flag(SHADOW))
    drive.window(shadow_window())
    assert drive.window(shadow_window()).reasons == ["insufficient_data"]
    assert drive.window([*healthy(), *mirrored(CANARY, error=True)]).verdict == "promote"


def test_shadow_rows_of_the_baseline_count_for_nothing() -> None:
    """The baseline is served: its evidence is what it served."""
    decision = Drive(flag(SHADOW)).window([*mirrored(CANARY), *mirrored(BASELINE)])
    assert "no_pinned_baseline" in decision.reasons
    mixed = [*shadow_window(), *mirrored(requests("baseline", 60, cost=9.0, delta_s=1.0))]
    assert Drive(flag(SHADOW)).window(mixed).verdict == "promote"


def test_gold_rows_keep_their_part_in_the_shadow_stage() -> None:
    """With gold in both arms ΔS, coverage and λ come from gold, and gold counts for latency and errors."""
    gold = [dataclasses.replace(event, source="gold") for event in healthy(coverage=0.9)]
    decision = Drive(flag(SHADOW)).window([*shadow_window(coverage=0.65), *gold])
    assert decision.verdict == "promote"
    assert decision.arms["canary"].quality_source == "gold"
    assert decision.arms["canary"].requests == 2 * len(CANARY)


def test_settling_panes_after_the_shadow_stage_are_watched_on_its_evidence() -> None:
    """panes in [E, S) … under the old stage, watched by the abort rules only: its evidence is the shadow rows."""
    drive = Drive(flag(SHADOW))
    drive.window(shadow_window())
    (decision,) = drive.pane(shadow_window(error=True))
    assert (decision.verdict, decision.stage.index, drive.command().previous_weights.canary) == ("abort", 0, 0.05)


def test_a_drifted_shadow_row_is_found_in_the_shadow_stage() -> None:
    """Pins read every request but warm-up."""
    drifted = mirrored([Event("canary", pins={**PINNED, "TOK_VER": "u"})])
    decision = Drive(flag(SHADOW)).window([*shadow_window(), *drifted])
    assert decision.reasons == ["pins_drifted"]


def test_an_id_that_is_mirrored_is_still_the_baseline_s() -> None:
    """shadow does not count for a sticky violation: every mirrored id is served by the baseline."""
    events = [*mirrored(requests("canary", 20, sticky="user")), *requests("baseline", 20, sticky="user")]
    assert Drive(flag(SHADOW)).window([*shadow_window(), *events]).verdict == "promote"


def test_a_storm_of_the_shadow_stage_is_the_stage_before_of_the_first_served_one() -> None:
    """429 share ≥ 5 points over the baseline's and the stage before: what mirrored requests met is known."""
    drive = Drive(flag(SHADOW))
    limited = mirrored(requests("canary", 4, rate_limited=True))
    calm = mirrored(requests("canary", 50))
    assert drive.window([*shadow_window(), *limited, *calm]).verdict == "promote"
    assert drive.unit.rate_limited == pytest.approx(0.04)
    stormy = [*mirrored(requests("canary", 20, rate_limited=True)), *shadow_window()]
    assert Drive(flag(SHADOW)).window(stormy).reasons == ["rate_limit_storm"]


def test_shadow_labels_are_labels_of_shadow_rows() -> None:
    """Labels that arrive later: in the shadow stage those of mirrored requests stand for the canary's."""
    late = [dataclasses.replace(event, delta_s=None, coverage=None) for event in shadow_window()]
    told = mirrored(labels("canary", 30, delta_s=0.05, coverage=0.8)) + labels(
        "baseline", 30, delta_s=0.05, coverage=0.8
    )
    assert Drive(flag(SHADOW)).window([*late, *told]).verdict == "promote"
    bad = mirrored(labels("canary", 30, delta_s=0.05, coverage=0.4)) + labels(
        "baseline", 30, delta_s=0.05, coverage=0.8
    )
    assert Drive(flag(SHADOW)).window([*late, *bad]).reasons == ["coverage_under"]


def test_the_worst_events_of_the_shadow_stage_are_shadow_rows() -> None:
    """for a failed gate or fired rule, the three worst exemplars: of the evidence that failed it."""
    served = [dataclasses.replace(event, name="served") for event in requests("canary", 5, coverage=0.0, error=True)]
    decision = Drive(flag(SHADOW)).window([*served, *mirrored(CANARY, coverage=0.4, error=True, name="shadow")])
    assert {e.event_id for name in decision.exemplars for e in decision.exemplars[name]} == {"shadow"}
    assert {"coverage_under", "error_rate_over"} <= set(decision.exemplars)


def test_a_shadow_stage_that_goes_to_100_percent_pins_its_baseline() -> None:
    """At 100 % the baseline of the last window before the promote to it stays pinned."""
    drive = Drive(flag("traffic: {shadow: true, canary_weight: 1.0, baseline_weight: 0.0, stages: [1.0]}"))
    first = drive.window(shadow_window())
    decision = drive.window(CANARY)
    assert decision.verdict == "pass"
    pinned = decision.arms["baseline"].pinned_from
    assert pinned is not None
    assert pinned.hash == first.hash


@pytest.mark.parametrize("kind", ["cost_guard", "safety_guard"])
def test_a_guard_has_no_shadow_stage(kind: str) -> None:
    """Guards have no stages: with traffic.shadow they read what is served, at their one weight."""
    drive = Drive(flag(f"kind: {kind}\n{SHADOW}"))
    decision = drive.window(healthy(reason="ok"))
    assert (decision.verdict, decision.stage.canary_weight) == ("pass", 0.05)


def test_a_lambda_group_may_be_mirrored() -> None:
    """λ probes of the shadow stage are its own: an incomplete group of each source makes no complete one."""
    rest = [event for event in shadow_window() if event.probe is None or event.arm == "baseline"]
    six = probes("canary", "half")
    halves = [*mirrored(six[:3]), *six[3:]]
    decision = Drive(flag(SHADOW)).window([*rest, *halves])
    assert decision.reasons == ["served_at_weight_zero"]
    assert next(gate.status for gate in decision.gates if gate.gate == "lambda_convergent") == "unknown"
    assert Drive(flag(SHADOW)).window([*rest, *mirrored(six)]).verdict == "promote"
