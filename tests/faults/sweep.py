"""Many seeds, on every core."""

import hashlib
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

from tests.faults.plan import Plan
from tests.faults.world import Failure, run


@dataclass(frozen=True)
class Result:
    """What became of a seed. ``said``, ``expected``: SHA-256 of what came out and of what should have."""

    seed: int
    workers: int
    counts: Counter[str] = field(default_factory=Counter)
    said: bytes = b""
    expected: bytes = b""
    failure: str | None = None


def _result(seed: int) -> Result:
    workers = Plan.of(seed).workers
    try:
        outcome = run(seed)
    except Failure as failure:
        return Result(seed, workers, failure=str(failure))
    return Result(seed, workers, outcome.counts, outcome.output.sha256, outcome.expected.sha256)


def sweep(seeds: Iterable[int]) -> Iterator[Result]:
    """The results in order of the seeds."""
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_result, seeds, chunksize=5)


class Table:
    """Results counted by number of workers, with a line for all."""

    FAULTS = ("crashes", "terminations", "zombies", "rebalances", "lost confirmations", "ghosts", "stalls")
    HEAD = ("workers", "seeds", *FAULTS, "taken up", "mismatches")

    def __init__(self) -> None:
        self._rows: dict[str, Counter[str]] = {}
        self._said, self._expected = hashlib.sha256(), hashlib.sha256()

    def add(self, result: Result) -> None:
        """Count a result."""
        for name in (str(result.workers), "all"):
            row = self._rows.setdefault(name, Counter())
            row += result.counts
            row["seeds"] += 1
            row["mismatches"] += result.failure is not None
        self._said.update(result.said)
        self._expected.update(result.expected)

    @property
    def failed(self) -> bool:
        """Whether a seed failed."""
        return self._rows["all"]["mismatches"] > 0

    def __str__(self) -> str:
        rows = [[name, *(f"{row[column]:,}" for column in self.HEAD[1:])] for name, row in sorted(self._rows.items())]
        lines = [self.HEAD, ["---:"] * len(self.HEAD), *rows]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return (
            f"{table}\n\nSHA-256 of all decisions, commands and corrections\n"
            f"  undisturbed  {self._expected.hexdigest()}\n  with faults  {self._said.hexdigest()}"
        )
