"""The log between the two agents: partials and orders."""

from collections.abc import Generator, Iterator
from typing import Any
from zlib import crc32

import msgspec

from tidegate.gates.codec import StateCodec, in_parts
from tidegate.gates.window import LostRange, PaneUnit
from tidegate.schemas.decision import OperationBy
from tidegate.schemas.errors import StateError
from tidegate.streams.engine.event_classes import LeftOut
from tidegate.streams.engine.runs import NEVER
from tidegate.streams.engine.slices import Slices, whole
from tidegate.streams.engine.stamped import StampedCodec


class Loss(msgspec.Struct, array_like=True, frozen=True):
    """Records that a topic deleted before they were read, and the panes of a source partition that they may be of.

    ``first``: of the panes, ``end``: the one after the last; ``UNTOLD`` until a record behind the loss tells.
    """

    lost: LostRange
    first: int
    end: int


UNTOLD = NEVER
"""The end of a loss that no record has told yet."""


class Partial(msgspec.Struct, array_like=True):
    """The events of one partition in one pane, added up and sent on when the pane closes.

    ``previous``: panes below it were closed by the partial before, so a gap shows. Panes between ``previous`` and
    ``pane`` are empty. ``dead_letters``: those that name no flag and region, ``records``: events accepted while
    the pane was the newest. ``more``: another piece of the same pane follows, with more units; the last one closes it.
    ``left``: events that came while the pane was the newest and count for no unit; told to people, in the first gate's
    partial alone.
    ``losses``: what the topic deleted unread since the partial before.
    """

    partition: int
    pane: int
    previous: int
    dead_letters: int
    units: dict[str, PaneUnit]
    more: bool = False
    records: int = 0
    left: LeftOut | None = None
    losses: list[Loss] = []


partial_codec = StampedCodec(Partial)
unit_codec = StateCodec(PaneUnit)

PIECE_BYTES = 1 << 20
"""A partial that takes more is sent in pieces."""


def gate_of(flag: str, gates: int) -> int:
    """Return the gate partition that decides for a flag: all regions of a flag meet in one."""
    return crc32(flag.encode()) % gates


def split(partial: Partial, gates: int) -> list[Partial]:
    """Return one partial for each gate partition; each carries the time, and the units that are decided there.

    What counts for no unit is told once, in the first.
    """
    parts = [msgspec.structs.replace(partial, units={}, left=None) for _ in range(gates)]
    parts[0].left = partial.left
    for unit, seen in partial.units.items():
        parts[gate_of(unit.split("|", 1)[0], gates)].units[unit] = seen
    return parts


def pieces(partial: Partial) -> Iterator[bytes]:
    """Yield a partial in records that are not too large, if no unit is; all but the last say that more follow."""
    return whole(piece_slices(partial))


def piece_slices(partial: Partial) -> Slices[bytes]:
    """Yield ``pieces`` in slices; a slice is a unit."""
    place = partial.partition, partial.pane, partial.previous
    units: dict[str, Any] = {}
    size = 0
    for name, seen in partial.units.items():
        value = unit_codec.dump(seen)
        taken = len(name.encode()) + len(value)
        if units and size + taken > PIECE_BYTES:
            yield partial_codec.dump(Partial(*place, 0, units, more=True))
            units, size = {}, 0
        units[name] = msgspec.Raw(value)
        size += taken
        yield None
    yield partial_codec.dump(msgspec.structs.replace(partial, units=units))


class Order(msgspec.Struct, array_like=True, frozen=True):
    """An entry of a gate's log that is no partial: an operation on a flag.

    ``offset``: the operation's, in the operations topic; -1 for what ``revision`` of the manifest, with
    ``manifest_hash``, asks for: a kill switch that it turns off or on, a flag that a file does not name any more.
    """

    flag: str
    operation: OperationBy
    offset: int = -1
    revision: int = -1
    manifest_hash: str = ""


_waiting = in_parts(Partial, units=dict[str, msgspec.Raw])
_partial_codec_of_parts = StampedCodec(_waiting, Partial)
order_codec = StampedCodec(Order)


def _with_units(partial: Partial) -> Generator[None, None, Partial]:
    """Yield a partial whose units are bytes so far."""
    units: dict[str, Any] = partial.units
    seen = yield from unit_codec.load_parts(units)
    return Partial(**msgspec.structs.asdict(partial) | {"units": seen})


def partial_slices(value: bytes) -> Slices[Partial]:
    """Yield the partial of an entry's bytes; a slice is a unit. Raises StateError if they are none."""
    try:
        yield (yield from _with_units(_partial_codec_of_parts.load(value)))
    except (msgspec.MsgspecError, ValueError, TypeError) as error:
        raise StateError(f"a unit of a partial cannot be read: {error}") from None


def order_key(order: Order) -> bytes:
    """Return the key that tells an order from a partial in a gate's log."""
    if order.revision >= 0:
        return b"switch|%d|%s" % (order.revision, order.flag.encode())
    return b"operation|%d" % order.offset


def is_order(key: bytes | None) -> bool:
    """Tell whether an entry of a gate's log is an order."""
    return key is not None and key.startswith((b"switch|", b"operation|"))
