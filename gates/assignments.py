"""The arm in which each sticky id was seen over a span of evidence, and the findings about it.

A finding is held against the span in which it was made: once a window has been held for it, what follows is looked
at again.
"""

import math
from typing import Any

import msgspec
import numpy as np

from tidegate.gates.arrays import Ids
from tidegate.gates.bounds import log_odds_sample_ratio
from tidegate.gates.rules import rounded
from tidegate.gates.samples import IdSample

RATIO_ALPHA, RATIO_OFF = 0.001, 0.05
"""Level of the sample-ratio test, and the share of its weight that an arm must be off by."""


class Assignments(msgspec.Struct, array_like=True):
    """Sticky ids by the arm that they were last seen in.

    ``bounced``: ids that changed arms and were not yet held against a
    window. ``odds``: of the sample-ratio test over the stages before. ``ratio``: what the test found in this span.
    ``unsound``: what it found in the span before, which stands until this one has shown ``needed`` ids without a
    finding, as many as that one took.
    """

    baseline: IdSample = msgspec.field(default_factory=IdSample)
    canary: IdSample = msgspec.field(default_factory=IdSample)
    bounced: IdSample = msgspec.field(default_factory=IdSample)
    odds: float = 0.0
    ratio: dict[str, Any] | None = None
    unsound: dict[str, Any] | None = None
    needed: int = 0

    def see(self, arm: str, ids: IdSample) -> None:
        """Add the ids that one partition saw in an arm in one pane; baseline first."""
        here, other = (self.baseline, self.canary) if arm == "baseline" else (self.canary, self.baseline)
        moved = np.intersect1d(other.ids, ids.ids, assume_unique=True)
        if len(moved):
            self.bounced.add(moved)
            other.drop(moved)
        here.merge(ids)

    @property
    def level(self) -> int:
        """One id in 2^level is followed."""
        return max(self.baseline.level, self.canary.level, self.bounced.level)

    @property
    def counts(self) -> tuple[int, int]:
        """The ids followed in canary and baseline."""
        level = self.level
        return len(self.canary.within(level)), len(self.baseline.within(level))

    @property
    def seen(self) -> int:
        """Number of ids, estimated where they are sampled."""
        return sum(self.counts) << self.level

    def bounces(self) -> tuple[Ids, float]:
        """Return the ids that changed arms, of those followed, and their share."""
        found, followed = self.bounced.within(self.level), sum(self.counts)
        return found, len(found) / followed if followed else 0.0

    def test_ratio(self, weight: float) -> float:
        """Hold the arms' shares of ids against the canary's weight, with the spans before; give this span's log odds.

        Source: Lindon & Malek 2022; look at every pane.
        """
        if not 0 < weight < 1:
            return 0.0
        counts, shares = self.counts, (weight, 1 - weight)
        odds, n = log_odds_sample_ratio(counts, shares), sum(counts)
        total = self.odds + odds
        off = any(abs(count - share * n) >= RATIO_OFF * share * n for count, share in zip(counts, shares, strict=True))
        if self.ratio is None and off and total >= -math.log(RATIO_ALPHA):
            self.ratio = {
                "ids": {"canary": counts[0], "baseline": counts[1]},
                "share": rounded(counts[0] / n),
                "weight": weight,
                "log_odds": rounded(total, 6),
                "followed": f"1 id in {1 << self.level}",
            }
        if self.seen >= self.needed:
            self.unsound = None
        return odds

    def next_stage(self, weight: float) -> "Assignments":
        """Return the assignments with which the stage after one of this weight begins."""
        return Assignments(odds=self.odds + self.test_ratio(weight))

    def next_window(self, *, held_for_bounces: bool) -> "Assignments":
        """Return the assignments for the next window: findings stay with the window that they held."""
        if self.ratio is not None:
            return Assignments(unsound=self.ratio, needed=self.seen)
        if held_for_bounces:
            self.bounced = IdSample()
        return self
