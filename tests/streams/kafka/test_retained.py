"""Where a replay is taken up: checkpoints that fit together, and telemetry that is still there."""

import asyncio
import hashlib
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from tests.streams.kafka.test_checkpoints import Log
from tidegate.schemas.errors import TopicError
from tidegate.streams.engine.runs import NEVER, Position
from tidegate.streams.kafka import retained
from tidegate.streams.kafka.history import Extent
from tidegate.streams.kafka.retained import INDEX, PARTS, ResumePoint, Retained, RetainedEntry, Shape, find, load
from tidegate.streams.settings import load_settings

SETTINGS = load_settings()
PART = 8
SHAPE = Shape("tidegate.telemetry", 1, 1, 10_000, 10_000)


def gate(next_: int, *closed: int, operations_next: int = 0) -> RetainedEntry:
    return RetainedEntry("gate", 0, SHAPE, Position(next_, closed, operations_next))


def window(next_: int, closed: int) -> RetainedEntry:
    return RetainedEntry("window", 0, SHAPE, Position(next_, (closed,)))


KEPT = Retained(
    gates=[[gate(10, 4, 5), gate(20, 8, 9), gate(30, 12, 12)], [gate(11, 5, 5), gate(21, 9, 8), gate(31, 12, 13)]],
    windows=[[window(100, 3), window(200, 8), window(300, 12)], [window(50, 5), window(60, 6), window(70, 12)]],
    firsts=[0, 0],
)


def marks(cut: ResumePoint | None) -> tuple[list[int], list[int]] | None:
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
        assert cut.from_beginning == (0 in gates)
        assert cut.closed == (NEVER if cut.from_beginning else {7: 4, 8: 8, 99: 12}[until])

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
    """What is used of ``History``: retained checkpoints, if ``there``, and telemetry left from ``first`` on."""

    def __init__(self, *, first: int = 0, there: bool = True) -> None:
        self.logs, self.first, self.there = {INDEX: Log(), PARTS: Log()}, first, there

    def has(self, topic: str) -> bool:
        return self.there and topic == SETTINGS.retained_topic

    def extent(self, topic: str, *_: object) -> Extent:
        if topic == SETTINGS.telemetry_topic:
            return Extent(topic, {0: (self.first, 999)}, {0: (self.first, 999)})
        bounds = {partition: (log.begin, log.end) for partition, log in self.logs.items()}
        return Extent(topic, bounds, bounds)

    def read(self, extent: Extent) -> Any:
        for partition, (first, end) in extent.bounds.items():
            records = self.logs[partition].records.items()
            yield [
                SimpleNamespace(partition=partition, offset=offset, value=value)
                for offset, (_, value) in records
                if first <= offset < end
            ]

    def retain(self, entry: RetainedEntry, state: bytes) -> None:
        """As a worker does."""
        asyncio.run(retained.retain(lambda partition, value: self.logs[partition].send(b"", value), entry, state))


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retained, "PART_BYTES", PART)


STATES: list[Any] = [(b"g" * 20, b"w" * 8), (b"", b"w"), (bytes(range(17)), b"")]


def topics(gate_state: bytes = b"g" * 20, window_state: bytes = b"w" * 20) -> Any:
    """A checkpoint of a gate and one of a partition."""
    history = Topics()
    history.retain(gate(10, 4), gate_state)
    history.retain(window(100, 3), window_state)
    return history


@pytest.mark.parametrize(("gate_state", "window_state"), STATES)
def test_what_was_retained_is_found_and_loaded(gate_state: bytes, window_state: bytes) -> None:
    history = topics(gate_state, window_state)
    cut = find(history, SETTINGS, [7]).earliest()
    assert cut is not None
    assert load(history, SETTINGS, cut) == ([gate_state], [window_state])
    assert load(history, SETTINGS, ResumePoint([None], [None])) == ([None], [None])


def test_an_entry_follows_the_parts_that_it_tells_of() -> None:
    """A crash in between leaves parts that nobody asks for, never an entry without them."""
    sent: list[int] = []
    waiting: list[asyncio.Future[Any]] = []

    async def send(partition: int, _: bytes) -> Any:
        sent.append(partition)
        waiting.append(asyncio.get_running_loop().create_future())
        return waiting[-1]

    async def run() -> None:
        retaining = asyncio.create_task(retained.retain(send, gate(10, 4), b"g" * 20))
        for confirmed in range(3):
            await asyncio.sleep(0.001)
            assert sent == [PARTS] * 3
            waiting[confirmed].set_result(SimpleNamespace(offset=confirmed))
        await asyncio.sleep(0.001)
        assert sent[3:] == [INDEX]
        waiting[3].set_result(None)
        await retaining

    asyncio.run(run())


def test_the_parts_of_two_workers_may_alternate() -> None:
    history = topics()
    history.logs[PARTS] = mixed = Log()
    waiting: Any = []
    for entry, state in ((gate(10, 4), b"1" * 20), (window(100, 3), b"2" * 20)):
        parts = [state[at : at + PART] for at in range(0, 20, PART)]
        waiting.append((entry, state, parts))
    offsets: list[list[int]] = [[], []]
    for number in range(3):
        for which, (_, _, parts) in enumerate(waiting):
            offsets[which].append(mixed.append(b"", parts[number]))
    history.logs[INDEX] = Log()
    for (entry, state, _), its in zip(waiting, offsets, strict=True):
        told = msgspec.structs.replace(entry, parts=tuple(its), sha256=hashlib.sha256(state).digest())
        history.logs[INDEX].append(b"", msgspec.msgpack.encode(told))
    cut = find(history, SETTINGS, [7]).earliest()
    assert cut is not None
    assert load(history, SETTINGS, cut) == ([b"1" * 20], [b"2" * 20])


@pytest.mark.parametrize("there", [False, True])
def test_where_there_is_nothing_the_reason_is_told(there: bool) -> None:
    """Also where this user may not see the topic: it is named, with the setting that gives its name."""
    history: Any = Topics(there=there)
    told: list[str] = []
    assert find(history, SETTINGS, [5, 0], told.append).earliest() is None
    (line,) = told
    assert "topic tidegate.retained " in line
    assert ("TIDEGATE_APPLICATION_ID" in line) == (not there)


def test_one_whose_parts_have_expired_does_not_count() -> None:
    history = topics()
    history.logs[PARTS].begin = 1
    kept = find(history, SETTINGS, [7])
    assert ([*map(len, kept.gates)], [*map(len, kept.windows)]) == ([0], [1])


def test_one_flipped_bit_is_named() -> None:
    history = topics()
    cut = find(history, SETTINGS, [7]).earliest()
    assert cut is not None
    history.logs[PARTS].records[1] = (b"", b"x" * PART)
    with pytest.raises(TopicError, match=r"tidegate.retained-1 offset 0: .*gate 0.*not whole"):
        load(history, SETTINGS, cut)


@pytest.mark.parametrize("value", [b"", b"garbage", None, msgspec.msgpack.encode(["gate", 0])])
def test_garbage_is_passed_over_and_counted(value: bytes | None) -> None:
    history = topics()
    history.logs[INDEX].append(b"", value)
    told: list[str] = []
    assert find(history, SETTINGS, [7], told.append).earliest() is not None
    assert told == ["1 record of tidegate.retained could not be read as a retained checkpoint"]


@pytest.mark.parametrize(
    ("settings", "firsts"),
    [
        (SETTINGS, [0, 0]),
        (load_settings(pane=5_000), [0]),
        (load_settings(lateness=5_000), [0]),
        (load_settings(topic_prefix="other"), [0]),
    ],
)
def test_those_of_another_deployment_are_refused_with_the_way_out(settings: Any, firsts: list[int]) -> None:
    """Another pane or lateness, other telemetry, or one that has lost its partitions."""
    with pytest.raises(TopicError, match=r"tidegate\.telemetry', 1, 1, 10000, 10000.*--pane.*TIDEGATE_APPLICATION_ID"):
        find(topics(), settings, firsts)
