"""Decide from files what a worker would have decided from the topic: the same core, no broker.

A file is NDJSON in log order: bare events, or records with their partition and offset as a dump of the topic gives
them.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tidegate.gates.recorder import Outcome
from tidegate.schemas.clockwork import Clockwork
from tidegate.schemas.operation import Operation
from tidegate.schemas.timeline import Timeline
from tidegate.streams.dumps.log import runs
from tidegate.streams.engine.pipeline import Corrected, Pipeline
from tidegate.streams.engine.tally import Tally


def replay(
    paths: Sequence[Path],
    timeline: Timeline,
    partitions: int,
    clockwork: Clockwork,
    progress: Callable[[int], None] = lambda _: None,
    operations: Sequence[Operation] = (),
    corrected: Corrected = lambda _: None,
    tally: Tally | None = None,
) -> Iterator[Outcome]:
    """Yield the decisions and commands from the files, in order; ``corrected`` gets the corrections, ``tally``
    what the records counted for.

    Raises InputError as ``runs``.
    """
    pipeline = Pipeline(timeline, partitions, clockwork, operations)
    pipeline.corrected = corrected
    pipeline.tally = pipeline.tally if tally is None else tally
    for partition, run in runs(paths, partitions, progress):
        yield from pipeline.step(partition, run)
    yield from pipeline.finish()
    pipeline.tally.unclosed = pipeline.unclosed()
