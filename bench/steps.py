"""Where an event's microseconds go in the window path: the same core as the worker's, fed from memory."""

import time
from collections import defaultdict
from collections.abc import Callable, Generator
from typing import Any

import tidegate.streams.engine.source_partition
from bench.load import MANIFEST, TOPIC_PARTITIONS, events
from tidegate.gates.digest import Digest
from tidegate.schemas.clockwork import Clockwork
from tidegate.schemas.load import load_manifest
from tidegate.schemas.timeline import Timeline
from tidegate.streams.engine.event_classes import EventClasses
from tidegate.streams.engine.gate_log import partial_codec, split
from tidegate.streams.engine.runs import Run
from tidegate.streams.engine.source_partition import STEP, SourcePartition

RUN = 2_600


def measure(count: int) -> dict[str, float]:
    """Microseconds an event by step; ``rest`` is what the steps leave of the total."""
    runs: dict[int, list[bytes]] = defaultdict(list)
    for partition, value in events(count):
        runs[partition].append(value)
    spent: dict[str, float] = defaultdict(float)

    def sliced(name: str, slices: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        start = time.perf_counter()
        result = yield from slices
        spent[name] += time.perf_counter() - start
        return result

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **kwargs)
            spent[name] += time.perf_counter() - start
            return sliced(name, result) if isinstance(result, Generator) else result

        return wrapper

    flags = load_manifest(MANIFEST).flags
    table = EventClasses(Timeline.of(flags))
    clockwork = Clockwork(10_000, 10_000, "bench")
    states = [SourcePartition.fresh(partition, clockwork, table) for partition in range(TOPIC_PARTITIONS)]
    patched = [
        (tidegate.streams.engine.source_partition, "decode", "decode to columns"),
        (SourcePartition, "_drop_duplicates", "duplicates"),
        (SourcePartition, "_count", "count into panes"),
        (SourcePartition, "_close", "close panes"),
        (Digest, "add", "of which digests"),
    ]
    originals = [getattr(owner, name) for owner, name, _ in patched]
    for (owner, name, label), original in zip(patched, originals, strict=True):
        setattr(owner, name, timed(label, original))
    start = time.perf_counter()
    try:
        longest = max(map(len, runs.values()))
        for at in range(0, longest, RUN):
            for partition, state in enumerate(states):
                values = runs[partition][at : at + RUN]
                if values:
                    for partial in state.step(Run(at, values, [START_STAMP] * len(values))).partials:
                        sending = time.perf_counter()
                        for part in split(partial, 4):
                            partial_codec.dump(part)
                        spent["encode partials"] += time.perf_counter() - sending
                    if at // RUN % 20 == 0:
                        saving = time.perf_counter()
                        state.dump()
                        spent["checkpoints"] += time.perf_counter() - saving
        total = time.perf_counter() - start
    finally:
        for (owner, name, _), original in zip(patched, originals, strict=True):
            setattr(owner, name, original)
    steps = {name: seconds / count * 1e6 for name, seconds in spent.items()}
    known = sum(us for name, us in steps.items() if not name.startswith("of which"))
    return steps | {"rest": total / count * 1e6 - known, "total": total / count * 1e6}


START_STAMP = 4_000_000_000_000
assert STEP <= RUN
