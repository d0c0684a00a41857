"""``python -m bench.panes``: CPU that a pane of a unit costs the gate, by kind of evidence, from memory, in turns."""

import time

import numpy as np
from rich.console import Console
from rich.table import Table

from tidegate.gates.kinds import machine
from tidegate.gates.sums import COUNTERS, COVERAGE_BITS, Sums, cost_parts, square_parts
from tidegate.gates.unit import begin
from tidegate.gates.window import Arm, PaneUnit
from tidegate.schemas.clockwork import Clockwork
from tidegate.schemas.load import load_manifest

KINDS = ("point", "sequential")
CLOCKWORK = Clockwork(10_000, 10_000, "bench")
PANES, ROUNDS = 120, 5


def sums(rng: np.random.Generator, n: int) -> Sums:
    """A healthy arm in a pane."""
    cost, found = rng.lognormal(-3, 0.8, n), Sums()
    high, low = (int(part.sum()) for part in cost_parts(cost))
    squares = [int(part.sum()) for part in square_parts(cost)]
    row = {"requests": n, "errors": int(rng.binomial(n, 0.002)), "tool_rows": n, "tool_calls": n, "tool_ok": n}
    row |= {"coverage_rows": n, "coverage_sum": n * 4 * (1 << COVERAGE_BITS) // 5, "lambda_rows": n, "lambda_events": n}
    row |= {"cost_rows": n, "cost_known": n, "solved": n, "solved_rows": n, "cost_high": high, "cost_low": low}
    row |= {"solved_cost_high": high, "solved_cost_low": low}
    row |= dict(zip(("square_high", "square_mid", "square_low"), squares, strict=True))
    found.count([row.get(counter, 0) for counter in COUNTERS])
    found.delta_s.add(np.minimum(rng.lognormal(-3, 0.6, n), 2.0))
    found.latency.add(rng.lognormal(5, 0.8, n))
    return found


def pane_ms(kind: str, rows: int, window: str) -> float:
    """Milliseconds of CPU a pane with so many canary rows, and three times as many of the baseline."""
    policy = f"{{evidence: {kind}, lambda_source: traffic, on_gate_fail: hold}}"
    text = f"flags: {{f: {{policy: {policy}, window: {{length: {window}, hold_windows: 500}}}}}}"
    flag, rng = load_manifest(text).flags["f"], np.random.default_rng(1)
    unit = machine(flag, begin(flag, "us", 0, CLOCKWORK), CLOCKWORK)
    panes = [
        PaneUnit(arms={name: Arm({"traffic": sums(rng, n)}) for name, n in (("canary", rows), ("baseline", 3 * rows))})
        for _ in range(PANES)
    ]
    begun = time.process_time()
    for index, pane in enumerate(panes, 1):
        unit.add(0, pane)
        for _ in unit.close(index * CLOCKWORK.pane_ms):
            pass
    return (time.process_time() - begun) / PANES * 1000


def main() -> None:
    """Print the medians of some rounds."""
    table = Table("canary rows a pane", "window", *(f"{kind}, ms" for kind in KINDS), "more, µs an event")
    for rows in (10, 100, 1000, 5000):
        for window in ("15m", "1m"):
            rounds = [[pane_ms(kind, rows, window) for kind in KINDS] for _ in range(ROUNDS)]
            point, sequential = np.median(np.array(rounds), axis=0).tolist()
            more = (sequential - point) * 1000 / (4 * rows)
            table.add_row(str(rows), window, f"{point:.2f}", f"{sequential:.2f}", f"{more:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
