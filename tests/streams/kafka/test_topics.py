"""What the topics have to be like, before any broker is asked."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tidegate.schemas.errors import TopicError
from tidegate.streams.kafka.topics import STATE_MAX_BYTES, Topic, check_topics, connect, create_topics, topics
from tidegate.streams.settings import Settings, load_settings

DAY = 86_400_000


def by_name(**given: Any) -> dict[str, Topic]:
    return {topic.name: topic for topic in topics(load_settings(**given))}


WANTED: dict[str, tuple[int, str, int | None]] = {
    "public.telemetry": (5, "delete", 3 * DAY),
    "public.late": (5, "delete", 3 * DAY),
    "public.dead-letter": (5, "delete", 3 * DAY),
    "app.window-checkpoints": (5, "compact", None),
    "app.partials": (7, "delete", 3 * DAY),
    "app.gate-checkpoints": (7, "compact", None),
    "app.retained": (2, "delete", 3 * DAY),
    "public.decisions": (7, "delete", -1),
    "public.control": (7, "compact", None),
    "public.manifests": (1, "compact", None),
    "public.operations": (1, "delete", -1),
}
"""Partitions, cleanup and retention (ms; -1: for ever) with 5 partitions, 7 gates and 3 days."""


@pytest.mark.parametrize("name", WANTED)
def test_a_topic_is_what_its_place_in_the_flow_asks_for(name: str) -> None:
    """States and what is sent on have the partitions of their source.

    Compacted is only where the last record of a key is all that counts, and nothing there expires; decisions outlive
    the telemetry; what has to have one order has one partition; two applications share the public topics and no state.
    """
    given = {"topic_prefix": "public", "application_id": "app", "partitions": 5, "gate_partitions": 7}
    topic = by_name(**given, retention="3d")[name]
    partitions, cleanup, retention = WANTED[name]
    assert (topic.partitions, topic.cleanup) == (partitions, cleanup)
    assert topic.config.get("retention.ms") == (None if retention is None else str(retention))
    assert "retention.bytes" not in topic.config


def test_every_topic_of_the_settings_is_among_them() -> None:
    """A topic that is used and not made would be made by the broker, with its own partitions."""
    used = {name for name, value in vars(Settings).items() if name.endswith("_topic") and isinstance(value, property)}
    settings = load_settings()
    assert {getattr(settings, name) for name in used} == {topic.name for topic in topics(settings)}


def test_no_two_topics_have_one_name() -> None:
    assert len(by_name()) == len(topics(load_settings()))


def test_a_partial_of_a_very_large_pane_is_let_through() -> None:
    assert by_name()["tidegate.partials"].config["max.message.bytes"] == str(STATE_MAX_BYTES)


def test_manifests_and_operations_have_the_brokers_time() -> None:
    """What a record may do depends on when it was written, and its writer could say anything."""
    for name in ("tidegate.manifests", "tidegate.operations"):
        assert by_name()[name].config["message.timestamp.type"] == "LogAppendTime"


def test_configs_are_texts_as_kafka_takes_them() -> None:
    for topic in by_name().values():
        assert topic.what.strip()
        assert {type(text) for pair in topic.config.items() for text in pair} <= {str}


@pytest.mark.parametrize("ask", [connect, create_topics, check_topics])
def test_a_broker_that_is_away_is_named_with_the_setting(ask: Callable[[Settings], Awaitable[Any]]) -> None:
    """No traceback of the client, and nothing left open."""

    async def run() -> None:
        await ask(load_settings(broker="127.0.0.1:9"))

    with pytest.raises(TopicError, match=r"127\.0\.0\.1:9 \(TIDEGATE_BROKER\)"):
        asyncio.run(run())
