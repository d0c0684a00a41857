"""What evidence costs, against the published numbers and against the rules that it is asked for."""

import numpy as np
import pytest

from tests.gates.build import Event, flag, requests, rule, sums_of
from tidegate.gates.bounds import alpha_for_window, excludes_from_above
from tidegate.gates.metrics import drift_interval, rate_n_opt, rate_surely_over
from tidegate.gates.power import Catch, Certainty, catch, certainty, judged_gates, kind_gates, rows_to_clear
from tidegate.gates.rules import QUALITY_GATES
from tidegate.schemas.manifest import PAGE, HardRule

BY_POINTS = flag()
HARD = {one.kind: one for one in PAGE.abort_rules.hard}


@pytest.mark.parametrize(
    ("gate", "perfect", "at_half"),
    [
        ("error_rate_max", 780, 6_720),
        ("tool_success_min", 389, 3_352),
        ("delta_s.p95_max", 98, 573),
        ("latency_p95_uplift_max", 98, 573),
        ("delta_s.median_max", 16, 43),
    ],
)
def test_being_sure_of_a_gate_costs_the_published_number_of_rows(gate: str, perfect: int, at_half: int) -> None:
    """With no bad row, and with half of the allowed share."""
    assert certainty(PAGE, gate) == Certainty(perfect, at_half)


def test_coverage_is_a_shortfall_from_1() -> None:
    assert certainty(PAGE, "coverage_min") == Certainty(rows_to_clear(0.3), rows_to_clear(0.3, 0.15))
    assert certainty(flag("gates: {coverage_min: 0.95}"), "coverage_min") == Certainty(98, 573)


@pytest.mark.parametrize("gate", ["lambda_convergent", "cost_uplift_max"])
def test_what_has_no_bound_is_not_given_one(gate: str) -> None:
    assert certainty(PAGE, gate) is None


def test_a_gate_that_is_off_costs_nothing() -> None:
    off = flag("gates: {error_rate_max: null, delta_s: null, lambda_convergent: false}")
    assert certainty(off, "error_rate_max") is None
    assert judged_gates(off) == ("coverage_min", "latency_p95_uplift_max", "tool_success_min", "cost_uplift_max")


def test_no_data_is_ever_sure_of_a_limit_of_0() -> None:
    assert certainty(flag("gates: {error_rate_max: 0}"), "error_rate_max") == Certainty(None, None)
    assert rows_to_clear(0.01, 0.01) is None


@pytest.mark.parametrize(("limit", "rate"), [(0.3, 0.0), (0.3, 0.2), (0.05, 0.04), (0.005, 0.004), (1.0, 0.5)])
def test_the_count_is_the_first_that_clears(limit: float, rate: float) -> None:
    """Bisection stops where a search one by one does."""

    def clears(n: int) -> bool:
        return excludes_from_above(rate * n, n, limit, 0.05, rate_n_opt(limit))

    found = rows_to_clear(limit, rate)
    assert found is not None
    assert clears(found)
    assert not any(map(clears, range(max(1, found - 2_000), found)))


def errors(n: int) -> list[Event]:
    """A canary with twice the errors that the page's hard rule allows, as evenly as they come."""
    bad = -(-n * 2 // 100)
    return [*requests("canary", bad, error=True), *requests("canary", n - bad)]


@pytest.mark.parametrize("window", [1, 3])
def test_an_error_regression_is_caught_by_the_rule_itself_at_that_count(window: int) -> None:
    """One step of 50 requests earlier the rule does not fire: errors are whole, the forecast is not."""
    found = catch(BY_POINTS, HARD["error_rate_over"], window)
    assert found.regression == 0.02
    assert found.canary is not None
    alpha = alpha_for_window(0.05, window) / 4
    sure = -(-found.canary // 50) * 50
    assert rule(PAGE, errors(sure), "error_rate_over", alpha).fired
    assert not rule(PAGE, errors(sure - 100), "error_rate_over", alpha).fired


def test_low_coverage_is_caught_by_the_rule_itself_at_that_count() -> None:
    found = catch(BY_POINTS, HARD["coverage_under"], 2)
    assert found.regression == 0.45
    assert found.canary is not None
    alpha = alpha_for_window(0.05, 2) / 4

    def fired(n: int) -> bool:
        return rule(PAGE, requests("canary", n, coverage=0.45), "coverage_under", alpha).fired

    assert (fired(found.canary - 1), fired(found.canary)) == (False, True)


def test_flips_are_caught_by_the_rule_itself_at_that_count() -> None:
    """Its two tests share its part of alpha."""
    found = catch(BY_POINTS, HARD["lambda_flip_rate_over"], 1)
    assert found.regression == 0.4
    assert found.canary is not None
    alpha = alpha_for_window(0.05, 1) / 4

    def fired(n: int) -> bool:
        flips = round(0.4 * n)
        events = [*requests("canary", flips, state="×"), *requests("canary", n - flips, state="→")]
        return rule(PAGE, events, "lambda_flip_rate_over", alpha).fired

    assert fired(found.canary + 3)
    assert not fired(found.canary - 5)


def test_drift_is_bounded_by_about_that_many_values() -> None:
    """A tenth of the canary far above the baseline: the lower bound of the drift passes the limit there."""
    found = catch(BY_POINTS, HARD["delta_s_p95_over"], 1)
    assert found.regression == 0.1
    assert found.canary is not None
    alpha = alpha_for_window(0.05, 1) / 4

    def lower(canary: int, baseline: int) -> float | None:
        high = canary // 10
        values = [*requests("canary", high, delta_s=0.9), *requests("canary", canary - high, delta_s=0.05)]
        other = sums_of(requests("baseline", baseline, delta_s=0.05)).delta_s
        return drift_interval(sums_of(values).delta_s, other, 0.95, alpha)[0]

    assert lower(found.canary + 11, found.baseline) == pytest.approx(0.85)
    assert lower(found.canary - 10, found.baseline) == pytest.approx(0.0)
    assert lower(found.canary + 11, found.baseline - 1) is None


def test_later_windows_and_more_rules_cost_more() -> None:
    """Alpha is split over both."""
    one = HARD["error_rate_over"]
    alone = flag("abort_rules: {hard: [{kind: error_rate_over, value: 0.01}]}")
    counts = [catch(BY_POINTS, one, window).canary or 0 for window in (1, 2, 3, 10)]
    assert counts == sorted(set(counts))
    assert 0 < (catch(alone, one, 1).canary or 0) < counts[0]


def test_a_rule_needs_min_requests_whatever_the_bound_says() -> None:
    strict = flag("window: {length: 1m, min_requests: 5000}")
    assert [catch(strict, one, 1).canary for one in strict.abort_rules.hard] == [5000] * 4
    assert catch(strict, HARD["delta_s_p95_over"], 1).baseline == 5000


@pytest.mark.parametrize(
    "never",
    [
        HardRule(kind="error_rate_over", value=1.0),
        HardRule(kind="lambda_flip_rate_over", value=1.0),
        HardRule(kind="coverage_under", value=0.0),
    ],
)
def test_a_rule_that_can_never_fire_catches_nothing(never: HardRule) -> None:
    assert catch(BY_POINTS, never, 1) == Catch(None, None)


def test_limits_at_the_edge_have_a_regression_beyond_them() -> None:
    for value in (0.0, 0.001, 0.5, 0.7, 0.999):
        found = catch(BY_POINTS, HardRule(kind="error_rate_over", value=value), 1)
        assert found.regression is not None
        assert value < found.regression <= 1
        assert found.canary is not None


def test_a_kind_decides_on_its_own_gates() -> None:
    assert len(kind_gates("progressive_rollout")) == 8
    assert kind_gates("quality_gated") == QUALITY_GATES
    assert kind_gates("cost_guard") == ("cost_uplift_max",)
    assert kind_gates("safety_guard") == kind_gates("kill_switch") == ()
    assert judged_gates(flag("kind: quality_gated\ngates: {coverage_min: null}")) == (
        "delta_s.median_max",
        "delta_s.p95_max",
        "lambda_convergent",
    )


def test_regressions_are_caught_that_soon_on_average() -> None:
    """300 canaries at the regression's rate: half are caught by 1.3 times the count, hardly any at a third of it."""
    found = catch(BY_POINTS, HARD["error_rate_over"], 1)
    assert found.canary is not None
    alpha = alpha_for_window(0.05, 1) / 4
    rng = np.random.default_rng(20250831)

    def caught(n: int) -> float:
        return float(np.mean([rate_surely_over(int(k), n, 0.01, alpha) for k in rng.binomial(n, 0.02, 300)]))

    assert caught(round(1.3 * found.canary)) > 0.5
    assert caught(found.canary // 3) < 0.3
