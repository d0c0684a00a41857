"""A producer that waits outages out."""

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest
from aiokafka.errors import KafkaError, KafkaTimeoutError, TopicAuthorizationFailedError
from faust.exceptions import ProducerSendError
from faust.transport.drivers.aiokafka import Producer

from streams.hooks import IdempotentProducer

SENT: Any = object()


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
