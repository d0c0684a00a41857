"""What sequential evidence promises of many rollouts: few healthy stages are stopped, few bad ones are promoted."""

import numpy as np
import pytest

from gates.sequential import Levels, Share
from schemas.manifest import PAGE
from tests.gates.build import flag

RAMPS, LOOKS, STEP = 2_000, 40, 50
RAMP = flag("policy: {evidence: sequential}")
LEVELS = Levels.of(RAMP, 1)


def stages(rate: float, seed: int) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """Bad ones so far at each look of each stage, of requests that go bad by chance."""
    return np.random.default_rng(seed).binomial(STEP, rate, (RAMPS, LOOKS)).cumsum(axis=1)


def ends(rate: float, seed: int) -> tuple[int, int]:
    """How many stages are stopped and promoted by the error gate alone, looked at after every 50 requests."""
    limit, value = 0.005, PAGE.policy.rule_out.error_rate
    assert value is not None
    known: dict[tuple[int, int], str] = {}

    def said(bad: int, n: int) -> str:
        if (bad, n) not in known:
            share = Share(float(bad), float(n))
            over = share.exceeds(limit, LEVELS.stop)
            clear = bad <= limit * n and share.excludes(value, LEVELS.promote)
            known[bad, n] = "stop" if over else "promote" if clear else ""
        return known[bad, n]

    stopped = promoted = 0
    for stage in stages(rate, seed).tolist():
        first = next((end for at, bad in enumerate(stage, 1) if (end := said(bad, at * STEP))), "")
        stopped, promoted = stopped + (first == "stop"), promoted + (first == "promote")
    return stopped, promoted


def allowed(chance: float) -> float:
    """So many of 2,000 that a true chance of that size is exceeded once in about 3,000 seeds."""
    return float(RAMPS * chance + 3.4 * (RAMPS * chance * (1 - chance)) ** 0.5)


@pytest.mark.parametrize("rate", [0.0, 0.003, 0.005])
def test_of_2000_healthy_stages_no_more_than_the_gate_s_share_of_false_stop_are_stopped(rate: float) -> None:
    """Exactly at the limit too."""
    stopped, promoted = ends(rate, 1)
    assert stopped <= allowed(LEVELS.stop)
    assert promoted > (RAMPS * 0.95 if rate == 0.0 else 0)


def test_of_2000_canaries_at_the_value_to_rule_out_no_more_than_wrong_promote_pass() -> None:
    _, promoted = ends(0.01, 2)
    assert promoted <= allowed(LEVELS.promote)
    assert promoted > 0, "the looks are no test of the bound"


def test_a_canary_of_three_times_that_is_stopped() -> None:
    stopped, promoted = ends(0.03, 3)
    assert stopped == RAMPS - promoted
    assert promoted <= RAMPS * 0.005
