"""What the numbers are: which rows each metric reads, and when it is not known."""

import numpy as np
import pytest

from tests.gates.build import Event, arms_of, probes, requests, sums_of
from tidegate.gates.bounds import quantile_ranks
from tidegate.gates.digest import Digest
from tidegate.gates.metrics import (
    ArmMetrics,
    difference,
    drift_interval,
    mean_surely_under,
    mostly_present,
    quantile_interval,
    rate_interval,
    rate_n_opt,
    rate_surely_over,
    read_arms,
    uplift,
    uplift_interval,
)
from tidegate.gates.sums import Sums


def metrics(events: list[Event], source: str = "gold_if_present", least: int = 2) -> tuple[ArmMetrics, ArmMetrics, str]:
    arms = read_arms(*arms_of(events), source, least)  # type: ignore[arg-type]
    return arms.canary, arms.baseline, arms.use


def canary(events: list[Event]) -> ArmMetrics:
    return ArmMetrics(sums_of(events), sums_of(events))


def digest(values: list[float]) -> Digest:
    made = Digest()
    made.add(np.array(values, np.float64))
    return made


BOTH_GOLD = [
    *requests("canary", 30, delta_s=0.5, coverage=0.1, state="×"),
    *requests("baseline", 30, delta_s=0.5),
    *requests("canary", 3, source="gold", delta_s=0.1, coverage=0.9, state="→"),
    *requests("baseline", 2, source="gold", delta_s=0.2),
]


def test_quality_comes_from_gold_where_both_arms_have_any() -> None:
    """With gold_if_present ΔS, coverage and λ come from gold events if both arms have enough of them."""
    assert metrics(BOTH_GOLD, least=3)[2] == "traffic"
    c, b, use = metrics(BOTH_GOLD)
    assert use == "gold"
    assert (c.delta_s.quantile(0.5), b.delta_s.quantile(0.5)) == (0.1, 0.2)
    assert c.quality.coverage == pytest.approx(0.9)
    assert (c.lambda_.events, c.lambda_.flipped_events) == (3, 0)
    assert (c.quality_rows, b.quality_rows) == (3, 2)


@pytest.mark.parametrize("without", ["canary", "baseline"])
def test_quality_comes_from_traffic_where_one_arm_has_no_gold(without: str) -> None:
    """With gold_if_present and gold in one arm only, both arms are read from traffic."""
    c, b, use = metrics([e for e in BOTH_GOLD if (e.arm, e.source) != (without, "gold")])
    assert use == "traffic"
    assert (c.delta_s.quantile(0.5), b.delta_s.quantile(0.5)) == (0.5, 0.5)
    assert c.lambda_.flipped_events == 30


@pytest.mark.parametrize(("source", "rows"), [("gold", 0), ("traffic", 5)])
def test_a_quality_source_that_is_named_is_kept_to(source: str, rows: int) -> None:
    """quality_source gold or traffic: that source, even when it is empty."""
    c, _, use = metrics([*requests("canary", 5), *requests("baseline", 5)], source)
    assert (use, c.quality_rows) == (source, rows)


def test_latency_errors_tools_and_cost_come_from_traffic_and_gold_and_never_from_shadow() -> None:
    """Latency, errors, tools and cost from traffic and gold, never shadow."""
    shadow = requests("canary", 9, source="shadow", error=True, latency=9e9, cost=7.0, tool_calls=9, tool_ok=0)
    gold = requests("canary", 1, source="gold", error=True, latency=300.0, cost=2.0, tool_calls=1, tool_ok=1)
    traffic = requests("canary", 3, cost=1.0, tool_calls=1, tool_ok=1)
    c, _, _ = metrics([*shadow, *gold, *traffic])
    assert c.rows == 4
    assert c.error_rate == 1 / 4
    assert c.served.latency.quantile(1.0) == 300.0
    assert c.tool_success == 1.0
    assert c.cost_per_solved == pytest.approx(5 / 4)


def test_cost_per_solved_is_all_cost_over_solved_requests() -> None:
    """Σcost ÷ solved requests: what a failed request cost counts too."""
    c = canary([*requests("canary", 3, cost=1.0), *requests("canary", 1, cost=3.0, solved=False)])
    assert c.cost_per_solved == pytest.approx(2.0)


def test_tool_success_counts_calls_not_requests() -> None:
    """Tool success is over calls: 9 of 10, though one of two requests was clean."""
    c = canary([Event("canary", tool_calls=1, tool_ok=1), Event("canary", tool_calls=9, tool_ok=8)])
    assert c.tool_success == 0.9


def test_a_group_is_complete_with_all_six_runs() -> None:
    """A λ group is complete with all six runs; an incomplete one counts for the flip rate alone."""
    five = ["→"] * 5 + [None]
    λ = canary([*probes("canary", "full"), *probes("canary", "part", [*five[:4], "×"])]).lambda_
    assert (λ.groups, λ.complete, λ.convergent, λ.flipped_groups) == (2, 1, 1, 1)
    assert λ.share == 1.0
    assert λ.flip_rate == 0.5
    assert canary(probes("canary", "part", five)).lambda_.share is None


@pytest.mark.parametrize("state", ["←", "<>", "×"])
def test_one_state_other_than_convergent_flips_a_whole_group_once(state: str) -> None:
    """A group is one unit, however many of its runs are not →."""
    λ = canary([*probes("canary", "a", [state, state, *["→"] * 4]), *probes("canary", "b")]).lambda_
    assert (λ.flipped_groups, λ.groups, λ.convergent, λ.complete) == (1, 2, 1, 2)


def test_a_repeated_run_counts_at_its_worse_state() -> None:
    """The state of a run that came twice is the worse one, in either order."""
    bad = probes("canary", "q", ["×"])
    for events in ([*probes("canary"), *bad], [*bad, *probes("canary")]):
        λ = canary(events).lambda_
        assert (λ.complete, λ.convergent) == (1, 0)


def test_the_flip_rate_is_the_worse_of_probes_and_traffic_which_are_never_pooled() -> None:
    """Probes and traffic are counted apart, and the worse of the two counts."""
    untagged = [*requests("canary", 99, state="→"), *requests("canary", 1, state="<>")]
    assert canary([*untagged, *probes("canary", "a", ["×"])]).lambda_.flip_rate == 1.0
    assert canary([*untagged, *probes("canary", "a")]).lambda_.flip_rate == 0.01
    assert canary(untagged).lambda_.flip_rate == 0.01
    assert canary(requests("canary", 5)).lambda_.flip_rate is None


def test_a_metric_without_values_is_none_and_never_nan() -> None:
    """No metric is ever NaN: without values it is None."""
    empty = ArmMetrics(Sums(), Sums())
    assert empty.error_rate is None
    assert empty.tool_success is None
    assert empty.cost_per_solved is None
    assert empty.quality.coverage is None
    assert empty.delta_s.quantile(0.5) is None
    assert empty.lambda_.share is None
    assert quantile_interval(Digest(), 0.5, 0.05) == (None, None)
    assert rate_interval(0, 0, 0.05) == (None, None)
    assert difference(None, 1.0) is None
    assert difference(1.0, None) is None


def test_an_uplift_over_nothing_is_not_known() -> None:
    """Baseline p95 latency 0, or none: the uplift is not known."""
    assert uplift(5.0, 0.0) is None
    assert uplift(5.0, None) is None
    assert uplift(None, 5.0) is None
    assert uplift(0.0, 5.0) == -1.0


@pytest.mark.parametrize(
    ("rows", "present", "known"), [(100, 95, True), (100, 94, False), (20, 19, True), (19, 18, False)]
)
def test_a_metric_that_more_than_5_percent_of_the_rows_lack_is_not_known(rows: int, present: int, known: bool) -> None:
    """More than 5 % of the rows without a metric make it unknown; exactly 5 % do not."""
    assert mostly_present(rows, present) is known


def test_a_metric_that_no_row_has_is_not_known() -> None:
    """No value of a metric: unknown, also where there are no rows at all."""
    assert not mostly_present(0, 0)
    assert not mostly_present(1, 0)


def test_bounds_are_tightest_where_the_limit_needs_them() -> None:
    """n_opt is max(200, 3 / limit) for a rate against a limit."""
    assert rate_n_opt(0.01) == 300
    assert rate_n_opt(0.005) == 600
    assert rate_n_opt(0.6) == 200
    assert rate_n_opt(0.0) == 200


def test_a_rate_is_surely_over_only_with_evidence() -> None:
    """Error 25 % against 1 %: sure after tens of requests, not after three, and never at the limit itself."""
    assert not rate_surely_over(0, 0, 0.01, 0.05)
    assert not rate_surely_over(1, 3, 0.01, 0.05)
    assert rate_surely_over(10, 40, 0.01, 0.05)
    assert not rate_surely_over(100, 10_000, 0.01, 0.05)
    assert mean_surely_under(20.0, 100, 0.6, 0.05)
    assert not mean_surely_under(60.0, 100, 0.6, 0.05)
    assert not mean_surely_under(0.0, 0, 0.6, 0.05)


def test_an_interval_end_that_the_data_cannot_bound_is_none() -> None:
    """An infinite end is None, never the sample's extreme: the p95 upper end needs 162 values at 0.05."""
    values = [float(i) for i in range(161)]
    assert quantile_interval(digest(values), 0.95, 0.05)[1] is None
    assert quantile_interval(digest([*values, 161.0]), 0.95, 0.05)[1] == 161.0
    assert quantile_interval(digest(values[:30]), 0.5, 0.05)[1] is None
    assert quantile_interval(digest(values[:31]), 0.5, 0.05)[1] == 30.0


def test_a_p95_interval_spans_the_published_ranks_and_widens_by_the_sketch_s_error() -> None:
    """While exact, ranks as published; past that, half a percentage point wider on each side."""
    exact = digest([float(i) for i in range(1, 1_001)])
    assert quantile_interval(exact, 0.95, 0.05) == quantile_ranks(1_000, 0.95, 0.05) == (928, 970)
    sketched = digest([float(i) for i in range(1, 2_001)])
    below, above = quantile_ranks(2_000, 0.95, 0.05)
    assert below is not None
    assert above is not None
    assert quantile_interval(sketched, 0.95, 0.05) == pytest.approx((below - 10, above + 10), abs=2)


def test_a_drift_s_lower_bound_is_the_canary_s_lower_less_the_baseline_s_upper_at_half_the_level() -> None:
    """lower_canary(alpha/2) − upper_baseline(alpha/2); the latency uplift likewise, as a ratio."""
    rng = np.random.default_rng(1)
    c, b = digest(rng.random(500).tolist()), digest((1 + rng.random(500)).tolist())
    (c_low, c_high), (b_low, b_high) = (quantile_interval(d, 0.95, 0.025) for d in (c, b))
    assert c_low is not None
    assert c_high is not None
    assert b_low is not None
    assert b_high is not None
    assert drift_interval(c, b, 0.95, 0.05) == (c_low - b_high, c_high - b_low)
    assert uplift_interval(c, b, 0.95, 0.05) == (c_low / b_high - 1, c_high / b_low - 1)


def test_a_bound_needs_both_arms() -> None:
    """Without a finite end in either arm a drift has no bound on that side."""
    assert drift_interval(digest([1.0] * 500), digest([1.0] * 5), 0.95, 0.05)[0] is None
    assert uplift_interval(digest([1.0] * 500), digest([0.0] * 500), 0.95, 0.05) == (None, None)
