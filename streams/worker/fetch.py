"""Runs instead of records: what one fetch brings of a partition goes through Faust as one message.

aiokafka makes one object a record and Faust another, which costs more than decoding it. For the topics in
``RunRecords.topics`` a record batch becomes one ``FetchedRun``, and the scheduler joins those of one fetch.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar

from aiokafka.structs import ConsumerRecord
from faust.transport.utils import DefaultSchedulingStrategy
from faust.types import TP

from tidegate.streams.engine.runs import Run
from tidegate.streams.kafka import reader
from tidegate.streams.kafka.reader import ReadableRecords


@dataclass(frozen=True)
class FetchedRun:
    """A run with the keys of its records, and the headers of those that have any by index."""

    run: Run
    keys: list[bytes | None]
    headers: dict[int, Sequence[Any]]


class RunRecords(ReadableRecords):
    """Fetched records of one partition, a batch at a time where the topic is one of ``topics``."""

    topics: ClassVar[Collection[str]] = ()

    def _unpack_records(self) -> Iterator[Any]:
        if self._tp.topic not in self.topics:
            yield from super()._unpack_records()
            return
        for rows, due, end in self._unpacked():
            for fetched in _dense_runs(rows, due, end):
                self.next_fetch_offset = fetched.run.next
                yield _message(self._tp, fetched)


def _dense_runs(rows: Sequence[Any], due: int, end: int) -> Iterator[FetchedRun]:
    """Yield the records of a batch that ends before ``end``, from offset ``due`` on.

    More than one run only where compaction took records out; without records, one that says that there are none.
    """
    values: list[bytes | None] = []
    stamps: list[int] = []
    keys: list[bytes | None] = []
    headers: dict[int, Sequence[Any]] = {}
    since, following = due, -1
    for record in rows:
        offset = record.offset
        if offset < due:
            continue
        if offset != following and values:
            yield FetchedRun(Run(following - len(values), values, stamps, since), keys, headers)
            values, stamps, keys, headers = [], [], [], {}
            since = following
        following = offset + 1
        values.append(record.value)
        stamps.append(record.timestamp)
        keys.append(record.key)
        if record.headers:
            headers[len(values) - 1] = record.headers
    if end > due:
        first = following - len(values) if values else end
        yield FetchedRun(Run(first, values, stamps, since, end), keys, headers)


def _message(tp: Any, fetched: FetchedRun) -> ConsumerRecord:
    return ConsumerRecord(tp.topic, tp.partition, fetched.run.next - 1, -1, 0, None, fetched, None, -1, -1, ())


class RunScheduler(DefaultSchedulingStrategy):
    """Round robin over topics and partitions, with the runs of one fetch joined while their offsets follow."""

    def iterate(self, records: Mapping[TP, list[Any]]) -> Iterator[tuple[TP, Any]]:
        """Yield the messages of one fetch in the order of delivery."""
        return super().iterate(
            {tp: list(_joined(tp, runs)) if tp.topic in RunRecords.topics else runs for tp, runs in records.items()}
        )


def _joined(tp: TP, messages: list[Any]) -> Iterator[Any]:
    """Neighbouring runs as one, while no offset between their records is empty."""
    group: list[FetchedRun] = []
    following: int | None = None
    for message in messages:
        fetched: FetchedRun = message.value
        if fetched.run.values:
            if following not in (None, fetched.run.first):
                yield _message(tp, _join(group))
                group = []
            following = fetched.run.first + len(fetched.run.values)
        group.append(fetched)
    if group:
        yield _message(tp, _join(group))


def _join(group: list[FetchedRun]) -> FetchedRun:
    if len(group) == 1:
        return group[0]
    since, until = group[0].run.begin, group[-1].run.next
    group = [fetched for fetched in group if fetched.run.values]
    values = list(chain.from_iterable(fetched.run.values for fetched in group))
    stamps = list(chain.from_iterable(fetched.run.timestamps or () for fetched in group))
    keys = list(chain.from_iterable(fetched.keys for fetched in group))
    first = group[0].run.first if group else until
    headers = {
        fetched.run.first - first + index: found for fetched in group for index, found in fetched.headers.items()
    }
    return FetchedRun(Run(first, values, stamps, since, until), keys, headers)


def fetch_as_runs(topics: Collection[str]) -> None:
    """Make every consumer of this process fetch these topics as runs."""
    RunRecords.topics = topics
    reader.unpack_with(RunRecords)
