"""Where ``tidegate replay --from`` begins, and what it says where it cannot."""

import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from gates.unit import Clockwork
from schemas.errors import InputError, TopicError
from schemas.operation import Operation
from schemas.timeline import Timeline
from streams import past
from streams.again import Asked
from streams.commands import replay
from streams.commands.replay import _chosen, _kept, _taken_up
from streams.history import Extent, moment
from streams.panes import Mark, PartitionState
from streams.past import Past
from streams.retained import Cut, Place, Retained
from streams.windows import GateState
from tests.commands.invoke import tidegate
from tests.streams.test_checkpoints import Log
from tests.streams.test_retained import KEPT, SETTINGS, Topics, marks, retain

CLOCK = Clockwork(10_000, 10_000, "t")
KILL = Operation(actor="Ada", flag="f", kind="kill", reason="bad", ts=95_000)


class Telemetry(Topics):
    """With telemetry whose first record that is left is at ``first``."""

    def __init__(self, first: int, **topics: list[Log]) -> None:
        super().__init__(**topics)
        self.first = first

    def extent(self, topic: str) -> Extent:
        if topic != SETTINGS.telemetry_topic:
            return super().extent(topic)
        return Extent(topic, {0: (self.first, 99)}, {0: (self.first, 99)})


def telemetry(*firsts: int) -> Extent:
    bounds = {partition: (first, 999) for partition, first in enumerate(firsts)}
    return Extent("t", bounds, bounds)


@pytest.mark.parametrize("killed", [False, True])
def test_the_first_time_that_is_named_is_one_that_is_taken(killed: bool) -> None:
    """Also where the gates are not equally far, and where one has carried out an order that is later than its panes."""
    operations_next = 5 if killed else 0
    gates = [
        [Place(place.offset, place.offset, Mark(place.mark.next, place.mark.closed, operations_next)) for place in each]
        for each in KEPT.gates
    ]
    kept, asked = Retained(gates, KEPT.windows, [1, 0]), Asked(Timeline(), {KILL: 4}, CLOCK, Past())
    with pytest.raises(InputError) as refused:
        _chosen(kept, telemetry(1, 0), asked, 1_000)
    named = re.search(r"the first is --from (\S+)$", str(refused.value))
    assert named is not None
    start = moment(None, None, named[1])
    assert start is not None
    cut = _chosen(kept, telemetry(1, 0), asked, start)
    assert marks(cut) == (([20, 21], [200, 60]) if killed else ([10, 11], [100, 50]))
    with pytest.raises(InputError):
        _chosen(kept, telemetry(1, 0), asked, start - 1)


@pytest.fixture
def garbage() -> dict[str, list[Log]]:
    gates, windows = Log(), Log()
    gates.append(b"retained/9", b"garbage")
    return {"gate": [gates], "window": [windows]}


def test_a_replay_of_everything_reads_no_checkpoint(garbage: dict[str, list[Log]]) -> None:
    """So nothing that stands there can keep it from being made."""
    history: Any = Telemetry(0, **garbage)
    assert _kept(history, SETTINGS, None).nothing == Cut([None], [None])
    with pytest.raises(TopicError, match="gate-checkpoints-0 offset 0"):
        _kept(history, SETTINGS, 1_000)
    history.first = 5
    with pytest.raises(TopicError, match="gate-checkpoints-0 offset 0"):
        _kept(history, SETTINGS, None)


@pytest.mark.parametrize("clockwork", [CLOCK, Clockwork(5_000, 10_000, "t"), Clockwork(10_000, 5_000, "t")])
def test_checkpoints_of_another_pane_or_lateness_are_named_with_the_options(clockwork: Clockwork) -> None:
    gates, windows = Log(), Log()
    asked = Asked(Timeline(), {}, CLOCK, Past())
    retain(gates, GateState.fresh(0, 1, 1, clockwork, Timeline()).dump(), 1, Mark(0, (1,)))
    table: Any = None
    retain(windows, PartitionState.fresh(0, clockwork, table).dump(), 1, Mark(0, (1,)))
    history: Any = Telemetry(0, gate=[gates], window=[windows])
    cut = _kept(history, SETTINGS, 1_000).earliest()
    assert cut is not None
    if clockwork == CLOCK:
        assert _taken_up(history, SETTINGS, asked, cut, lambda _: None).positions == {0: 0}
        return
    with pytest.raises(InputError, match="give the --pane and --lateness of the workers"):
        _taken_up(history, SETTINGS, asked, cut, lambda _: None)


def test_a_state_of_another_version_is_named_with_the_way_out() -> None:
    gates, windows = Log(), Log()
    retain(gates, b"of old", 1, Mark(0, (1,)))
    retain(windows, b"of old", 1, Mark(0, (1,)))
    history: Any = Telemetry(5, gate=[gates], window=[windows])
    cut = Cut([Place(0, 0, Mark(0, (1,)))], [Place(0, 0, Mark(0, (1,)))])
    with pytest.raises(InputError, match=r"gate 0 cannot be read.* or a --from after which"):
        _taken_up(history, SETTINGS, Asked(Timeline(), {}, CLOCK, Past()), cut, lambda _: None)


@pytest.mark.parametrize(
    ("weights", "asked"), [("0.0, baseline_weight: 1.0", True), ("1.0, baseline_weight: 0.0", False)]
)
def test_the_gates_log_is_asked_for_the_place_of_a_kill_switch_too(
    weights: str, asked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no operation was ever given."""

    def noted(*_: object, placed: bool) -> None:
        raise InputError(f"asked: {placed}")

    (tmp_path / "m.yml").write_text(f"flags: {{s: {{kind: kill_switch, traffic: {{canary_weight: {weights}}}}}}}")
    monkeypatch.setattr(replay, "History", lambda _: nullcontext(Telemetry(0)))
    monkeypatch.setattr(past, "read_past", noted)
    done = tidegate("replay", "--broker", "x:1", "--manifest", tmp_path / "m.yml", "--out", tmp_path / "out")
    assert done.line == f"tidegate: asked: {asked}"
