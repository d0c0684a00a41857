"""Labels that arrive later: an evaluator's word on ΔS, coverage, λ and solved, in the window of its own time."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest

from schemas.decision import Decision
from tests.gates.build import Drive, Event, flag, healthy, label, labels, probes, requests

UNLABELLED = [dataclasses.replace(event, delta_s=None, coverage=None, solved=None, state=None) for event in healthy()]
"""What a service sends that measures none of the four itself."""


def told(arm: str, n: int = 30, **fields: Any) -> list[Event]:
    """Labels of all four for ``n`` requests of an arm, and of four λ groups."""
    return [
        *labels(arm, n, **{"delta_s": 0.05, "coverage": 0.8, "solved": True, **fields}),
        *[dataclasses.replace(event, kind="label", cost=None) for i in range(4) for event in probes(arm, f"q{i}")],
    ]


def decide(*events: Sequence[Event], body: str = "") -> Decision:
    return Drive(flag(body)).window([event for some in events for event in some])


def gate(decision: Decision, name: str) -> Any:
    return next(gate for gate in decision.gates if gate.gate == name)


def test_labels_can_stand_for_all_that_the_requests_do_not_tell() -> None:
    """ΔS, coverage, λ and `solved` often come minutes after the request from an evaluator: with them it promotes."""
    assert decide(UNLABELLED).verdict == "hold"
    decision = decide(UNLABELLED, told("canary"), told("baseline"))
    assert (decision.verdict, decision.evidence_problems) == ("promote", [])


def test_labels_count_in_the_window_of_their_own_ts() -> None:
    """count in the window of their own `ts`: the requests' window is undecided, the labels' is decided."""
    drive = Drive(flag())
    first = drive.window(UNLABELLED)
    assert (first.verdict, first.arms["canary"].delta_s_rows) == ("hold", 0)
    second = drive.window([*UNLABELLED, *told("canary"), *told("baseline")])
    assert (second.verdict, second.arms["canary"].delta_s_rows) == ("promote", 54)


@pytest.mark.parametrize(
    ("field", "value", "name", "observed"),
    [
        ("delta_s", 0.5, "delta_s.p95_max", 0.0),
        ("coverage", 0.1, "coverage_min", 0.1),
        ("state", "×", "lambda_convergent", None),
    ],
)
def test_where_both_arms_have_enough_labels_of_a_metric_its_rows_are_its_labels(
    field: str, value: Any, name: str, observed: float | None
) -> None:
    """Labels take over a metric where there are min_requests of them in both arms."""
    decision = decide(healthy(), labels("canary", 25, **{field: value}), labels("baseline", 20, **{field: value}))
    assert (gate(decision, name).observed, decision.verdict) == (pytest.approx(observed), decision.verdict)
    others = {"delta_s.p95_max", "coverage_min", "lambda_convergent"} - {name}
    assert {gate(decision, other).status for other in others} == {"pass"}


def test_a_few_labels_are_read_together_with_the_requests_own_values() -> None:
    """One label of forty requests takes nothing over, and is a value like theirs."""
    decision = decide(healthy(), [label("canary", coverage=0.9)])
    result = gate(decision, "coverage_min")
    assert (result.status, result.observed, result.n_canary) == ("pass", pytest.approx((46 * 0.8 + 0.9) / 47), 47)
    assert decision.verdict == "promote"


@pytest.mark.parametrize("words", [1, 19, 25])
def test_labels_blind_no_hard_rule(words: int) -> None:
    """Bad values of the requests themselves abort at the first look, whatever labels say beside them."""
    bad = [*requests("canary", 500, delta_s=0.9), *requests("baseline", 500)]
    good = [*labels("canary", words, delta_s=0.05), *labels("baseline", words, delta_s=0.05)]
    for said in ([], good, good[:words]):
        (early,) = Drive(flag()).pane([*bad, *said])
        assert (early.verdict, early.reasons) == ("abort", ["delta_s_p95_over"])


@pytest.mark.parametrize(("n", "status"), [(19, "unknown"), (20, "pass")])
@pytest.mark.parametrize("arm", ["canary", "baseline"])
def test_too_few_labels_are_unknown_never_zero(arm: str, n: int, status: str) -> None:
    """Too few labels → unknown, never zero: without own values min_requests holds for the labels, in either arm."""
    other = "baseline" if arm == "canary" else "canary"
    few = labels(arm, n, delta_s=0.05, coverage=0.8, solved=True, state="→")
    decision = decide(UNLABELLED, few, told(other), body="policy: {lambda_source: traffic}")
    seen = {result.gate: result.status for result in decision.gates}
    # Coverage and λ are the canary's alone.
    names = ["delta_s.median_max", "delta_s.p95_max", "cost_uplift_max"]
    names += ["coverage_min", "lambda_convergent"] if arm == "canary" else []
    assert {seen[name] for name in names} == {status}


def test_labels_of_one_arm_take_nothing_over() -> None:
    """Values and labels are read together in both arms: 46 requests and 30 labels here, 46 requests there."""
    decision = decide(healthy(), labels("canary", 30, delta_s=0.3))
    result = gate(decision, "delta_s.p95_max")
    assert (result.canary, result.baseline, result.observed) == (0.3, 0.05, 0.25)
    assert (result.n_canary, result.n_baseline) == (76, 46)


def test_rules_read_labels_as_gates_do() -> None:
    """that metric's rows are its labels: hard rules count and read them too, at a pane as at the end."""
    decision = decide(healthy(), labels("canary", 30, coverage=0.3))
    rule = next(rule for rule in decision.abort_rules if rule.kind == "coverage_under")
    assert (decision.verdict, rule.fired, rule.n, rule.observed) == ("abort", True, 30, 0.3)
    drive = Drive(flag())
    (early,) = drive.pane(labels("canary", 40, coverage=0.1))
    assert (early.verdict, early.reasons) == ("abort", ["coverage_under"])


def test_labelled_flips_fire_the_flip_rule() -> None:
    """λ is one of the four."""
    decision = decide(healthy(), labels("canary", 20, state="→"), labels("canary", 10, state="<>"))
    assert (decision.verdict, decision.reasons) == ("abort", ["lambda_flip_rate_over"])


def test_a_lambda_group_of_labels_is_complete_with_six_of_them() -> None:
    """A probe's labels carry its tags; five and a request make no group."""
    six = [dataclasses.replace(event, kind="label", cost=None) for event in probes("canary", "q")]
    rest = [event for event in healthy() if event.probe is None or event.arm == "baseline"]
    states = [*labels("canary", 20, state="→"), *labels("baseline", 20, state="→")]
    assert gate(decide(rest, six, states), "lambda_convergent").status == "pass"
    half = gate(decide(rest, six[:5], probes("canary", "q")[5:], states), "lambda_convergent")
    assert (half.status, half.n_canary) == ("unknown", 0)


def test_solved_labels_give_cost_per_solved() -> None:
    """Σcost ÷ solved: the requests' mean cost over the share of labels that say solved."""
    unsolved = [dataclasses.replace(event, solved=None) for event in healthy()]
    words = [labels(arm, n, solved=ok) for arm in ("canary", "baseline") for n, ok in ((15, True), (5, False))]
    decision = decide(unsolved, *words)
    result = gate(decision, "cost_uplift_max")
    assert (result.status, result.observed) == ("pass", 0)
    assert (result.canary, result.baseline) == (pytest.approx(0.5 / 0.75), pytest.approx(0.5 / 0.75))
    worse = [labels("canary", 10, solved=True), labels("canary", 10, solved=False), labels("baseline", 20, solved=True)]
    assert gate(decide(unsolved, *worse), "cost_uplift_max").observed == pytest.approx(1.0)


def test_solved_labels_take_over_from_the_requests_own_word() -> None:
    """With enough of them in both arms the requests' own word does not count; else both do."""
    words = [*labels("canary", 30, solved=False), *labels("baseline", 30, solved=True)]
    decision = decide(healthy(), words)
    assert gate(decision, "cost_uplift_max").status == "fail"
    assert decision.arms["canary"].solved == 0
    together = decide(healthy(), words[:30])
    assert gate(together, "cost_uplift_max").observed == pytest.approx(76 / 46 - 1)


def test_few_solved_labels_leave_cost_unknown_and_not_free() -> None:
    """Too few labels → unknown, never zero."""
    unsolved = [dataclasses.replace(event, solved=None) for event in healthy()]
    decision = decide(unsolved, labels("canary", 19, solved=True), labels("baseline", 30, solved=True))
    assert gate(decision, "cost_uplift_max").status == "unknown"


def test_labels_are_no_requests() -> None:
    """They need no latency or status: they are in no count of requests, errors, latencies or pins."""
    decision, other = decide(healthy(), told("canary"), told("baseline")), decide(healthy())
    for arm in ("canary", "baseline"):
        shown, plain = decision.arms[arm], other.arms[arm]
        assert (shown.requests, shown.traffic, shown.latency_p95, shown.cost) == (
            plain.requests,
            plain.traffic,
            plain.latency_p95,
            plain.cost,
        )
        assert (shown.labels, plain.labels) == (54, 0)


def test_labels_alone_are_insufficient_data() -> None:
    """min_requests counts requests that were served."""
    assert "insufficient_data" in decide(told("canary"), told("baseline")).reasons


def test_the_sticky_id_of_a_label_moves_nobody() -> None:
    """Sticky, sample ratio and assignment read traffic rows: an evaluator is no traffic."""
    decision = decide(healthy(), labels("canary", 30, sticky="baseline-0", coverage=0.8))
    assert decision.verdict == "promote"


def test_gold_labels_are_labels_of_gold_rows() -> None:
    """With quality from gold the labels of gold requests stand for it; those of traffic are for the hard rules."""
    gold = [dataclasses.replace(event, source="gold") for event in healthy()]
    bad = [*labels("canary", 30, coverage=0.65), *labels("baseline", 30, coverage=0.65)]
    assert decide(gold, healthy(), bad).verdict == "promote"
    gold_bad = [dataclasses.replace(event, source="gold") for event in bad]
    assert decide(gold, healthy(), gold_bad).reasons == ["coverage_min"]
    worse = [dataclasses.replace(event, coverage=0.1) for event in bad]
    assert decide(gold, healthy(), worse).reasons == ["coverage_under"]


def test_gold_labels_make_a_window_gold() -> None:
    """gold_if_present: if both arms have any gold events, and a label of a gold request is one."""
    words = [*labels("canary", 30, coverage=0.9, source="gold"), *labels("baseline", 30, coverage=0.9, source="gold")]
    decision = decide(healthy(), words)
    assert decision.arms["canary"].quality_source == "gold"
    assert gate(decision, "coverage_min").status == "pass"
    assert gate(decision, "delta_s.p95_max").status == "unknown"


@pytest.mark.parametrize("source", ["shadow"])
def test_labels_of_mirrored_requests_are_nothing_where_those_are_nothing(source: str) -> None:
    """shadow never counts outside the shadow stage."""
    assert decide(healthy(), labels("canary", 30, coverage=0.1, source=source)).verdict == "promote"


def test_the_worst_labels_are_named_where_labels_are_the_rows() -> None:
    """the three worst exemplars: of the rows that failed the gate, and no request's own word."""
    requests_own = requests("canary", 5, coverage=0.0, name="request")
    words = [label("canary", coverage=0.3 + i / 100, name=f"label {i}") for i in range(30)]
    shown = decide(healthy(), requests_own, words, labels("baseline", 30, coverage=0.8)).exemplars["coverage_under"]
    assert [(e.event_id, e.value) for e in shown] == [("label 0", 0.3), ("label 1", 0.31), ("label 2", 0.32)]


def test_a_unit_with_labels_that_is_read_back_at_every_pane_gives_the_same_bytes() -> None:
    """Labels are kept like everything else."""
    runs = []
    for restore in (False, True):
        drive = Drive(flag(), restore=restore)
        for _ in range(2):
            drive.until(drive.unit.window.end if drive.unit.settling else drive.now)
            drive.pane(told("canary"))
            drive.pane(told("baseline"))
            drive.window(UNLABELLED)
        runs.append([d.to_bytes() for d in drive.decisions])
        assert drive.decisions[-1].verdict == "promote"
    assert runs[0] == runs[1]
