"""Simulate faults for a range of seeds and print what struck: ``python -m tests.faults SEEDS FIRST``."""

import sys
import time

from tests.faults.sweep import Table, sweep

EVERY = 500


def main(count: int, first: int) -> int:
    """1 if a seed failed."""
    started, table = time.monotonic(), Table()
    for done, result in enumerate(sweep(range(first, first + count)), 1):
        table.add(result)
        if result.failure is not None:
            print(result.failure, flush=True)
        if done % EVERY == 0:
            print(f"{done:,} seeds, {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    print(f"{table}\n  {time.monotonic() - started:.0f} s")
    return int(table.failed)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
