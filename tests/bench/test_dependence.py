"""What design_effect is for: where requests resemble each other both promises hold with the right one, none with 1."""

import numpy as np
import pytest

from bench.dependence import (
    ALL,
    LEVELS,
    LIMIT,
    STAGES,
    WORST,
    Traffic,
    bursts,
    design_effect,
    of_bursts,
    passed,
    stopped,
    users,
)

CASES = {
    "users, alike": (users(0.5), design_effect(0.5)),
    "users, a little": (users(0.1), design_effect(0.1)),
    "bursts": (bursts(10), of_bursts(10)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_right_design_effect_holds_what_1_does_not(name: str) -> None:
    """Over 2,000 stages exactly at the limit, at all of false_stop; and as many at the value to rule out."""
    traffic: Traffic
    traffic, worth = CASES[name]
    at_limit, intolerable = (traffic(np.random.default_rng(7), rate) for rate in (LIMIT, WORST))
    spare = 3.4 * (STAGES * ALL * (1 - ALL)) ** 0.5
    assert LEVELS.promote == ALL
    assert stopped(at_limit, ALL, worth) <= STAGES * ALL < stopped(at_limit, ALL)
    assert passed(intolerable, worth) <= STAGES * ALL
    assert passed(intolerable) > STAGES * ALL + spare
