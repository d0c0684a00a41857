"""Sequential evidence, sentence by sentence: what a stage is judged by, when it is promoted, when it is stopped."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from tests.gates.build import WINDOW, Drive, Event, flag, healthy, probes, requests
from tidegate.gates.bounds import excludes_from_below
from tidegate.gates.sequential import Levels
from tidegate.schemas.decision import Decision, GateResult
from tidegate.schemas.manifest import Flag

POLICY = "evidence: sequential"


def sequential(policy: str = "", body: str = "", *, probes: bool = False) -> Flag:
    """A flag with sequential evidence; λ is off unless ``probes``."""
    gates = "" if probes or "gates:" in body else "gates: {lambda_convergent: false}\n"
    return flag(f"policy: {{evidence: sequential, {policy}}}\n{gates}{body}")


def both(n: int, baseline: int | None = None, **canary: Any) -> list[Event]:
    """Requests of both arms; ``canary`` changes the canary's."""
    return [*requests("canary", n, **canary), *requests("baseline", n if baseline is None else baseline)]


def mixed(n: int, bad: int, **fields: Any) -> list[Event]:
    """Requests of both arms, ``bad`` of the canary's with other fields."""
    return [*both(n - bad, n), *requests("canary", bad, **fields)]


def gate(decision: Decision, name: str) -> GateResult:
    return next(result for result in decision.gates if result.gate == name)


def statuses(decision: Decision) -> dict[str, str]:
    return {result.gate: result.status for result in decision.gates}


ERRORS = "error_rate_max"


# The evidence of a stage


def test_windows_add_up_until_the_stage_is_settled() -> None:
    """No single window of 150 requests can rule 1 % of errors out; three together do."""
    drive = Drive(sequential())
    first, second, third = (drive.window(both(150)) for _ in range(3))
    assert [d.verdict for d in (first, second, third)] == ["hold", "hold", "promote"]
    assert ERRORS in first.reasons
    assert [gate(d, ERRORS).n_canary for d in drive.decisions] == [150, 300, 450]
    assert [gate(d, ERRORS).status for d in drive.decisions] == ["undecided", "undecided", "pass"]
    assert [(d.evidence.windows, d.evidence.left_out, d.evidence.since) for d in drive.decisions if d.evidence] == [
        (1, 0, 0),
        (2, 0, 0),
        (3, 0, 0),
    ]
    assert third.arms["canary"].requests == 450


def test_a_gate_shows_the_bounds_at_which_it_decides_and_what_it_rules_out() -> None:
    """Passing is decided by the upper end at wrong_promote, stopping by the lower one at the gate's share."""
    drive = Drive(sequential())
    for _ in range(3):
        decision = drive.window(both(150))
    errors = gate(decision, ERRORS)
    assert (errors.rule_out, errors.lower) == (0.01, 0.0)
    assert errors.upper is not None
    assert 0.005 < errors.upper < 0.01
    assert gate(decision, "tool_success_min").rule_out == 0.98
    assert gate(decision, "lambda_convergent").status == "off"


def test_min_requests_are_held_against_the_stage() -> None:
    """A window too thin to be judged alone still counts."""
    drive = Drive(sequential())
    assert drive.window(both(10)).reasons[0] == "insufficient_data"
    decision = drive.window(both(10))
    assert "insufficient_data" not in decision.reasons
    assert gate(decision, ERRORS).n_canary == 20
    assert decision.evidence is not None
    assert (decision.evidence.windows, decision.evidence.left_out) == (2, 0)


def test_a_window_with_an_evidence_problem_is_left_out_and_the_decision_says_so() -> None:
    """What is wrong with it blocks its promote; its rows stay out of the gates for the whole stage."""
    drive = Drive(sequential())
    drive.window(both(450, latency=100.0), late=0)
    assert drive.unit.stage == 0
    drive = Drive(sequential())
    drive.window(both(200))
    spoilt = drive.window(both(300), late=50)
    assert spoilt.reasons == ["window_unstable"]
    assert gate(spoilt, ERRORS).n_canary == 200
    after = drive.window(both(100))
    assert gate(after, ERRORS).n_canary == 300
    assert after.evidence is not None
    assert (after.evidence.windows, after.evidence.left_out) == (2, 1)


def test_hard_rules_read_windows_that_were_left_out() -> None:
    """An evidence problem never suppresses an abort, also where no single window could prove it."""
    drive = Drive(sequential())
    verdicts = []
    for _ in range(20):
        verdicts.append(drive.window(mixed(60, 3, error=True), late=60).verdict)
        if verdicts[-1] == "abort":
            break
    assert set(verdicts[:-1]) == {"hold"}
    assert verdicts[-1] == "abort"
    assert len(verdicts) > 2
    assert drive.decisions[-1].arms["canary"].requests == 0


@pytest.mark.parametrize("what", ["promote", "rearm"])
def test_the_next_stage_begins_with_nothing(what: str) -> None:
    """Never across stages, nor across a rearm."""
    drive = Drive(sequential())
    if what == "promote":
        assert drive.window(both(450)).verdict == "promote"
    else:
        drive.window(both(300))
        drive.operate("rearm")
    decision = drive.window(both(150))
    assert gate(decision, ERRORS).n_canary == 150
    assert decision.evidence is not None
    assert decision.evidence.since == decision.window.start == drive.decisions[-1].window.start


def test_at_full_weight_the_whole_evidence_of_the_stage_before_stands_in_for_the_baseline() -> None:
    drive = Drive(sequential(body="traffic: {stages: [0.5, 1.0]}"))
    drive.window(both(200, 300))
    assert drive.window(both(250, 300)).verdict == "promote"
    full = drive.window(requests("canary", 100))
    assert full.arms["baseline"].requests == 600
    pinned = full.arms["baseline"].pinned_from
    assert pinned is not None
    assert (pinned.start, pinned.end) == (0, 2 * WINDOW)
    assert gate(full, "latency_p95_uplift_max").n_baseline == 600


def test_a_state_written_out_and_read_back_between_all_panes_gives_the_same_bytes() -> None:
    """Restarts change nothing, digests that are no longer exact included."""

    def run(*, restore: bool) -> list[bytes]:
        drive = Drive(sequential(body="traffic: {stages: [0.5, 1.0]}", probes=True), restore=restore)
        for i in range(6):
            events = [
                Event(arm, sticky=f"{arm}-{j % 9}", latency=100.0 + (i * 7919 + j * 31) % 997 / 7, state="→")
                for arm in ("canary", "baseline")
                for j in range(300)
            ]
            for at in range(0, 600, 150):
                drive.pane(events[at : at + 150])
            drive.window(probes("canary", f"q{i}"))
        return [d.to_bytes() for d in drive.decisions] + [c.to_bytes() for c in drive.commands]

    assert run(restore=True) == run(restore=False)


def test_evidence_holds_as_much_as_one_window_however_many_there_were() -> None:
    """Neither λ groups nor pins nor ids of earlier windows are kept by name."""
    drive = Drive(sequential(body="window: {length: 1m, hold_windows: 99}", probes=True))
    sizes = []
    for i in range(6):
        drive.window([*both(30), *[e for q in range(20) for e in probes("canary", f"{i}-{q}", sticky="canary-0")]])
        sums = drive.unit.evidence.canary.sources["traffic"]
        sizes.append((len(sums.groups), len(sums.pins), len(sums.sticky.ids)))
    assert set(sizes) == {(0, 0, 0)}
    assert drive.decisions[-1].arms["canary"].lambda_complete == 120


# Promote


def test_a_promote_comes_only_at_a_window_s_end() -> None:
    """Proven in the first pane, told with the window."""
    drive = Drive(sequential())
    assert drive.pane(both(900)) == []
    assert [d.verdict for d in drive.until(WINDOW)] == ["promote"]


def test_hold_windows_are_green_ones_in_a_row() -> None:
    drive = Drive(sequential(body="window: {length: 1m, hold_windows: 3}"))
    verdicts = [(d.verdict, d.reasons) for d in (drive.window(both(450)) for _ in range(3))]
    assert verdicts == [("hold", ["hold_windows"])] * 2 + [("promote", ["all_gates_pass"])]


def test_a_value_over_its_limit_does_not_pass_though_the_value_to_rule_out_is_excluded() -> None:
    """A promote implies that the plain predicate holds."""
    drive = Drive(sequential())
    decision = drive.window(mixed(20_000, 120, error=True))
    errors = gate(decision, ERRORS)
    assert errors.observed == 0.006
    assert errors.upper is not None
    assert errors.upper < 0.01
    assert errors.status == "undecided"
    assert decision.verdict == "hold"


def test_lambda_needs_35_groups_without_a_flip_and_fails_on_one_that_does_not_converge() -> None:
    """The flip rate's bound has to exclude 0.20."""
    drive = Drive(sequential(probes=True))

    def asked(first: int, last: int) -> list[Event]:
        arms = ("canary", "baseline")
        return [e for q in range(first, last) for arm in arms for e in probes(arm, f"q{q}", sticky=f"{arm}-0")]

    assert gate(drive.window([*both(400), *asked(0, 34)]), "lambda_convergent").status == "undecided"
    # The same query in another window is another group.
    decision = drive.window([*both(1), *asked(0, 1)])
    assert gate(decision, "lambda_convergent").status == "pass"
    assert gate(decision, "lambda_convergent").n_canary == 35
    drive.until(drive.unit.window.end)
    diverging = drive.pane([*both(100), *probes("canary", "q", ["→", "→", "×", "→", "→", "→"], sticky="canary-0")])
    assert [(d.verdict, d.reasons, d.window.closed) for d in diverging] == [("rollback", ["lambda_convergent"], False)]


def test_the_waiver_asks_for_its_gain_on_the_stage_s_evidence() -> None:
    """Dearer by a fifth and a half better: waived once quality is known, though no single window shows it."""
    drive = Drive(sequential())
    better: dict[str, Any] = {"cost": 0.62, "delta_s": 0.01, "coverage": 0.9}
    for _ in range(2):
        decision = drive.window(both(200, **better))
    assert gate(decision, "cost_uplift_max").status == "waived"
    assert decision.verdict == "promote"
    drive = Drive(sequential())
    assert [d.verdict for d in drive.pane(both(600, cost=0.62))] == ["freeze"]


def test_cost_is_unknown_below_fifty_solved_requests_of_either_arm() -> None:
    drive = Drive(sequential())
    decision = drive.window(both(49, 500))
    assert gate(decision, "cost_uplift_max").status == "unknown"
    assert decision.forecast is not None
    assert ("canary", "solved requests", 49, 50) in [(n.arm, n.what, n.have, n.need) for n in decision.forecast.needs]
    assert gate(drive.window(both(1, 500)), "cost_uplift_max").status == "pass"


def test_a_canary_that_solves_nothing_fails_where_the_baseline_would_have_solved_fifty() -> None:
    drive = Drive(sequential())
    assert drive.pane([*requests("canary", 49, solved=False), *requests("baseline", 200)]) == []
    assert [d.verdict for d in drive.pane(requests("canary", 1, solved=False))] == ["freeze"]


def test_a_gate_whose_limit_is_the_worst_value_has_nothing_to_rule_out() -> None:
    decision = Drive(sequential(body="gates: {lambda_convergent: false, tool_success_min: 0}")).window(
        both(50, tool_calls=1, tool_ok=0)
    )
    assert gate(decision, "tool_success_min").rule_out is None
    assert gate(decision, "tool_success_min").status == "pass"


# Stop


def first_stop(rules: Flag, bad: dict[str, Any], share: float = 1.0, limit: int = 400) -> tuple[Drive, Decision | None]:
    """Panes of 20 canary requests of which a share is bad, until something is said."""
    drive, owed = Drive(rules), 0.0
    for _ in range(limit):
        owed += 20 * share
        made = drive.pane(mixed(20, int(owed), **bad))
        owed -= int(owed)
        said = [d for d in made if d.verdict != "hold"]
        if said:
            return drive, said[0]
    return drive, None


def test_a_rate_proven_over_its_limit_is_rolled_back_within_the_window() -> None:
    """From the first pane on in which the bound at the gate's level excludes the limit."""
    rules = sequential(body="abort_rules: {hard: []}")
    drive, stopped = first_stop(rules, {"error": True}, 0.05)
    assert stopped is not None
    assert (stopped.verdict, stopped.reasons, stopped.window.closed) == ("rollback", [ERRORS], False)
    assert stopped.decided_at == drive.now
    assert drive.command().effective_from == drive.now
    assert drive.command().severity is None
    n, level = gate(stopped, ERRORS).n_canary, 0.05 / (7 * 4)
    errors = round((gate(stopped, ERRORS).observed or 0.0) * n)
    assert excludes_from_below(errors, n, 0.005, level, 600)
    assert not excludes_from_below(errors - 1, n - 20, 0.005, level, 600)
    assert drive.window(both(30)).reasons == ["latched"]


def test_what_is_proven_over_the_hard_rule_s_value_aborts() -> None:
    drive, stopped = first_stop(sequential(), {"error": True}, 0.5)
    assert stopped is not None
    assert (stopped.verdict, stopped.reasons) == ("abort", ["error_rate_over"])
    assert drive.command().severity == "hard"


def test_at_a_window_s_end_a_bare_value_over_a_hard_limit_stops_nothing() -> None:
    """Two errors of 60 are 3 %, and may be chance."""
    decision = Drive(sequential()).window(mixed(60, 2, error=True))
    assert decision.verdict == "hold"
    assert not any(rule.fired for rule in decision.abort_rules)


@pytest.mark.parametrize(
    ("bad", "name"),
    [
        ({"tool_calls": 1, "tool_ok": 0}, "tool_success_min"),
        ({"coverage": 0.0}, "coverage_min"),
        ({"delta_s": 0.5}, "delta_s.median_max"),
        ({"error": True}, ERRORS),
    ],
)
def test_other_gates_roll_back(bad: dict[str, Any], name: str) -> None:
    _, stopped = first_stop(sequential(body="abort_rules: {hard: []}"), bad)
    assert stopped is not None
    assert stopped.verdict == "rollback"
    assert name in stopped.reasons


@pytest.mark.parametrize(
    ("bad", "name", "rule"),
    [
        ({"latency": 500.0}, "latency_p95_uplift_max", "latency_p95_over_budget"),
        ({"cost": 5.0}, "cost_uplift_max", "cost_per_solved_over_budget"),
    ],
)
def test_latency_and_cost_freeze_and_roll_back_if_it_is_still_so_at_the_window_s_end(
    bad: dict[str, Any], name: str, rule: str
) -> None:
    """One freeze, not one a pane."""
    drive = Drive(sequential())
    for _ in range(6):
        drive.pane(both(200, **bad))
    assert [(d.verdict, d.window.closed) for d in drive.decisions] == [("freeze", False), ("rollback", True)]
    assert drive.decisions[0].reasons == [name, rule]
    assert [c.weights.canary for c in drive.commands] == [0.05, 0.0]
    assert {c.severity for c in drive.commands} == {"soft"}


def test_a_frozen_stage_that_recovers_is_not_rolled_back() -> None:
    drive = Drive(sequential())
    for _ in range(2):
        drive.pane(both(200, cost=5.0))
    drive.pane(both(40_000, cost=0.48, latency=100.0))
    decision = drive.until(WINDOW)[-1]
    assert drive.decisions[0].verdict == "freeze"
    assert decision.verdict in ("hold", "promote")


def test_with_on_gate_fail_hold_nothing_is_stopped_but_by_hard_rules() -> None:
    rules = sequential("on_gate_fail: hold", "abort_rules: {hard: []}")
    drive = Drive(rules)
    decision = drive.window(both(200, error=True))
    assert [(d.verdict, d.reasons) for d in drive.decisions] == [("hold", [ERRORS])]
    assert gate(decision, ERRORS).status == "fail"


def test_no_gate_stops_on_a_window_with_an_evidence_problem() -> None:
    """An evidence problem beats a failed gate; not a hard rule."""
    rules = sequential(body="abort_rules: {hard: []}")
    drive = Drive(rules)
    assert drive.pane(both(300, error=True), late=300) == []
    assert drive.until(WINDOW)[-1].reasons == ["window_unstable"]
    drive = Drive(sequential())
    assert [d.verdict for d in drive.pane(both(300, error=True), late=300)] == ["abort"]


def test_a_long_healthy_past_hides_no_sudden_fault() -> None:
    """Hard rules look at the present window alone too."""
    drive = Drive(sequential(body="window: {length: 1m, hold_windows: 99}"))
    for _ in range(10):
        assert drive.window(both(800)).verdict == "hold"
    made = drive.pane(both(60, error=True))
    assert [(d.verdict, d.reasons) for d in made] == [("abort", ["error_rate_over"])]
    # Of the whole stage that is 0.7 %.
    assert made[0].abort_rules[-3].n == 60


def test_a_settling_stage_is_watched_by_hard_rules_alone_on_what_it_shows_itself() -> None:
    drive = Drive(sequential())
    drive.window(both(450))
    assert drive.pane(both(300, latency=900.0)) == []
    assert [d.verdict for d in drive.pane(both(100, error=True))] == ["abort"]


def test_the_level_of_a_gate_is_its_share_of_gates_and_stages() -> None:
    """Eight gates, four stages: 0.05/32. A gate that is off leaves its share, unless its hard rule is on."""
    assert Levels.of(flag(), 1).part == pytest.approx(0.05 / 32)
    assert Levels.of(flag("traffic: {shadow: true}"), 1).part == pytest.approx(0.05 / 40)
    off = "gates: {cost_uplift_max: null, coverage_min: null}"
    assert Levels.of(flag(off), 1).part == pytest.approx(0.05 / 28)
    assert Levels.of(flag(f"{off}\npolicy: {{false_stop: 0.1}}"), 1).part == pytest.approx(0.1 / 28)


def test_what_is_proven_has_to_be_proven_on_all_rows_of_the_stage() -> None:
    """Windows that are looked at and left out again would be so many chances to stop a healthy canary."""
    rules = sequential(body="abort_rules: {hard: []}")
    bad = mixed(400, 20, error=True)
    assert [d.verdict for d in Drive(rules).pane(bad)] == ["rollback"]
    drive = Drive(rules)
    assert drive.window(both(3000), late=3000).reasons == ["window_unstable"]
    assert drive.pane(bad) == []
    decision = drive.until(2 * WINDOW)[-1]
    errors = gate(decision, ERRORS)
    assert (decision.verdict, errors.status, errors.n_canary, errors.observed) == ("hold", "undecided", 400, 0.05)
    assert errors.lower is not None
    assert errors.lower < 0.005
    # The 400 rows alone would be proven already.
    assert errors.forecast is not None
    assert errors.forecast.canary is None or errors.forecast.canary > 1000


def test_all_windows_after_the_last_stage_was_passed_share_one_more_part() -> None:
    parts = [Levels.of(flag(), 1, cycle).part for cycle in range(2, 3000)]
    assert sum(parts) == pytest.approx(0.05 / 32, rel=1e-3)
    assert Levels.of(flag(), 1, 1).part == Levels.of(flag(), 9, 1).part


def test_a_unit_that_has_passed_is_judged_by_what_comes_after() -> None:
    """Latency against the pinned baseline only warns; errors still stop it, and are not drowned by the past."""
    drive = Drive(sequential(body="traffic: {stages: [0.5, 1.0]}"))
    drive.window(both(450))
    assert drive.window(requests("canary", 600)).verdict == "pass"
    slow = drive.window(requests("canary", 600, latency=300.0))
    assert slow.verdict == "pass"
    assert "drifted_from_pinned_baseline" in [w.code for w in slow.warnings]
    assert slow.evidence is not None
    assert slow.evidence.windows == 1
    stopped = drive.pane(requests("canary", 100, error=True))
    assert [d.verdict for d in stopped] == ["abort"]


def test_what_a_restart_forgets_changes_no_window_that_is_ended_early() -> None:
    """How long the evidence took to come is told up to the moment, whoever closed the panes before."""

    def said(*, restore: bool) -> bytes:
        drive = Drive(sequential(), restore=restore)
        drive.pane(both(50))
        drive.operate("rearm")
        return drive.decisions[0].to_bytes()

    assert said(restore=True) == said(restore=False)


# What else a record says


def test_a_hold_that_lasts_longer_than_patience_says_so() -> None:
    drive = Drive(sequential("patience: 150s"))
    said = ["patience" in drive.window(both(20)).reasons for _ in range(4)]
    assert said == [False, False, True, True]


def test_an_undecided_gate_says_how_many_requests_and_how_long_it_takes() -> None:
    """100 requests without an error in a minute; 382 rule 1 % out."""
    decision = Drive(sequential()).window(both(100, 1900))
    foreseen = gate(decision, ERRORS).forecast
    assert foreseen is not None
    assert foreseen.outcome == "pass"
    assert foreseen.canary is not None
    assert foreseen.minutes is not None
    assert foreseen.baseline == 0
    drive = Drive(sequential())
    drive.window(both(100, 1900))
    passes = drive.window(both(foreseen.canary + 1, 1900))
    assert gate(passes, ERRORS).status == "pass"
    assert foreseen.canary == pytest.approx(foreseen.minutes * 100, rel=0.05)
    fewer = Drive(sequential())
    fewer.window(both(100, 1900))
    assert gate(fewer.window(both(round(foreseen.canary * 0.9), 1900)), ERRORS).status == "undecided"
    latency = gate(decision, "latency_p95_uplift_max").forecast
    assert latency is not None
    assert latency.baseline is not None
    assert latency.canary is not None
    assert latency.baseline == pytest.approx(19 * latency.canary, rel=0.02)


def test_a_value_beyond_the_one_to_rule_out_is_said_to_fail_and_one_between_to_end_not_soon() -> None:
    bad = Drive(sequential()).window(mixed(100, 2, error=True))
    foreseen = gate(bad, ERRORS).forecast
    assert foreseen is not None
    assert foreseen.outcome == "fail"
    between = gate(Drive(sequential()).window(mixed(1000, 7, error=True)), ERRORS)
    assert between.status == "undecided"
    assert between.forecast is not None
    assert (between.forecast.outcome, between.forecast.canary, between.forecast.minutes) == (None, None, None)


def test_a_design_effect_asks_for_so_many_more_requests() -> None:
    plain, clustered = (Drive(sequential(policy)) for policy in ("", "design_effect: 3"))
    assert plain.window(both(450)).verdict == "promote"
    held = clustered.window(both(450))
    assert gate(held, ERRORS).status == "undecided"
    clustered.window(both(450))
    assert clustered.window(both(450)).verdict == "promote"


def test_point_evidence_says_null_where_sequential_evidence_says_more() -> None:
    record = json.loads(Drive(flag("policy: {evidence: point}")).window(healthy()).to_bytes())
    assert record["evidence"] is None
    assert {(g["rule_out"], g["forecast"]) for g in record["gates"]} == {(None, None)}


def test_other_kinds_decide_window_by_window() -> None:
    drive = Drive(flag("kind: quality_gated\npolicy: {quality_source: traffic}"))
    assert drive.window(healthy()).verdict == "open"
    assert drive.decisions[-1].evidence is None


def test_a_kill_ends_the_evidence_and_a_rearm_begins_anew() -> None:
    drive = Drive(sequential())
    drive.window(both(300))
    drive.operate("kill")
    latched = drive.window(both(100))
    assert (latched.reasons, gate(latched, ERRORS).n_canary) == (["latched"], 100)
    drive.operate("rearm")
    drive.until(drive.unit.window.end)
    assert gate(drive.window(both(100)), ERRORS).n_canary == 100


def test_a_window_that_a_rearm_ends_is_shown_with_the_stage_it_belonged_to() -> None:
    drive = Drive(sequential())
    drive.window(both(100))
    drive.pane(both(100))
    drive.operate("rearm")
    ended = drive.decisions[-2]
    assert (ended.reasons, gate(ended, ERRORS).n_canary) == (["rearm"], 200)


def test_an_early_rollback_or_freeze_holds_nothing_that_came_after_its_pane() -> None:
    """The same log up to that pane gives the same record."""
    rules = sequential(body="abort_rules: {hard: []}")

    def said(after: Sequence[Event]) -> bytes:
        drive = Drive(rules)
        drive.pane(both(300, latency=900.0))
        drive.pane(after)
        return drive.decisions[0].to_bytes()

    assert said([]) == said(both(50, error=True))
