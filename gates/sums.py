"""The sums of one arm's events: counters, digests, λ groups, pins and sticky ids, all mergeable.

Everything but the digests is the same in whatever order it is added up (integers, sets, maxima), and the digests
are merged in a fixed order, so the sums of a window depend on its events alone.
"""

from collections.abc import Iterable
from fractions import Fraction
from operator import attrgetter

import msgspec
import numpy as np
from numpy.typing import NDArray

from tidegate.gates.arrays import Ints
from tidegate.gates.digest import Digest
from tidegate.gates.samples import IdSample, RequestSample

COUNTERS = (
    "requests",
    "exposures",
    "errors",
    "rate_limited",
    "tool_calls",
    "tool_ok",
    "tool_rows",
    "tool_missing",
    "cost_rows",
    "cost_high",
    "cost_low",
    "solved",
    "coverage_rows",
    "coverage_sum",
    "lambda_rows",
    "lambda_bad_rows",
    "lambda_events",
    "lambda_flips",
    "lambda_misspelt",
    "labels",
    "solved_rows",
    "cost_known",
    "square_high",
    "square_mid",
    "square_low",
    "solved_cost_high",
    "solved_cost_low",
    "reason_rows",
    "reason_failed",
    "reason_in_full",
    "labels_foreign",
    "labels_not_followed",
)
"""``tool_rows``: requests with calls, ``tool_missing``: those of them without ``tool_ok``.
``cost_rows``: requests with both cost and solved. ``square_…``: Σ cost². ``solved_cost_…``: Σ cost of solved requests.
``lambda_rows``: rows with a λ state; ``lambda_events``: those of them without probe tags. ``labels``: rows that are
labels and no requests, ``labels_foreign`` and ``labels_not_followed`` those that count for nothing: of no request of
the stage, and of requests of which it is not known. ``reason_in_full``: failed reason steps that were not served
cite-only."""

HIGH_BITS, LOW_BITS = 12, 45
"""Cost is summed exactly: the high part in units of 2^-12, the low part in units of 2^-57."""
SQUARE_BITS = 20
"""Squares of costs are summed in three parts: in units of 2^20, 2^-25 and 2^-70."""
CARRIES = (
    ("cost_low", "cost_high"),
    ("solved_cost_low", "solved_cost_high"),
    ("square_low", "square_mid"),
    ("square_mid", "square_high"),
)
"""Parts of a sum that keep ``LOW_BITS`` bits, and where the rest goes; in this order."""
COVERAGE_BITS = 40
"""Coverage is summed in units of 2^-40."""
PANE_REQUESTS_CAP = 1 << 14
"""Requests that one partition sends on of one pane: those of all arms and sources have to fit into a record."""
PIN_SETS_CAP = 32
"""Distinct sets of pins listed for one arm; beyond it only their count grows."""
WORST = 3
"""Exemplars kept of each metric."""

_PLACE = {counter: at for at, counter in enumerate(COUNTERS)}
_CARRIES = tuple((COUNTERS.index(low), COUNTERS.index(high)) for low, high in CARRIES)

CONVERGED, FLIPPED = 1, 2
_MAX = 2**63 - 1


def cost_parts(cost: NDArray[np.float64]) -> tuple[Ints, Ints]:
    """Split finite costs in [0, 1e9] into integers whose sums do not depend on the order of addition."""
    scaled = cost * float(1 << HIGH_BITS)
    high = np.floor(scaled)
    low = np.rint((scaled - high) * float(1 << LOW_BITS))
    return high.astype(np.int64), low.astype(np.int64)


def square_parts(cost: NDArray[np.float64]) -> tuple[Ints, Ints, Ints]:
    """Split the squares of finite costs in [0, 1e9], each rounded once, into integers as ``cost_parts`` does."""
    scaled = cost * cost / float(1 << SQUARE_BITS)
    high = np.floor(scaled)
    rest = (scaled - high) * float(1 << LOW_BITS)
    mid = np.floor(rest)
    low = np.rint((rest - mid) * float(1 << LOW_BITS))
    return high.astype(np.int64), mid.astype(np.int64), low.astype(np.int64)


class Worst(msgspec.Struct, array_like=True):
    """One of the worst events of a metric. ``badness`` orders them; ``value`` is what a reader sees."""

    badness: float
    value: float
    partition: int
    offset: int
    event_id: str

    @property
    def rank(self) -> tuple[float, int, int]:
        """Worst first; then by place."""
        return -self.badness, self.partition, self.offset


_rank = attrgetter("rank")


class PinSet(msgspec.Struct, array_like=True):
    """The count of one set of pins, and its first place: (pane, partition, offset)."""

    count: int
    first: tuple[int, int, int]


PAST = ("groups", "complete", "convergent", "flipped")
"""Counts kept of the λ groups of windows that are over, as each window saw them."""


class Sums(msgspec.Struct, array_like=True):
    """The events of one arm and source in one span of time.

    ``past``: the λ groups of earlier windows, counted as ``PAST`` says; ``groups`` are those of the window that runs.
    ``sticky``, ``exposed``, ``requests``: ids that a pane brings, sticky ones of requests and of exposures, and the
    requests' own.
    """

    counters: list[int] = msgspec.field(default_factory=lambda: [0] * len(COUNTERS))
    delta_s: Digest = msgspec.field(default_factory=Digest)
    latency: Digest = msgspec.field(default_factory=Digest)
    groups: dict[int, int] = msgspec.field(default_factory=dict)
    pins: dict[str, PinSet] = msgspec.field(default_factory=dict)
    sticky: IdSample = msgspec.field(default_factory=IdSample)
    exposed: IdSample = msgspec.field(default_factory=IdSample)
    worst: dict[str, list[Worst]] = msgspec.field(default_factory=dict)
    past: list[int] = msgspec.field(default_factory=lambda: [0] * len(PAST))
    requests: RequestSample = msgspec.field(default_factory=RequestSample)

    def __getitem__(self, counter: str) -> int:
        return self.counters[_PLACE[counter]]

    def count(self, row: Iterable[int]) -> None:
        """Add a row of counters in the order of ``COUNTERS``."""
        self.counters = [a + b for a, b in zip(self.counters, row, strict=True)]
        self._carry()

    def _carry(self) -> None:
        for low, high in _CARRIES:
            self.counters[high] = min(self.counters[high] + (self.counters[low] >> LOW_BITS), _MAX)
            self.counters[low] &= (1 << LOW_BITS) - 1

    def probe(self, group: int, run: int, state: int) -> None:
        """Note one run (0..5) of a λ group; a repeated run keeps its worse state."""
        self.groups[group] = _worse(self.groups.get(group, 0), state << 2 * run)

    def see_pins(self, pins: str, count: int, first: tuple[int, int, int]) -> None:
        """Note ``count`` requests with a set of pins, the first of them at (pane, partition, offset)."""
        known = self.pins.get(pins)
        if known is not None:
            known.count += count
            known.first = min(known.first, first)
        elif len(self.pins) < PIN_SETS_CAP:
            self.pins[pins] = PinSet(count, first)

    def merge(self, other: "Sums") -> None:
        """Add the sums of another span, all but its ids, which are followed per stage."""
        self.count(other.counters)
        self.delta_s.merge(other.delta_s)
        self.latency.merge(other.latency)
        for group, runs in other.groups.items():
            self.groups[group] = _worse(self.groups.get(group, 0), runs)
        for pins, seen in other.pins.items():
            self.see_pins(pins, seen.count, seen.first)
        self.past = [a + b for a, b in zip(self.past, other.past, strict=True)]
        for metric, found in other.worst.items():
            self.note_worst(metric, found)

    def gather(self, other: "Sums") -> None:
        """Add another window's sums: its λ groups are over, and its pins stay with it."""
        self.count(other.counters)
        self.delta_s.merge(other.delta_s)
        self.latency.merge(other.latency)
        self.past = [a + b for a, b in zip(self.past, other.lambda_groups, strict=True)]
        for metric, found in other.worst.items():
            self.note_worst(metric, found)

    @property
    def lambda_groups(self) -> tuple[int, int, int, int]:
        """All λ groups, counted as ``PAST`` says."""
        full = [runs for runs in self.groups.values() if complete(runs)]
        convergent = sum(not flipped(runs) for runs in full)
        here = len(self.groups), len(full), convergent, sum(map(flipped, self.groups.values()))
        groups, whole, good, bad = (a + b for a, b in zip(self.past, here, strict=True))
        return groups, whole, good, bad

    def note_worst(self, metric: str, found: list[Worst]) -> None:
        """Keep the worst of these and of those known."""
        known = [*self.worst.get(metric, ()), *found]
        if len(known) > 1:
            known.sort(key=_rank)
        self.worst[metric] = known[:WORST]

    @property
    def cost(self) -> float:
        """Σ cost, rounded once."""
        return float(self.exact_cost)

    @property
    def exact_cost(self) -> Fraction:
        """Σ cost."""
        return Fraction((self["cost_high"] << LOW_BITS) + self["cost_low"], 1 << (HIGH_BITS + LOW_BITS))

    @property
    def exact_solved_cost(self) -> Fraction:
        """Σ cost of the solved requests."""
        total = (self["solved_cost_high"] << LOW_BITS) + self["solved_cost_low"]
        return Fraction(total, 1 << (HIGH_BITS + LOW_BITS))

    @property
    def exact_square(self) -> Fraction:
        """Σ cost², each square rounded to a double."""
        total = (((self["square_high"] << LOW_BITS) + self["square_mid"]) << LOW_BITS) + self["square_low"]
        return Fraction(total, 1 << (2 * LOW_BITS - SQUARE_BITS))

    @property
    def coverage(self) -> float | None:
        """Mean coverage; None without values."""
        rows = self["coverage_rows"]
        return self["coverage_sum"] / (rows << COVERAGE_BITS) if rows else None


def worst_rows(badness: NDArray[np.float64]) -> list[int]:
    """Indices of the ``WORST`` largest values, NaN apart; of equal ones the first."""
    known = np.flatnonzero(~np.isnan(badness))
    if len(known) <= WORST:
        return known.tolist()
    values = badness[known]
    third = np.partition(values, len(values) - WORST)[len(values) - WORST]
    above = known[values > third]
    return [*above.tolist(), *known[values == third][: WORST - len(above)].tolist()]


def _worse(one: int, other: int) -> int:
    """Slot-wise maximum of two packed λ groups: 2 bits a run, 0 missing, 1 convergent, 2 not."""
    flipped = (one | other) & 0xAAA
    return flipped | ((one | other) & 0x555 & ~(flipped >> 1))


def complete(runs: int) -> bool:
    """Tell whether all six runs of a λ group were seen."""
    return (runs | runs >> 1) & 0x555 == 0x555


def flipped(runs: int) -> bool:
    """Tell whether any run of a λ group was anything but convergent."""
    return bool(runs & 0xAAA)
