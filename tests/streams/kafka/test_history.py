"""Records as lines of a dump, and where orders stood, without a broker."""

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.schemas.clockwork import Clockwork
from tidegate.schemas.decision import Decision, OperationBy
from tidegate.streams.audit.recorded import Recorded, _gate_log
from tidegate.streams.dumps.log import read_record
from tidegate.streams.dumps.records import dump_line
from tidegate.streams.engine.gate_log import Order, Partial, order_codec, partial_codec
from tidegate.streams.engine.runs import NEVER

CLOCK = Clockwork(10_000, 5_000, "t")
KILL = OperationBy(kind="kill", ts=95_000, actor="Ada", reason="bad")


def record(value: bytes | None, **more: Any) -> Any:
    given: dict[str, Any] = {"partition": 2, "offset": 7, "timestamp": 5, "key": b"k", "headers": (), "value": value}
    return SimpleNamespace(**given | more)


VALUES = [
    b'{"a":1}',
    b'{"a":1,"a":2}',
    b'{"partition":0,"value":{}}',
    b' {"a":1}',
    b'{"a":\n1}',
    b'{"a":1}\r',
    b"no event",
    b'"text"',
    b"",
    b"[1]",
    b'{"a":',
    b'{"a":' + b"[" * 100 + b"]" * 100 + b"}",
    "λ→".encode(),
]


class TestDump:
    @pytest.mark.parametrize("value", VALUES)
    def test_a_line_gives_the_record_back_to_replay(self, value: bytes) -> None:
        line = dump_line(record(value))
        assert b"\n" not in line
        (found,) = read_record(line, 1)
        assert (found.partition, found.offset, found.timestamp, found.value) == (2, 7, 5, value)

    @given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
    def test_no_byte_is_lost(self, value: bytes) -> None:
        """Also where a JSON string cannot hold it."""
        line = dump_line(record(value, headers=(("h", b"\xff"),)))
        json.loads(line)
        assert [found.value for found in read_record(line, 1)] == [value]

    def test_a_record_without_a_value_is_a_line(self) -> None:
        assert json.loads(dump_line(record(None, key=None))) == {
            "partition": 2,
            "offset": 7,
            "timestamp": 5,
            "value": None,
        }

    def test_a_line_of_no_dump_is_left_as_it_is(self) -> None:
        for line in (b'{"flag":"f","partition":3}', b"no json"):
            assert [record.value for record in read_record(line, 1)] == [line]


class TestPlace:
    def chain(self, *rows: tuple[int, OperationBy | None]) -> list[Decision]:
        return [cast(Decision, SimpleNamespace(flag="f", decided_at=at, operation=by)) for at, by in rows]

    def test_without_a_record_its_time_decides(self) -> None:
        """Panes that ended at least the lateness before it are closed."""
        assert Recorded().place(Order("f", KILL), CLOCK) == 9

    @pytest.mark.parametrize(
        ("before", "after", "place"), [(120_000, 180_000, 12), (30_000, 60_000, 5), (60_000, 120_000, 9)]
    )
    def test_the_decisions_around_its_record_bound_it(self, before: int, after: int, place: int) -> None:
        past = Recorded({"f|eu": self.chain((before, None), (95_000, KILL), (after, None))})
        assert past.place(Order("f", KILL), CLOCK) == place

    def test_the_record_of_a_region_that_began_later_does_not_move_it(self) -> None:
        chains = {
            "f|eu": self.chain((60_000, None), (95_000, KILL), (120_000, None)),
            "f|us": self.chain((600_000, None), (95_000, KILL)),
        }
        assert Recorded(chains).place(Order("f", KILL), CLOCK) == 9

    def test_another_flags_record_does_not_count(self) -> None:
        past = Recorded({"f|eu": self.chain((300_000, None), (95_000, KILL))})
        assert past.place(Order("g", KILL), CLOCK) == 9

    def test_the_log_of_the_gates_comes_first(self) -> None:
        past = Recorded({"f|eu": self.chain((120_000, None), (95_000, KILL))}, exact={("f", KILL): (NEVER, 3)})
        assert past.place(Order("f", KILL), CLOCK) == NEVER

    def test_what_its_log_has_no_more_stood_before_what_it_has(self) -> None:
        """Of orders in the same pane: one that was carried out, those in the log, one that no gate has had yet."""
        later = OperationBy(kind="rearm", ts=94_000, actor="Ada", reason="good")
        past = Recorded({"f|eu": self.chain((95_000, KILL))}, exact={("f", later): (9, 3)})
        new = OperationBy(kind="kill", ts=90_000, actor="Ada", reason="new")
        assert past.among(Order("f", KILL)) < past.among(Order("f", later)) < past.among(Order("f", new))


class TestGateLog:
    SWITCH = Order("s", OperationBy(kind="kill", ts=95_000, actor="Ada", reason="off"), -1, 2, "h")
    OPERATION = Order("f", KILL, 0)

    def log(self, first: int, timestamp: int) -> Any:
        """Of one gate and two partitions: its records from ``first`` on, the first written at ``timestamp``."""
        partials = [Partial(0, 6, NEVER, 0, {}), Partial(1, 7, NEVER, 0, {}), Partial(0, 20, 7, 0, {})]
        entries = [(b"%d|%d" % (p.partition, p.pane), partial_codec.dump(p)) for p in partials]
        orders = [(b"switch|2|s", order_codec.dump(self.SWITCH)), (b"operation|0", order_codec.dump(self.OPERATION))]
        # A worker that begins puts the kill switch there again.
        written = [*entries[:2], *orders, entries[2], orders[0]]
        run = [
            SimpleNamespace(partition=0, offset=offset, timestamp=timestamp, key=key, value=value)
            for offset, (key, value) in enumerate(written)
        ]
        return SimpleNamespace(read=lambda _: [run[first:]])

    def places(self, first: int, timestamp: int) -> dict[str, tuple[int, int]]:
        log = self.log(first, timestamp)
        return {flag: place for (flag, _), place in _gate_log(log, log, {}).items()}

    def test_an_order_stands_where_the_log_has_it_first(self) -> None:
        assert self.places(0, 96_000) == {"s": (7, 2), "f": (7, 3)}

    def test_a_kill_switch_in_what_is_left_of_a_log_is_put_there_again(self) -> None:
        """Unless all that is left was written before its revision: then it is the first one."""
        assert self.places(3, 96_000) == {"f": (7, 3)}
        assert self.places(1, 94_000) == {"s": (7, 2), "f": (7, 3)}
