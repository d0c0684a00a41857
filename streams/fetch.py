"""Runs instead of records: what one fetch brings of a partition goes through Faust as one message.

aiokafka makes one object a record and Faust another, which costs more than decoding it. For the topics in
``RunRecords.topics`` a record batch becomes one ``FetchedRun``, and the scheduler joins those of one fetch.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar

import aiokafka.consumer.fetcher
from aiokafka.consumer.fetcher import PartitionRecords
from aiokafka.errors import CorruptRecordException
from aiokafka.structs import ConsumerRecord
from faust.transport.utils import DefaultSchedulingStrategy
from faust.types import TP

from streams.panes import Run


@dataclass(frozen=True)
class FetchedRun:
    """A run with the keys of its records, and the headers of those that have any by index."""

    run: Run
    keys: list[bytes | None]
    headers: dict[int, list[Any]]


class RunRecords(PartitionRecords):  # type: ignore[misc]
    """Fetched records of one partition, a batch at a time where the topic is one of ``topics``."""

    topics: ClassVar[set[str]] = set()
    next_fetch_offset: int

    def _unpack_records(self) -> Iterator[Any]:
        if self._tp.topic not in self.topics:
            yield from super()._unpack_records()
            return
        while self._records.has_next():
            batch = self._records.next_batch()
            if self._check_crcs and not batch.validate_crc():
                raise CorruptRecordException(f"Invalid CRC - {self._tp}")
            due, self.next_fetch_offset = self.next_fetch_offset, batch.next_offset
            if not batch.is_control_batch:
                yield from (_message(self._tp, run) for run in _dense_runs(batch, due))


def _dense_runs(batch: Any, due: int) -> Iterator[FetchedRun]:
    """The records of a batch from offset ``due`` on; more than one run only where compaction took records out."""
    values: list[bytes | None] = []
    stamps: list[int] = []
    keys: list[bytes | None] = []
    headers: dict[int, list[Any]] = {}
    following = -1
    for record in batch:
        offset = record.offset
        if offset < due:
            continue
        if offset != following and values:
            yield FetchedRun(Run(following - len(values), values, stamps), keys, headers)
            values, stamps, keys, headers = [], [], [], {}
        following = offset + 1
        values.append(record.value)
        stamps.append(record.timestamp)
        keys.append(record.key)
        if record.headers:
            headers[len(values) - 1] = record.headers
    if values:
        yield FetchedRun(Run(following - len(values), values, stamps), keys, headers)


def _message(tp: Any, fetched: FetchedRun) -> ConsumerRecord:
    return ConsumerRecord(tp.topic, tp.partition, fetched.run.next - 1, -1, 0, None, fetched, None, -1, -1, ())


class RunScheduler(DefaultSchedulingStrategy):
    """Round robin over topics and partitions, with the runs of one fetch joined while their offsets follow."""

    def iterate(self, records: Mapping[TP, list[Any]]) -> Iterator[tuple[TP, Any]]:
        """The messages of one fetch in the order of delivery."""
        return super().iterate(
            {tp: list(_joined(tp, runs)) if tp.topic in RunRecords.topics else runs for tp, runs in records.items()}
        )


def _joined(tp: TP, messages: list[Any]) -> Iterator[Any]:
    """Neighbouring runs as one; offsets that jump stay apart, so that the state machine names the hole."""
    group: list[FetchedRun] = []
    for message in messages:
        fetched: FetchedRun = message.value
        if group and group[-1].run.next != fetched.run.first:
            yield _message(tp, _join(group))
            group = []
        group.append(fetched)
    if group:
        yield _message(tp, _join(group))


def _join(group: list[FetchedRun]) -> FetchedRun:
    if len(group) == 1:
        return group[0]
    values = list(chain.from_iterable(fetched.run.values for fetched in group))
    stamps = list(chain.from_iterable(fetched.run.timestamps or () for fetched in group))
    keys = list(chain.from_iterable(fetched.keys for fetched in group))
    first = group[0].run.first
    headers = {
        fetched.run.first - first + index: found for fetched in group for index, found in fetched.headers.items()
    }
    return FetchedRun(Run(first, values, stamps), keys, headers)


def install(topics: set[str]) -> None:
    """Make every consumer of this process fetch these topics as runs."""
    RunRecords.topics = topics
    aiokafka.consumer.fetcher.PartitionRecords = RunRecords
