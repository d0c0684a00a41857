"""A followed topic: every record once and in order, whatever the broker does meanwhile."""

import asyncio
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from aiokafka.errors import KafkaConnectionError

from tidegate.schemas.errors import TopicError
from tidegate.streams.kafka import follow
from tidegate.streams.kafka.follow import Follower
from tidegate.streams.settings import load_settings


class Kafka:
    """A consumer of a topic with the records 0, 1, …; ``faults`` says which of its calls fail, by number."""

    length: ClassVar[int] = 0
    first: ClassVar[int] = 0
    faults: ClassVar[dict[int, Exception]] = {}
    calls: ClassVar[int] = 0
    opened: ClassVar[int] = 0

    def __init__(self, *_: Any, **__: Any) -> None:
        self.at = -1
        type(self).opened += 1

    def _call(self) -> None:
        type(self).calls += 1
        if self.calls in self.faults:
            raise self.faults[self.calls]

    async def start(self) -> None:
        self._call()

    async def stop(self) -> None:
        # As the real one does while its broker is away.
        raise asyncio.CancelledError

    def assign(self, partitions: list[Any]) -> None:
        (self.partition,) = partitions

    async def beginning_offsets(self, partitions: list[Any]) -> dict[Any, int]:
        self._call()
        return dict.fromkeys(partitions, self.first)

    async def end_offsets(self, partitions: list[Any]) -> dict[Any, int]:
        self._call()
        return dict.fromkeys(partitions, self.length)

    def seek(self, _: Any, offset: int) -> None:
        self.at = offset

    async def position(self, _: Any) -> int:
        return self.at

    async def getmany(self, partition: Any, timeout_ms: int) -> dict[Any, list[Any]]:
        await asyncio.sleep(0)
        at, self.at = self.at, min(self.at + 2, self.length)
        self._call()
        return {partition: [SimpleNamespace(offset=offset) for offset in range(at, self.at)]}


@pytest.fixture(autouse=True)
def kafka(monkeypatch: pytest.MonkeyPatch) -> type[Kafka]:
    """A topic of five records in which nothing fails."""
    monkeypatch.setattr(follow, "reader", Kafka)
    monkeypatch.setattr(follow, "RETRY_SECONDS", 0.0)
    Kafka.length, Kafka.first, Kafka.faults, Kafka.calls, Kafka.opened = 5, 0, {}, 0, 0
    return Kafka


def follower(taken: list[int]) -> Follower:
    return Follower(load_settings(), "topic", lambda record: taken.append(record.offset))


def test_catching_up_reads_to_the_end_as_it_is_then(kafka: type[Kafka]) -> None:
    async def run() -> None:
        taken: list[int] = []
        reading = follower(taken)
        await reading.catch_up()
        assert taken == [0, 1, 2, 3, 4]
        kafka.length = 7
        await reading.catch_up()
        assert taken == list(range(7))
        assert kafka.opened == 1

    asyncio.run(run())


@pytest.mark.parametrize("broken", range(1, 7))
def test_a_call_that_fails_loses_and_repeats_nothing(kafka: type[Kafka], broken: int) -> None:
    """Also where records had been fetched by then, and although stopping the consumer raises CancelledError."""
    kafka.faults = {broken: KafkaConnectionError()}

    async def run() -> None:
        taken: list[int] = []
        reading = follower(taken)
        with pytest.raises(TopicError, match=r"topic topic at 127\.0\.0\.1:9092"):
            await reading.catch_up()
        await reading.catch_up()
        assert taken == [0, 1, 2, 3, 4]

    asyncio.run(run())


def test_following_goes_on_after_failures(kafka: type[Kafka]) -> None:
    kafka.faults = {number: KafkaConnectionError() for number in (1, 3, 6, 7, 8, 12)}

    async def run() -> None:
        taken: list[int] = []
        done = asyncio.Event()

        async def after() -> None:
            if len(taken) == 5:
                kafka.length = 9
            if len(taken) == 9:
                done.set()

        following = asyncio.create_task(follower(taken).follow(after))
        await asyncio.wait_for(done.wait(), 10)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        assert taken == list(range(9))

    asyncio.run(run())


def test_compacted_beginnings_are_passed_over(kafka: type[Kafka]) -> None:
    kafka.first = 3

    async def run() -> None:
        taken: list[int] = []
        await follower(taken).catch_up()
        assert taken == [3, 4]

    asyncio.run(run())


def test_a_topic_that_went_unread_is_read_again(kafka: type[Kafka], monkeypatch: pytest.MonkeyPatch) -> None:
    """Once on the old connection and once on a new one, then it is an error."""

    async def run() -> None:
        taken: list[int] = []
        reading = follower(taken)
        await reading.refresh()
        assert taken == []  # nobody follows yet
        await reading.catch_up()
        kafka.length = 8
        await reading.refresh()
        assert taken == list(range(5))
        monkeypatch.setattr(follow, "PATIENCE_SECONDS", -1.0)
        kafka.faults = {kafka.calls + 1: KafkaConnectionError()}
        await reading.refresh()
        assert taken == list(range(8))
        kafka.faults = {kafka.calls + n: KafkaConnectionError() for n in range(1, 20)}
        with pytest.raises(TopicError, match="cannot be read"):
            await reading.refresh()

    asyncio.run(run())
