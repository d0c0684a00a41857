"""However much there is to do, it is done in slices of bounded size, and the event loop turns between them."""

import asyncio
import copy
import gc
import math
from collections.abc import Callable, Iterator
from itertools import count
from types import SimpleNamespace
from typing import Any, TypeVar
from unittest.mock import patch

import msgspec
import pytest
from faust.types import TP

from tests.streams.events import CLOCKWORK, LATENESS, NOON, PANE, RAMP, flags, fresh, record, tick
from tidegate.gates.codec import StateCodec
from tidegate.gates.machine import Machine
from tidegate.gates.ramp import Ramp
from tidegate.gates.sums import Sums
from tidegate.gates.window import PaneUnit
from tidegate.schemas.decision import OperationBy
from tidegate.schemas.timeline import Revision, Timeline
from tidegate.streams.engine import columns, event_classes, gate_log
from tidegate.streams.engine import gate_partition as windows
from tidegate.streams.engine import source_partition as panes
from tidegate.streams.engine.event_classes import EventClasses
from tidegate.streams.engine.gate_log import Order, Partial, partial_codec, piece_slices, pieces, split
from tidegate.streams.engine.gate_partition import GatePartition
from tidegate.streams.engine.runs import NEVER, Run
from tidegate.streams.engine.slices import Slices, only, whole
from tidegate.streams.engine.source_partition import SourcePartition
from tidegate.streams.kafka import checkpoints, turns
from tidegate.streams.kafka.turns import Collector, paced, result_of
from tidegate.streams.settings import load_settings
from tidegate.streams.worker.app import Worker
from tidegate.streams.worker.checkpointer import Checkpointer
from tidegate.streams.worker.fetch import FetchedRun
from tidegate.streams.worker.health import Metrics

T = TypeVar("T")
LAST = tick(NOON + 60_000 + LATENESS)


class Work:
    """Counts what is done for single units; ``most``: in one slice."""

    def __init__(self) -> None:
        self.done = self.most = self.summed = 0

    def one(self, *_: object) -> None:
        self.done += 1

    def begin(self) -> None:
        self.done = self.most = self.summed = 0

    def sum(self, *_: object) -> None:
        self.one()
        self.summed += 1

    def stop(self) -> None:
        self.most, self.done = max(self.most, self.done), 0

    def of(self, slices: Slices[T]) -> list[T]:
        """What the slices give, each of them looked at."""
        found = []
        for one in slices:
            self.stop()
            if one is not None:
                found.append(one)
        self.stop()
        return found


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    work = Work()

    def counted(owner: Any, name: str, *, unless: Callable[[Any], bool] = lambda _: False) -> None:
        original = getattr(owner, name)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if not unless(args):
                work.one()
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, wrapper)

    for owner, name in (
        (Machine, "add"),
        (Machine, "wake"),
        (Machine, "operate"),
        (Machine, "cut"),
        (Machine, "retire"),
        (Ramp, "judge_pane"),
        (Ramp, "judge_window"),
        (PaneUnit, "in_order"),
        (windows, "begin"),
        (windows, "dormant"),
        (windows, "machine"),
    ):
        counted(owner, name)
    count = Sums.count

    def summed(sums: Sums, row: list[int]) -> None:
        work.sum()
        count(sums, row)

    monkeypatch.setattr(Sums, "count", summed)
    # The codecs of whole states, whose units are bytes by then, do nothing for a single one.
    units = (gate_log.unit_codec, windows._unit_codec)
    for name in ("dump", "load"):
        counted(StateCodec, name, unless=lambda args: args[0] not in units)
    return work


def log(units: int, panes_: int = 3) -> list[bytes | None]:
    """Two requests of each unit in each pane."""
    return [
        record(
            event_id=f"{pane}/{n}/{arm}", ts=NOON + pane * PANE, flag="f", region=f"r{n:05}", arm=arm, sticky_id=f"{n}"
        )
        for pane in range(panes_)
        for n in range(units)
        for arm in ("canary", "baseline")
    ]


def run_of(units: int) -> Run:
    return Run(0, [*log(units), LAST])


def gate(timeline: Timeline | None = None) -> GatePartition:
    return GatePartition.fresh(0, 1, 1, CLOCKWORK, timeline or Timeline.of(flags(RAMP)))


def partials(units: int) -> list[bytes]:
    return [
        piece
        for partial in fresh(text=RAMP).step(run_of(units)).partials
        for part in split(partial, 1)
        for piece in pieces(part)
    ]


def fed(units: int) -> GatePartition:
    state = gate()
    for offset, value in enumerate(partials(units)):
        list(state.step(offset, partial_codec.load(value)))
    return state


def half(units: int) -> SourcePartition:
    state = fresh(text=RAMP)
    state.step(Run(0, log(units)))
    return state


def stepped(work: Work, units: int) -> None:
    work.of(fresh(text=RAMP).step_slices(run_of(units)))


def written(work: Work, units: int) -> None:
    closed = fresh(text=RAMP).step(run_of(units)).partials
    work.begin()
    for partial in closed:
        work.of(piece_slices(partial))


def decided(work: Work, units: int) -> None:
    entries = [partial_codec.load(value) for value in partials(units)]
    work.begin()
    state = gate()
    for offset, partial in enumerate(entries):
        work.of(state.step_slices(offset, partial))


def operated(work: Work, units: int) -> None:
    state = fed(units)
    work.begin()
    for kind in ("kill", "rearm"):
        by = OperationBy(kind=kind, ts=NOON, actor="a", reason="r")
        work.of(state.operate_slices(state.next, Order("f", by, state.operations_next)))


def revised(work: Work, units: int) -> None:
    """A revision that changes the flag, and one that drops it."""
    texts = RAMP, RAMP.replace("min_requests: 6", "min_requests: 5"), RAMP.replace("f:", "g:")
    starts = 0, NOON + PANE, NOON + 3 * PANE
    timeline = Timeline([Revision(n, at, flags(text)) for n, (at, text) in enumerate(zip(starts, texts, strict=True))])
    state, entries = gate(timeline), [partial_codec.load(value) for value in partials(units)]
    work.begin()
    for offset, partial in enumerate(entries):
        work.of(state.step_slices(offset, partial))
    assert len(state.retired) == units


def saved(work: Work, units: int) -> None:
    states = fed(units), half(units)
    work.begin()
    for state in states:
        work.of(state.dump_slices())


def restored(work: Work, units: int) -> None:
    decider, partition, timeline = fed(units).dump(), half(units).dump(), Timeline.of(flags(RAMP))
    work.begin()
    work.of(GatePartition.load_slices(decider, 0, 1, 1, CLOCKWORK, timeline))
    work.of(SourcePartition.load_slices(partition, 0, CLOCKWORK, EventClasses(timeline)))


def released(work: Work, units: int) -> None:
    decider, partition = fed(units), half(units)

    class Kept(dict[str, Any]):
        def popitem(self) -> tuple[str, Any]:
            work.one()
            return super().popitem()

    decider._state.units, decider._ramps = Kept(decider._state.units), Kept(decider._ramps)
    for pane in partition._state.open.values():
        pane.units = Kept(pane.units)
    work.begin()
    work.of(decider.release_slices())
    work.of(partition.release_slices())
    assert not decider.ramps
    assert not decider._state.units
    assert not any(units for _, units in partition.open_units())


@pytest.mark.parametrize("do", [stepped, written, decided, operated, revised, saved, restored, released])
def test_a_slice_is_as_large_however_many_units_there_are(work: Work, do: Callable[[Work, int], None]) -> None:
    """Closing, sending, deciding, operating, going over to a revision, saving, restoring and letting go."""
    most = []
    for units in (20, 200):
        do(work, units)
        most.append(work.most)
    assert 0 < most[1] == most[0] <= 3


def test_a_step_takes_records_of_so_many_bytes_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of compressed records may be a thousand times as large as what was fetched."""
    sizes = []

    def decode(values: list[bytes | None], *rest: Any) -> columns.Columns:
        sizes.append(sum(map(len, filter(None, values))))
        return columns.decode(values, *rest)

    monkeypatch.setattr(panes, "STEP_BYTES", 5_000)
    monkeypatch.setattr(panes, "decode", decode)
    large = [record(event_id=f"{n}", padding="x" * (400 + 37 * (n % 11))) for n in range(50)]
    huge = record(event_id="huge", padding="x" * 9_000)
    values = [*large, huge, *large[:1], None, b"", LAST]
    state = fresh()
    step = state.step(Run(0, values))
    assert (step.accepted, step.duplicates, state.next) == (51, 1, len(values))
    assert [size for size in sizes if size > 5_000] == [len(huge)]
    assert len(sizes) < 12


def test_records_that_are_all_of_other_units_are_taken_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them costs as much as dozens of one unit; those that are alike go on being taken in many at a time."""
    sizes: list[int] = []

    def decode(values: list[bytes | None], *rest: Any) -> columns.Columns:
        sizes.append(len(values))
        return columns.decode(values, *rest)

    monkeypatch.setattr(panes, "decode", decode)
    most, few = panes.STEP, panes.DEAR_STEP
    alike = [record(event_id=f"a{n}") for n in range(3 * most)]
    apart = [record(event_id=f"b{n}", region=f"r{n}") for n in range(3 * most)]
    fresh().step(Run(0, [*alike, *apart, *alike]))
    assert (sizes[0], sizes[1:3], sizes[-3:-1]) == (few, [most] * 2, [most] * 2)
    dear = [size for size in sizes[3:-3] if size == few]
    assert len(dear) * few >= 2 * most
    assert len(sizes) - len(dear) < 12


def test_records_of_many_units_are_taken_in_as_many_at_a_time_as_those_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once their combinations of fields are known."""
    met: list[int] = []

    def decode(values: list[bytes | None], *rest: Any) -> columns.Columns:
        met.append(len(values))
        return columns.decode(values, *rest)

    monkeypatch.setattr(panes, "decode", decode)
    values = [record(event_id=f"{n}", region=f"r{n % 1000}") for n in range(8 * panes.STEP)]
    fresh().step(Run(0, values))
    assert set(met[-4:-1]) == {panes.STEP}


def test_each_unit_is_summed_once_however_many_steps_its_rows_came_in(work: Work) -> None:
    """What a unit costs in a pane does not grow with the rows, nor with how they are fetched."""
    units, rounds = 50, 6
    values = [record(event_id=f"{n}/{unit}", region=f"r{unit}") for n in range(rounds) for unit in range(units)]
    state = fresh()
    for at in range(0, len(values), units):
        state.step(Run(at, values[at : at + units]))
    work.begin()
    state.step(Run(len(values), [LAST]))
    assert work.summed == units


@pytest.mark.parametrize("many", [40, 400])
def test_rows_that_are_held_are_no_more_than_so_many(monkeypatch: pytest.MonkeyPatch, many: int) -> None:
    monkeypatch.setattr(panes, "ROWS_HELD", 100)
    state, held = fresh(), set[int]()
    for n in range(many):
        state.step(Run(n, [record(event_id=f"{n}")]))
        held.add(len(state._rows))
    assert max(held) == min(many - 1, 99)


class Name(str):
    """Counts what it is held against."""

    __slots__ = ()
    looks = 0

    def __eq__(self, other: object) -> bool:
        Name.looks += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


def test_how_many_regions_a_flag_names_costs_its_events_nothing() -> None:
    count, known = 300, flags(RAMP)
    regions = tuple(Name(f"r{n}") for n in range(count))
    scope = known["f"].scope.model_copy(update={"regions": regions})
    timeline = Timeline.of({"f": known["f"].model_copy(update={"scope": scope})})
    state = SourcePartition.fresh(0, CLOCKWORK, EventClasses(timeline))
    Name.looks = 0
    values = [record(event_id=f"{n}", flag="f", region=f"r{n}") for n in range(count)]
    assert state.step(Run(0, values)).accepted == count
    assert Name.looks <= 2 * count


def test_records_that_differ_in_everything_cost_no_more_the_more_there_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each combination of their fields is put into the arrays once, and not again with every new one."""
    looked = [0]

    def badness(count: float) -> float:
        looked[0] += 1
        return before(count)

    before = event_classes._badness
    monkeypatch.setattr(event_classes, "_badness", badness)
    state = fresh()
    costs = []
    for turn in range(20):
        looked[0] = 0
        state.step(Run(turn * 50, [record(event_id=f"{turn}/{n}", region=f"{turn}/{n}") for n in range(50)]))
        costs.append(looked[0])
    assert set(costs) == {costs[0]}


class Panes(dict[int, dict[int, Partial]]):
    """Counts the panes that are looked at."""

    looks = 0

    def __iter__(self) -> Iterator[int]:
        for pane in super().__iter__():
            Panes.looks += 1
            yield pane


def test_a_partition_that_catches_up_is_not_held_up_by_what_has_waited_for_it() -> None:
    """All panes of a day that the others have closed stand there, and each of them is found at once."""
    decider = GatePartition.fresh(0, 1, 2, CLOCKWORK, Timeline.of(flags()))
    waiting = decider._state.waiting = Panes()
    panes_ = 500
    for n in range(panes_):
        list(decider.step(n, Partial(0, n, n or NEVER, 1, {})))
    Panes.looks = 0
    for n in range(panes_):
        list(decider.step(panes_ + n, Partial(1, n, n or NEVER, 0, {})))
    assert not waiting
    assert Panes.looks <= 2 * panes_


def test_pieces_are_as_large_as_they_may_be_and_no_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_log, "PIECE_BYTES", 3_000)
    sent = partials(40)
    assert max(map(len, sent)) <= 3_000 + 100
    assert sum(map(len, sent)) / len(sent) > 1_500


def test_a_state_that_is_written_in_slices_is_the_state() -> None:
    """Byte for byte what is written at once, and read back to the same."""
    decider, partition = fed(5), half(5)
    assert decider.dump() == windows.gate_codec.dump(decider._state)
    assert partition.dump() == panes.state_codec.dump(
        msgspec.structs.replace(partition._state, event_ids=panes.state_codec.load(partition.dump()).event_ids)
    )
    timeline = Timeline.of(flags(RAMP))
    assert GatePartition.load(decider.dump(), 0, 1, 1, CLOCKWORK, timeline).dump() == decider.dump()


def beats_between(work: Work, busy: Any) -> None:
    """Run it beside something that wants a turn of the event loop again and again."""

    async def beat() -> None:
        while True:
            work.stop()
            await asyncio.sleep(0)

    async def both() -> None:
        heart = asyncio.create_task(beat())
        await asyncio.sleep(0)
        work.begin()
        with patch.object(turns, "TURN_SECONDS", 0):
            await busy()
        work.stop()
        heart.cancel()

    asyncio.run(both())


class Sink:
    """What a worker's agents send to."""

    def __init__(self, state: Any) -> None:
        self.state, self.tp, self.heard_at = state, SimpleNamespace(topic="t", partition=0), 0.0
        self.sent: list[tuple[str, Any]] = []

    async def send(self, topic: str, _: bytes | None, value: bytes | None, *__: Any) -> None:
        self.sent.append((topic, value))


@pytest.fixture
def worker() -> Any:
    """One without Kafka."""
    worker: Any = Worker.__new__(Worker)
    worker.settings = load_settings(broker="b:1")
    worker.metrics, worker.manifests, worker._signing, worker.gates = Metrics(), None, None, 1
    return worker


@pytest.mark.parametrize("units", [10, 60])
def test_a_worker_turns_to_others_between_any_two_units(work: Work, worker: Any, units: int) -> None:
    """Reading, closing and sending panes, and deciding on them: heartbeats never wait for more than a slice."""
    run = run_of(units)
    reading = Sink(fresh(text=RAMP))
    fetched = FetchedRun(run, [None] * len(run.values), {})
    beats_between(work, lambda: worker._window(reading, SimpleNamespace(value=fetched)))
    assert 0 < work.most <= 3
    deciding = Sink(gate())

    async def decide() -> None:
        for offset, (_, value) in enumerate(reading.sent):
            message = SimpleNamespace(offset=offset, key=b"", timestamp=0.0)
            await worker._gate(deciding, SimpleNamespace(value=value, message=message))

    beats_between(work, decide)
    assert 0 < work.most <= 3
    decisions = [value for topic, value in deciding.sent if topic == worker.settings.decisions_topic]
    once = gate()
    expected = [
        decision.to_bytes()
        for offset, value in enumerate(partials(units))
        for decision, _ in once.step(offset, partial_codec.load(value))
    ]
    assert decisions == expected
    assert len(decisions) > units


REVISED = Timeline([Revision(0, 0, flags(RAMP)), Revision(1, NOON + PANE, flags(RAMP.replace("6,", "5,", 1)))])


def test_a_revision_that_is_heard_of_within_a_step_is_one_of_the_next() -> None:
    """Slices end at other places in every run, and a decision must not tell where."""
    entries = [partial_codec.load(value) for value in partials(2)]

    def said(heard_in: int, after: int | None) -> tuple[list[bytes], int]:
        """By a gate that is told of the revision in an entry, after so many slices of it; the number of its slices."""
        state, records, slices = gate(), list[bytes](), 0
        for offset, partial in enumerate(copy.deepcopy(entries)):
            for number, outcome in enumerate(state.step_slices(offset, partial)):
                records += [] if outcome is None else [outcome[0].to_bytes()]
                if offset == heard_in:
                    slices += 1
                    if number == after:
                        state.renew(REVISED)
            if offset == heard_in:
                state.renew(REVISED)
        return records, slices

    outcomes = set()
    for entry in range(len(entries)):
        records, slices = said(entry, None)
        outcomes.add(tuple(records))
        for after in range(slices):
            assert said(entry, after) == (records, slices)
    assert len(outcomes) > 1


class Broker:
    """What a keeper asks of its worker; every send is confirmed at once."""

    def __init__(self) -> None:
        self.app = SimpleNamespace(consumer_generation_id=0)
        self.settings, self.metrics, self.shape = load_settings(broker="b:1"), Metrics(), None
        self.failed: Exception | None = None
        self.saved: list[bytes] = []
        self.sent: list[tuple[str, bytes]] = []

    async def send(self, topic: str, _: Any, value: bytes, *__: Any) -> Any:
        await asyncio.sleep(0)
        self.sent.append((topic, value))
        done = asyncio.get_running_loop().create_future()
        done.set_result(SimpleNamespace(offset=0))
        return done

    async def publish_position(self, *_: Any) -> None:
        pass

    async def fail(self, error: Exception) -> None:
        self.failed = error


def disturbed(worker: Any, monkeypatch: pytest.MonkeyPatch, turns_before: int, *, stop: bool) -> tuple[Broker, bool]:
    """A gate's step, and what is saved if the partition is lost after so many turns; whether the step was over then."""
    entries, broker = partials(2), Broker()
    keeper = Checkpointer(broker, "gate", "checkpoints", TP("partials", 0), gate())  # type: ignore[arg-type]  # all it needs
    worker.keepers, worker.failed, worker.fail = {keeper.tp: keeper}, None, broker.fail

    async def written(_: Any, state: bytes, *__: Any) -> Any:
        broker.saved.append(state)
        return asyncio.sleep(0)

    monkeypatch.setattr(checkpoints, "write_checkpoint", written)
    monkeypatch.setattr(keeper, "maybe_save", lambda: None)

    async def all_entries() -> None:
        for offset, value in enumerate(entries):
            message = SimpleNamespace(tp=keeper.tp, offset=offset, key=b"", timestamp=0.0)
            await worker._guarded(worker._gate, SimpleNamespace(value=value, message=message))

    async def both() -> bool:
        agent = asyncio.create_task(all_entries())
        for _ in range(turns_before):
            await asyncio.sleep(0)
        over = agent.done()
        if stop:
            agent.cancel()
        await keeper.save_now()
        await asyncio.wait([agent])
        return over

    with patch.object(turns, "TURN_SECONDS", 0):
        over = asyncio.run(both())
    assert broker.failed is None
    return broker, over


@pytest.mark.parametrize("stop", [True, False])
def test_a_step_that_a_stop_or_a_rebalance_falls_into_is_saved_whole_or_not_at_all(
    worker: Any, monkeypatch: pytest.MonkeyPatch, *, stop: bool
) -> None:
    """Wherever between two slices it falls: what is saved is the state between two entries, after all it has sent."""
    entries, state, said = partials(2), gate(), list[bytes]()
    between = {state.dump(): 0}
    for offset, value in enumerate(entries):
        said += [decision.to_bytes() for decision, _ in state.step(offset, partial_codec.load(value))]
        between[state.dump()] = len(said)
    saved, nothing = set(), 0
    for turns_before in count():
        broker, over = disturbed(worker, monkeypatch, turns_before, stop=stop)
        sent = [value for topic, value in broker.sent if topic == worker.settings.decisions_topic]
        assert sent == said[: len(sent)]
        for blob in broker.saved:
            assert len(sent) >= between[blob]
            saved.add(blob)
        nothing += not broker.saved
        if over:
            break
    assert len(saved) > 1
    assert nothing > 0 or not stop
    assert stop or len(sent) == len(said)


def test_slices_give_the_same_with_turns_and_without() -> None:
    def slices() -> Slices[int]:
        yield None
        yield 1
        yield 0
        yield None

    async def turned() -> list[int]:
        return [found async for found in paced(slices())]

    assert asyncio.run(turned()) == list(whole(slices())) == [1, 0]
    assert asyncio.run(result_of(iter([None, "x", None]))) == only(iter([None, "x"])) == "x"


@pytest.mark.parametrize(("workers", "slices_a_turn"), [(1, 5), (2, 5), (5, 5), (10, 10)])
def test_those_at_work_share_the_time_between_two_turns(
    monkeypatch: pytest.MonkeyPatch, workers: int, slices_a_turn: int
) -> None:
    """Slices of 10 ms each, 50 ms a turn, and one slice at least for everybody: nobody else waits for longer."""
    clock, done, most = [0.0], [0], [0]

    def slices() -> Slices[str]:
        for _ in range(60):
            clock[0] += 0.0101
            done[0] += 1
            yield None
        yield ""

    async def beat() -> None:
        while True:
            most[0], done[0] = max(most[0], done[0]), 0
            await asyncio.sleep(0)

    async def all_of_them() -> None:
        heart = asyncio.create_task(beat())
        await asyncio.gather(*(result_of(slices()) for _ in range(workers)))
        heart.cancel()

    monkeypatch.setattr(turns, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(turns._Turns, "since", clock[0])
    asyncio.run(all_of_them())
    assert slices_a_turn / 2 <= most[0] <= slices_a_turn + workers


def test_after_the_last_slice_nobody_is_at_work() -> None:
    """Also where the work ends early, with an error or a stop."""

    async def broken() -> None:
        async for found in paced(iter([1, 2])):
            raise ValueError(found)

    async def both() -> None:
        with pytest.raises(ValueError, match="1"):
            await broken()
        await asyncio.sleep(0)
        await result_of(iter(["x"]))

    asyncio.run(both())
    assert turns._Turns.at_work == 0


@pytest.mark.parametrize(("generation", "seconds", "aside"), [(2, 0.03, True), (2, 0.01, False), (1, 0.03, False)])
def test_what_survives_a_long_collection_is_not_gone_through_again(
    monkeypatch: pytest.MonkeyPatch, generation: int, seconds: float, *, aside: bool
) -> None:
    """With thousands of units a full collection takes a second, and would come again with every few panes."""
    frozen: list[bool] = []
    times = iter([10.0, 10.0 + seconds])
    monkeypatch.setattr(turns, "time", SimpleNamespace(monotonic=lambda: next(times)))
    monkeypatch.setattr(turns, "gc", SimpleNamespace(freeze=lambda: frozen.append(True)))
    collector = Collector()
    collector.watch("start", {"generation": generation})
    collector.watch("stop", {"generation": generation})
    assert bool(frozen) == aside


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """One at work, which sets aside whatever survives a full collection."""
    monkeypatch.setattr(turns, "COLLECTION_SECONDS", -1)
    thresholds, installed = gc.get_threshold(), Collector()
    installed.install()
    yield installed
    gc.callbacks.remove(installed.watch)
    gc.set_threshold(*thresholds)
    gc.unfreeze()
    turns._Turns.collected = math.inf


@pytest.mark.usefixtures("collector")
def test_where_as_much_is_let_go_of_as_made_the_collector_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python counts what is made less what is freed, so it would wait, and then go through all of it at once."""
    monkeypatch.setattr(turns, "TURN_SECONDS", 0)
    monkeypatch.setattr(turns, "COLLECT_SECONDS", 0)
    kept = [[n] for n in range(50_000)]

    def replaced() -> Slices[int]:
        for n in range(len(kept)):
            kept[n] = [n + 1]
            if n % 1_000 == 0:
                yield None
        yield len(kept)

    gc.collect()
    assert asyncio.run(result_of(replaced())) == len(kept)
    assert sum(len(gc.get_objects(younger)) for younger in range(3)) < len(kept) / 10


@pytest.mark.usefixtures("collector")
def test_no_collection_goes_through_more_than_so_many_objects() -> None:
    """Each costs a microsecond, and nobody has a turn before all of them are through."""
    looked: list[int] = []

    def watch(phase: str, info: dict[str, Any]) -> None:
        if phase == "start":
            looked.append(sum(len(gc.get_objects(younger)) for younger in range(info["generation"] + 1)))

    gc.callbacks.append(watch)
    try:
        kept = [[n] for n in range(200_000)]
    finally:
        gc.callbacks.remove(watch)
    assert len(kept) > 4 * max(looked)
    assert sum(looked) < 8 * len(kept)
