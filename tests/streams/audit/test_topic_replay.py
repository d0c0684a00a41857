"""What a gate that is so far has had and decided, and what an auditor may therefore begin at."""

import pytest

from tidegate.schemas.clockwork import Clockwork
from tidegate.schemas.decision import OperationBy
from tidegate.schemas.operation import Operation
from tidegate.schemas.timeline import Timeline
from tidegate.streams.audit.recorded import Recorded
from tidegate.streams.audit.topic_replay import ReplayRequest
from tidegate.streams.engine.gate_log import Order
from tidegate.streams.engine.runs import Position

KILL = Operation(actor="Ada", flag="f", kind="kill", reason="bad", ts=95_000)
SWITCH = Order("f", OperationBy(kind="kill", ts=95_000, actor="manifest", reason="off"), revision=2)


def asked(**exact: int) -> ReplayRequest:
    """``kill``, ``switch``: where the gates' log has them, as far as it is kept."""
    by = {"kill": KILL.by, "switch": SWITCH.operation}
    past = Recorded(exact={("f", by[name]): (8, offset) for name, offset in exact.items()})
    return ReplayRequest(Timeline(), {KILL: 4}, Clockwork(10_000, 10_000, "t"), past, 0)


class TestHad:
    @pytest.mark.parametrize("exact", [{}, {"kill": 20}, {"kill": 90}])
    @pytest.mark.parametrize(("operations_next", "had"), [(4, False), (5, True)])
    def test_an_operation_by_what_the_gate_has_carried_out(
        self, operations_next: int, had: bool, exact: dict[str, int]
    ) -> None:
        """Wherever the log has it: of one that was put there twice the first record may be gone."""
        order = Order("f", KILL.by, 4)
        assert asked(**exact).had(order, Position(50, (8,), operations_next)) == had

    @pytest.mark.parametrize("exact", [{}, {"switch": 20}, {"switch": 90}])
    @pytest.mark.parametrize(("switched", "had"), [({}, False), ({"f": 1, "g": 2}, False), ({"f": 2}, True)])
    def test_a_kill_switch_by_what_the_gate_has_turned_off(
        self, switched: dict[str, int], had: bool, exact: dict[str, int]
    ) -> None:
        """Each worker that begins puts it there once more, so its first record may be gone as well."""
        assert asked(**exact).had(SWITCH, Position(50, (8,), 5, switched)) == had

    def test_a_kill_switch_that_a_later_one_has_overtaken(self) -> None:
        assert asked().had(SWITCH, Position(50, (8,), 5, {"f": 3}))


@pytest.mark.parametrize(("operations_next", "reached"), [(4, 80_000), (5, 95_000)])
def test_an_order_is_decided_at_its_own_time_which_telemetry_may_be_behind(operations_next: int, reached: int) -> None:
    mark = Position(50, (9, 8), operations_next)
    assert asked().reached(0, 1)(mark) == reached
    assert [asked().before(start, 0, 1)(mark) for start in (reached - 1, reached)] == [False, True]


def test_orders_of_other_gates_do_not_count() -> None:
    mark = Position(50, (8,), 5)
    assert sorted(asked().reached(gate, 2)(mark) for gate in range(2)) == [80_000, 95_000]
