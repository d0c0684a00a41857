"""Where ``tidegate replay --from`` begins, and what it says where it cannot."""

import re
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.commands.invoke import tidegate
from tests.streams.kafka.test_retained import KEPT, SETTINGS, Topics, gate, marks, window
from tidegate.schemas.clockwork import Clockwork
from tidegate.schemas.errors import InputError, TopicError
from tidegate.schemas.operation import Operation
from tidegate.schemas.timeline import Timeline
from tidegate.streams.audit import conductor
from tidegate.streams.audit import recorded as past
from tidegate.streams.audit.conductor import kept_for, resume_point, resumed
from tidegate.streams.audit.recorded import Recorded
from tidegate.streams.audit.topic_replay import ReplayRequest
from tidegate.streams.engine.event_classes import EventClasses
from tidegate.streams.engine.gate_partition import GatePartition
from tidegate.streams.engine.runs import Position
from tidegate.streams.engine.source_partition import SourcePartition
from tidegate.streams.kafka import retained
from tidegate.streams.kafka.history import Extent
from tidegate.streams.kafka.retained import ResumePoint, Retained, RetainedEntry, Shape

CLOCK = Clockwork(10_000, 10_000, "t")
KILL = Operation(actor="Ada", flag="f", kind="kill", reason="bad", ts=95_000)


def telemetry(*firsts: int) -> Extent:
    bounds = {partition: (first, 999) for partition, first in enumerate(firsts)}
    return Extent("t", bounds, bounds)


@pytest.mark.parametrize("killed", [False, True])
def test_the_first_time_that_is_named_is_one_that_is_taken(killed: bool) -> None:
    """Also where the gates are not equally far, and where one has carried out an order that is later than its panes."""
    operations_next = 5 if killed else 0
    gates = [
        [gate(one.mark.next, *one.mark.closed, operations_next=operations_next) for one in each] for each in KEPT.gates
    ]
    kept, asked = Retained(gates, KEPT.windows, [1, 0]), ReplayRequest(Timeline(), {KILL: 4}, CLOCK, Recorded(), 0)
    with pytest.raises(InputError) as refused:
        resume_point(kept, telemetry(1, 0), asked, 1_000, print)
    named = re.search(r"the first is --from (\S+)$", str(refused.value))
    assert named is not None
    start = int(datetime.fromisoformat(named[1]).timestamp() * 1000)
    cut = resume_point(kept, telemetry(1, 0), asked, start, print)
    assert marks(cut) == (([20, 21], [200, 60]) if killed else ([10, 11], [100, 50]))
    with pytest.raises(InputError):
        resume_point(kept, telemetry(1, 0), asked, start - 1, print)


def test_a_replay_of_everything_reads_no_checkpoint() -> None:
    """So nothing that stands there can keep it from being made."""
    history: Any = Topics()
    history.retain(RetainedEntry("gate", 0, Shape("foreign", 9, 9, 1, 1), Position(0, (1,))), b"state")
    assert kept_for(history, SETTINGS, None, print).nothing == ResumePoint([None], [None])
    with pytest.raises(TopicError, match="foreign"):
        kept_for(history, SETTINGS, 1_000, print)
    history.first = 5
    with pytest.raises(TopicError, match="foreign"):
        kept_for(history, SETTINGS, None, print)


def test_states_are_taken_up() -> None:
    history: Any = Topics(first=5)
    shape = 0, 1, 1, CLOCK, Timeline()
    table = EventClasses(Timeline())
    history.retain(gate(0, 1), GatePartition.fresh(*shape).dump())
    history.retain(window(7, 1), SourcePartition.fresh(0, CLOCK, table, 7).dump())
    cut = kept_for(history, SETTINGS, 1_000, print).earliest()
    assert cut is not None
    asked = ReplayRequest(Timeline(), {}, CLOCK, Recorded(), 0)
    assert resumed(history, SETTINGS, asked, cut, lambda _: None).positions == {0: 7}


def test_a_state_of_another_version_is_named_with_the_way_out() -> None:
    history: Any = Topics(first=5)
    history.retain(gate(0, 1), b"of old")
    history.retain(window(7, 1), b"of old")
    cut = kept_for(history, SETTINGS, 1_000, print).earliest()
    assert cut is not None
    with pytest.raises(InputError, match=r"gate 0 cannot be read.*--from after which"):
        resumed(history, SETTINGS, ReplayRequest(Timeline(), {}, CLOCK, Recorded(), 0), cut, lambda _: None)


@pytest.mark.parametrize(
    ("weights", "asked"), [("0.0, baseline_weight: 1.0", True), ("1.0, baseline_weight: 0.0", False)]
)
def test_the_gates_log_is_asked_for_the_place_of_a_kill_switch_too(
    weights: str, asked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no operation was ever given."""

    def noted(asked: bool) -> None:
        raise InputError(f"asked: {asked}")

    (tmp_path / "m.yml").write_text(f"flags: {{s: {{kind: kill_switch, traffic: {{canary_weight: {weights}}}}}}}")
    monkeypatch.setattr(conductor, "History", lambda _: nullcontext(Topics()))
    monkeypatch.setattr(past, "place_orders", lambda *_: noted(True))
    monkeypatch.setattr(retained, "load", lambda *_: noted(False))
    done = tidegate("replay", "--broker", "x:1", "--manifest", tmp_path / "m.yml", "--out", tmp_path / "out")
    assert done.line == f"tidegate: asked: {asked}"
