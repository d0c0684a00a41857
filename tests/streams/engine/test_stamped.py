"""No version misreads what another wrote: states, closed panes and orders say which layout they have."""

import enum
import re
from typing import Any

import msgspec
import pytest

from tidegate.gates.codec import StateCodec
from tidegate.schemas.errors import StateError
from tidegate.streams.engine import stamped
from tidegate.streams.engine.gate_log import Order, Partial, order_codec, partial_codec
from tidegate.streams.engine.gate_partition import GateSnapshot, gate_codec
from tidegate.streams.engine.source_partition import Snapshot, state_codec
from tidegate.streams.engine.stamped import StampedCodec, layout_of


class Inner(msgspec.Struct, array_like=True):
    """A part."""

    count: int


class State(msgspec.Struct, array_like=True):
    """What a version keeps."""

    inner: Inner
    next: int = 0


def later(name: str, *fields: Any) -> Any:
    """The same struct, as a later version has it."""
    return msgspec.defstruct(name, fields, array_like=True)


LATER = {
    "a field more": later("State", ("inner", Inner), ("next", int, 0), ("more", int, 0)),
    "a field less": later("State", ("inner", Inner)),
    "a field of another type": later("State", ("inner", Inner), ("next", float, 0)),
    "fields in another order": later("State", ("next", int), ("inner", Inner)),
    "a field with another name": later("State", ("inner", Inner), ("after", int, 0)),
    "a part with a field more": later(
        "State", ("inner", later("Inner", ("count", int), ("sum", int, 0))), ("next", int, 0)
    ),
}


EXTRA: dict[str, dict[str, int]] = {"next": {"next": 2}}


@pytest.mark.parametrize("kind", LATER.values(), ids=LATER)
def test_neither_of_two_layouts_reads_the_other_and_both_say_what_to_do(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = StampedCodec(State)
    with monkeypatch.context() as there:
        there.setattr(stamped, "VERSION", "9.1")
        theirs = StampedCodec(kind)
        blob = theirs.dump(kind(inner=Inner(1), **EXTRA.get(kind.__struct_fields__[0], {})))
    with pytest.raises(StateError, match=re.escape("written by version 9.1 of Tidegate")) as caught:
        ours.load(blob)
    assert "start workers of that one again, or start a new TIDEGATE_APPLICATION_ID" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(StateError, match="start workers of that one again"):
        theirs.load(ours.dump(State(Inner(1))))


def test_another_version_with_the_same_layout_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as there:
        there.setattr(stamped, "VERSION", "9.1")
        blob = StampedCodec(State).dump(State(Inner(3), 4))
    assert StampedCodec(State).load(blob) == State(Inner(3), 4)


def test_what_was_written_before_there_were_stamps_is_refused() -> None:
    with pytest.raises(StateError, match="written by an earlier version of Tidegate"):
        StampedCodec(State).load(StateCodec(State).dump(State(Inner(3))))


def test_two_builds_of_one_version_are_told_apart() -> None:
    with pytest.raises(StateError, match="written by another build of Tidegate"):
        StampedCodec(State).load(StampedCodec(LATER["a field more"]).dump(LATER["a field more"](Inner(1))))


def test_damaged_bytes_are_no_state() -> None:
    codec = StampedCodec(State)
    whole = codec.dump(State(Inner(1), 2))
    for end in range(len(whole)):
        with pytest.raises(StateError):
            codec.load(whole[:end])
    with pytest.raises(StateError, match="start a new TIDEGATE_APPLICATION_ID"):
        codec.load(whole[:-1])


def test_the_values_of_an_enum_and_a_struct_that_holds_itself_are_part_of_the_layout() -> None:
    one, other = enum.Enum("Kind", {"A": 1}), enum.Enum("Kind", {"A": 2})
    assert layout_of(one) != layout_of(other)
    assert layout_of(Order) == layout_of(Order)


def test_all_that_workers_read_back_is_stamped() -> None:
    kinds = {state_codec: Snapshot, partial_codec: Partial, gate_codec: GateSnapshot, order_codec: Order}
    layouts = {layout_of(kind) for kind in kinds.values()}
    assert len(layouts) == len(kinds)
    assert all(isinstance(codec, StampedCodec) for codec in kinds)
