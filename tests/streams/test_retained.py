"""Where a replay is taken up: checkpoints that fit together, and telemetry that is still there."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from schemas.errors import TopicError
from streams import checkpoints
from streams.history import Extent
from streams.panes import NEVER, Mark
from streams.retained import Cut, Place, Retained, find, load
from streams.settings import load_settings
from tests.streams.test_checkpoints import CHUNK, Log, _confirmed

SETTINGS = load_settings()


def silent(_: str) -> None:
    """Who is told nothing."""


def gate(next_: int, *closed: int) -> Place:
    return Place(next_, next_, Mark(next_, closed))


def window(next_: int, closed: int) -> Place:
    return Place(next_, next_, Mark(next_, (closed,)))


KEPT = Retained(
    gates=[[gate(10, 4, 5), gate(20, 8, 9), gate(30, 12, 12)], [gate(11, 5, 5), gate(21, 9, 8), gate(31, 12, 13)]],
    windows=[[window(100, 3), window(200, 8), window(300, 12)], [window(50, 5), window(60, 6), window(70, 12)]],
    firsts=[0, 0],
)


def marks(cut: Cut | None) -> tuple[list[int], list[int]] | None:
    """The positions of a cut; 0 for nothing."""
    if cut is None:
        return None
    gates, windows = ([0 if p is None else p.mark.next for p in places] for places in (cut.gates, cut.windows))
    return gates, windows


class TestLatest:
    @pytest.mark.parametrize(
        ("until", "gates", "windows"),
        [
            (3, [0, 0], [0, 0]),
            (4, [10, 0], [0, 0]),
            (7, [10, 11], [100, 50]),
            (8, [20, 21], [200, 60]),
            (99, [30, 31], [300, 70]),
        ],
    )
    def test_each_gate_as_late_as_it_fits_and_no_partition_after_one(
        self, until: int, gates: list[int], windows: list[int]
    ) -> None:
        cut = KEPT.latest([lambda mark: min(mark.closed) <= until] * 2)
        assert marks(cut) == (gates, windows)
        assert cut is not None
        assert cut.begins == (0 in gates)
        assert cut.closed == (NEVER if cut.begins else {7: 4, 8: 8, 99: 12}[until])

    def test_telemetry_that_is_gone_is_not_begun_at(self) -> None:
        """Neither its beginning, nor a checkpoint that is followed by what is gone."""
        for firsts, found in (([101, 0], None), ([100, 0], ([10, 11], [100, 50])), ([0, 51], None)):
            kept = Retained(KEPT.gates, KEPT.windows, firsts)
            assert marks(kept.latest([lambda mark: min(mark.closed) <= 7] * 2)) == found


class TestEarliest:
    @pytest.mark.parametrize(
        ("firsts", "found"),
        [
            ([0, 0], ([10, 0], [0, 0])),
            ([1, 0], ([10, 11], [100, 50])),
            ([101, 51], ([20, 21], [200, 60])),
            ([201, 0], ([30, 31], [300, 70])),
            ([301, 0], None),
        ],
    )
    def test_the_first_after_which_all_telemetry_is_there(
        self, firsts: list[int], found: tuple[list[int], list[int]] | None
    ) -> None:
        assert marks(Retained(KEPT.gates, KEPT.windows, firsts).earliest()) == found

    def test_nothing_retained(self) -> None:
        assert Retained([[]], [[]], [5]).earliest() is None
        assert marks(Retained([[]], [[]], [5]).nothing) == ([0], [0])


class Topics:
    """What is used of ``History``, over logs by topic and partition."""

    def __init__(self, **topics: list[Log]) -> None:
        self.topics = {getattr(SETTINGS, f"{name}_checkpoints_topic"): logs for name, logs in topics.items()}

    def has(self, topic: str) -> bool:
        return topic in self.topics

    def extent(self, topic: str) -> Extent:
        bounds = {partition: (0, log.end) for partition, log in enumerate(self.topics[topic])}
        return Extent(topic, bounds, bounds)

    def read(self, extent: Extent) -> Any:
        for partition, (first, end) in extent.bounds.items():
            records = self.topics[extent.topic][partition].records.items()
            yield [
                SimpleNamespace(partition=partition, offset=offset, key=key, value=value)
                for offset, (key, value) in records
                if first <= offset < end
            ]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "CHUNK_BYTES", CHUNK)


def retain(log: Log, state: bytes, slot: int, mark: Mark) -> None:
    asyncio.run(_confirmed(checkpoints.retain(log.send, state, mark, slot, slot)))


def topics() -> tuple[Any, Log, Log]:
    """A gate and a partition with a checkpoint each, and one that is not retained."""
    gates, windows = Log(), Log()
    retain(gates, b"g" * 20, 1, Mark(10, (4,)))
    windows.save(b"n" * 20, 1)
    retain(windows, b"w" * 20, 1, Mark(100, (3,)))
    return Topics(gate=[gates], window=[windows]), gates, windows


def test_what_was_retained_is_found_and_loaded() -> None:
    history, _, _ = topics()
    cut = find(history, SETTINGS, [7], silent).earliest()
    assert cut is not None
    assert load(history, SETTINGS, cut) == ([b"g" * 20], [b"w" * 20])
    assert load(history, SETTINGS, Cut([None], [None])) == ([None], [None])


@pytest.mark.parametrize("there", [{}, {"window": [Log()]}, {"gate": [Log()]}])
def test_where_workers_have_no_topics_nothing_is_retained(there: dict[str, list[Log]]) -> None:
    """Or where this user may not see them; one that is missing is named, and the setting that gives its name."""
    history: Any = Topics(**there)
    told: list[str] = []
    assert find(history, SETTINGS, [0, 0], told.append).earliest() is None
    (line,) = told
    assert f"tidegate.{'window' if 'gate' in there else 'gate'}-checkpoints " in line
    assert "TIDEGATE_APPLICATION_ID" in line


def test_one_whose_chunks_another_has_written_over_does_not_count() -> None:
    """A worker that was thought dead copies into the same slot, and compaction takes the first chunks away."""
    history, _, windows = topics()
    windows.append(b"copied/1/0", b"another")
    history.topics[SETTINGS.window_checkpoints_topic] = [windows.compacted()]
    assert find(history, SETTINGS, [7], silent).earliest() is None


def test_one_that_is_gone_since_it_was_found_is_named() -> None:
    history, _, windows = topics()
    cut = find(history, SETTINGS, [7], silent).earliest()
    assert cut is not None
    del windows.records[windows.end - 1]
    with pytest.raises(TopicError, match=r"window-checkpoints-0 offset 7: .* again"):
        load(history, SETTINGS, cut)


def test_a_flipped_bit_is_named() -> None:
    history, gates, _ = topics()
    cut = find(history, SETTINGS, [7], silent).earliest()
    assert cut is not None
    gates.records[0] = (b"copied/1/0", b"x" * CHUNK)
    with pytest.raises(TopicError, match=r"gate-checkpoints-0 offset 3: .*not whole"):
        load(history, SETTINGS, cut)


def test_garbage_is_named() -> None:
    history, gates, _ = topics()
    gates.append(b"retained/9", b"garbage")
    with pytest.raises(TopicError, match="gate-checkpoints-0 offset 4"):
        find(history, SETTINGS, [0], silent)


def test_checkpoints_of_other_telemetry_are_refused() -> None:
    history, _, _ = topics()
    with pytest.raises(TopicError, match="TIDEGATE_APPLICATION_ID"):
        find(history, SETTINGS, [0, 0], silent)
