"""Where an event's microseconds of CPU go in the window path: the same core as the worker's, fed from memory.

``python -m bench.steps`` measures it with each decoder in turn.
"""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Generator
from typing import Any

from rich.console import Console
from rich.table import Table

import tidegate.streams.engine.source_partition
from bench.load import MANIFEST, TOPIC_PARTITIONS, events
from tidegate.gates.digest import Digest
from tidegate.schemas.clockwork import Clockwork
from tidegate.schemas.load import load_manifest
from tidegate.schemas.timeline import Timeline
from tidegate.streams.engine import native
from tidegate.streams.engine.counting import Rows
from tidegate.streams.engine.event_classes import EventClasses
from tidegate.streams.engine.gate_log import partial_codec, split
from tidegate.streams.engine.runs import Run
from tidegate.streams.engine.source_partition import STEP, SourcePartition

RUN = 2_600
EVENTS, ROUNDS = 200_000, 5


def in_turn(count: int = EVENTS, rounds: int = ROUNDS) -> dict[str, dict[str, float]]:
    """Microseconds an event by step and decoder, medians of rounds in which the decoders take turns."""
    before = native.running()
    modes = {"python": "off"} | ({"native": "require"} if native.available() else {})
    found: dict[str, list[dict[str, float]]] = {decoder: [] for decoder in modes}
    for _ in range(rounds):
        for decoder, mode in modes.items():
            native.choose(mode)
            found[decoder].append(measure(count))
    native.choose("off" if before == "python" else None)
    return {
        decoder: {step: statistics.median(each.get(step, 0.0) for each in runs) for step in runs[0]}
        for decoder, runs in found.items()
    }


def table() -> Table:
    """The steps as a table, a column a decoder."""
    measured = in_turn()
    shown = Table("step of the window path, from memory", *(f"µs an event, {decoder}" for decoder in measured))
    for step in next(iter(measured.values())):
        shown.add_row(step, *(f"{steps[step]:.2f}" for steps in measured.values()))
    return shown


def measure(count: int) -> dict[str, float]:
    """Microseconds an event by step; ``rest`` is what the steps leave of the total."""
    runs: dict[int, list[bytes]] = defaultdict(list)
    for partition, value in events(count):
        runs[partition].append(value)
    spent: dict[str, float] = defaultdict(float)

    def sliced(name: str, slices: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        start = time.process_time()
        result = yield from slices
        spent[name] += time.process_time() - start
        return result

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            result = function(*args, **kwargs)
            spent[name] += time.process_time() - start
            return sliced(name, result) if isinstance(result, Generator) else result

        return wrapper

    flags = load_manifest(MANIFEST).flags
    classes = EventClasses(Timeline.of(flags))
    clockwork = Clockwork(10_000, 10_000, "bench")
    states = [SourcePartition.fresh(partition, clockwork, classes) for partition in range(TOPIC_PARTITIONS)]
    patched = [
        (tidegate.streams.engine.source_partition, "decode", "decode to columns"),
        (SourcePartition, "_drop_duplicates", "duplicates"),
        (Rows, "hold", "count into panes"),
        (Rows, "sum_slices", "of which sums"),
        (SourcePartition, "_close", "close panes"),
        (Digest, "add", "of which digests"),
    ]
    originals = [getattr(owner, name) for owner, name, _ in patched]
    for (owner, name, label), original in zip(patched, originals, strict=True):
        setattr(owner, name, timed(label, original))
    start = time.process_time()
    try:
        longest = max(map(len, runs.values()))
        for at in range(0, longest, RUN):
            for partition, state in enumerate(states):
                values = runs[partition][at : at + RUN]
                if values:
                    for partial in state.step(Run(at, values, [START_STAMP] * len(values))).partials:
                        sending = time.process_time()
                        for part in split(partial, 4):
                            partial_codec.dump(part)
                        spent["encode partials"] += time.process_time() - sending
                    if at // RUN % 20 == 0:
                        saving = time.process_time()
                        state.dump()
                        spent["checkpoints"] += time.process_time() - saving
        total = time.process_time() - start
    finally:
        for (owner, name, _), original in zip(patched, originals, strict=True):
            setattr(owner, name, original)
    steps = {name: seconds / count * 1e6 for name, seconds in spent.items()}
    known = sum(us for name, us in steps.items() if not name.startswith("of which"))
    return steps | {"rest": total / count * 1e6 - known, "total": total / count * 1e6}


START_STAMP = 4_000_000_000_000
assert STEP <= RUN


if __name__ == "__main__":
    Console().print(table())
