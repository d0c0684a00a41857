"""An auditor's own Python decides the topics again, to the byte, and is told where they differ."""

from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from tests.golden.make import folder, log_of
from tidegate.schemas.load import read_manifest
from tidegate.schemas.timeline import Timeline
from tidegate.streams.audit import conductor
from tidegate.streams.audit.conductor import conduct
from tidegate.streams.dumps.log import read_records
from tidegate.streams.kafka.history import Extent
from tidegate.streams.settings import load_settings

SETTINGS = load_settings()
HEALTHY = folder("healthy")


class Stored:
    """What is used of ``History``, with a stored log as the topics of one partition."""

    def __init__(self, logs: dict[str, list[Any]]) -> None:
        self.logs = logs

    def has(self, topic: str) -> bool:
        return topic in self.logs

    def extent(self, topic: str, *_: object) -> Extent:
        return Extent(topic, {0: (0, len(self.logs[topic]))}, {0: (0, len(self.logs[topic]))})

    def records(self, topic: str) -> list[Any]:
        return self.logs[topic]

    def read(self, extent: Extent) -> Iterator[list[Any]]:
        yield self.logs[extent.topic][slice(*extent.bounds[0])]


def as_records(lines: list[bytes]) -> list[Any]:
    return [SimpleNamespace(partition=0, offset=n, timestamp=0, value=line, key=None) for n, line in enumerate(lines)]


@pytest.fixture
def topics(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    telemetry = [
        SimpleNamespace(partition=0, offset=n, timestamp=record.timestamp, value=record.value, key=None)
        for n, (_, record) in enumerate(read_records(log_of("healthy")))
    ]
    logs = {
        SETTINGS.telemetry_topic: telemetry,
        SETTINGS.decisions_topic: as_records((HEALTHY / "decisions.ndjson").read_bytes().splitlines()),
        SETTINGS.control_topic: as_records((HEALTHY / "commands.ndjson").read_bytes().splitlines()),
    }
    monkeypatch.setattr(conductor, "History", lambda _: nullcontext(Stored(logs)))
    return logs


def difference() -> tuple[list[bytes], str | None]:
    """The decisions again, and where they first differ from those in the topics."""
    timeline = Timeline.of(read_manifest(HEALTHY / "manifest.yml", pane_ms=SETTINGS.pane).flags)
    with conduct(SETTINGS, timeline) as again:
        outcomes = list(again.outcomes())
    decisions = [decision.to_bytes() for decision, _ in outcomes]
    return decisions, again.replay.difference(decisions, [order.to_bytes() for _, order in outcomes if order])


def test_the_topics_are_decided_again_to_the_byte(topics: dict[str, list[Any]]) -> None:
    decisions, found = difference()
    assert decisions == [record.value for record in topics[SETTINGS.decisions_topic]]
    assert found is None


def test_a_decision_that_was_changed_is_named(topics: dict[str, list[Any]]) -> None:
    changed = topics[SETTINGS.decisions_topic][1]
    changed.value = msgspec.json.encode(msgspec.json.decode(changed.value) | {"verdict": "abort"})
    assert "decision 2 differs in verdict" in (difference()[1] or "")


def test_what_is_no_longer_there_is_told(topics: dict[str, list[Any]]) -> None:
    del topics[SETTINGS.decisions_topic]
    timeline, told = Timeline(), list[str]()
    with conduct(SETTINGS, timeline, tell=told.append):
        assert told == [f"topic {SETTINGS.decisions_topic} is not there"]
