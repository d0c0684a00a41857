"""Runs out of record batches as a broker sends them: nothing lost, nothing twice, nothing in a wrong place."""

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import aiokafka.consumer.fetcher
import pytest
from aiokafka import TopicPartition
from aiokafka.consumer.fetcher import READ_COMMITTED, PartitionRecords
from aiokafka.errors import UnsupportedCodecError
from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c_py
from faust.types import TP

from tidegate.streams.kafka.reader import UNREADABLE
from tidegate.streams.worker import fetch
from tidegate.streams.worker.fetch import FetchedRun, RunRecords, RunScheduler

TOPIC = "tidegate.telemetry"
NOON = 1_700_000_000_000
ATTRIBUTES, CRC = 21, 17
"""Where a batch has its attributes and its checksum."""


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The telemetry topic is fetched as runs, in these tests alone."""
    monkeypatch.setattr(aiokafka.consumer.fetcher, "PartitionRecords", PartitionRecords)
    monkeypatch.setattr(RunRecords, "topics", set())
    fetch.fetch_as_runs({TOPIC})


def value(offset: int) -> bytes | None:
    return None if offset % 7 == 5 else b"value %d" % offset


def key(offset: int) -> bytes | None:
    return None if offset % 3 == 2 else b"key %d" % offset


def headers(offset: int) -> list[tuple[str, bytes | None]]:
    return [("trace", b"%d" % offset), ("trace", None)] if offset % 4 == 1 else []


def batch(offsets: Sequence[int], *, base: int | None = None, last: int | None = None, compression: int = 0) -> bytes:
    """A batch with a record at each of the offsets; compaction leaves ``base`` and ``last`` of what there was."""
    base = offsets[0] if base is None else base
    builder = DefaultRecordBatchBuilder(2, compression, 0, -1, -1, -1, 1 << 20)
    for offset in offsets:
        builder.append(offset - base, NOON + offset, key(offset), value(offset), headers(offset))
    packed = bytearray(builder.build())
    packed[:8] = base.to_bytes(8, "big")
    if last is not None:
        packed[23:27] = (last - base).to_bytes(4, "big")
    return checked(packed)


def checked(packed: bytearray) -> bytes:
    """With the checksum that its content has."""
    packed[CRC : CRC + 4] = calc_crc32c_py(memoryview(packed)[CRC + 4 :]).to_bytes(4, "big")
    assert DefaultRecordBatch(bytes(packed)).validate_crc()
    return bytes(packed)


def fetched(
    *batches: bytes,
    due: int = 0,
    topic: str = TOPIC,
    cls: Any = RunRecords,
    aborted: Sequence[tuple[int, int]] | None = None,
) -> Any:
    """What a fetch of these batches from offset ``due`` on is unpacked into."""
    records = MemoryRecords(b"".join(batches))
    return cls(TopicPartition(topic, 3), records, aborted, due, None, None, True, READ_COMMITTED)


def runs(*batches: bytes, due: int = 0) -> list[FetchedRun]:
    return [message.value for message in fetched(*batches, due=due)]


def offsets(found: Sequence[FetchedRun]) -> list[list[int]]:
    """Those of the records, of runs that have any."""
    return [list(range(one.run.first, one.run.first + len(one.keys))) for one in found if one.keys]


def covered(found: Sequence[FetchedRun], due: int) -> int:
    """The offset up to which nothing is left out, from the one that is due on."""
    for one in found:
        assert one.run.begin == due
        due = one.run.next
    return due


def control(offset: int, *, commit: bool = False) -> bytes:
    """The mark that ends a transaction of producer 7."""
    builder = DefaultRecordBatchBuilder(2, 0, 1, 7, 0, -1, 1 << 20)
    builder.append(0, NOON, b"\0\0\0\1" if commit else b"\0\0\0\0", b"\0" * 6, [])
    packed = bytearray(builder.build())
    packed[:8] = offset.to_bytes(8, "big")
    packed[ATTRIBUTES + 1] |= 0x20
    return checked(packed)


def transactional(offsets: Sequence[int]) -> bytes:
    """A batch of producer 7, within a transaction."""
    packed = bytearray(batch(offsets))
    packed[ATTRIBUTES + 1] |= 0x10
    packed[43:51] = (7).to_bytes(8, "big")
    return checked(packed)


def corrupt(packed: bytes) -> bytes:
    """With another last byte than its checksum says."""
    return packed[:-1] + bytes([packed[-1] ^ 1])


def delivered(records: Mapping[TP, list[Any]]) -> list[tuple[TP, Any]]:
    """Partitions and messages as the scheduler hands them out."""
    scheduler: Any = RunScheduler
    return list(scheduler().iterate(records))


def contents(found: Sequence[FetchedRun]) -> Iterator[tuple[int, Any, Any, int, list[Any]]]:
    """Offset, key, value, timestamp and headers of every record."""
    for one in found:
        assert one.run.timestamps is not None
        rows = zip(one.keys, one.run.values, one.run.timestamps, strict=True)
        for index, (its_key, its_value, stamp) in enumerate(rows):
            yield one.run.first + index, its_key, its_value, stamp, list(one.headers.get(index, ()))


def expected(wanted: Sequence[int]) -> list[tuple[int, Any, Any, int, list[Any]]]:
    return [(offset, key(offset), value(offset), NOON + offset, headers(offset)) for offset in wanted]


class TestBatches:
    @pytest.mark.parametrize("compression", [0, 1])
    def test_a_batch_is_one_run_with_keys_values_timestamps_and_headers(self, compression: int) -> None:
        """Compressed or not; null keys and values stay null."""
        found = runs(batch(range(100, 120), compression=compression), due=100)
        assert offsets(found) == [list(range(100, 120))]
        assert list(contents(found)) == expected(range(100, 120))

    def test_the_message_stands_at_the_last_record_of_its_run(self) -> None:
        """Faust takes its offset for the position."""
        (message,) = fetched(batch(range(5, 9)), due=5)
        assert (message.topic, message.partition, message.offset) == (TOPIC, 3, 8)

    def test_each_batch_is_a_run_of_its_own(self) -> None:
        assert offsets(runs(batch([0, 1]), batch([2]), batch([3, 4]))) == [[0, 1], [2], [3, 4]]

    def test_records_before_the_offset_that_is_due_are_skipped(self) -> None:
        """A broker sends whole batches, also where a restore begins in the middle of one."""
        for due in range(10):
            found = runs(batch(range(10)), batch(range(10, 13)), due=due)
            assert list(contents(found)) == expected(range(due, 13))

    def test_what_lies_before_the_offset_as_a_whole_gives_nothing(self) -> None:
        records = fetched(batch(range(4)), due=4)
        assert list(records) == []
        assert records.next_fetch_offset == 4

    def test_offsets_that_compaction_took_out_split_the_run(self) -> None:
        """What is there keeps its offset."""
        found = runs(batch([0, 1, 2, 5, 6, 9]))
        assert offsets(found) == [[0, 1, 2], [5, 6], [9]]
        assert covered(found, 0) == 10
        assert list(contents(found)) == expected([0, 1, 2, 5, 6, 9])

    def test_the_next_fetch_begins_behind_what_compaction_took_off_the_end(self) -> None:
        """Or the same batch would be fetched for ever."""
        records = fetched(batch([11, 12], base=10, last=19), due=10)
        found = [message.value for message in records]
        assert offsets(found) == [[11, 12]]
        assert covered(found, 10) == records.next_fetch_offset == 20

    def test_a_control_batch_is_an_offset_without_a_record(self) -> None:
        """Also where a fetch brings nothing else: the reader goes on behind it."""
        records = fetched(batch([0, 1]), control(2), batch([3]), control(4, commit=True))
        found = [message.value for message in records]
        assert offsets(found) == [[0, 1], [3]]
        assert covered(found, 0) == records.next_fetch_offset == 5
        (alone,) = runs(control(7), due=7)
        assert (alone.run.begin, list(alone.run.values), alone.run.next) == (7, [], 8)

    def test_what_a_transaction_took_back_is_not_there(self) -> None:
        """A later transaction of the same producer counts."""
        log = batch([0]), transactional([1, 2]), control(3), transactional([4]), control(5, commit=True)
        found = [message.value for message in fetched(*log, aborted=[(7, 1)])]
        assert offsets(found) == [[0], [4]]
        assert covered(found, 0) == 6

    def test_a_batch_with_a_wrong_checksum_is_records_without_a_value(self) -> None:
        """They stand where the batch stood and say why."""
        found = runs(batch([0, 1]), corrupt(batch(range(2, 5))), batch([5]))
        assert offsets(found) == [[0, 1], [2, 3, 4], [5]]
        assert covered(found, 0) == 6
        assert (found[1].keys, list(found[1].run.values)) == ([None] * 3, [None] * 3)
        assert [headers[0][0] for headers in found[1].headers.values()] == [UNREADABLE] * 3
        assert b"checksum" in found[1].headers[0][0][1]

    def test_a_batch_that_does_not_unpack_is_records_without_a_value(self) -> None:
        """Here what was compressed is not, though the checksum is right."""
        packed = bytearray(batch(range(2, 5)))
        packed[ATTRIBUTES + 1] |= 1
        found = runs(batch([0, 1]), checked(packed), batch([5]))
        assert offsets(found) == [[0, 1], [2, 3, 4], [5]]
        assert list(found[1].run.values) == [None] * 3

    def test_a_corrupt_batch_at_the_end_is_passed_one_offset_at_a_time(self) -> None:
        """How many it holds, its own header would have to say."""
        broken = bytearray(batch(range(2, 5)))
        broken[23:27] = (10**6).to_bytes(4, "big")
        for due in (2, 3, 4):
            records = fetched(bytes(broken), due=due)
            assert offsets([message.value for message in records]) == [[due]]
            assert records.next_fetch_offset == due + 1

    def test_a_codec_that_is_not_installed_is_no_fault_of_the_batch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        records = fetched(batch([0]))

        def fail(_: Any) -> None:
            raise UnsupportedCodecError("lz4")

        monkeypatch.setattr(records, "_passed_over", fail)
        with pytest.raises(UnsupportedCodecError):
            next(records)

    def test_a_random_log_is_delivered_as_aiokafka_delivers_it(self) -> None:
        """Record by record, whatever compaction left and wherever the fetch begins."""
        for seed in range(60):
            rng = random.Random(seed)
            batches: list[bytes] = []
            at, aborted = 0, []
            for _ in range(rng.randrange(1, 6)):
                size = rng.randrange(1, 12)
                if rng.random() < 0.3:
                    commit = rng.random() < 0.5
                    batches += [transactional(range(at, at + size)), control(at + size, commit=commit)]
                    aborted += [] if commit else [(7, at)]
                    at += size + 1
                    continue
                kept = sorted(rng.sample(range(at, at + size), rng.randrange(1, size + 1)))
                batches.append(batch(kept, base=at, last=at + size - 1, compression=rng.choice([0, 1])))
                at += size
            due = rng.randrange(at + 1)
            # A broker begins with the batch in which the offset is.
            batches = [packed for packed in batches if DefaultRecordBatch(packed).next_offset > due]
            how: Any = {"due": due, "aborted": aborted}
            ours, theirs = fetched(*batches, **how), fetched(*batches, **how, cls=PartitionRecords)
            messages = [message.value for message in ours]
            found = list(contents(messages))
            plain = [(r.offset, r.key, r.value, r.timestamp, list(r.headers)) for r in theirs]
            assert found == plain, f"seed {seed}"
            assert covered(messages, due) == ours.next_fetch_offset == theirs.next_fetch_offset, f"seed {seed}"


class TestOtherTopics:
    def test_a_batch_that_cannot_be_read_is_records_without_a_value_there_too(self) -> None:
        """An auditor reads what a worker read."""
        records = list(fetched(batch([0]), corrupt(batch([1, 2])), control(3), batch([4]), topic="tidegate.decisions"))
        assert [(r.offset, r.value) for r in records] == [(0, value(0)), (1, None), (2, None), (4, value(4))]

    def test_they_are_delivered_one_by_one(self) -> None:
        """Partials and whatever else the process reads."""
        records = list(fetched(batch([0, 1, 4]), topic="tidegate.partials"))
        assert [(r.offset, r.key, r.value, r.timestamp) for r in records] == [
            (offset, key(offset), value(offset), NOON + offset) for offset in (0, 1, 4)
        ]

    def test_until_topics_are_installed_there_are_no_runs(self) -> None:
        fetch.fetch_as_runs(set())
        assert [record.value for record in fetched(batch([0, 1]))] == [value(0), value(1)]

    def test_every_consumer_of_the_process_is_told(self) -> None:
        assert aiokafka.consumer.fetcher.PartitionRecords is RunRecords


class TestJoining:
    def joined(self, *batches: bytes, due: int = 0) -> list[FetchedRun]:
        handed = delivered({TP(TOPIC, 3): list(fetched(*batches, due=due))})
        assert all(tp == TP(TOPIC, 3) for tp, _ in handed)
        assert [message.offset for _, message in handed] == [message.value.run.next - 1 for _, message in handed]
        return [message.value for _, message in handed]

    def test_the_runs_of_one_fetch_become_one(self) -> None:
        """With each header at its record."""
        found = self.joined(batch([0, 1]), batch(range(2, 30)), batch([30]))
        assert offsets(found) == [list(range(31))]
        assert list(contents(found)) == expected(range(31))

    def test_offsets_that_are_not_there_keep_them_apart(self) -> None:
        """An offset is a place in a run; together they tell of every offset."""
        found = self.joined(batch([0, 1]), batch([2, 5]), control(6), batch([7, 8]), batch([10], base=9))
        assert offsets(found) == [[0, 1, 2], [5], [7, 8], [10]]
        assert list(contents(found)) == expected([0, 1, 2, 5, 7, 8, 10])
        assert covered(found, 0) == 11

    def test_what_has_no_records_goes_with_its_neighbour(self) -> None:
        found = self.joined(control(0), batch([1, 2]), control(3), control(4))
        assert offsets(found) == [[1, 2]]
        assert len(found) == 1
        assert covered(found, 0) == 5
        assert [one.run.values for one in self.joined(control(0), control(1))] == [[]]

    def test_a_run_alone_is_handed_on_as_it_is(self) -> None:
        (message,) = fetched(batch([0, 1]))
        ((_, handed),) = delivered({TP(TOPIC, 0): [message]})
        assert handed.value is message.value

    def test_a_fetch_of_nothing_gives_nothing(self) -> None:
        assert delivered({TP(TOPIC, 0): []}) == []

    def test_partitions_take_turns_and_other_topics_are_left_alone(self) -> None:
        """A partition with a backlog holds up no other."""
        partials = list(fetched(batch([0, 1]), topic="tidegate.partials"))
        records = {TP(TOPIC, p): list(fetched(batch([0, 1]), batch([4]))) for p in (0, 1)}
        handed = delivered(records | {TP("tidegate.partials", 0): partials})
        telemetry = [(tp.partition, message.value.run.first) for tp, message in handed if tp.topic == TOPIC]
        assert telemetry == [(0, 0), (1, 0), (0, 4), (1, 4)]
        assert [message for tp, message in handed if tp.topic != TOPIC] == partials
