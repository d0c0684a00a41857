"""``python -m bench.dependence``: the error gate alone where requests are not independent, over 2,000 stages a row.

A stage has 120 looks of 100 canary requests. How whole ramps fare is in ``make evidence``; here are enough stages to
see the chances that a manifest asks for.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from tidegate.gates.sequential import Levels, Proportion
from tidegate.schemas.load import load_manifest

Ints = NDArray[np.int64]
Traffic = Callable[[np.random.Generator, float], Ints]
STAGES, LOOKS, STEP = 2_000, 120, 100
DAY = 96
"""Looks from one day to the next."""
OF_A_USER = 10
FLAG = load_manifest("flags: {f: {}}").flags["f"]
LIMIT = FLAG.gates.error_rate_max or 0.0
WORST = FLAG.policy.rule_out.error_rate or 0.0
LEVELS = Levels.of(FLAG, 1)
PART, ALL = LEVELS.stop("error_rate_max"), FLAG.policy.false_stop


def independent(rng: np.random.Generator, rate: float) -> Ints:
    """Errors at each look."""
    return rng.binomial(STEP, rate, (STAGES, LOOKS))


def bursts(times: float) -> Traffic:
    """One look in ten has so many times the errors of the others."""

    def errors(rng: np.random.Generator, rate: float) -> Ints:
        calm = rate / (0.9 + 0.1 * times)
        return rng.binomial(STEP, np.where(rng.random((STAGES, LOOKS)) < 0.1, calm * times, calm))

    return errors


def day_and_night(rng: np.random.Generator, rate: float) -> Ints:
    """The rate swings by half about its mean, and each stage begins with the worse half."""
    swing = 1 + 0.5 * np.sin(2 * np.pi * np.arange(LOOKS) / DAY)
    return rng.binomial(np.full((STAGES, LOOKS), STEP), rate * swing)


def users(correlation: float) -> Traffic:
    """Ten requests a user, two of which resemble each other by so much."""

    def errors(rng: np.random.Generator, rate: float) -> Ints:
        spread = (1 - correlation) / correlation
        own = rng.beta(rate * spread, (1 - rate) * spread, (STAGES, LOOKS, STEP // OF_A_USER))
        found: Ints = rng.binomial(OF_A_USER, own).sum(axis=2)
        return found

    return errors


def design_effect(correlation: float, together: int = OF_A_USER) -> float:
    """How many requests are worth one, of which so many come together (Kish, Survey Sampling, 1965)."""
    return 1 + (together - 1) * correlation


def of_bursts(times: float, rate: float = WORST) -> float:
    """The same of ``bursts`` at a rate: requests of one look resemble each other by how much its rate varies."""
    mean_square = (0.1 * times**2 + 0.9) / (0.9 + 0.1 * times) ** 2
    return design_effect((mean_square - 1) * rate / (1 - rate), STEP)


def stopped(bad: Ints, level: float, worth: float = 1.0) -> int:
    """Stages that the gate stops at any look."""
    least = np.array([_least(n, level, worth) for n in _rows()])
    return int((bad.cumsum(axis=1) >= least).any(axis=1).sum())


def passed(bad: Ints, worth: float = 1.0) -> int:
    """Stages that the gate lets pass at any look."""
    most = np.array([_most(n, worth) for n in _rows()])
    return int((bad.cumsum(axis=1) <= most).any(axis=1).sum())


def _rows() -> range:
    return range(STEP, STEP * LOOKS + 1, STEP)


@cache
def _least(n: int, level: float, worth: float) -> int:
    return bisect_left(range(n + 1), True, key=lambda k: Proportion(k / worth, n / worth).exceeds(LIMIT, level))


@cache
def _most(n: int, worth: float) -> int:
    over = bisect_left(
        range(n + 1), True, key=lambda k: not Proportion(k / worth, n / worth).excludes(WORST, LEVELS.promote)
    )
    return min(over - 1, int(LIMIT * n + 1e-9))


def rows() -> Iterator[tuple[str, Traffic, float]]:
    """What is measured: how requests come, and the design effect they are judged with."""
    yield "independent", independent, 1.0
    for times in (3.0, 10.0):
        for worth in (1.0, of_bursts(times)):
            yield f"bursts, {times:g} times the errors", bursts(times), worth
    yield "day and night, ± a half, from the worse half on", day_and_night, 1.0
    for correlation in (0.1, 0.5):
        for worth in (1.0, design_effect(correlation)):
            yield f"users of {OF_A_USER} requests, correlation {correlation:g}", users(correlation), worth


def main() -> None:
    """Print what was counted."""
    titles = (f"stopped at {rate:.1%}, level {level:.2%}" for rate in (0.003, LIMIT) for level in (PART, ALL))
    table = Table("errors", "design_effect", *titles, f"passed at {WORST:.0%}")
    for name, traffic, worth in rows():
        rng = np.random.default_rng(3)
        found = []
        for rate in (0.003, LIMIT):
            bad = traffic(rng, rate)
            found += [stopped(bad, level, worth) for level in (PART, ALL)]
        found.append(passed(traffic(rng, WORST), worth))
        table.add_row(name, f"{worth:.3g}", *(f"{count / STAGES:.2%}" for count in found))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
