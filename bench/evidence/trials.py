"""Every way of judging on every canary, on the same traffic with the same seeds, counted."""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from typing import Self, TypeVar

import msgspec

from bench.evidence.peers import argo, flagger, means, wald
from bench.evidence.ramps import Outcome, System, flag, tidegate
from bench.evidence.traffic import (
    AT_LIMIT,
    AT_RULE_OUT,
    BAD,
    DESIGN_EFFECT,
    HEALTHY,
    SUBTLE,
    WITHIN,
    Canary,
    Pattern,
    Traffic,
)

RATES = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0)
"""Requests a second of both arms together."""
SLOW = 2.0
"""Below this rate a rollout takes days, and half as many are tried."""
FURTHER = {20.0, 200.0}
"""Rates at which the two canaries between good and bad are tried too."""
ROBUST_RATE, ROBUST_HOURS, ROBUST_PANES = 20.0, 12, 5
"""Of the runs on traffic that is not drawn request by request: requests a second, when they are given up, and minutes
of a pane."""
SYSTEMS = ("sequential", "point", "argo", "argo-inconclusive", "flagger", "means", "wald")
Task = TypeVar("Task")
OutcomeWriter = TypeVar("OutcomeWriter")


class Count(msgspec.Struct, frozen=True):
    """How the runs of one canary under one way of judging ended.

    ``stops``: minutes until each stopped run was, rising; ``finishes``: until each finished one was. ``past_first``:
    promoted at least once. ``exposed``: the median number of requests that the canary served.
    """

    runs: int
    stops: list[int]
    finishes: list[int]
    waiting: int
    past_first: int
    exposed: int

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> "Count":
        """Outcomes of all seeds."""
        return cls(
            runs=len(outcomes),
            stops=sorted(one.minutes for one in outcomes if one.ended == "stopped"),
            finishes=sorted(one.minutes for one in outcomes if one.ended == "finished"),
            waiting=sum(one.ended == "waits" for one in outcomes),
            past_first=sum(one.passed > 0 for one in outcomes),
            exposed=sorted(one.exposed for one in outcomes)[(len(outcomes) - 1) // 2],
        )

    def stopped_within(self, q: float) -> int | None:
        """Minutes until a share ``q`` of all runs was stopped; None where fewer ever were."""
        return _rank(self.stops, q, self.runs)

    def finished_within(self, q: float) -> int | None:
        """Minutes until a share ``q`` of all runs had finished."""
        return _rank(self.finishes, q, self.runs)


def _rank(rising: Sequence[int], q: float, of: int) -> int | None:
    at = math.ceil(q * of)
    return rising[at - 1] if at <= len(rising) else None


class Cell(msgspec.Struct, frozen=True):
    """One count and what it is of."""

    rate: float
    canary: str
    system: str
    count: Count


class Robust(msgspec.Struct, frozen=True):
    """One count of sequential evidence on traffic of a pattern, by ``design_effect``."""

    pattern: str
    design_effect: float
    canary: str
    count: Count


class Results(msgspec.Struct, frozen=True):
    """Everything that was counted, and how to count it again."""

    seed: int
    runs: int
    robust_runs: int
    hours: int
    rates: list[float]
    cells: list[Cell]
    robust: list[Robust]

    def count(self, rate: float, canary: str, system: str) -> Count:
        """One of the cells. KeyError if it was not counted."""
        return {(one.rate, one.canary, one.system): one.count for one in self.cells}[rate, canary, system]


@cache
def systems() -> dict[str, System]:
    """The ways of judging, by name."""
    rules = flag("sequential")
    return {
        "sequential": tidegate("sequential"),
        "point": tidegate("point"),
        "argo": argo(rules),
        "argo-inconclusive": argo(rules, inconclusive=True),
        "flagger": flagger(rules),
        "means": means(rules),
        "wald": wald(rules),
    }


def canaries(rate: float) -> tuple[Canary, ...]:
    """Those that are tried at a rate."""
    return (HEALTHY, *BAD, *((WITHIN, SUBTLE) if rate in FURTHER else ()))


def runs_at(rate: float, runs: int) -> int:
    """How many of ``runs`` are tried at a rate."""
    return -(-runs // 2) if rate < SLOW else runs


def trial(at: tuple[float, int]) -> list[tuple[str, str, Outcome]]:
    """One seed at one rate: canary, system and outcome of each run on it."""
    rate, seed = at
    traffic = Traffic(rate, seed)
    found = []
    for canary in canaries(rate):
        found += [(canary.name, name, run(traffic, canary)) for name, run in systems().items()]
        traffic.forget()
    return found


PATTERNS: tuple[tuple[Pattern, float], ...] = (
    ("steady", 1.0),
    ("bursts", 1.0),
    ("day", 1.0),
    ("users", 1.0),
    ("users", DESIGN_EFFECT),
)
ROBUST_CANARIES = (HEALTHY, AT_LIMIT, AT_RULE_OUT)


def robust_trial(at: tuple[Pattern, float, int, int]) -> list[tuple[str, Outcome]]:
    """One seed of a pattern under a design effect, given up after some hours."""
    pattern, design_effect, hours, seed = at
    traffic = Traffic(ROBUST_RATE, seed, pattern)
    run = tidegate("sequential", f", design_effect: {design_effect}", hours * 60, ROBUST_PANES)
    return [(canary.name, run(traffic, canary)) for canary in ROBUST_CANARIES]


def measure(
    rates: Sequence[float],
    runs: int,
    robust_runs: int,
    seed: int,
    jobs: int,
    hours: int = ROBUST_HOURS,
    progress: Callable[[str, "Results"], None] = lambda *_: None,
) -> Results:
    """All trials; the same numbers however many ``jobs`` share the work.

    ``progress`` is told what was done, and all results so far: a long run that is ended leaves those.
    """

    def told(done: str) -> None:
        progress(done, Results(seed, runs, robust_runs, hours, sorted(rates), cells, robust))

    cells: list[Cell] = []
    robust: list[Robust] = []
    with _Workers(jobs) as each:
        for rate in sorted(rates, reverse=True):
            found: dict[tuple[str, str], list[Outcome]] = {}
            for rows in each(trial, [(rate, seed + i) for i in range(runs_at(rate, runs))]):
                for canary, system, outcome in rows:
                    found.setdefault((canary, system), []).append(outcome)
            cells += [Cell(rate, *names, Count.of(outcomes)) for names, outcomes in found.items()]
            told(f"{rate:g} requests a second: {runs_at(rate, runs)} runs")
        for pattern, design_effect in PATTERNS:
            kept: dict[str, list[Outcome]] = {}
            asked = [(pattern, design_effect, hours, one) for one in range(seed, seed + robust_runs)]
            for pairs in each(robust_trial, asked):
                for canary, outcome in pairs:
                    kept.setdefault(canary, []).append(outcome)
            robust += [Robust(pattern, design_effect, name, Count.of(outcomes)) for name, outcomes in kept.items()]
            told(f"{pattern} traffic, design_effect {design_effect:g}: {robust_runs} runs")
    return Results(seed, runs, robust_runs, hours, sorted(rates), cells, robust)


class _Workers:
    """Maps over tasks in order, in this process or in several."""

    def __init__(self, jobs: int) -> None:
        self._pool = ProcessPoolExecutor(jobs, get_context("spawn")) if jobs > 1 else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def __call__(self, work: Callable[[Task], OutcomeWriter], tasks: Sequence[Task]) -> Iterator[OutcomeWriter]:
        return map(work, tasks) if self._pool is None else self._pool.map(work, tasks)
