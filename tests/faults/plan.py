"""What a seed makes of a run: the shape of the deployment, and how often what goes wrong."""

import random
from dataclasses import dataclass

from tests.faults.kafka import Weather
from tests.faults.traffic import KINDS


@dataclass(frozen=True)
class Plan:
    """What a seed makes of a run.

    ``kind``: which logs; ``ticks``: silent partitions get some; ``orders``: operators give some. ``ambush``: chance
    that a process dies when a part of its checkpoint reaches the log. ``slow``: chance that nothing comes, by
    telemetry partition. ``odds``: how often each action is taken, against the others.
    """

    seed: int
    kind: int
    partitions: int
    gates: int
    workers: int
    ticks: bool
    orders: bool
    chunk_bytes: int
    unconfirmed_max: int
    checkpoint_every: int
    weather: Weather
    ambush: float
    slow: tuple[float, ...]
    odds: dict[str, float]

    @classmethod
    def of(cls, seed: int) -> "Plan":
        """Each seed leaves out some faults and exaggerates others: bugs hide where all are equally likely."""
        rng = random.Random(f"plan {seed}")
        partitions = rng.choice((2, 3))

        def some(*values: float) -> float:
            return rng.choice((0.0, *values))

        odds = {
            "produce": 10.0,
            "fetch": 20.0,
            "unblock": 8.0,
            "idle": 10.0,
            "poll": 6.0,
            "learn": 0.3,
            "crash": some(0.3, 0.8),
            "terminate": some(0.2, 0.5),
            "rebalance": some(0.3),
            "freeze": some(0.3, 0.8),
            "thaw": 0.5,
            "stall": some(0.5, 2.0),
            "flow": 0.5,
            "compact": some(2.0, 4.0),
        }
        return cls(
            seed=seed,
            kind=seed % KINDS,
            partitions=partitions,
            gates=rng.choice((1, 2)),
            workers=rng.choice((1, 2, 3)),
            ticks=rng.random() < 0.15,
            orders=rng.random() < 0.15,
            chunk_bytes=rng.choice((700, 3_000, 512 * 1024)),
            unconfirmed_max=rng.choice((1, 3, 2_000)),
            checkpoint_every=rng.choice((50, 300, 1_500)),
            weather=Weather(
                blocked=some(0.05, 0.3),
                lost=some(0.1, 0.3),
                refused=some(0.005),
                unread=some(0.1),
                uncommitted=some(0.3),
                ghosts=some(0.3, 0.9),
            ),
            ambush=some(0.05, 0.15),
            slow=tuple(some(0.3, 0.7) for _ in range(partitions)),
            odds=odds,
        )
