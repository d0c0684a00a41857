"""Runs instead of records: what one fetch brings of a partition goes through Faust as one message.

aiokafka makes one object a record and Faust another, which costs more than decoding it. For the topics in
``RunRecords.topics`` a record batch becomes one ``FetchedRun``, and the scheduler joins those of one fetch.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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
    """A run with the fetched records behind it, for the keys and headers of those that are sent on."""

    run: Run
    records: list[Any]


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
            due = self.next_fetch_offset
            records = [] if batch.is_control_batch else [r for r in batch if r.offset >= due]
            self.next_fetch_offset = batch.next_offset
            if records:
                yield _message(self._tp, records)


def _message(tp: Any, records: list[Any]) -> ConsumerRecord:
    last = records[-1]
    run = Run(records[0].offset, [r.value for r in records], [r.timestamp for r in records])
    value = FetchedRun(run, records)
    return ConsumerRecord(
        tp.topic, tp.partition, last.offset, last.timestamp, last.timestamp_type, None, value, None, -1, -1, ()
    )


class RunScheduler(DefaultSchedulingStrategy):
    """Round robin over topics and partitions, with the runs of one fetch joined while their offsets follow."""

    def iterate(self, records: Mapping[TP, list[Any]]) -> Iterator[tuple[TP, Any]]:
        """The messages of one fetch in the order of delivery."""
        return super().iterate(
            {tp: list(_joined(tp, runs)) if tp.topic in RunRecords.topics else runs for tp, runs in records.items()}
        )


def _joined(tp: TP, messages: list[Any]) -> Iterator[Any]:
    records: list[Any] = []
    for message in messages:
        fetched: FetchedRun = message.value
        # Offsets that jump stay apart: the hole is then named by the state machine.
        dense = fetched.run.next - 1 == fetched.records[-1].offset
        if records and (not dense or fetched.run.first != records[-1].offset + 1):
            yield _message(tp, records)
            records = []
        if dense:
            records = records + fetched.records if records else fetched.records
        else:
            yield from (_message(tp, [record]) for record in fetched.records)
    if records:
        yield _message(tp, records)


def install(topics: set[str]) -> None:
    """Make every consumer of this process fetch these topics as runs."""
    RunRecords.topics = topics
    aiokafka.consumer.fetcher.PartitionRecords = RunRecords
