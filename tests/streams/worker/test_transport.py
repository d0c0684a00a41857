"""A producer that waits outages out, and a consumer that reads on from the checkpoints."""

import asyncio
from collections.abc import Awaitable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import IllegalStateError, KafkaError, KafkaTimeoutError, TopicAuthorizationFailedError
from faust.exceptions import ProducerSendError
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer, Producer

from tidegate.streams.kafka import patience
from tidegate.streams.worker.transport import IdempotentProducer, consumer_of

SENT: Any = object()


class Client:
    """A client of a partition without a leader: it asks where that is as fast as it may."""

    def __init__(self) -> None:
        self.asked = 0
        self.send = None

    def force_metadata_update(self) -> "asyncio.Future[bool]":
        """Ask, and be told that nobody knows."""
        self.asked += 1
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        answer.set_result(False)
        return answer


def asked_of(make: Any, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often a client asks in an instant in which it would a hundred times; ``make``: who asks, by the client."""
    monkeypatch.setattr(patience, "time", SimpleNamespace(monotonic=lambda: 1_000.0))
    client = Client()

    async def run() -> None:
        asking = make(client)
        for _ in range(100):
            asking.force_metadata_update()

    asyncio.run(run())
    return client.asked


def test_a_consumer_whose_partition_has_no_leader_asks_for_it_no_faster_than_it_is_worth(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker: Any = SimpleNamespace(settings=SimpleNamespace(fetch_wait=50, instance_id=None))

    def make(client: Client) -> Client:
        made = SimpleNamespace(_client=client)
        monkeypatch.setattr(AIOKafkaConsumerThread, "_create_worker_consumer", lambda *_: made)
        monkeypatch.setattr(AIOKafkaConsumerThread, "__init__", lambda *_, **__: None)
        consumer: Any = SimpleNamespace(loop=None, beacon=None)
        thread: Any = consumer_of(worker)._new_consumer_thread(consumer)
        assert thread._create_worker_consumer(None) is made
        return client

    assert asked_of(make, monkeypatch) == patience.BURST


def test_a_producer_whose_partition_has_no_leader_does_so_too_and_asks_for_new_topics_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A worker's first records are to seven topics, and a kill may be among them."""
    made: Any = SimpleNamespace()

    def make(client: Client) -> Any:
        made.client, made._sender = client, SimpleNamespace(client=client)
        monkeypatch.setattr(Producer, "_new_producer", lambda *_, **__: made)
        assert IdempotentProducer.__new__(IdempotentProducer)._new_producer() is made
        return made._sender.client

    assert asked_of(make, monkeypatch) == patience.BURST
    assert made._sender.client.send is made.client.send
    assert asked_of(lambda client: make(client) and client, monkeypatch) == 100


def send(monkeypatch: pytest.MonkeyPatch, *errors: KafkaError) -> tuple[Awaitable[Any], list[tuple[Any, ...]]]:
    """Send a record through a client that raises these errors first; the result, and what the client was given."""
    waiting, given = list(errors), []

    async def once(self: Producer, *message: Any) -> Any:
        given.append(message)
        if waiting:
            raise ProducerSendError("Error while sending") from waiting.pop(0)
        return SENT

    monkeypatch.setattr(Producer, "send", once)
    producer = IdempotentProducer.__new__(IdempotentProducer)
    return asyncio.run(producer.send("topic", b"key", b"value", 3, None, None)), given


def test_where_there_is_no_room_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client library gives up after its request timeout, a record that it never took."""
    sent, given = send(monkeypatch, KafkaTimeoutError(), KafkaTimeoutError())
    assert sent is SENT
    assert given == [("topic", b"key", b"value", 3, None, None)] * 3


def test_any_other_error_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ProducerSendError) as caught:
        send(monkeypatch, TopicAuthorizationFailedError("topic"))
    assert isinstance(caught.value.__cause__, TopicAuthorizationFailedError)


def failures(monkeypatch: pytest.MonkeyPatch, error: Exception) -> list[Exception]:
    """What ends the process where this error comes while the states of an assignment are loaded."""
    ended: list[Exception] = []

    async def positions(self: Consumer) -> Mapping[Any, int]:
        return {}

    async def restore(*_: Any) -> Mapping[Any, int]:
        raise error

    async def fail(reason: Exception) -> None:
        ended.append(reason)

    monkeypatch.setattr(Consumer, "seek_to_committed", positions)
    kind = consumer_of(SimpleNamespace(sources=set(), restore=restore, fail=fail))  # type: ignore[arg-type]
    with pytest.raises(type(error)):
        asyncio.run(kind.__new__(kind).seek_to_committed())
    return ended


def test_an_assignment_that_is_taken_back_while_it_is_loaded_ends_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when workers are restarted one after the other. Faust waits for the next one, with the flow stopped."""
    assert failures(monkeypatch, IllegalStateError("No current assignment for partition")) == []


def test_any_other_error_while_it_is_loaded_does(monkeypatch: pytest.MonkeyPatch) -> None:
    error = KafkaError("lost")
    assert failures(monkeypatch, error) == [error]
