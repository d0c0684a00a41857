"""Gates and abort rules, sentence by sentence: what passes, fails, is unknown, waived, or fires."""

import dataclasses
import itertools
import math
from typing import Any

import pytest

from tests.gates.build import Event, compare, flag, gate, healthy, probes, requests, rule
from tidegate.gates.bounds import excludes_from_above, excludes_from_below, interval
from tidegate.schemas.decision import GateResult, RuleResult

F = flag()
GATES = (
    "delta_s.median_max",
    "delta_s.p95_max",
    "coverage_min",
    "lambda_convergent",
    "latency_p95_uplift_max",
    "error_rate_max",
    "tool_success_min",
    "cost_uplift_max",
)
HARD = ("delta_s_p95_over", "coverage_under", "lambda_flip_rate_over", "error_rate_over")
SOFT = ("latency_p95_over_budget", "cost_per_solved_over_budget")


def two(n: int = 40, baseline: dict[str, Any] | None = None, **canary: Any) -> list[Event]:
    """n untagged requests in either arm."""
    return [*requests("canary", n, **canary), *requests("baseline", n, **(baseline or {}))]


def statuses(events: list[Event], rules: Any = F) -> dict[str, str]:
    return {result.gate: result.status for result in compare(rules, events).gates()}


# Gates


def test_all_gates_are_listed_in_the_manifest_s_order_even_when_the_first_fails() -> None:
    """All gates are evaluated and listed even when the first fails."""
    results = compare(F, healthy(delta_s=1.0, latency=1e6, error=True, cost=9.0)).gates()
    assert tuple(result.gate for result in results) == GATES
    assert {result.gate for result in results if result.status == "fail"} == {
        "delta_s.median_max",
        "delta_s.p95_max",
        "latency_p95_uplift_max",
        "error_rate_max",
        "cost_uplift_max",
    }


def test_a_healthy_window_passes_every_gate() -> None:
    """The other tests change one thing about this window."""
    assert set(statuses(healthy()).values()) == {"pass", "not_applicable"}


@pytest.mark.parametrize(
    ("name", "canary", "observed"),
    [
        ("delta_s.median_max", {"delta_s": 0.10}, 0.05),
        ("delta_s.p95_max", {"delta_s": 0.20}, 0.15),
        ("coverage_min", {"coverage": 0.6}, 0.6),
        ("latency_p95_uplift_max", {"latency": 130.0}, 0.3),
        ("error_rate_max", {"error": True}, 1.0),
        ("tool_success_min", {"tool_calls": 10, "tool_ok": 9}, 0.9),
        ("cost_uplift_max", {"cost": 0.6}, 0.2),
    ],
)
def test_each_gate_fails_beyond_its_limit(name: str, canary: dict[str, Any], observed: float) -> None:
    """Each of the page's targets fails on its own metric, with the value shown."""
    result = gate(F, two(**canary), name)
    assert result.status == "fail"
    assert result.observed == pytest.approx(observed)


@pytest.mark.parametrize("delta_s", [0.0, 0.01])
def test_drift_is_signed_and_only_a_rise_fails(delta_s: float) -> None:
    """ΔS drift is signed (only a rise fails)."""
    events = two(delta_s=delta_s, baseline={"delta_s": 1.9})
    for name in ("delta_s.median_max", "delta_s.p95_max"):
        result = gate(F, events, name)
        assert result.status == "pass"
        assert result.observed == pytest.approx(delta_s - 1.9)


def test_drift_is_the_difference_of_quantiles_not_the_quantile_of_differences() -> None:
    """quantile(canary) − quantile(baseline), type 7: hand-computed on 21 values."""
    c = [Event("canary", delta_s=i / 100) for i in range(21)]
    b = [Event("baseline", delta_s=i / 1000) for i in range(21)]
    assert gate(F, c + b, "delta_s.p95_max").observed == pytest.approx(0.19 - 0.019)
    assert gate(F, c + b, "delta_s.median_max").observed == pytest.approx(0.10 - 0.010)


@pytest.mark.parametrize(
    ("name", "events"),
    [
        ("coverage_min", two(600, coverage=0.7)),
        ("cost_uplift_max", two(600, cost=1.1, baseline={"cost": 1.0})),
        ("latency_p95_uplift_max", two(600, latency=1.15, baseline={"latency": 1.0})),
        ("delta_s.p95_max", two(600, delta_s=0.5, baseline={"delta_s": 0.4})),
        ("delta_s.median_max", two(600, delta_s=0.33, baseline={"delta_s": 0.30})),
        ("error_rate_max", [*two(597), *requests("canary", 3, error=True)]),
        ("tool_success_min", two(600, tool_calls=100, tool_ok=99)),
    ],
)
def test_equality_passes_a_gate_despite_floating_point(name: str, events: list[Event]) -> None:
    """Sums of 600 × 0.7 pass 0.70, 1.1/1.0 − 1 passes 0.10, and so on: 1e-9 absolute slack."""
    assert gate(F, events, name).status == "pass"


@pytest.mark.parametrize(
    ("name", "limit", "canary"),
    [
        ("coverage_min", "coverage_min: 0.70", {"coverage": 0.7 - 1e-8}),
        ("cost_uplift_max", "cost_uplift_max: 0.10", {"cost": 0.55 * (1 + 1e-8)}),
        ("latency_p95_uplift_max", "latency_p95_uplift_max: 0.15", {"latency": 115.0 * (1 + 1e-8)}),
        ("delta_s.p95_max", "delta_s: {p95_max: 0.10}", {"delta_s": 0.15 + 1e-8}),
        ("delta_s.median_max", "delta_s: {median_max: 0.10}", {"delta_s": 0.15 + 1e-8}),
    ],
)
def test_the_slack_forgives_rounding_and_nothing_more(name: str, limit: str, canary: dict[str, Any]) -> None:
    """A value 1e-8 beyond the limit fails: the slack is 1e-9."""
    assert gate(flag(f"gates: {{{limit}}}"), two(**canary), name).status == "fail"


def test_coverage_is_the_mean_over_the_canary() -> None:
    """Coverage = mean over the canary; the baseline's is only shown."""
    events = [*two(20, coverage=0.5, baseline={"coverage": 0.1}), *requests("canary", 20, coverage=1.0)]
    result = gate(F, events, "coverage_min")
    assert result.status == "pass"
    assert result.observed == pytest.approx(0.75)
    assert result.baseline == pytest.approx(0.1)


@pytest.mark.parametrize(("bad", "status", "share"), [(0, "pass", 1.0), (1, "fail", 0.5)])
def test_every_complete_group_must_converge_in_all_six_runs(bad: int, status: str, share: float) -> None:
    """λ: every complete probe group convergent in all six; `observed` is the share of convergent groups."""
    states = ["→"] * (6 - bad) + ["<>"] * bad
    result = gate(F, [*two(), *probes("canary", "a"), *probes("canary", "b", states)], "lambda_convergent")
    assert (result.status, result.observed, result.threshold, result.n_canary) == (status, share, True, 2)


def test_the_baseline_s_divergent_groups_do_not_fail_the_canary() -> None:
    """λ reads the canary's groups."""
    events = [*two(), *probes("canary"), *probes("baseline", "q", ["×"] * 6)]
    assert gate(F, events, "lambda_convergent").status == "pass"


def test_an_incomplete_group_counts_for_the_flip_rate_and_never_for_the_gate() -> None:
    """Five runs, one of them ×: the gate passes on the complete group, the flip rate is 1/2."""
    events = [*two(), *probes("canary", "a"), *probes("canary", "b", ["×", "→", "→", "→", "→"])]
    assert gate(F, events, "lambda_convergent").status == "pass"
    assert rule(F, events, "lambda_flip_rate_over").observed == 0.5


def test_no_complete_group_leaves_lambda_unknown_even_if_incomplete_ones_diverge() -> None:
    """No complete λ group → unknown."""
    events = [*two(), *probes("canary", "b", ["×"] * 5)]
    result = gate(F, events, "lambda_convergent")
    assert (result.status, result.observed) == ("unknown", None)


def test_fewer_groups_than_the_manifest_asks_leave_lambda_unknown() -> None:
    """min_lambda_groups complete groups are needed."""
    rules = flag("window: {length: 1m, min_lambda_groups: 2}")
    one = [*two(), *probes("canary", "a")]
    assert gate(rules, one, "lambda_convergent").status == "unknown"
    assert gate(rules, [*one, *probes("canary", "b")], "lambda_convergent").status == "pass"


def test_with_traffic_as_lambda_source_every_event_must_converge() -> None:
    """lambda_source: traffic: every event must be convergent and min_lambda_groups counts events."""
    rules = flag("policy: {lambda_source: traffic}\nwindow: {length: 1m, min_lambda_groups: 40}")
    assert gate(rules, two(40, state="→"), "lambda_convergent").status == "pass"
    assert gate(rules, two(39, state="→"), "lambda_convergent").status == "unknown"
    one_bad = [*two(40, state="→"), *requests("canary", 1, state="←")]
    result = gate(rules, one_bad, "lambda_convergent")
    assert result.status == "fail"
    assert result.observed == pytest.approx(40 / 41)


def test_with_traffic_as_lambda_source_missing_states_make_it_unknown() -> None:
    """More than 5 % of the rows without a state: unknown."""
    rules = flag("policy: {lambda_source: traffic}")
    states = [*two(95, state="→"), *requests("canary", 5), *requests("baseline", 5)]
    assert gate(rules, states, "lambda_convergent").status == "pass"
    assert gate(rules, [*states, *requests("canary", 1)], "lambda_convergent").status == "unknown"


# Unknown


@pytest.mark.parametrize("arm", ["canary", "baseline"])
def test_fewer_than_min_requests_in_either_arm_make_every_gate_unknown(arm: str) -> None:
    """Fewer than min_requests in either arm: unknown, whatever the values say."""
    rest = [e for e in healthy(14) if e.arm != arm]
    few = [*requests(arm, 13, error=True, latency=1e9), *probes(arm)]
    assert set(statuses([*rest, *rest, *few]).values()) == {"unknown"}
    enough = statuses([*rest, *rest, *few, *requests(arm, 1)])
    assert enough.pop("tool_success_min") == "not_applicable"
    assert "unknown" not in enough.values()


def test_no_baseline_makes_every_gate_unknown() -> None:
    """No baseline → unknown, for gates on the canary alone too."""
    events = [*requests("canary", 40, tool_calls=2, tool_ok=0, error=True, coverage=0.0), *probes("canary")]
    assert set(statuses(events).values()) == {"unknown"}


def test_min_requests_comes_from_the_manifest() -> None:
    """min_requests: 5 suffices where the manifest says so."""
    rules = flag("window: {length: 1m, min_requests: 5}")
    assert gate(rules, two(5), "error_rate_max").status == "pass"
    assert gate(rules, two(4), "error_rate_max").status == "unknown"


@pytest.mark.parametrize("arm", ["canary", "baseline"])
def test_gold_rows_below_min_requests_in_an_arm_leave_quality_to_traffic(arm: str) -> None:
    """One gold row, or nineteen, take nothing over; with a policy that names gold they are too few."""
    other = "baseline" if arm == "canary" else "canary"
    gold = [*requests(arm, 19, source="gold", delta_s=0.09), *requests(other, 60, source="gold", delta_s=0.09)]
    found = statuses([*healthy(), *gold])
    assert [found[name] for name in GATES[:4]] == ["pass"] * 4
    found = statuses([*healthy(), *gold], flag("policy: {quality_source: gold}"))
    assert [found[name] for name in GATES[:4]] == ["unknown"] * 4


@pytest.mark.parametrize("arm", ["canary", "baseline"])
@pytest.mark.parametrize("name", ["delta_s.median_max", "delta_s.p95_max", "cost_uplift_max"])
@pytest.mark.parametrize(("present", "status"), [(95, "pass"), (94, "unknown")])
def test_a_metric_of_both_arms_is_unknown_if_more_than_5_percent_of_either_s_rows_lack_it(
    arm: str, name: str, present: int, status: str
) -> None:
    """More than 5 % of the rows without a value → unknown, in either arm; 5 % is fine."""
    without = {"delta_s": None} if name.startswith("delta_s") else {"cost": None}
    other = "baseline" if arm == "canary" else "canary"
    rows = [*requests(arm, present), *requests(arm, 100 - present, **without), *requests(other, 100)]
    assert gate(flag("gates: {cost_uplift_max: 0.2}"), rows, name).status == status


@pytest.mark.parametrize(("present", "status"), [(95, "pass"), (94, "unknown")])
def test_coverage_is_unknown_if_more_than_5_percent_of_the_canary_s_rows_lack_it(present: int, status: str) -> None:
    """Coverage reads the canary, so only its rows can lack it."""
    rows = [*requests("canary", present), *requests("canary", 100 - present, coverage=None)]
    events = [*rows, *requests("baseline", 100, coverage=None)]
    assert gate(F, events, "coverage_min").status == status


def test_rows_that_do_not_say_whether_they_were_solved_lack_cost_per_solved() -> None:
    """A row without `solved` has no cost per solved, as a row without `cost` has none."""
    assert gate(F, [*two(94), *two(6, solved=None)], "cost_uplift_max").status == "unknown"
    assert gate(F, [*two(96), *two(4, solved=None, cost=0.0)], "cost_uplift_max").status == "pass"


@pytest.mark.parametrize("name", ["delta_s.median_max", "delta_s.p95_max", "coverage_min", "cost_uplift_max"])
def test_no_value_of_a_metric_is_unknown_and_shown_as_null(name: str) -> None:
    """No value of a metric → unknown; `observed` is null, never NaN."""
    result = gate(F, two(delta_s=None, coverage=None, cost=None, solved=None), name)
    assert (result.status, result.observed) == ("unknown", None)


def test_a_baseline_that_solved_nothing_leaves_cost_unknown() -> None:
    """Zero solved in the baseline → unknown, even if the canary solved nothing either."""
    assert gate(F, two(baseline={"solved": False}), "cost_uplift_max").status == "unknown"
    assert gate(F, two(solved=False, baseline={"solved": False}), "cost_uplift_max").status == "unknown"


def test_a_canary_that_solved_nothing_fails_the_cost_gate() -> None:
    """Zero solved in the canary fails the cost gate, and the soft rule fires with it."""
    events = two(solved=False)
    result = gate(F, events, "cost_uplift_max")
    assert (result.status, result.observed) == ("fail", None)
    assert rule(F, events, "cost_per_solved_over_budget").fired


def test_a_baseline_p95_latency_of_zero_is_unknown() -> None:
    """Baseline p95 latency 0 → unknown."""
    result = gate(F, two(baseline={"latency": 0.0}), "latency_p95_uplift_max")
    assert (result.status, result.observed) == ("unknown", None)


def test_tools_do_not_apply_where_neither_arm_calls_any() -> None:
    """Neither arm has tool calls → not_applicable."""
    assert gate(F, two(), "tool_success_min").status == "not_applicable"


def test_tools_are_unknown_where_only_the_baseline_calls_any() -> None:
    """The canary's success has no value although the arms do use tools: unknown, not not_applicable."""
    events = two(baseline={"tool_calls": 1, "tool_ok": 1})
    assert gate(F, events, "tool_success_min").status == "unknown"


def test_tools_are_judged_where_only_the_canary_calls_any() -> None:
    """Tool success reads the canary."""
    assert gate(F, two(tool_calls=1, tool_ok=1), "tool_success_min").status == "pass"
    assert gate(F, two(tool_calls=1, tool_ok=0), "tool_success_min").status == "fail"


def test_calls_without_their_outcome_in_more_than_5_percent_of_the_rows_are_unknown() -> None:
    """tool_calls without tool_ok is a row without the metric."""
    good = {"tool_calls": 1, "tool_ok": 1}
    five = [*requests("canary", 95, **good), *requests("canary", 5, tool_calls=1), *requests("baseline", 100)]
    six = [*requests("canary", 94, **good), *requests("canary", 6, tool_calls=1), *requests("baseline", 100)]
    assert gate(F, five, "tool_success_min").status == "pass"
    assert gate(F, six, "tool_success_min").status == "unknown"
    assert gate(F, two(tool_calls=1), "tool_success_min").status == "unknown"


@pytest.mark.parametrize(
    ("off", "name"),
    [
        ("delta_s: {median_max: null}", "delta_s.median_max"),
        ("delta_s: {p95_max: null}", "delta_s.p95_max"),
        ("coverage_min: null", "coverage_min"),
        ("lambda_convergent: false", "lambda_convergent"),
        ("latency_p95_uplift_max: null", "latency_p95_uplift_max"),
        ("error_rate_max: null", "error_rate_max"),
        ("tool_success_min: null", "tool_success_min"),
        ("cost_uplift_max: null", "cost_uplift_max"),
    ],
)
def test_a_gate_that_is_off_is_listed_as_off_whatever_its_value(off: str, name: str) -> None:
    """null, or lambda_convergent: false, turns a gate off: status `off`, listed."""
    hard = "abort_rules: {hard: []}"
    bad = two(delta_s=2.0, coverage=0.0, latency=1e9, error=True, tool_calls=1, tool_ok=0, cost=9.0)
    bad += probes("canary", "q", ["×"] * 6)
    found = {result.gate: result for result in compare(flag(f"gates: {{{off}}}\n{hard}"), bad).gates()}
    assert (found[name].status, found[name].threshold) == ("off", None)
    assert [r.gate for r in found.values() if r.status == "fail"] == [g for g in GATES if g != name]
    assert tuple(found) == GATES


# Waiver

DEARER: dict[str, Any] = {"cost": 0.6}


@pytest.mark.parametrize("gain", [{"delta_s": 0.02}, {"coverage": 0.85}, {"delta_s": 0.0, "coverage": 1.0}])
def test_a_failed_cost_gate_is_waived_for_a_clear_quality_gain(gain: dict[str, Any]) -> None:
    """ΔS median fell or coverage rose by at least the gain → waived, the raw value still shown."""
    result = gate(F, two(**DEARER, **gain), "cost_uplift_max")
    assert (result.status, result.threshold) == ("waived", 0.1)
    assert result.observed == pytest.approx(0.2)


def test_a_gain_equal_to_the_one_asked_is_enough_despite_floating_point() -> None:
    """At least the gain: 0.10 − 0.07 is 0.03, 0.75 − 0.70 is 0.05, 0.65 ÷ 0.5 − 1 is 0.30."""
    closer = two(cost=0.65, delta_s=0.07, baseline={"delta_s": 0.10})
    fuller = two(cost=0.65, coverage=0.75, baseline={"coverage": 0.70})
    for events in (closer, fuller):
        assert gate(F, events, "cost_uplift_max").status == "waived"


@pytest.mark.parametrize(
    "canary",
    [
        {"delta_s": 0.021, "cost": 0.6},
        {"coverage": 0.849, "cost": 0.6},
        {"delta_s": 0.0, "cost": 0.66},
        {"delta_s": 0.0, "coverage": 0.79, "cost": 0.6},
        {"delta_s": 0.06, "coverage": 0.9, "cost": 0.6},
        {"delta_s": 0.0, "cost": 0.6, "latency": 120.0},
        {"delta_s": 0.0, "cost": 0.6, "solved": False},
    ],
    ids=[
        "ΔS gain too small",
        "coverage gain too small",
        "too dear",
        "coverage worse",
        "ΔS worse",
        "latency",
        "unsolved",
    ],
)
def test_nothing_less_is_waived(canary: dict[str, Any]) -> None:
    """Too small a gain, too dear, a quality metric worse than the baseline, or another gate failed: no waiver."""
    assert gate(F, two(**canary), "cost_uplift_max").status == "fail"


def test_a_worse_tail_is_a_worse_quality() -> None:
    """ΔS median fell, but p95 is above the baseline's (within its gate): no waiver."""
    canary = [*requests("canary", 36, cost=0.6, delta_s=0.0), *requests("canary", 4, cost=0.6, delta_s=0.1)]
    result = compare(F, [*canary, *requests("baseline", 40)]).gates()
    assert [r.gate for r in result if r.status == "fail"] == ["cost_uplift_max"]


def test_a_worse_median_is_a_worse_quality() -> None:
    """Coverage rose, but the ΔS median did too (within its gate), though p95 fell: no waiver."""
    better: dict[str, Any] = {"cost": 0.6, "coverage": 0.9}
    canary = [*requests("canary", 36, delta_s=0.06, **better), *requests("canary", 4, delta_s=0.09, **better)]
    baseline = [*requests("baseline", 36, delta_s=0.05), *requests("baseline", 4, delta_s=0.3)]
    result = compare(F, [*canary, *baseline]).gates()
    assert [r.gate for r in result if r.status == "fail"] == ["cost_uplift_max"]


def test_more_lambda_flips_are_a_worse_quality() -> None:
    """ΔS fell, but λ flips more often than in the baseline (an incomplete group): no waiver."""
    better = two(cost=0.6, delta_s=0.0)
    groups = [*probes("canary", "a"), *probes("canary", "b", ["×"]), *probes("baseline", "a")]
    assert gate(F, better + groups, "cost_uplift_max").status == "fail"
    same = [*groups, *probes("baseline", "b", ["×"])]
    assert gate(F, better + same, "cost_uplift_max").status == "waived"


def test_lambda_flips_that_nothing_can_be_compared_with_are_not_known_to_be_no_worse() -> None:
    """A canary whose λ flips, a baseline without λ: `no quality metric worse` is not known, so nothing is waived."""
    events = [*two(cost=0.6, delta_s=0.0), *probes("canary", "a"), *probes("canary", "b", ["×"])]
    assert gate(F, events, "cost_uplift_max").status == "fail"


@pytest.mark.parametrize("arm", ["canary", "baseline"])
def test_a_gain_that_hardly_any_row_shows_is_no_gain(arm: str) -> None:
    """ΔS off as a gate and on 1 row of 40: a metric that 5 % of the rows lack is unknown, and unknown never passes."""
    rules = flag("gates: {delta_s: null}")
    other = "baseline" if arm == "canary" else "canary"
    cost = {"canary": 0.6, "baseline": 0.5}
    low = {"canary": 0.0, "baseline": 0.5}
    rows = [
        *requests(arm, 1, cost=cost[arm], delta_s=low[arm]),
        *requests(arm, 39, cost=cost[arm], delta_s=None),
        *requests(other, 40, cost=cost[other], delta_s=low[other]),
        *probes("canary", cost=0.6, delta_s=None),
    ]
    assert gate(rules, rows, "cost_uplift_max").status == "fail"


def test_a_gain_on_a_handful_of_gold_rows_is_no_gain() -> None:
    """ΔS, coverage and λ off as gates, three gold rows an arm: quality is unknown below min_requests."""
    rules = flag("gates: {delta_s: null, coverage_min: null, lambda_convergent: false}")
    gold = [
        *requests("canary", 3, source="gold", cost=0.6, delta_s=0.0),
        *requests("baseline", 3, source="gold", delta_s=0.5),
    ]
    assert gate(rules, [*two(cost=0.6), *gold], "cost_uplift_max").status == "fail"


def test_the_waiver_can_be_switched_off_and_set() -> None:
    """quality_gain: off waives nothing; its three numbers are the manifest's."""
    better = two(cost=0.6, delta_s=0.0)
    assert gate(flag("policy: {quality_gain: off}"), better, "cost_uplift_max").status == "fail"
    strict = flag("policy: {quality_gain: {max_cost_uplift: 0.15}}")
    assert gate(strict, better, "cost_uplift_max").status == "fail"
    small = flag("policy: {quality_gain: {delta_s_median_gain: 0.01}}")
    assert gate(small, two(cost=0.6, delta_s=0.035), "cost_uplift_max").status == "waived"


def test_a_waived_cost_gate_fires_no_soft_rule() -> None:
    """A waived gate has not failed."""
    assert not rule(F, two(cost=0.6, delta_s=0.0), "cost_per_solved_over_budget").fired


# What a result shows


def shown(result: GateResult) -> tuple[Any, ...]:
    return result.canary, result.baseline, result.n_canary, result.n_baseline


def test_each_gate_shows_both_arms_and_what_they_rest_on() -> None:
    """`canary`, `baseline`, `n_canary` and `n_baseline` are the arms' own values and counts."""
    canary = requests("canary", 30, latency=110.0, tool_calls=2, tool_ok=2, cost=1.0)
    baseline = requests("baseline", 60, latency=100.0, tool_calls=3, tool_ok=3, cost=1.0)
    events = [*canary, *probes("canary", latency=110.0, cost=1.0), *baseline]
    found = {result.gate: shown(result) for result in compare(F, events).gates()}
    assert found["delta_s.p95_max"] == (0.05, 0.05, 36, 60)
    assert found["coverage_min"] == (pytest.approx(0.8), pytest.approx(0.8), 36, 60)
    assert found["lambda_convergent"] == (1.0, None, 1, 0)
    assert found["latency_p95_uplift_max"] == (110.0, 100.0, 36, 60)
    assert found["error_rate_max"] == (0.0, 0.0, 36, 60)
    assert found["tool_success_min"] == (1.0, 1.0, 60, 180)
    assert found["cost_uplift_max"] == (1.0, 1.0, 36, 60)


def test_bounds_are_the_anytime_interval_at_one_in_twenty() -> None:
    """`lower`, `upper`: the anytime interval at 0.05 with n_opt 1,000, for information."""
    result = gate(F, [*two(597), *requests("canary", 3, error=True)], "error_rate_max")
    lower, upper = interval(3, 600, 0.05, 1000)
    assert result.lower == pytest.approx(lower, abs=1e-6)
    assert result.upper == pytest.approx(upper, abs=1e-6)
    cover = gate(F, two(600), "coverage_min")
    assert cover.lower is not None
    assert cover.upper is not None
    assert cover.lower < 0.8 < cover.upper


def test_latencies_at_the_end_of_the_number_range_give_no_infinity_and_do_not_pass() -> None:
    """A ratio that overflows is no number a record can carry."""
    for latency in (1.0, 1e9):
        for n in (40, 2_000):
            result = gate(F, two(n, latency=latency, baseline={"latency": 1e-300}), "latency_p95_uplift_max")
            assert result.status in ("fail", "unknown")
            numbers = (result.observed, result.canary, result.baseline, result.lower, result.upper)
            assert all(number is None or math.isfinite(number) for number in numbers)


# Abort rules


def test_hard_rules_come_first_and_all_are_listed() -> None:
    """The page's four hard and two soft rules, with their limits; soft ones take their gate's."""
    comparison = compare(F, healthy())
    rules = comparison.rules(comparison.gates(), None)
    assert [(r.kind, r.severity) for r in rules] == [(k, "hard") for k in HARD] + [(k, "soft") for k in SOFT]
    assert [r.value for r in rules] == [0.15, 0.60, 0.20, 0.01, 0.15, 0.10]
    assert not any(r.fired for r in rules)


BAD = {
    "delta_s_p95_over": two(delta_s=0.5),
    "coverage_under": two(coverage=0.2),
    "lambda_flip_rate_over": two(state="×"),
    "error_rate_over": two(error=True),
}


@pytest.mark.parametrize("kind", HARD)
def test_at_window_end_a_hard_rule_fires_on_the_value_itself(kind: str) -> None:
    """At window end no bound is asked: 40 rows beyond the limit are enough; the others do not fire."""
    comparison = compare(F, BAD[kind])
    assert [r.kind for r in comparison.hard_rules(None) if r.fired] == [kind]


@pytest.mark.parametrize(
    ("kind", "events"),
    [
        ("delta_s_p95_over", two(600, delta_s=0.55, baseline={"delta_s": 0.40})),
        ("coverage_under", two(600, coverage=0.6)),
        ("lambda_flip_rate_over", [*two(40, state="→"), *requests("canary", 10, state="×")]),
        ("error_rate_over", [*two(594), *requests("canary", 6, error=True)]),
    ],
)
def test_equality_fires_no_rule_despite_floating_point(kind: str, events: list[Event]) -> None:
    """0.55 − 0.40 must not fire 0.15, and so on: 1e-9 absolute slack."""
    assert not rule(F, events, kind).fired


def test_a_value_just_beyond_the_slack_fires() -> None:
    """1e-8 over the limit fires at window end."""
    assert rule(F, two(600, delta_s=0.55 + 1e-8, baseline={"delta_s": 0.40}), "delta_s_p95_over").fired
    assert rule(F, two(600, coverage=0.6 - 1e-8), "coverage_under").fired


@pytest.mark.parametrize("alpha", [None, 0.4])
@pytest.mark.parametrize("kind", HARD)
def test_min_requests_holds_for_hard_rules_at_window_end_too(kind: str, alpha: float | None) -> None:
    """Below min_requests of the canary's rows no hard rule fires, open window or ended."""
    rules = flag("window: {length: 1m, min_requests: 41}")
    result = rule(rules, BAD[kind], kind, alpha)
    assert (result.fired, result.n) == (False, 40)
    enough = flag("window: {length: 1m, min_requests: 40}")
    assert rule(enough, BAD[kind], kind, alpha).fired is (alpha is None or kind != "delta_s_p95_over")


def test_hard_rules_on_the_canary_fire_without_any_baseline() -> None:
    """Only ΔS needs the baseline: min_requests counts the canary's rows."""
    for kind in HARD[1:]:
        assert rule(F, [e for e in BAD[kind] if e.arm == "canary"], kind).fired
    assert not rule(F, [e for e in BAD["delta_s_p95_over"] if e.arm == "canary"], "delta_s_p95_over").fired


@pytest.mark.parametrize("short", ["canary", "baseline"])
def test_the_drift_rule_counts_values_in_both_arms(short: str) -> None:
    """ΔS: values in both arms; rows without a value do not count."""
    value = {"canary": 0.5, "baseline": 0.0}
    other = "baseline" if short == "canary" else "canary"
    rows = [
        *requests(other, 40, delta_s=value[other]),
        *requests(short, 19, delta_s=value[short]),
        *requests(short, 21, delta_s=None),
    ]
    assert not rule(F, rows, "delta_s_p95_over").fired
    assert rule(F, [*rows, *requests(short, 1, delta_s=value[short])], "delta_s_p95_over").fired


def test_the_coverage_rule_counts_values() -> None:
    """Coverage: values; rows without one do not count."""
    rows = [*requests("canary", 19, coverage=0.1), *requests("canary", 21, coverage=None)]
    assert not rule(F, rows, "coverage_under").fired
    assert rule(F, [*rows, *requests("canary", 1, coverage=0.1)], "coverage_under").fired


def test_the_flip_rule_counts_rows_and_never_lambda_units() -> None:
    """One flipped group of 20 rows is enough for min_requests 20: units never count."""
    rows = [*requests("canary", 14), *probes("canary", "q", ["×"] * 6)]
    result = rule(F, rows, "lambda_flip_rate_over")
    assert (result.n, result.observed, result.fired) == (20, 1.0, True)
    assert not rule(F, rows[1:], "lambda_flip_rate_over").fired


@pytest.mark.parametrize("kind", HARD[:3])
@pytest.mark.parametrize("alpha", [None, 0.05])
def test_quality_rules_read_gold_and_traffic_whichever_the_gates_read(kind: str, alpha: float | None) -> None:
    """Bad gold beside good traffic fires, and bad traffic beside good gold; too few of either do not."""
    bad: dict[str, Any] = {"delta_s": 2.0, "coverage": 0.0, "state": "×"}
    for source, other in (("gold", "traffic"), ("traffic", "gold")):
        for n, fires in ((19, False), (400, True)):
            rows = [
                *requests("canary", n, source=source, **bad),
                *requests("baseline", n, source=source, delta_s=0.0),
                *requests("canary", 400, source=other, state="→"),
                *requests("baseline", 400, source=other),
            ]
            assert rule(F, rows, kind, alpha).fired is fires


def test_a_rule_compares_each_source_with_itself() -> None:
    """More gold in the canary than in the baseline, and gold that is harder, are no drift."""
    rows = [
        *requests("canary", 50, delta_s=0.05),
        *requests("canary", 50, source="gold", delta_s=0.6),
        *requests("baseline", 950, delta_s=0.05),
        *requests("baseline", 50, source="gold", delta_s=0.6),
    ]
    assert not rule(F, rows, "delta_s_p95_over").fired


def test_hard_rules_do_not_fire_on_what_is_not_known() -> None:
    """Without values a rule has nothing to fire on, and shows null."""
    events = two(delta_s=None, coverage=None, state=None)
    for kind in HARD[:3]:
        result = rule(F, events, kind)
        assert (result.observed, result.fired) == (None, False)


@pytest.mark.parametrize(
    ("kind", "limit", "share", "wrong", "right"),
    [
        ("error_rate_over", 0.01, 1.0, {"error": True}, {"error": False}),
        ("lambda_flip_rate_over", 0.20, 0.5, {"state": "×"}, {"state": "→"}),
    ],
)
def test_before_window_end_a_rate_fires_exactly_when_its_lower_bound_is_over_the_limit(
    kind: str, limit: float, share: float, wrong: dict[str, Any], right: dict[str, Any]
) -> None:
    """n_opt = max(200, 3 / limit); λ's two tests share one part, so each gets alpha / 2."""
    n, alpha = 100, 0.01
    fired, sure = [], []
    for k in range(n // 2):
        events = [*requests("canary", k, **wrong), *requests("canary", n - k, **right)]
        fired.append(rule(F, events, kind, alpha).fired)
        sure.append(excludes_from_below(k, n, limit, alpha * share, max(200, 3 / limit)))
    assert fired == sure
    assert 2 < fired.index(True) < n // 2


def test_before_window_end_coverage_fires_exactly_when_its_upper_bound_is_under_the_limit() -> None:
    """k = Σx stands in for the successes."""
    n, alpha = 100, 0.01
    for cover in [i / 64 for i in range(20, 40)]:
        events = requests("canary", n, coverage=cover)
        sure = excludes_from_above(cover * n, n, 0.6, alpha, 200)
        assert rule(F, events, "coverage_under", alpha).fired is sure


def test_before_window_end_a_drift_needs_finite_bounds_in_both_arms() -> None:
    """A p95 drift far over the limit fires once both arms bound it, not before (about 200 values at 0.01)."""
    fired = [rule(F, two(n, delta_s=1.5), "delta_s_p95_over", 0.01).fired for n in (40, 100, 200, 400)]
    assert fired == [False, False, False, True] or fired == [False, False, True, True]
    many = [*requests("canary", 400, delta_s=1.5), *requests("baseline", 60)]
    assert not rule(F, many, "delta_s_p95_over", 0.01).fired


def test_an_open_window_fires_nothing_on_a_value_that_is_merely_over_the_limit() -> None:
    """One error in 40 is 2.5 %, over 1 %, and proves nothing yet."""
    events = [*two(39), *requests("canary", 1, error=True)]
    assert rule(F, events, "error_rate_over", None).fired
    assert not rule(F, events, "error_rate_over", 0.05).fired


@pytest.mark.parametrize(
    ("kind", "events", "observed"),
    [
        ("latency_p95_over_budget", two(latency=120.0), 0.2),
        ("cost_per_solved_over_budget", two(cost=0.6), 0.2),
    ],
)
def test_soft_rules_fire_with_their_gate_at_window_end_alone(kind: str, events: list[Event], observed: float) -> None:
    """A soft rule fires when its gate fails at the window's end, and waits for it."""
    result = rule(F, events, kind)
    assert (result.fired, result.severity) == (True, "soft")
    assert result.observed == pytest.approx(observed)
    assert not rule(F, events, kind, 0.05).fired


def test_a_soft_rule_may_carry_a_value_above_its_gate() -> None:
    """Soft rules may carry a value; below it they do not fire though the gate fails."""
    rules = flag("abort_rules: {soft: [{kind: latency_p95_over_budget, value: 0.5}]}")
    for latency, fired in ((120.0, False), (150.0, False), (151.0, True)):
        result = rule(rules, two(latency=latency), "latency_p95_over_budget")
        assert (result.value, result.fired) == (0.5, fired)
    assert gate(rules, two(latency=120.0), "latency_p95_uplift_max").status == "fail"


def test_a_soft_rule_without_its_gate_is_listed_and_silent() -> None:
    """A gate that is off fails nothing, so its soft rule cannot fire."""
    rules = flag("gates: {latency_p95_uplift_max: null}")
    result = rule(rules, two(latency=1e6), "latency_p95_over_budget")
    assert (result.value, result.fired) == (None, False)


def test_unknown_fires_no_soft_rule() -> None:
    """Latency too dear, but not known for want of requests: the gate is unknown, the rule silent."""
    assert not rule(F, two(19, latency=1e6), "latency_p95_over_budget").fired


def test_rules_that_the_manifest_drops_are_gone() -> None:
    """hard: [] means none."""
    comparison = compare(flag("abort_rules: {hard: [], soft: []}"), two(error=True))
    assert comparison.rules(comparison.gates(), None) == []
    assert comparison.hard_rules(0.01) == []


def test_results_hold_only_finite_numbers_on_every_mix_of_missing_values() -> None:
    """No metric is ever NaN in a record."""
    for mix in itertools.product([True, False], repeat=5):
        some = [
            name for name, keep in zip(("delta_s", "coverage", "cost", "solved", "state"), mix, strict=True) if keep
        ]
        for n in (0, 1, 30):
            events = [*requests("canary", n, **dict.fromkeys(some)), *requests("baseline", n, latency=0.0)]
            comparison = compare(F, events)
            gates = comparison.gates()
            results: list[GateResult | RuleResult] = [*gates, *comparison.rules(gates, None)]
            for result in results:
                numbers = [getattr(result, name) for name in result.__struct_fields__]
                assert all(math.isfinite(x) for x in numbers if isinstance(x, float))


def test_tool_results_missing_are_a_share_of_the_requests_with_calls() -> None:
    """24 requests whose calls crashed before they said how they went, 5 that say it: not known, not perfect."""
    crashed = [*healthy(400), *requests("canary", 24, tool_calls=1), *requests("canary", 5, tool_calls=1, tool_ok=1)]
    assert gate(F, crashed, "tool_success_min").status == "unknown"
    whole = [*healthy(400), *requests("canary", 29, tool_calls=1, tool_ok=1)]
    assert gate(F, whole, "tool_success_min").status == "pass"


def test_no_cost_in_either_arm_is_no_uplift() -> None:
    """0 against 0 passes; a price where there was none has no ratio."""
    free = [dataclasses.replace(event, cost=0.0) for event in healthy()]
    result = gate(F, free, "cost_uplift_max")
    assert (result.status, result.observed) == ("pass", 0)
    dear = [dataclasses.replace(event, cost=0.0 if event.arm == "baseline" else 0.5) for event in healthy()]
    assert gate(F, dear, "cost_uplift_max").status == "unknown"
