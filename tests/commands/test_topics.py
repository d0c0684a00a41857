"""``tidegate topics``: what has to be there, in full, and whether it is."""

from collections.abc import Iterator

import pytest

from tests.commands.invoke import tidegate
from tidegate.streams.kafka.topics import topics
from tidegate.streams.settings import load_settings
from tidegate.streams.simulation.embedded_broker import embedded_broker

SHAPES = {topic.name: topic.partitions for topic in topics(load_settings())}


@pytest.fixture(scope="module")
def broker() -> Iterator[str]:
    """All topics as they should be."""
    with embedded_broker(SHAPES) as servers:
        yield servers


def test_all_that_are_there_are_fine(broker: str) -> None:
    done = tidegate("topics", "--broker", broker)
    assert (done.code, done.err) == (0, "")
    assert "all topics are there: 4 telemetry partitions, 4 gate partitions" in " ".join(done.out.split())


def test_names_and_configs_are_shown_in_full(broker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also into a file: whoever makes the topics by hand copies them from there."""
    monkeypatch.setenv("COLUMNS", "80")
    shown = tidegate("topics", "--broker", broker).out
    assert "…" not in shown
    for topic in topics(load_settings()):
        assert topic.name in shown
        for key, value in topic.config.items():
            assert f"{key}={value}" in shown


def test_one_that_is_missing_is_a_failed_check_that_names_it_and_the_way_out() -> None:
    """Exit code 1: nothing is wrong with what was typed."""
    with embedded_broker({name: count for name, count in SHAPES.items() if name != "tidegate.late"}) as servers:
        done = tidegate("topics", "--broker", servers)
    assert done.code == 1
    assert "tidegate.late" in done.line
    assert "tidegate topics --create" in done.line


def test_a_state_topic_with_other_partitions_than_its_source_is_a_failed_check() -> None:
    """A state would be looked for in the wrong partition."""
    with embedded_broker(SHAPES | {"tidegate.window-checkpoints": 3}) as servers:
        done = tidegate("topics", "--broker", servers)
    assert done.code == 1
    assert "tidegate.window-checkpoints has 3 partitions, not 4" in done.line


def test_a_topic_for_retained_checkpoints_without_room_for_their_parts_is_a_failed_check() -> None:
    with embedded_broker(SHAPES | {"tidegate.retained": 1}) as servers:
        done = tidegate("topics", "--broker", servers)
    assert done.code == 1
    assert "tidegate.retained has 1 partition, not 2" in done.line


def test_other_telemetry_partitions_than_the_settings_say_are_fine() -> None:
    """The settings are for topics that are made; what is there decides."""
    names = ("telemetry", "late", "dead-letter", "window-checkpoints")
    with embedded_broker(SHAPES | {f"tidegate.{name}": 6 for name in names}) as servers:
        done = tidegate("topics", "--broker", servers)
    assert done.code == 0
    assert "6 telemetry partitions" in " ".join(done.out.split())


@pytest.mark.parametrize("arguments", [(), ("--create",)])
def test_no_broker_is_a_mistake_that_names_it(arguments: tuple[str, ...]) -> None:
    done = tidegate("topics", "--broker", "127.0.0.1:9", *arguments)
    assert done.code == 2
    assert "127.0.0.1:9" in done.line
