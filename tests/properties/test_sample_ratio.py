"""The sequential sample-ratio test over whole ramps: silent on true weights however often one looks, and not blind.

Ids come as users do: new ones at every pane and old ones again, put into an arm by a fair draw with the stage's
weight. The ramp is the machine itself, with gates off, so that evidence alone decides.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.gates.build import CLOCKWORK, PANE, flag
from tidegate.gates.assignments import RATIO_ALPHA, Assignments
from tidegate.gates.bounds import log_odds_sample_ratio
from tidegate.gates.ramp import Ramp
from tidegate.gates.sums import COUNTERS, Sums
from tidegate.gates.unit import begin
from tidegate.gates.window import Arm, PaneUnit

SEED = 20_240_611
RAMPS = 2_000
STAGES = (0.05, 0.25, 0.50, 1.0)
PANES = 6
"""Of a window; each stage has one window."""
FLAG = flag(
    """
window: {length: 1m, min_requests: 1}
gates: {delta_s: null, coverage_min: null, lambda_convergent: false, latency_p95_uplift_max: null,
        error_rate_max: null, tool_success_min: null, cost_uplift_max: null}
abort_rules: {hard: [], soft: []}
"""
)
PINS = '{"ANALYZER_CONF":"a","INDEX_HASH":"i","MODEL_VER":"m","PROMPT_VER":"p","RERANK_CONF":"r","TOK_VER":"t"}'
REQUEST = [int(counter == "requests") for counter in COUNTERS]


@dataclass(frozen=True)
class Service:
    """New sticky ids in a pane, and what the canary's share of them really is, as a multiple of its weight."""

    new: int
    bias: float = 1.0


Ids = NDArray[np.uint64]


def panes(rng: np.random.Generator, service: Service, weight: float, n: int = PANES) -> Iterator[dict[str, Ids]]:
    """The ids of a stage by pane and arm: every id keeps its arm, and half of a pane's have come before."""
    before: dict[str, Ids] = {}
    for canary in rng.binomial(service.new, min(1.0, weight * service.bias), n).tolist():
        fresh = rng.integers(1, 2**64 - 1, service.new, dtype=np.uint64)
        now = {"canary": fresh[:canary], "baseline": fresh[canary:]}
        yield {arm: np.concatenate([ids, before.get(arm, ids)]) for arm, ids in now.items()}
        before = now


def seen(ids: dict[str, Ids]) -> PaneUnit:
    """One request and all the ids of each arm."""
    unit = PaneUnit()
    for arm, its in ids.items():
        sums = Sums(counters=list(REQUEST))
        sums.see_pins(PINS, 1, (0, 0, 0))
        sums.sticky.add(its)
        unit.arms[arm] = Arm({"traffic": sums})
    return unit


def climb(rng: np.random.Generator, service: Service, weights: Sequence[float] = STAGES) -> tuple[int | None, int]:
    """Distinct ids at the first alarm of a ramp, None without; and the stages that it went through.

    The services apply the first weight at once.
    """
    ramp, now, ids = Ramp(FLAG, begin(FLAG, "us", 0, CLOCKWORK), CLOCKWORK), 0, 0
    ramp.unit.moving_until = 0
    for stage, weight in enumerate(weights):
        while ramp.unit.settling:
            now += PANE
            list(ramp.close(now))
        for pane in panes(rng, service, weight):
            ramp.add(0, seen(pane))
            ids += service.new
            now += PANE
            made = list(ramp.close(now))
            if ramp.unit.assignments.ratio is not None:
                return ids, stage
        assert made[-1][0].verdict in ("promote", "pass")
    return None, len(weights)


def looks(rng: np.random.Generator, service: Service, weights: Sequence[float] = STAGES) -> tuple[int | None, int]:
    """As ``climb``, without the records: the same ids, the same looks, two thousand times as often."""
    assignments, ids = Assignments(), 0
    for stage, weight in enumerate(weights):
        for pane in panes(rng, service, weight):
            for arm, its in pane.items():
                getattr(assignments, arm).add(its)
            ids += service.new
            assignments.test_ratio(weight)
            if assignments.ratio is not None:
                return ids, stage
        assignments = assignments.next_stage(weight)
    return None, len(weights)


def test_true_weights_raise_at_most_one_false_alarm_in_a_thousand_ramps() -> None:
    """at most 0.1 % false alarms over 2,000 simulated ramps looked at on every pane."""
    alarms = 0
    for run in range(RAMPS):
        rng = np.random.default_rng((SEED, run))
        at, _ = looks(rng, Service(new=int(rng.choice([5, 40, 300]))))
        alarms += at is not None
    assert alarms <= RAMPS * RATIO_ALPHA


@pytest.mark.parametrize("bias", [1.0, 0.8, 1.3])
def test_the_machine_looks_as_often_and_sees_the_same(bias: float) -> None:
    """A whole ramp with its records alarms at the same id as the test above does, or never as well."""
    for run in range(5):
        service = Service(new=400, bias=bias)
        made = climb(np.random.default_rng((SEED, run)), service)
        assert made == looks(np.random.default_rng((SEED, run)), service)
        assert (made[0] is None) is (bias == 1.0)


def naive_alarm(rng: np.random.Generator, weight: float, looks: int) -> bool:
    """Whether Pearson's test at the same level, repeated at each look, would have cried once."""
    canary = np.cumsum(rng.binomial(40, weight, looks))
    n = 40 * np.arange(1, looks + 1)
    expected = n * weight
    chi2 = (canary - expected) ** 2 / expected + (canary - expected) ** 2 / (n - expected)
    return bool((chi2 > 10.83).any())


def test_a_fixed_sample_test_looked_at_as_often_would_cry_far_more() -> None:
    """Why the test is sequential: χ² at the same 0.1 % over 200 looks alarms on more than ten times as many."""
    alarms = sum(naive_alarm(np.random.default_rng((SEED, run)), 0.5, 200) for run in range(RAMPS))
    assert alarms > 10 * RAMPS * RATIO_ALPHA


def test_a_5_percent_arm_that_gets_4_percent_is_found() -> None:
    """a 5 % arm that gets 4 % is found, in every one of many runs, within the first stage."""
    found = [looks(np.random.default_rng((SEED, run)), Service(new=5_000, bias=0.8)) for run in range(50)]
    assert all(at is not None and stage == 0 for at, stage in found)
    assert sorted(at or 0 for at, _ in found)[25] <= 20_000


@pytest.mark.parametrize("bias", [0.7, 1.4])
def test_a_share_that_is_far_off_is_found_soon(bias: float) -> None:
    """Too many as well as too few: within some thousand ids."""
    found = [looks(np.random.default_rng((SEED, run)), Service(new=1_000, bias=bias)) for run in range(30)]
    assert all(at is not None and stage <= 1 for at, stage in found)


def test_a_loss_that_one_stage_does_not_prove_is_proved_over_several() -> None:
    """summed over stages (each with its own θ): it is found at a stage that alone would not show it."""
    later = [looks(np.random.default_rng((SEED, run)), Service(new=250, bias=0.8)) for run in range(40)]
    stages = [stage for at, stage in later if at is not None]
    assert sum(stage > 0 for stage in stages) >= 30
    alone = [looks(np.random.default_rng((SEED, run)), Service(new=250, bias=0.8), STAGES[:1])[0] for run in range(40)]
    assert sum(at is not None for at in alone) <= 10


def test_the_odds_are_those_of_the_distinct_ids() -> None:
    """counts S of distinct sticky ids per arm: what an alarm tells is the formula's own value."""
    ramp = Ramp(FLAG, begin(FLAG, "us", 0, CLOCKWORK), CLOCKWORK)
    ramp.unit.moving_until = 0
    for pane in panes(np.random.default_rng(SEED), Service(new=4_000, bias=2.0), 0.05, 1):
        ramp.add(0, seen(pane))
    list(ramp.close(PANE))
    found = ramp.unit.assignments.ratio
    assert found is not None
    told = found["ids"]
    odds = log_odds_sample_ratio((told["canary"], told["baseline"]), (0.05, 0.95))
    assert found["log_odds"] == pytest.approx(odds, abs=1e-6)
    assert told["canary"] + told["baseline"] == 4_000
