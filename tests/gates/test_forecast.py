"""What a hold waits for: how much of what is missing, and when it is there at the window's own rate."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.gates.build import Drive, Event, arms_of, flag, healthy, labels, probes, requests
from tidegate.gates.forecast import SHARES, forecast
from tidegate.gates.metrics import ArmMetrics, read_arms
from tidegate.gates.rules import Comparison
from tidegate.schemas.decision import Forecast, GateResult, Need, Problem
from tidegate.schemas.manifest import Flag

MINUTE = 60_000
FEW = Problem(problem="insufficient_data", detail={"canary": 0, "baseline": 0, "min_requests": 20})
PLAIN = flag()


def judged(rules: Flag, events: Sequence[Event]) -> tuple[ArmMetrics, ArmMetrics, list[GateResult]]:
    """Both arms of a window, and its gates."""
    canary, baseline = arms_of(events)
    arms = read_arms(canary, baseline, rules.policy.quality_source, rules.window.min_requests)
    return arms.canary, arms.baseline, Comparison.of(rules, arms).gates()


def ask(
    events: Sequence[Event], rules: Flag = PLAIN, *, problems: Sequence[Problem] | None = None, **more: Any
) -> Forecast | None:
    """The forecast of a window of one minute; too few requests are a problem, as in a decision."""
    canary, baseline, gates = judged(rules, events)
    if problems is None:
        problems = [FEW] if min(canary.rows, baseline.rows) < rules.window.min_requests else []
    return forecast(rules, canary, baseline, gates, problems, MINUTE, **more)


def needs(events: Sequence[Event], rules: Flag = PLAIN) -> list[tuple[str, str, str, int, int]]:
    """The needs of a window as plain values."""
    found = ask(events, rules)
    return [] if found is None else [(n.reason, n.arm, n.what, n.have, n.need) for n in found.needs]


def test_requests_below_the_minimum_are_counted_by_arm_with_what_they_wait_for() -> None:
    """8 of 20 in a minute: 12 more take 1.5 minutes, in which 48 requests of both arms come."""
    events = [*requests("canary", 8), *requests("baseline", 24), *probes("baseline")]
    found = ask([*events, *probes("canary")[:0]])
    assert found is not None
    assert found.needs[0] == Need(reason="insufficient_data", arm="canary", what="requests", have=8, need=20)
    without_lambda = flag("gates: {lambda_convergent: false, delta_s: null, coverage_min: null, cost_uplift_max: null}")
    assert ask([*requests("canary", 8), *requests("baseline", 24)], without_lambda) == Forecast(
        needs=[Need(reason="insufficient_data", arm="canary", what="requests", have=8, need=20)],
        requests=48,
        minutes=1.5,
    )


def test_the_last_need_to_be_met_sets_the_time() -> None:
    """Canary 10 of 20 takes a minute, baseline 4 of 20 takes four."""
    rules = flag("gates: {lambda_convergent: false, delta_s: null, coverage_min: null, cost_uplift_max: null}")
    found = ask([*requests("canary", 10), *requests("baseline", 4)], rules)
    assert found is not None
    assert [(n.arm, n.have) for n in found.needs] == [("canary", 10), ("baseline", 4)]
    assert (found.requests, found.minutes) == (56, 4.0)


def test_where_none_came_at_all_there_is_no_telling_when() -> None:
    found = ask(requests("baseline", 40))
    assert found is not None
    assert found.needs[0] == Need(reason="insufficient_data", arm="canary", what="requests", have=0, need=20)
    assert (found.requests, found.minutes) == (None, None)


def test_an_empty_baseline_is_waited_for_like_any_other() -> None:
    """The problem no_pinned_baseline is then one of too little data; two sets of pins in it are not."""
    none = Problem(problem="no_pinned_baseline", detail={"requests": 0})
    mixed = Problem(problem="no_pinned_baseline", detail={"pins": {"MODEL_VER": ["a", "b"]}})
    events = requests("canary", 40)
    found = ask(events, problems=[FEW, none])
    assert found is not None
    assert [n.arm for n in found.needs if n.what == "requests"] == ["baseline"]
    assert ask(events, problems=[FEW, mixed]) is None


def test_what_is_missing_is_not_counted_where_the_window_is_left_out_of_its_stage() -> None:
    """All of it would seem to be: the canary's requests of a window without a baseline are no evidence."""
    drive = Drive(flag("policy: {evidence: sequential}"))
    decision = drive.window(requests("canary", 40))
    assert (decision.reasons, decision.forecast) == (["insufficient_data", "no_pinned_baseline"], None)


def test_probe_groups_are_counted_when_complete() -> None:
    rules = flag("window: {length: 1m, min_lambda_groups: 3}")
    both = [*requests("canary", 40), *requests("baseline", 40)]
    one = probes("canary", "q1")
    assert needs([*both, *one, *probes("canary", "q2")[:5]], rules) == [
        ("lambda_convergent", "canary", "lambda groups", 1, 3)
    ]
    found = ask([*both, *one], rules)
    assert found is not None
    assert found.minutes == 2.0
    assert found.requests == 2 * (40 + 40 + 6)


def test_lambda_of_traffic_is_counted_in_rows() -> None:
    rules = flag("policy: {lambda_source: traffic}")
    events = [*requests("canary", 30, state="→"), *requests("canary", 10), *requests("baseline", 40)]
    assert needs(events, rules) == [("lambda_convergent", "canary", "rows with lambda_state", 30, 38)]
    many = flag("policy: {lambda_source: traffic}\nwindow: {length: 1m, min_lambda_groups: 60}")
    every = [*requests("canary", 40, state="→"), *requests("baseline", 40)]
    assert needs(every, many) == [("lambda_convergent", "canary", "events with lambda_state", 40, 60)]


@pytest.mark.parametrize(
    ("field", "gate", "what"),
    [
        ("delta_s", "delta_s.median_max", "rows with delta_s"),
        ("coverage", "coverage_min", "rows with coverage"),
        ("cost", "cost_uplift_max", "requests with cost and solved"),
    ],
)
def test_a_metric_may_be_missing_on_5_percent_of_the_windows_rows(field: str, gate: str, what: str) -> None:
    """94 of 100 are too few by one; 95 are enough."""

    def window(present: int) -> list[Event]:
        without = requests("canary", 100 - present, **{field: None})
        canary = [*requests("canary", present - 6), *probes("canary"), *without]
        return [*canary, *requests("baseline", 100)]

    assert needs(window(94)) == [(gate, "canary", what, 94, 95)]
    assert ask(window(95)) is None


def test_a_share_that_is_too_small_stays_so_at_the_same_rate() -> None:
    """There is no time to tell, though requests alone would take a minute."""
    rules = flag("gates: {lambda_convergent: false}")
    events = [*requests("canary", 5, delta_s=None), *requests("canary", 5), *requests("baseline", 40)]
    found = ask(events, rules)
    assert found is not None
    assert [(n.what, n.have, n.need) for n in found.needs] == [("requests", 10, 20), ("rows with delta_s", 5, 10)]
    assert (found.requests, found.minutes) == (None, None)


def test_tool_results_may_be_missing_as_rarely() -> None:
    """A share of the requests with calls: those without any do not dilute it."""

    def window(told: int) -> list[Event]:
        untold = requests("canary", 100 - told, tool_calls=1)
        return [*requests("canary", told, tool_calls=1, tool_ok=1), *healthy(400), *untold]

    assert needs(window(94)) == [("tool_success_min", "canary", "requests with tool_ok", 94, 95)]
    assert ask(window(95)) is None


def test_a_canary_without_tool_calls_waits_for_one_where_the_baseline_has_them() -> None:
    events = [*healthy(40), *requests("baseline", 5, tool_calls=1, tool_ok=1)]
    assert needs(events) == [("tool_success_min", "canary", "tool calls", 0, 1)]


def test_a_baseline_that_solved_nothing_is_waited_for() -> None:
    events = [*requests("canary", 40), *probes("canary"), *requests("baseline", 40, solved=False)]
    assert needs(events) == [("cost_uplift_max", "baseline", "solved requests", 0, 1)]


def test_gold_rows_are_called_so_where_they_are_what_quality_is_read_from() -> None:
    """The policy names gold, and there is too little of it."""
    only = flag("policy: {quality_source: gold}")
    assert needs(healthy(40), only)[0] == ("delta_s.median_max", "canary", "gold rows", 0, 20)


def test_rows_of_traffic_beside_gold_in_one_arm_are_not_called_requests() -> None:
    """The canary served 29 requests, of which 9 are traffic."""
    events = [*requests("canary", 9), *requests("canary", 20, source="gold"), *requests("baseline", 40)]
    assert ("delta_s.median_max", "canary", "quality rows", 9, 20) in needs(events)


def silent(n: int, **untold: Any) -> list[Event]:
    """Requests of both arms, and their probes, that do not tell some fields themselves."""
    return [replace(event, **untold) for event in healthy(n)]


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("solved", True, "cost_uplift_max"),
        ("delta_s", 0.05, "delta_s.median_max"),
        ("coverage", 0.9, "coverage_min"),
    ],
)
def test_too_few_labels_are_waited_for_as_labels(field: str, value: Any, reason: str) -> None:
    """Where the requests do not tell a metric themselves, it is labels that are missing, in the arm that lacks them."""
    words = [*labels("canary", 7, **{field: value}), *labels("baseline", 30, **{field: value})]
    found = needs([*silent(40, **{field: None}), *words])
    assert (reason, "canary", f"labels with {field}", 7, 20) in found
    assert not [need for need in found if need[1] == "baseline" and "labels" in need[2]]


def test_where_requests_tell_a_metric_themselves_no_labels_are_waited_for() -> None:
    """Few labels are read together with the requests' own values."""
    assert needs([*healthy(40), *labels("canary", 7, solved=True, delta_s=0.05, coverage=0.9)]) == []


def test_what_several_gates_lack_is_listed_once() -> None:
    """With the first of them as its reason; what comes with requests anyway is not listed beside them."""
    assert needs([*requests("canary", 8), *requests("baseline", 40)]) == [
        ("insufficient_data", "canary", "requests", 8, 20),
        ("lambda_convergent", "canary", "lambda groups", 0, 1),
    ]
    assert needs([*requests("canary", 40, delta_s=None), *probes("canary"), *requests("baseline", 40)]) == [
        ("delta_s.median_max", "canary", "rows with delta_s", 6, 44),
    ]


@pytest.mark.parametrize(
    "events",
    [
        healthy(40),
        [*requests("canary", 40, latency=0), *probes("canary", latency=0), *requests("baseline", 40, latency=0)],
        [*requests("canary", 40), *probes("canary"), *requests("baseline", 40, cost=0)],
        healthy(40, error=True),
        [*requests("canary", 40, error=True), *requests("baseline", 40)],
    ],
    ids=["all known", "baseline latency 0", "baseline cost 0", "a gate failed", "one failed, one unknown"],
)
def test_where_more_requests_do_not_help_nothing_is_forecast(events: list[Event]) -> None:
    assert ask(events) is None


@pytest.mark.parametrize("problem", ["pins_drifted", "sticky_violation", "window_unstable", "something_new"])
def test_other_evidence_problems_do_not_go_away_with_more_requests(problem: str) -> None:
    """Not even where data is too little as well."""
    events = [*requests("canary", 8), *requests("baseline", 40)]
    assert ask(events) is not None
    assert ask(events, problems=[FEW, Problem(problem=problem, detail={})]) is None


def test_a_pinned_baseline_neither_grows_nor_counts() -> None:
    rules = flag("gates: {lambda_convergent: false, delta_s: null, coverage_min: null, cost_uplift_max: null}")
    few_canary = [*requests("canary", 10), *requests("baseline", 1_000)]
    assert ask(few_canary, rules, pinned=True) == Forecast(
        needs=[Need(reason="insufficient_data", arm="canary", what="requests", have=10, need=20)],
        requests=10,
        minutes=1.0,
    )
    assert ask([*requests("canary", 10), *requests("baseline", 10)], rules, pinned=True) is None


def test_a_quality_gate_waits_for_its_own_gates_alone() -> None:
    """Failed requests do not matter to it; unknown λ does."""
    rules = flag("kind: quality_gated")
    events = [*requests("canary", 40, error=True, cost=None), *requests("baseline", 40)]
    assert needs(events, rules) == [("lambda_convergent", "canary", "lambda groups", 0, 1)]


def test_a_cost_guard_waits_for_costs_alone() -> None:
    rules = flag("kind: cost_guard")
    events = [*requests("canary", 40, delta_s=None, cost=None), *requests("baseline", 40)]
    assert needs(events, rules) == [("cost_uplift_max", "canary", "requests with cost and solved", 0, 38)]


def test_a_safety_guard_waits_for_the_canarys_reason_steps_alone() -> None:
    rules = flag("kind: safety_guard")
    assert needs(requests("canary", 8), rules) == [
        ("insufficient_data", "canary", "requests", 8, 20),
        ("reason_status", "canary", "requests with reason_status", 0, 20),
    ]


GOLD = flag("policy: {quality_source: gold}\nwindow: {length: 1m, min_lambda_groups: 2}")
MANY = flag("window: {length: 1m, min_requests: 50}")


def given(events: list[Event], need: Need, source: str) -> list[Event]:
    """The events with what a need lacks: more of them, or the metric on some of those that had none."""
    lacking = need.need - need.have
    if need.what.startswith("labels with "):
        told = {"delta_s": 0.05, "coverage": 0.8, "solved": True, "lambda_state": "→"}
        field = need.what.removeprefix("labels with ")
        more: dict[str, Any] = {"state" if field == "lambda_state" else field: told[field]}
        return [*events, *labels(need.arm, lacking, **more)]
    if need.what == "lambda groups":
        return [*events, *(event for i in range(lacking) for event in probes(need.arm, f"more-{i}", source=source))]
    if need.what not in SHARES:
        return [*events, *requests(need.arm, lacking, source=source if need.what == "gold rows" else "traffic")]
    metrics: dict[str, dict[str, Any]] = {
        "rows with delta_s": {"delta_s": 0.05},
        "rows with coverage": {"coverage": 0.8},
        "rows with lambda_state": {"state": "→"},
        "requests with cost": {"cost": 0.5},
    }
    metric = metrics.get(need.what, {"cost": 0.5, "solved": True})
    mended = []
    for event in events:
        silent = event.kind == "request" and any(getattr(event, field) is None for field in metric)
        mend = lacking > 0 and event.arm == need.arm and silent
        lacking -= mend
        mended.append(replace(event, **metric) if mend else event)
    return mended


@pytest.mark.parametrize("rules", [PLAIN, GOLD, MANY], ids=["plain", "gold", "many"])
@pytest.mark.parametrize("canary", [1, 7, 19, 33])
@pytest.mark.parametrize("missing", [{}, {"delta_s": None}, {"coverage": None}, {"cost": None}])
def test_what_is_asked_for_is_enough(rules: Flag, canary: int, missing: dict[str, Any]) -> None:
    """Given to every need, no gate is unknown any more and nothing more is asked."""
    events = [*requests("canary", canary, **missing), *requests("baseline", 12, **missing)]
    for _ in range(2):
        found = ask(events, rules)
        for need in found.needs if found else ():
            events = given(events, need, "gold" if rules is GOLD else "traffic")
    assert ask(events, rules) is None
    assert "unknown" not in {gate.status for gate in judged(rules, events)[2]}


TRAFFIC = flag("policy: {lambda_source: traffic}")
TELLS: dict[str, Any] = {"delta_s": 0.05, "coverage": 0.8, "solved": True, "state": "→"}


@pytest.mark.parametrize("field", TELLS)
@pytest.mark.parametrize("own", [(0, 0), (0, 40), (40, 0), (36, 36), (36, 40), (1, 40), (40, 40)])
@pytest.mark.parametrize("words", [(1, 0), (0, 1), (1, 1), (19, 20), (20, 20), (3, 40)])
def test_what_is_asked_for_is_enough_beside_labels(field: str, own: tuple[int, int], words: tuple[int, int]) -> None:
    """However many requests tell a metric themselves in canary and baseline, and however many labels there are."""
    value = {field: TELLS[field]}
    events: list[Event] = []
    for arm, telling, told in zip(("canary", "baseline"), own, words, strict=True):
        whole = {"state": "→"} | value
        events += [*requests(arm, telling, **whole), *requests(arm, 40 - telling, **whole | {field: None})]
        events += labels(arm, told, **value)
    for _ in range(3):
        found = ask(events, TRAFFIC)
        for need in found.needs if found else ():
            events = given(events, need, "traffic")
    assert ask(events, TRAFFIC) is None
    assert "unknown" not in {gate.status for gate in judged(TRAFFIC, events)[2]}


def test_one_label_beside_the_requests_own_values_is_waited_for_by_nobody() -> None:
    """A tenth of the requests lacks ΔS: that is what has to change, and no rate of labels tells when."""
    canary = [*requests("canary", 36), *requests("canary", 4, delta_s=None), *labels("canary", 1, delta_s=0.05)]
    found = ask([*canary, *probes("canary"), *requests("baseline", 40)])
    assert found is not None
    assert [(need.arm, need.what) for need in found.needs] == [("canary", "rows with delta_s")]
    assert found.minutes is None


def test_labels_that_stand_for_all_requests_are_waited_for_at_their_rate() -> None:
    """5 of 20 a minute in each arm take three minutes more."""
    silent = [replace(event, delta_s=None) for event in healthy()]
    found = ask([*silent, *labels("canary", 5, delta_s=0.05), *labels("baseline", 5, delta_s=0.05)])
    assert found is not None
    assert [(need.arm, need.what, need.have, need.need) for need in found.needs] == [
        ("canary", "labels with delta_s", 5, 20),
        ("baseline", "labels with delta_s", 5, 20),
    ]
    assert found.minutes == 3.0
