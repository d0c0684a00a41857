"""Kafka's client library within somebody else's service."""

import logging
from types import SimpleNamespace

import pytest

from tidegate.streams.kafka import patience
from tidegate.streams.kafka.patience import Outage, hold_back


class Clock:
    """A clock that stands."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000.0
        times = SimpleNamespace(monotonic=lambda: self.now, time=lambda: self.now + 1_700_000_000)
        monkeypatch.setattr(patience, "time", times)


def test_an_outage_is_told_at_once_then_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, outage, told = Clock(monkeypatch), Outage(), []
    for second in range(181):
        clock.now = 1_000.0 + second
        if outage.due("unread"):
            told.append(second)
    assert told == [0, 60, 120, 180]
    assert outage.since == 1_700_001_000
    assert outage.over()
    assert not outage.over()


def test_another_kind_of_trouble_need_not_wait_a_minute_but_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker is back, and the topic is not there; two that take turns write no more than that."""
    clock, outage = Clock(monkeypatch), Outage()
    told = 0
    for second in range(61):
        clock.now = 1_000.0 + second
        told += outage.due("missing" if second % 2 else "away")
    assert 2 <= told <= 7


def test_outages_that_come_and_go_are_told_no_more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is their end, where the begin was not."""
    clock, outage, told, ended = Clock(monkeypatch), Outage(), 0, 0
    for second in range(60):
        clock.now = 1_000.0 + second
        told += outage.due("away")
        ended += outage.over()
    assert (told, ended) == (1, 1)


def test_how_long_it_has_lasted_already_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    outage = Outage()
    assert outage.due("away", seconds_ago=5)
    assert outage.since == 1_700_000_995


def test_the_clients_say_the_same_once_in_ten_seconds_whatever_handlers_a_service_has(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Those of the library alone: the service's own lines are all shown."""
    clock = Clock(monkeypatch)
    monkeypatch.setattr(patience, "_once", patience.Once())
    hold_back()
    hold_back()
    with caplog.at_level(logging.WARNING):
        for second in range(21):
            clock.now = 1_000.0 + second
            logging.getLogger("aiokafka").error("no connection to %s", second)
            logging.getLogger("aiokafka.producer.sender").warning("no answer")
            logging.getLogger("service").warning("served")
    names = [record.name for record in caplog.records]
    assert [names.count(name) for name in ("aiokafka", "aiokafka.producer.sender", "service")] == [3, 3, 21]
