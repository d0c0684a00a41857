"""Checkpoints on a compacted topic: the newest whole one is read back, whatever a crash and compaction left."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError, TopicAuthorizationFailedError
from aiokafka.structs import ConsumerRecord, RecordMetadata

from tidegate.schemas.errors import StateError
from tidegate.streams.kafka import checkpoints
from tidegate.streams.kafka.checkpoints import Closing, Saved
from tidegate.streams.settings import load_settings
from tidegate.streams.simulation.embedded_broker import embedded_broker

TOPIC = "tidegate.window-checkpoints"
CHUNK = 8
AT_ONCE = 3
"""Records that the fake consumer hands out in one call."""
MESSAGE_MAX = 1_048_588
"""The largest batch that a broker takes by default."""


@dataclass
class Log:
    """One partition: records by offset, in order. ``begin``: the first offset that is kept."""

    records: dict[int, tuple[bytes, bytes | None]] = field(default_factory=dict)
    end: int = 0
    begin: int = 0

    def append(self, key: bytes, value: bytes | None) -> int:
        self.records[self.end] = key, value
        self.end += 1
        return self.end - 1

    async def send(self, key: bytes, value: bytes) -> Awaitable[RecordMetadata]:
        offset = self.append(key, value)

        async def confirmed() -> RecordMetadata:
            return RecordMetadata(TOPIC, 0, TopicPartition(TOPIC, 0), offset, -1, 0, 0)

        return confirmed()

    def save(self, state: bytes, turn: int, generation: int = 0) -> None:
        asyncio.run(_confirmed(checkpoints.write_checkpoint(self.send, state, turn, generation)))

    def until(self, end: int) -> "Log":
        """What a crash before ``end`` would have left."""
        return Log({offset: record for offset, record in self.records.items() if offset < end}, end, self.begin)

    def compacted(self) -> "Log":
        """The last record of each key."""
        last = {key: offset for offset, (key, _) in self.records.items()}
        return Log({offset: self.records[offset] for offset in sorted(last.values())}, self.end, self.begin)


async def _confirmed(writing: Awaitable[Awaitable[RecordMetadata]]) -> RecordMetadata:
    return await (await writing)


class Reader:
    """What ``read`` uses of a consumer, over such logs."""

    def __init__(self, logs: Mapping[int, Log]) -> None:
        self._logs, self._at = logs, dict[int, int]()

    def __call__(self, *_: Any, **__: Any) -> "Reader":
        return self

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    def assign(self, tps: Iterable[TopicPartition]) -> None:
        assert {tp.partition for tp in tps} <= self._logs.keys()

    async def end_offsets(self, tps: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return {tp: self._logs[tp.partition].end for tp in tps}

    async def beginning_offsets(self, tps: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return {tp: self._logs[tp.partition].begin for tp in tps}

    def seek(self, tp: TopicPartition, offset: int) -> None:
        assert offset >= self._logs[tp.partition].begin
        self._at[tp.partition] = offset

    async def position(self, tp: TopicPartition) -> int:
        return self._at[tp.partition]

    async def getmany(self, tp: TopicPartition, timeout_ms: int) -> dict[TopicPartition, list[ConsumerRecord]]:
        log, start = self._logs[tp.partition], self._at[tp.partition]
        found = [offset for offset in log.records if offset >= start][:AT_ONCE]
        self._at[tp.partition] = found[-1] + 1 if found else log.end
        return {tp: [_record(tp, offset, *log.records[offset]) for offset in found]} if found else {}


def _record(tp: TopicPartition, offset: int, key: bytes, value: bytes | None) -> ConsumerRecord:
    return ConsumerRecord(tp.topic, tp.partition, offset, -1, 0, key, value, None, -1, -1, ())


Read = Callable[[Log], bytes | None]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Read:
    """The state that a worker would restore from a log."""

    def run(log: Log) -> bytes | None:
        monkeypatch.setattr(checkpoints, "reader", Reader({0: log}))
        found = asyncio.run(checkpoints.read_checkpoints(load_settings(), TOPIC, [0])).get(0)
        return None if found is None else found.state

    return run


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "CHUNK_BYTES", CHUNK)


def saved(*states: bytes) -> Log:
    """A log with these checkpoints of one writer."""
    log = Log()
    for turn, state in enumerate(states, 1):
        log.save(state, turn)
    return log


def keys(log: Log) -> list[bytes]:
    return [key for key, _ in log.records.values()]


class TestWriting:
    @pytest.mark.parametrize("size", [0, 1, CHUNK])
    @pytest.mark.usefixtures("small_chunks")
    def test_a_state_that_fits_is_one_record(self, size: int, read: Read) -> None:
        log = saved(bytes(size))
        assert keys(log) == [b"state/0"]
        assert read(log) == bytes(size)

    @pytest.mark.parametrize("size", [CHUNK + 1, 2 * CHUNK, 5 * CHUNK - 1])
    @pytest.mark.usefixtures("small_chunks")
    def test_a_larger_one_is_cut_into_chunks_and_a_closing_record(self, size: int, read: Read) -> None:
        state = bytes(range(size))
        log = saved(state)
        *chunks, closing = log.records.values()
        assert closing[0] == b"state/0"
        assert len(chunks) == -(-size // CHUNK)
        assert b"".join(value or b"" for _, value in chunks) == state
        assert read(log) == state

    def test_no_record_is_larger_than_a_broker_takes(self) -> None:
        """The topic keeps the broker's default limit."""
        for size in (checkpoints.CHUNK_BYTES, 3 * checkpoints.CHUNK_BYTES + 1):
            assert max(len(value or b"") for _, value in saved(bytes(size)).records.values()) < MESSAGE_MAX - 1_000

    @pytest.mark.usefixtures("small_chunks")
    def test_the_closing_record_waits_until_every_chunk_is_confirmed(self) -> None:
        """A crash in between leaves chunks without a closing record, never the other way round."""
        sent: list[bytes] = []
        waiting: list[asyncio.Future[RecordMetadata]] = []

        async def send(key: bytes, _: bytes) -> Awaitable[RecordMetadata]:
            sent.append(key)
            waiting.append(asyncio.get_running_loop().create_future())
            return waiting[-1]

        async def run() -> None:
            writing = asyncio.create_task(checkpoints.write_checkpoint(send, bytes(3 * CHUNK), 1, 0))
            for unconfirmed in (3, 2, 1):
                for _ in range(5):
                    await asyncio.sleep(0)
                assert len(sent) == 3, f"{unconfirmed} chunks were not confirmed yet"
                offset = 3 - unconfirmed
                waiting[offset].set_result(RecordMetadata(TOPIC, 0, TopicPartition(TOPIC, 0), offset, -1, 0, 0))
            await writing
            assert sent[3:] == [b"state/0"]

        asyncio.run(run())

    @pytest.mark.usefixtures("small_chunks")
    def test_chunks_of_two_in_a_row_have_no_key_in_common(self) -> None:
        """Or compaction could take the last whole one apart while the next is written."""
        log = saved(bytes(20), bytes(20))
        first, second = keys(log)[:3], keys(log)[4:7]
        assert not set(first) & set(second)

    @pytest.mark.usefixtures("small_chunks")
    def test_the_number_of_keys_does_not_grow(self) -> None:
        """What is on the topic after compaction is at most two checkpoints."""
        assert len(saved(*[bytes(20)] * 9).compacted().records) == 2 * 3 + 1


@pytest.mark.usefixtures("small_chunks")
class TestReading:
    def test_a_partition_that_was_never_saved_has_no_state(self, read: Read) -> None:
        assert read(Log()) is None

    def test_no_partitions_need_no_broker(self) -> None:
        assert asyncio.run(checkpoints.read_checkpoints(load_settings(broker="127.0.0.1:9"), TOPIC, [])) == {}

    def test_the_newest_of_each_partition_is_found(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Those that have none are left out."""
        logs = {0: saved(b"a", b"b"), 2: saved(bytes(50)), 5: Log()}
        monkeypatch.setattr(checkpoints, "reader", Reader(logs))
        found = asyncio.run(checkpoints.read_checkpoints(load_settings(), TOPIC, [0, 2, 5]))
        assert found == {0: (b"b", 2), 2: (bytes(50), 1)}

    @pytest.mark.parametrize(
        "states",
        [
            (b"a", b"bb", b"ccc"),
            (b"1" * 20, b"2" * 20, b"3" * 20),
            (b"1" * 20, b"small", b"3" * 33, b"4" * 9, b"", b"6" * 40),
            (b"small", b"2" * 60, b"3" * 9, b"4" * 60),
        ],
    )
    def test_a_half_written_one_never_counts(self, states: Sequence[bytes], read: Read) -> None:
        """After a crash behind any record, compacted or not, it is the newest whole one."""
        log, whole = Log(), list[tuple[int, bytes]]()
        for turn, state in enumerate(states, 1):
            log.save(state, turn)
            whole.append((log.end, state))
        for crash in range(whole[0][0], log.end + 1):
            expected = [state for end, state in whole if end <= crash][-1]
            left = log.until(crash)
            assert read(left) == expected, f"after record {crash}"
            assert read(left.compacted()) == expected, f"after record {crash} and compaction"

    def test_the_very_first_one_half_written_does_not_count_either(self, read: Read) -> None:
        """The worker begins anew, as if it had never run."""
        log = saved(bytes(20))
        assert [read(log.until(crash)) for crash in range(log.end)] == [None] * log.end

    @pytest.mark.parametrize("generation", [2, checkpoints.WRITERS + 1])
    def test_an_owner_that_was_thought_dead_takes_nothing_apart(self, generation: int, read: Read) -> None:
        """It writes half a checkpoint behind its successor's; even with the same keys an older whole one is left."""
        log = Log()
        log.save(b"1" * 20, 1, generation=0)
        log.save(b"2" * 20, 2, generation=1)
        before = log.end
        log.save(b"3" * 20, 2, generation)
        left = [read(log.until(crash).compacted()) for crash in range(before, log.end)]
        if generation == 2:
            assert left == [b"2" * 20] * len(left)
        else:
            assert left == [b"2" * 20] + [b"1" * 20] * (len(left) - 1)

    def test_an_expired_beginning_does_not_matter(self, read: Read) -> None:
        log = saved(b"1" * 20, b"2" * 20)
        log.begin = 4
        log.records = {offset: record for offset, record in log.records.items() if offset >= 4}
        assert read(log) == b"2" * 20


@pytest.mark.usefixtures("small_chunks")
class TestDeletedTopic:
    """A topic that was deleted and made again while a worker was writing a checkpoint to the old one."""

    def late(self, before: int, *states: bytes) -> Log:
        """The end of a checkpoint whose chunks are in the old topic, after so many records there, and others' then."""
        old = Log(end=before)
        old.save(b"0" * 20, 1)
        *_, (key, value) = old.records.values()
        log = Log()
        log.append(key, value)
        for turn, state in enumerate(states, 2):
            log.save(state, turn, generation=1)
        return log

    @pytest.mark.parametrize("before", [0, 1, 500])
    def test_an_end_without_its_beginning_is_none(self, before: int, read: Read) -> None:
        """Nothing was ever saved in the new one, so the worker begins anew."""
        assert read(self.late(before)) is None

    @pytest.mark.parametrize("before", [0, 1, 500])
    def test_what_was_saved_in_the_new_one_counts(self, before: int, read: Read) -> None:
        log = self.late(before, b"1" * 20, b"2" * 20)
        assert read(log) == b"2" * 20
        # It may also come behind them, and its chunks' offsets may be those of other records by now.
        key, value = log.records.pop(0)
        log.append(key, value)
        assert read(log) == b"2" * 20

    def test_nothing_but_its_chunks_and_other_half_checkpoints_is_none_either(self, read: Read) -> None:
        log = self.late(2)
        log.append(b"chunk/1/0/0", b"new")
        log.append(b"chunk/1/0/1", b"new")
        log.append(*log.records[0])
        assert read(log) is None
        assert read(log.compacted()) is None


def closing(state: bytes = b"", chunks: Sequence[int] = (), sha256: bytes | None = None) -> bytes:
    digest = hashlib.sha256(state).digest() if sha256 is None else sha256
    return msgspec.msgpack.encode(Closing(state, list(chunks), digest))


@pytest.mark.usefixtures("small_chunks")
class TestGarbage:
    """Going on without a state that is there would count events twice: it is refused, and says where it lies."""

    def refused(self, read: Read, log: Log) -> str:
        with pytest.raises(StateError, match=TOPIC) as caught:
            read(log)
        return str(caught.value)

    @pytest.mark.parametrize(
        "value",
        [
            b"",
            b"\xc1",
            b"not a checkpoint",
            closing(b"state")[:-1],
            closing(b"state") + b"x",
            closing(b"state", sha256=bytes(32)),
            closing(b"state", sha256=b""),
            msgspec.msgpack.encode([b"state", [], "text"]),
            msgspec.msgpack.encode({"state": b"state"}),
            None,
        ],
    )
    def test_a_closing_record_that_is_none_is_refused_with_its_offset(self, value: bytes | None, read: Read) -> None:
        """Although an older one could be read."""
        log = saved(b"older")
        log.append(b"state/0", value)
        assert f"{TOPIC}-0 offset 1" in self.refused(read, log)

    @pytest.mark.parametrize("at", [0, 1, 2])
    def test_one_flipped_bit_is_found(self, at: int, read: Read) -> None:
        log = saved(bytes(range(20)))
        key, value = log.records[at]
        assert value
        log.records[at] = key, bytes([value[0] ^ 1]) + value[1:]
        self.refused(read, log)

    @pytest.mark.parametrize("at", [0, 1, 2])
    def test_a_chunk_that_is_gone_is_found(self, at: int, read: Read) -> None:
        log = saved(bytes(range(20)))
        del log.records[at]
        assert "no whole checkpoint" in self.refused(read, log)

    def test_records_whose_closing_record_was_deleted_are_refused(self, read: Read) -> None:
        """There was a checkpoint before the first offset that is kept, and nobody knows what it said."""
        log = saved(b"1" * 20, b"2" * 20).until(7)
        log.begin = 4
        log.records = {offset: record for offset, record in log.records.items() if offset >= 4}
        self.refused(read, log)


def test_a_real_broker_keeps_what_was_written() -> None:
    """Several megabytes and a few bytes, over two partitions, with a half-written one behind."""
    large = [hashlib.sha256(b"%d" % turn).digest() * 60_000 for turn in range(2)]

    async def run(servers: str) -> dict[int, checkpoints.Saved]:
        settings = load_settings(broker=servers, fetch_wait=50)
        async with AIOKafkaProducer(**settings.kafka) as producer:

            def send(partition: int) -> checkpoints.SendCheckpoint:
                return lambda key, value: producer.send(TOPIC, value, key=key, partition=partition)

            await _confirmed(checkpoints.write_checkpoint(send(0), large[0], 1, 0))
            await _confirmed(checkpoints.write_checkpoint(send(1), b"small", 1, 0))
            await _confirmed(checkpoints.write_checkpoint(send(1), b"newer", 2, 0))
            await producer.send_and_wait(TOPIC, large[1][: checkpoints.CHUNK_BYTES], key=b"chunk/0/0/0", partition=0)
        return await checkpoints.read_checkpoints(settings, TOPIC, [0, 1, 2])

    with embedded_broker({TOPIC: 3}) as servers:
        assert asyncio.run(run(servers)) == {0: (large[0], 1), 1: (b"newer", 2)}


class TestLayout:
    """What a worker looks at before it joins the group."""

    @staticmethod
    def check(monkeypatch: pytest.MonkeyPatch, found: dict[int, Saved] | KafkaError) -> None:
        async def read(*_: Any) -> dict[int, Saved]:
            if isinstance(found, KafkaError):
                raise found
            return found

        monkeypatch.setattr(checkpoints, "read_checkpoints", read)
        asyncio.run(checkpoints.check_layout(load_settings()))

    def test_checkpoints_of_another_layout_are_refused_by_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(
            StateError, match=r"^tidegate\.window-checkpoints-0: written by an earlier version"
        ) as caught:
            self.check(monkeypatch, {0: Saved(b"\x90", 1)})
        assert "start a new TIDEGATE_APPLICATION_ID" in str(caught.value)

    def test_where_there_is_none_there_is_nothing_to_say(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.check(monkeypatch, {})

    def test_what_cannot_be_read_is_left_to_who_reads_it_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """When it is assigned a partition; there it is one line."""
        self.check(monkeypatch, TopicAuthorizationFailedError("tidegate.window-checkpoints"))
