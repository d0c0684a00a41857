"""Modelled requests: whatever the canary's weight is, and whoever judges, a request is the same one."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tidegate.streams.backtest.buckets import drawn

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Pattern = Literal["steady", "bursts", "day", "users"]

MINUTE_MS, MINUTES_A_DAY = 60_000, 1440
KEPT = 15
"""First minutes whose split is kept: everybody asks for them."""

ERROR, TOOL_FAILURE, SOLVED = 0.003, 0.005, 0.95
LATENCY_MS, COST, SIGMA = 800.0, 0.01, 0.8
DELTA_S, DELTA_S_SIGMA = 0.05, 0.4
COVERAGE, COVERAGE_SIGMA = 0.80, 0.10
"""A healthy request. Latency, cost and ΔS are lognormal, given by their medians and sigmas; coverage is normal, cut
to [0, 1]; each request calls one tool."""

BURSTS, BURST_TRAFFIC, BURST_ERRORS, BURST_LATENCY = 0.1, 6.4, 3.0, 1.5
"""One minute in ten has so many times the mean traffic; in it errors are so many times as frequent as in the others,
and answers take so much longer."""
SWING_TRAFFIC, SWING_ERRORS, SWING_LATENCY = 0.8, 0.5, 0.3
"""Between day and night traffic and error rate swing by so much about their means, and latency by so much of a log."""
USER_REQUESTS, USER_SHARE = 10, 0.5
"""Requests of a user in a minute, geometric about this mean; each thing about a request is the user's own with this
chance, and drawn afresh else."""
DESIGN_EFFECT = 1 + USER_SHARE**2 * (2 * USER_REQUESTS - 2)
"""How many of those requests are worth one: two of a user agree by being the user's with chance 1/4, and a request
has E[m²]/E[m] − 1 = 2 · mean − 2 others of its user beside it (Kish, Survey Sampling, 1965)."""


@dataclass(frozen=True)
class Canary:
    """What is different about the canary; ``error``, ``tool_failure``: its rates, the others: factors."""

    name: str
    title: str
    error: float = ERROR
    tool_failure: float = TOOL_FAILURE
    latency: float = 1.0
    cost: float = 1.0
    delta_s: float = 1.0


HEALTHY = Canary("healthy", "the same as the baseline")
AT_LIMIT = Canary("limit", "errors 0.5 %, exactly at the limit", error=0.005)
AT_RULE_OUT = Canary("rule-out", "errors 1 %, exactly at the value to rule out", error=0.01)
BAD = (
    Canary("errors", "errors 3 %", error=0.03),
    Canary("slow", "latency +40 %", latency=1.4),
    Canary("drift", "ΔS × 2.8: p95 +0.17, median +0.09", delta_s=2.8),
    Canary("tools", "tool failures 3 %", tool_failure=0.03),
    Canary("cost", "cost +40 %", cost=1.4),
)
SUBTLE = Canary("subtle", "errors 1.5 %", error=0.015)
WITHIN = Canary("within", "latency and cost +5 %, within all limits", latency=1.05, cost=1.05)


@dataclass(frozen=True)
class Rows:
    """A minute's requests. ``arm``: in the canary where it is below the weight. ``load``: factors that both arms share.

    ``uniform`` decides errors, tool failures and what is solved; ``normal`` latency, cost, ΔS and coverage.
    """

    arm: Floats
    uniform: Floats
    normal: Floats
    load: "Load"


@dataclass(frozen=True)
class Load:
    """How busy a minute is: factors on traffic, error rate and latency, in both arms alike."""

    traffic: float = 1.0
    errors: float = 1.0
    latency: float = 1.0


@dataclass(frozen=True)
class Requests:
    """Requests of one arm, a value each."""

    error: Bools
    tool_failed: Bools
    solved: Bools
    latency: Floats
    cost: Floats
    delta_s: Floats
    coverage: Floats

    @property
    def n(self) -> int:
        """How many."""
        return len(self.error)

    @classmethod
    def of(cls, rows: Rows, here: Bools, canary: Canary) -> "Requests":
        """Some of a minute's requests, answered by the canary, or by the baseline as ``HEALTHY``."""
        uniform, normal, load = rows.uniform[:, here], rows.normal[:, here], rows.load
        return cls(
            error=uniform[0] < canary.error * load.errors,
            tool_failed=uniform[1] < canary.tool_failure,
            solved=uniform[2] < SOLVED,
            latency=LATENCY_MS * canary.latency * load.latency * np.exp(SIGMA * normal[0]),
            cost=COST * canary.cost * np.exp(SIGMA * normal[1]),
            delta_s=np.minimum(DELTA_S * canary.delta_s * np.exp(DELTA_S_SIGMA * normal[2]), 2.0),
            coverage=np.clip(COVERAGE + COVERAGE_SIGMA * normal[3], 0.0, 1.0),
        )

    @classmethod
    def together(cls, parts: list["Requests"]) -> "Requests":
        """Those of several minutes."""
        return cls(*(np.concatenate(columns) for columns in zip(*map(_columns, parts), strict=True)))


def _columns(requests: Requests) -> Iterator[Bools | Floats]:
    yield from vars(requests).values()


Pair = tuple[Requests, Requests]
"""Baseline and canary."""


class Traffic:
    """One run's requests at ``rate`` a second; each minute follows from seed, rate, pattern and its number."""

    def __init__(self, rate: float, seed: int, pattern: Pattern = "steady") -> None:
        self.rate, self.seed, self.pattern = rate, seed, pattern
        self._phase = (drawn("phase", seed) % MINUTES_A_DAY) / MINUTES_A_DAY
        self._rows: list[Rows] = []
        self._split: dict[tuple[int, float, Canary], Pair] = {}

    def arms(self, minute: int, weight: float, canary: Canary) -> Pair:
        """A minute's requests, split at a weight of the canary."""
        asked = minute, weight, canary
        if asked in self._split:
            return self._split[asked]
        while len(self._rows) <= minute:
            self._rows.append(self._drawn(len(self._rows)))
        rows = self._rows[minute]
        mine = rows.arm < weight
        pair = Requests.of(rows, ~mine, HEALTHY), Requests.of(rows, mine, canary)
        if minute < KEPT:
            self._split[asked] = pair
        return pair

    def forget(self) -> None:
        """Let go of what is kept for others that ask for the same canary."""
        self._split = {}

    def span(self, start: int, end: int, weight: float, canary: Canary) -> Pair:
        """The requests from one minute up to another."""
        parts = [self.arms(minute, weight, canary) for minute in range(start, end)]
        if len(parts) == 1:
            return parts[0]
        return Requests.together([b for b, _ in parts]), Requests.together([c for _, c in parts])

    def _drawn(self, minute: int) -> Rows:
        rng = np.random.default_rng(drawn("minute", self.rate, self.seed, self.pattern, minute))
        load = self._load(minute, rng)
        expected = self.rate * MINUTE_MS / 1000 * load.traffic
        if self.pattern == "users":
            sizes = rng.geometric(1 / USER_REQUESTS, rng.poisson(expected / USER_REQUESTS))
            user = np.repeat(np.arange(len(sizes)), sizes)
            return Rows(
                rng.random(len(sizes))[user],
                _shared(rng, rng.random((3, len(sizes))), user, rng.random((3, len(user)))),
                _shared(rng, rng.standard_normal((4, len(sizes))), user, rng.standard_normal((4, len(user)))),
                load,
            )
        n = rng.poisson(expected)
        return Rows(rng.random(n), rng.random((3, n)), rng.standard_normal((4, n)), load)

    def _load(self, minute: int, rng: np.random.Generator) -> Load:
        if self.pattern == "bursts":
            calm = (1 - BURSTS * BURST_TRAFFIC) / (1 - BURSTS)
            # The mean over requests, not minutes, stays what it was.
            errors = 1 / (BURSTS * BURST_TRAFFIC * BURST_ERRORS + (1 - BURSTS) * calm)
            if rng.random() < BURSTS:
                return Load(BURST_TRAFFIC, BURST_ERRORS * errors, BURST_LATENCY)
            return Load(calm, errors)
        if self.pattern == "day":
            swing = math.sin(2 * math.pi * (minute / MINUTES_A_DAY + self._phase))
            return Load(1 + SWING_TRAFFIC * swing, 1 + SWING_ERRORS * swing, math.exp(SWING_LATENCY * swing))
        return Load()


def _shared(rng: np.random.Generator, of_user: Floats, user: NDArray[np.int64], own: Floats) -> Floats:
    """What the user brings, or what is the request's own."""
    chosen: Floats = np.where(rng.random(own.shape) < USER_SHARE, of_user[:, user], own)
    return chosen
