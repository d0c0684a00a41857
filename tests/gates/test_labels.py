"""Labels that arrive later: an evaluator's word on ΔS, coverage, λ and solved, in the window of its own time."""

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.gates.build import (
    PANE,
    PINNED,
    Drive,
    Event,
    flag,
    hashed,
    healthy,
    label,
    labels,
    probes,
    requests,
    said,
    seen,
)
from tidegate.gates.codec import StateCodec
from tidegate.gates.labels import Labels
from tidegate.gates.unit import ASLEEP_AFTER, Unit
from tidegate.gates.window import PaneUnit
from tidegate.schemas.decision import Decision

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
    for beside in ([], good, good[:words]):
        (early,) = Drive(flag()).pane([*bad, *beside])
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
    (early,) = drive.pane([*requests("canary", 1), *labels("canary", 40, coverage=0.1)])
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


# -- whose a label is -------------------------------------------------------------------------------------------------

FOUR: dict[str, Any] = {"delta_s": 0.05, "coverage": 0.8, "solved": True}
NO_PINS: dict[str, str] = {}
ARMS = ("canary", "baseline")


def unmeasured(window: int = 0, n: int = 40) -> list[Event]:
    """A window's requests with names, that measure none of the four but λ of the probes."""
    silent = [dataclasses.replace(event, delta_s=None, coverage=None, solved=None) for event in healthy(n)]
    return [dataclasses.replace(event, name=f"{window}/{event.arm}/{i}") for i, event in enumerate(silent)]


def on(events: Sequence[Event], **fields: Any) -> list[Event]:
    """A label without pins of each of some requests, all in order."""
    said = {**FOUR, "pins": NO_PINS, **fields}
    return [label(event.arm, **{"name": event.name, "source": event.source, **said}) for event in events]


def heard(decision: Decision) -> list[tuple[int, int, int]]:
    """Labels of canary and baseline: those that count, foreign ones, those not followed."""
    return [(arm.labels, arm.labels_foreign, arm.labels_not_followed) for arm in (decision.arms[name] for name in ARMS)]


def test_labels_of_requests_that_nobody_saw_promote_nothing_and_are_shown() -> None:
    """A hundred of an earlier canary's, late: neither ΔS nor coverage comes of them, and everybody is told."""
    others = [label(arm, name=f"old {arm} {i}", **FOUR, pins=NO_PINS) for arm in ARMS for i in range(100)]
    decision = decide(unmeasured(), others)
    assert (decision.verdict, heard(decision)) == ("hold", [(0, 100, 0), (0, 100, 0)])
    assert {gate(decision, name).status for name in ("delta_s.p95_max", "coverage_min")} == {"unknown"}
    assert {warning.code: warning.count for warning in decision.warnings}["labels_foreign"] == 200


def test_foreign_labels_abort_nothing_and_blind_nothing() -> None:
    """No gate and no hard rule reads them."""
    worst = labels("canary", 100, delta_s=2.0, coverage=0.0, state="×", solved=False, pins=NO_PINS)
    assert decide(healthy(), worst).verdict == "promote"
    bad = [*requests("canary", 500, delta_s=0.9), *requests("baseline", 500)]
    good = [*labels("canary", 100, delta_s=0.05, pins=NO_PINS), *labels("baseline", 100, delta_s=0.05, pins=NO_PINS)]
    plain, beside = Drive(flag()).pane(bad)[0], Drive(flag()).pane([*bad, *good])[0]
    assert (plain.verdict, plain.gates, plain.abort_rules) == (beside.verdict, beside.gates, beside.abort_rules)


def test_labels_of_the_windows_own_requests_count_without_pins() -> None:
    """Joined by what they label, whatever they carry."""
    own = unmeasured()
    for pins in (NO_PINS, {"MODEL_VER": "another"}):
        decision = decide(own, on(own, pins=pins))
        assert (decision.verdict, heard(decision)) == ("promote", [(46, 0, 0), (46, 0, 0)])


@pytest.mark.parametrize(
    "change",
    [{"arm": "baseline"}, {"source": "gold"}, {"source": "shadow"}, {"name": "another"}],
    ids=["arm", "source", "mirrored", "request"],
)
def test_a_label_has_to_name_its_requests_arm_and_source(change: dict[str, Any]) -> None:
    """Of a request of the other arm, or of gold where it was traffic, it is foreign."""
    own = [event for event in unmeasured() if event.arm == "canary"]
    decision = decide(unmeasured(), [dataclasses.replace(event, **change) for event in on(own)])
    assert [counted for counted, _, _ in heard(decision)] == [0, 0]
    assert sum(foreign for _, foreign, _ in heard(decision)) == len(own)


@pytest.mark.parametrize(
    ("pins", "counts"),
    [
        (PINNED, True),
        ({**PINNED, "MODEL_VER": "n"}, False),
        ({name: pin for name, pin in PINNED.items() if name != "TOK_VER"}, False),
        ({**PINNED, "POLICY": "p"}, False),
        ({"MODEL_VER": "m"}, False),
        ({}, False),
    ],
)
def test_a_label_of_an_unknown_request_counts_with_all_the_pins_of_its_arm(
    pins: dict[str, str], *, counts: bool
) -> None:
    """Nothing less: another canary may share most of them."""
    decision = decide(unmeasured(), labels("canary", 30, **FOUR, pins=pins))
    assert heard(decision)[0] == ((30, 0, 0) if counts else (0, 30, 0))


def test_pins_that_no_request_of_the_arm_has_shown_are_not_the_arms() -> None:
    """The manifest names one of them: of the others nobody knows yet."""
    rules = flag("versions: {MODEL_VER: m}")
    lonely = Drive(rules).window([*requests("baseline", 40), *labels("canary", 30, **FOUR)])
    assert heard(lonely)[0] == (0, 30, 0)
    named = flag(f"versions: {{{', '.join(f'{name}: {pin}' for name, pin in PINNED.items())}}}")
    assert heard(Drive(named).window([*requests("baseline", 40), *labels("canary", 30, **FOUR)]))[0] == (30, 0, 0)


def test_a_label_may_come_windows_after_its_request_in_the_same_stage() -> None:
    """The ids of the stage are kept, not the window's."""
    drive, first = Drive(flag()), unmeasured()
    assert drive.window(first).verdict == "hold"
    assert drive.window(unmeasured(1)).verdict == "hold"
    decision = drive.window([*unmeasured(2), *on(first)])
    assert (decision.verdict, heard(decision)) == ("promote", [(46, 0, 0), (46, 0, 0)])


def test_labels_of_the_stage_before_are_foreign_to_the_next() -> None:
    """Its evidence is its own; while it settles the hard rules still read what is said of the same canary."""
    drive, first = Drive(flag()), unmeasured()
    assert drive.window([*first, *on(first)]).verdict == "promote"
    again = drive.window([*unmeasured(1), *on(first)])
    assert (again.verdict, heard(again)) == ("hold", [(0, 46, 0), (0, 46, 0)])
    drive = Drive(flag("window: {length: 1m, settle: 30s}"))
    drive.window([*first, *on(first)])
    assert drive.unit.settling
    canary = [event for event in first if event.arm == "canary"]
    (early,) = drive.pane(on(canary, coverage=0.0))
    assert (early.verdict, early.reasons) == ("abort", ["coverage_under"])


def test_labels_of_requests_from_before_a_rearm_are_foreign() -> None:
    """No request that was served before it is evidence for the rollout after it, and no word on one."""
    drive, first = Drive(flag()), unmeasured()
    drive.pane(first)
    drive.operate("kill")
    drive.operate("rearm")
    settling = unmeasured(1)
    drive.feed(settling)
    decision = drive.window([*unmeasured(2), *on(first), *on(settling)])
    assert (decision.verdict, heard(decision)) == ("hold", [(0, 92, 0), (0, 92, 0)])


def test_where_there_are_no_stages_labels_are_of_this_window_or_the_one_before() -> None:
    """Guards and quality gates forget with each window."""
    drive, first = Drive(flag("kind: safety_guard")), unmeasured()
    drive.window(first)
    assert heard(drive.window([*unmeasured(1), *on(first)])) == [(46, 0, 0), (46, 0, 0)]
    assert heard(drive.window([*unmeasured(2), *on(first)])) == [(0, 46, 0), (0, 46, 0)]


def test_a_killed_unit_follows_no_more_requests_and_calls_no_label_foreign() -> None:
    """It has no stage that a label could be of, or not."""
    drive, first = Drive(flag()), unmeasured()
    drive.pane(first)
    drive.operate("kill")
    later = unmeasured(1)
    decision = drive.window([*later, *on(later), *on(first)])
    assert heard(decision) == [(46, 0, 46), (46, 0, 46)]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_label_may_come_through_another_partition_than_its_request(order: tuple[int, int]) -> None:
    """In the same pane too, whichever partition is added first."""
    rules, own = flag(), unmeasured()
    drive = Drive(rules)
    drive.until(drive.unit.window.end - drive.clockwork.pane_ms)
    parts = seen(own, partition=order[0]), seen(on(own), partition=order[1])
    for partition, part in sorted(zip(order, parts, strict=True), key=lambda pair: pair[0]):
        drive.ramp.add(partition, part)
    (decision,) = drive.close()
    assert (decision.verdict, heard(decision)) == ("promote", [(46, 0, 0), (46, 0, 0)])


def test_beyond_the_cap_labels_of_one_request_in_two_count_and_the_others_are_not_followed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the hash of their request: a fair sample. What would be followed and is not known is foreign as ever."""
    monkeypatch.setattr("tidegate.gates.samples.REQUESTS_CAP", 64)
    many = [dataclasses.replace(event, name=f"r{i}") for i, event in enumerate(requests("canary", 100))]
    others = [dataclasses.replace(event, name=f"x{i}") for i, event in enumerate(many)]
    drive = Drive(flag())
    drive.pane([*many, *requests("baseline", 40), *on(many), *on(others)])
    sample = drive.unit.requests.of("canary", "traffic")
    level = sample.level
    kept = {event.name for event in many if hashed(event.name) < 1 << 64 - level}
    assert level >= 1
    assert len(kept) == len(sample.ids) <= 64
    foreign = sum(hashed(event.name) < 1 << 64 - level for event in others)
    (arm, _) = heard(drive.window([*unmeasured(1, 4)]))
    assert arm == (len(kept), foreign, 200 - len(kept) - foreign)
    assert drive.decisions[-1].arms["canary"].delta_s_rows >= len(kept)


def test_with_its_arms_pins_a_label_counts_though_its_request_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pins need no memory."""
    monkeypatch.setattr("tidegate.gates.samples.REQUESTS_CAP", 8)
    many = [dataclasses.replace(event, name=f"r{i}") for i, event in enumerate(requests("canary", 100))]
    assert heard(decide(many, requests("baseline", 40), on(many, pins=PINNED)))[0] == (100, 0, 0)


@pytest.mark.parametrize("cut", [1, 7, 100])
def test_of_more_labels_than_a_pane_holds_those_of_every_second_request_are_kept(
    cut: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hash, however they came in portions; the others are counted."""
    monkeypatch.setattr("tidegate.gates.labels.LABELS_CAP", 40)
    told = on([Event("canary", name=f"r{i}") for i in range(100)])
    whole = said(told, range(100))
    labels_ = Labels(pins=whole.pins)
    for at in range(0, 100, cut):
        labels_.add(whole.table[at : at + cut], whole.names[at : at + cut])
    kept = [i for i in range(100) if hashed(f"r{i}") < 1 << 64 - labels_.level]
    more = [i for i in range(100) if hashed(f"r{i}") < 1 << 65 - labels_.level]
    assert (labels_.count, labels_.table["offset"].tolist()) == (100, kept)
    assert labels_.names == [f"r{i}" for i in kept]
    assert len(kept) <= 40 < len(more)


def test_labels_without_end_of_one_request_are_all_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thinning cannot tell them apart; a partial stays small all the same."""
    monkeypatch.setattr("tidegate.gates.labels.LABELS_CAP", 40)
    whole = said(on([Event("canary", name="r")] * 41), range(41))
    none = Labels()
    none.add(whole.table, whole.names)
    assert (none.count, none.rows, none.names) == (41, b"", [])


def test_labels_of_more_sets_of_pins_than_are_listed_carry_none() -> None:
    """Thirty-two sets of one arm and source in a pane and partition."""
    whole = Labels()
    assert [whole.set_of(f'{{"MODEL_VER":"{i}"}}') for i in (*range(34), 0)] == [*range(32), -1, -1, 0]


def test_of_two_windows_the_coarser_sample_says_what_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request of the window before that was thinned away is not foreign, however few there are in this one."""
    monkeypatch.setattr("tidegate.gates.samples.REQUESTS_CAP", 64)
    many = [dataclasses.replace(event, name=f"r{i}") for i, event in enumerate(requests("canary", 100))]
    drive = Drive(flag("kind: safety_guard"))
    drive.window([*many, *requests("baseline", 40)])
    level = drive.unit.earlier.of("canary", "traffic").level if drive.unit.earlier else 0
    kept = sum(hashed(event.name) < 1 << 64 - level for event in many)
    few = requests("canary", 3, name="few")
    assert level >= 1
    assert heard(drive.window([*few, *on(many), *on(few)]))[0] == (
        kept + 3 * (hashed("few") < 1 << 64 - level),
        0,
        103 - kept - 3 * (hashed("few") < 1 << 64 - level),
    )


def test_labels_of_requests_from_before_a_rearm_stop_nothing_while_it_settles() -> None:
    """The hard rules watch the rollout after it; what was before is another's."""
    drive, first = Drive(flag("window: {length: 1m, settle: 1m}")), unmeasured()
    drive.pane(first)
    drive.operate("kill")
    drive.operate("rearm")
    assert drive.pane(on(first, coverage=0.0)) == []


def test_what_a_guard_is_shown_while_it_settles_is_no_part_of_its_first_window() -> None:
    """Kinds without stages know two windows, but nothing from before a rearm has settled."""
    drive, settling = Drive(flag("kind: safety_guard\nwindow: {length: 1m, settle: 30s}")), unmeasured()
    drive.pane(unmeasured(1))
    drive.operate("rearm")
    drive.pane(settling)
    assert heard(drive.window([*unmeasured(2), *on(settling)])) == [(0, 46, 0), (0, 46, 0)]


@pytest.mark.parametrize("source", ["gold", "shadow"])
def test_foreign_labels_make_no_early_look_harder(source: str) -> None:
    """Hard rules share their level between the kinds of rows that speak; who does not count does not speak."""
    for n in range(36, 60):
        bad = [*requests("canary", n, coverage=0.3), *requests("baseline", n)]
        others = [label(arm, source=source, coverage=0.9, pins=NO_PINS, name="x") for arm in ARMS for _ in range(30)]
        plain, beside = Drive(flag()).pane(bad), Drive(flag()).pane([*bad, *others])
        assert [decision.abort_rules for decision in plain] == [decision.abort_rules for decision in beside]


def test_what_comes_late_while_a_unit_sleeps_is_not_kept_for_when_it_wakes() -> None:
    """No restart in between would know of it."""
    found = []
    for restore in (False, True):
        drive = Drive(flag(), restore=restore)
        drive.window(healthy())
        drive.unit.idle = ASLEEP_AFTER
        drive.ramp.add(0, PaneUnit(behind={0: seen(labels("canary", 5, **FOUR))}))
        drive.close()
        drive.ramp.wake(drive.now)
        drive.pane(healthy())
        found.append(StateCodec(Unit).dump(drive.unit))
    assert found[0] == found[1]


class Stage:
    """The slow model: which labels of a stage count, one event after the other."""

    def __init__(self, rules: Any) -> None:
        self.rules, self.known = rules, set[tuple[str, str, str]]()
        self.locked: dict[str, dict[str, str]] = {"canary": dict(rules.versions), "baseline": {}}

    def pane(self, events: Sequence[Event]) -> dict[str, list[int]]:
        """By arm: labels that count, and foreign ones."""
        for event in events:
            if event.kind == "request":
                self.known.add((event.arm, event.source, event.name))
                for name, pin in event.pins.items():
                    self.locked[event.arm].setdefault(name, pin)
        counts = {arm: [0, 0] for arm in ARMS}
        for event in events:
            if event.kind == "label":
                own = event.pins == self.locked[event.arm] and len(event.pins) >= 6
                foreign = not own and (event.arm, event.source, event.name) not in self.known
                counts[event.arm][foreign] += 1
        return counts


def drawn(rng: random.Random, n: int) -> list[Event]:
    """Requests and labels, some of them of each other."""
    some = []
    for _ in range(n):
        arm, source = rng.choice(ARMS), rng.choice(["traffic", "traffic", "gold", "shadow"])
        pins = rng.choice([PINNED, PINNED, {**PINNED, "TOK_VER": "u"}, {"MODEL_VER": "m"}, {}])
        kind = rng.choice(["request", "label", "label"])
        fields: dict[str, Any] = {"source": source, "name": f"e{rng.randrange(60)}", "pins": pins}
        some.append(label(arm, **FOUR, **fields) if kind == "label" else Event(arm, **fields))
    return some


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), restore=st.booleans())
def test_which_labels_count_is_what_a_slow_model_says(seed: int, *, restore: bool) -> None:
    """Over panes, windows, partitions and restarts; a promote begins the next stage with nothing known."""
    rng = random.Random(seed)
    rules = flag("window: {length: 1m, min_requests: 1000000}")
    drive, model = Drive(rules, restore=restore), Stage(rules)
    for _ in range(2):
        totals = {arm: [0, 0] for arm in ARMS}
        while True:
            parts = [drawn(rng, rng.randrange(12)) for _ in range(3)]
            # Which of two pins is seen first goes by the partition.
            for arm, counts in model.pane([event for part in parts for event in part]).items():
                totals[arm] = [a + b for a, b in zip(totals[arm], counts, strict=True)]
            for partition, part in enumerate(parts):
                drive.ramp.add(partition, seen(part, pane=drive.now // PANE, partition=partition))
            if found := drive.close():
                break
        assert heard(found[-1]) == [(*totals[arm], 0) for arm in ARMS]
