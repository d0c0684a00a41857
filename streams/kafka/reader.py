"""Consumers without a group, and what no consumer here stumbles over: a batch that cannot be read, a transaction."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import aiokafka.consumer.fetcher
import structlog
from aiokafka import AIOKafkaConsumer
from aiokafka.consumer.fetcher import READ_COMMITTED, PartitionRecords
from aiokafka.errors import CorruptRecordException, UnsupportedCodecError

from tidegate.streams.kafka.patience import pace
from tidegate.streams.settings import Settings

log = structlog.get_logger("tidegate")

REQUEST_TIMEOUT_MS = 10_000
COMMITTED = "read_committed"
"""The isolation of every consumer here: records that a transaction took back are not there."""
UNREADABLE = "tidegate.unreadable"
"""The header of a record whose batch cannot be read; its value says why."""


def reader(settings: Settings, *topics: str, **options: Any) -> AIOKafkaConsumer:
    """Return a consumer from the first records on that commits nothing, unless ``options`` say otherwise."""
    unpack_with(ReadableRecords)
    defaults = {"group_id": None, "auto_offset_reset": "earliest", "isolation_level": COMMITTED}
    consumer = AIOKafkaConsumer(*topics, **settings.kafka, **(defaults | options))
    # The library gives no other way to its client.
    pace(consumer._client)
    return consumer


def unpack_with(records: type["ReadableRecords"]) -> None:
    """Make every consumer of this process unpack what it fetches so, unless it does more already."""
    if not issubclass(aiokafka.consumer.fetcher.PartitionRecords, records):
        aiokafka.consumer.fetcher.PartitionRecords = records


class ReadableRecords(PartitionRecords):  # type: ignore[misc]
    """Fetched records of one partition.

    A batch that cannot be read becomes records without a value, which are refused live and in each replay alike.
    """

    next_fetch_offset: int

    def _unpack_records(self) -> Iterator[Any]:
        for rows, due, end in self._unpacked():
            for record in rows:
                if record.offset >= due:
                    self.next_fetch_offset = record.offset + 1
                    yield self._consumer_record(self._tp, record)
            self.next_fetch_offset = end

    def _unpacked(self) -> Iterator[tuple[Sequence[Any], int, int]]:
        """Yield the records of each batch, the offset that is due, and the one after the batch, which is due then."""
        for batch, behind in self._batches():
            due = self.next_fetch_offset
            try:
                rows, end = self._rows(batch), max(batch.next_offset, due)
            except (UnsupportedCodecError, MemoryError):
                raise  # No fault of the batch.
            except Exception as error:
                # Its own header is not to be trusted: one offset after the other, unless the next batch says where
                # it begins.
                end = due + 1 if behind is None else max(behind, due)
                rows = self._without_values(due, end, str(error) or type(error).__name__)
            yield rows, due, end

    def _batches(self) -> Iterator[tuple[Any, int | None]]:
        """Yield each batch, or the error instead of it, and where the one behind it begins, if there is one."""
        batch = self._next_batch()
        while batch is not None:
            behind = self._next_batch()
            yield batch, getattr(behind, "base_offset", None)
            batch = behind

    def _next_batch(self) -> Any:
        try:
            return self._records.next_batch() if self._records.has_next() else None
        except Exception as error:
            return error

    def _rows(self, batch: Any) -> list[Any]:
        """Return the records that count; of control batches and of what a transaction took back, none."""
        if isinstance(batch, Exception):
            raise batch
        if self._check_crcs and not batch.validate_crc():
            raise CorruptRecordException("the checksum is wrong")
        return [] if self._passed_over(batch) else list(batch)

    def _passed_over(self, batch: Any) -> bool:
        if self._isolation_level == READ_COMMITTED and batch.producer_id is not None:
            self._consume_aborted_up_to(batch.base_offset)
            if batch.is_control_batch and self._contains_abort_marker(batch):
                self._aborted_producers.discard(batch.producer_id)
            if batch.is_transactional and batch.producer_id in self._aborted_producers:
                return True
        return bool(batch.is_control_batch)

    def _without_values(self, first: int, end: int, reason: str) -> list["Unreadable"]:
        place = {"topic": self._tp.topic, "partition": self._tp.partition, "offsets": f"{first} to {end - 1}"}
        log.error("batch unreadable", **place, reason=reason)
        headers = ((UNREADABLE, reason.encode(errors="replace")),)
        return [Unreadable(offset, headers) for offset in range(first, end)]


@dataclass(frozen=True)
class Unreadable:
    """A record whose batch cannot be read, as far as it is known."""

    offset: int
    headers: tuple[tuple[str, bytes], ...]
    key: None = None
    value: None = None
    timestamp: int = -1
    timestamp_type: int = 0
    checksum: None = None
