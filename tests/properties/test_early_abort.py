"""Early aborts: rare on healthy ramps however often one looks, and soon on broken ones.

Window ends are left out: there the hard rules fire on the value itself, which is another promise.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from tests.gates.build import PANE, flag
from tidegate.gates.bounds import alpha_for_window
from tidegate.gates.metrics import ArmMetrics
from tidegate.gates.ramp import Ramp
from tidegate.gates.rules import Comparison
from tidegate.gates.sums import COUNTERS, COVERAGE_BITS, Sums
from tidegate.gates.unit import begin
from tidegate.gates.window import Arm, PaneUnit, UnitWindow
from tidegate.schemas.clockwork import Clockwork
from tidegate.schemas.decision import Decision

SEED = 20_240_607
ALPHA = 0.05
RUNS = 2_000
STAGES, PANES, SETTLING = 4, 8, 2
FLAG = flag("window: {length: 80s}")
CLOCKWORK = Clockwork(pane_ms=PANE, lateness_ms=10_000, topic="t")
N_CANARY, N_BASELINE = 40, 60
"""Requests in a pane."""
HARD: dict[str, float] = {rule.kind: rule.value for rule in FLAG.abort_rules.hard}


@dataclass(frozen=True)
class Canary:
    """What is true of a canary, per request; ``drift`` shifts its ΔS."""

    errors: float = 0.003
    coverage: float = 0.78
    flips: float = 0.05
    drift: float = 0.0


HEALTHY = Canary()
AT_THE_LIMITS = Canary(errors=0.01, coverage=0.60, flips=0.20, drift=0.15)
"""The worst that no rule may fire on: every metric at its hard limit."""
SPREAD = 20.0
"""Coverage is beta distributed; this is the sum of its two parameters."""


def panes_of(rng: np.random.Generator, panes: int, n: int, truth: Canary) -> list[Sums]:
    """One arm, pane by pane: errors, coverage, ΔS and λ of ``n`` requests each."""
    coverage = rng.beta(SPREAD * truth.coverage, SPREAD * (1 - truth.coverage), (panes, n)).sum(axis=1).tolist()
    flips, errors = (rng.binomial(n, rate, panes).tolist() for rate in (truth.flips, truth.errors))
    delta_s = np.minimum(rng.lognormal(-3.0, 0.6, (panes, n)) + truth.drift, 2.0)
    made = []
    for pane in range(panes):
        row = {
            "requests": n,
            "errors": errors[pane],
            "coverage_rows": n,
            "coverage_sum": round(coverage[pane] * (1 << COVERAGE_BITS)),
            "lambda_rows": n,
            "lambda_bad_rows": flips[pane],
            "lambda_events": n,
            "lambda_flips": flips[pane],
        }
        sums = Sums(counters=[row.get(counter, 0) for counter in COUNTERS])
        sums.delta_s.add(delta_s[pane])
        made.append(sums)
    return made


def units_of(rng: np.random.Generator, panes: int, truth: Canary) -> Iterator[PaneUnit]:
    """Both arms, pane by pane; the baseline is healthy."""
    canary, baseline = panes_of(rng, panes, N_CANARY, truth), panes_of(rng, panes, N_BASELINE, Canary())
    for c, b in zip(canary, baseline, strict=True):
        yield PaneUnit(arms={"canary": Arm({"traffic": c}), "baseline": Arm({"traffic": b})})


def spans() -> Iterator[tuple[int, int]]:
    """(window number, looks) of every window and settling span of a ramp; a window's end is no look."""
    for number in range(1, STAGES + 1):
        if number > 1:
            yield number, SETTLING
        yield number, PANES - 1


def comparisons(rng: np.random.Generator, truth: Canary) -> Iterator[tuple[Comparison, float]]:
    """Every look at a ramp, with the part of alpha that each rule has there."""
    panes = units_of(rng, STAGES * (PANES + SETTLING), truth)
    for number, looks in spans():
        canary, baseline = Sums(), Sums()
        for _ in range(looks):
            seen = next(panes)
            canary.merge(seen.of("canary").of("traffic"))
            baseline.merge(seen.of("baseline").of("traffic"))
            arms = ArmMetrics(canary, canary), ArmMetrics(baseline, baseline)
            yield Comparison(FLAG, *arms), alpha_for_window(ALPHA, number) / len(HARD)


def test_a_healthy_ramp_is_aborted_early_with_a_chance_of_at_most_alpha() -> None:
    """2,000 ramps of 4 stages, 34 looks each: at most 5 % early aborts, where checking the values stops far more."""
    aborted: list[str] = []
    stopped = 0
    for run in range(RUNS):
        naive = False
        for comparison, alpha in comparisons(np.random.default_rng((SEED, run)), HEALTHY):
            naive = naive or any(rule.fired for rule in comparison.hard_rules(None))
            fired = [rule.kind for rule in comparison.hard_rules(alpha) if rule.fired]
            if fired:
                aborted += fired[:1]
                break
        stopped += naive
    measured = f"seed {SEED}: {len(aborted)} of {RUNS} healthy ramps aborted ({len(aborted) / RUNS:.2%}), {aborted[:5]}"
    assert len(aborted) <= ALPHA * RUNS, measured
    assert stopped > ALPHA * RUNS, f"the values themselves stop {stopped} of {RUNS}: too easy to show anything"


def aborts(ramp: Ramp, rng: np.random.Generator, truth: Canary) -> Iterator[Decision | None]:
    """Every look at a real ramp: what it decided."""
    unit, panes = ramp.unit, units_of(rng, STAGES * (PANES + SETTLING), truth)
    for number, looks in spans():
        if number > unit.number:
            # As after a promote at the window's end.
            end = unit.window.end
            unit.number, unit.settling, unit.window = number, True, UnitWindow(end, end + SETTLING * PANE)
        for at in range(looks):
            ramp.add(0, next(panes))
            made = list(ramp.close(unit.window.start + (at + 1) * PANE))
            yield made[0][0] if made else None


def naive_interval(ramp: Ramp) -> bool:
    """One-sided 95 % fixed-sample intervals (normal) of errors and λ flips, each look taken for the only one."""
    seen = ramp.unit.window.canary.of("traffic")
    n = seen["requests"]
    for counter, kind in (("errors", "error_rate_over"), ("lambda_flips", "lambda_flip_rate_over")):
        rate = seen[counter] / n if n else 0.0
        if n and rate - 1.645 * math.sqrt(rate * (1 - rate) / n) > HARD[kind]:
            return True
    return False


def test_a_ramp_at_its_limits_is_aborted_early_with_a_chance_of_at_most_alpha() -> None:
    """The worst that no rule may fire on, every metric at its limit: at most 5 %; naive intervals stop far more."""
    runs, stopped = 200, 0
    aborted: list[str] = []
    for run in range(runs):
        ramp, naive = Ramp(FLAG, begin(FLAG, "us", 0, CLOCKWORK), CLOCKWORK), False
        for decision in aborts(ramp, np.random.default_rng((SEED, run)), AT_THE_LIMITS):
            naive = naive or naive_interval(ramp)
            if decision is not None:
                assert decision.verdict == "abort"
                aborted += decision.reasons[:1]
                break
        stopped += naive
    measured = (
        f"seed {SEED}: {len(aborted)} of {runs} ramps at the limits aborted ({len(aborted) / runs:.2%}), {aborted}"
    )
    assert len(aborted) <= ALPHA * runs, measured
    assert stopped > 3 * ALPHA * runs, f"naive intervals stop {stopped} of {runs}: too easy to show anything"


def first_sure(rate: float, per_look: int, least: int, rng: np.random.Generator) -> int | None:
    """Requests after which the first window's error rule was sure, looking every ``per_look``, or None."""
    alpha = alpha_for_window(ALPHA, 1) / len(HARD)
    served, none = Sums(), ArmMetrics(Sums(), Sums())
    at = COUNTERS.index("requests"), COUNTERS.index("errors")
    for n in range(per_look, least + 1, per_look):
        served.counters[at[0]] = n
        served.counters[at[1]] += int(rng.binomial(per_look, rate))
        rules = Comparison(FLAG, ArmMetrics(served, Sums()), none).hard_rules(alpha)
        if any(rule.fired for rule in rules):
            return n
    return None


def test_a_true_error_rate_of_one_and_a_half_percent_is_found_in_most_runs() -> None:
    """Limit 1 %, true 1.5 %: half of the runs abort within 8,000 canary requests, 19 in 20 within 20,000."""
    rng = np.random.default_rng(SEED)
    found = [first_sure(0.015, 100, 20_000, rng) for _ in range(200)]
    needed = sorted(math.inf if n is None else n for n in found)
    said = f"seed {SEED}: median {needed[100]}, 95 % within {needed[190]} requests"
    assert needed[100] <= 8_000, said
    assert needed[190] <= 20_000, said


def test_a_burst_of_errors_is_found_within_few_panes() -> None:
    """25 % errors at 40 canary requests a pane: every ramp aborts within 3 panes of the burst, most in the first."""
    panes = []
    for run in range(200):
        rng = np.random.default_rng((SEED, run))
        ramp = Ramp(FLAG, begin(FLAG, "us", 0, CLOCKWORK), CLOCKWORK)
        course = [*units_of(rng, 4, HEALTHY), *units_of(rng, 3, Canary(errors=0.25))]
        for pane, seen in enumerate(course, 1):
            ramp.add(0, seen)
            made = list(ramp.close(pane * PANE))
            if made:
                assert made[0][0].reasons == ["error_rate_over"]
                panes.append(pane - 4)
                break
    said = f"seed {SEED}: {sorted(panes)[-5:]}, {len(panes)} of 200"
    assert len(panes) == 200, said
    assert min(panes) > 0, said
    assert max(panes) <= 3, said
    assert panes.count(1) > 100, said


@pytest.mark.parametrize(
    ("broken", "rule"),
    [
        (Canary(coverage=0.40), "coverage_under"),
        (Canary(flips=0.50), "lambda_flip_rate_over"),
        (Canary(drift=0.60), "delta_s_p95_over"),
    ],
)
def test_each_of_the_other_rules_finds_what_is_badly_broken_before_the_window_ends(broken: Canary, rule: str) -> None:
    """Coverage at 40 %, half of λ flipped, ΔS up by 0.6: aborted in the first window, by its own rule."""
    for run in range(20):
        ramp = Ramp(FLAG, begin(FLAG, "us", 0, CLOCKWORK), CLOCKWORK)
        first = next((d for d in aborts(ramp, np.random.default_rng((SEED, run)), broken) if d is not None), None)
        assert first is not None
        assert (first.reasons, first.stage.index) == ([rule], 0)
        assert first.decided_at < FLAG.window.length_ms
