"""A unit's moves are those of the table in ``gates/ramp.py``, whatever comes, and all of them."""

import re
from collections.abc import Sequence
from typing import Literal

from hypothesis import given
from hypothesis import strategies as st

from tests.gates.build import CLOCKWORK, PANE, Drive, Event, flag, healthy
from tidegate.gates import ramp
from tidegate.gates.unit import Unit
from tidegate.schemas.clockwork import Clockwork
from tidegate.schemas.decision import OperationBy

Move = tuple[str, str, str]
MOVES: frozenset[Move] = frozenset(
    (words[0], words[1], words[2])
    for words in (line.split() for line in (ramp.__doc__ or "").splitlines())
    if len(words) == 3 and not set("".join(words)) <= {"="} and words[0] != "from"
)
WINDOWS: dict[str, Sequence[Event]] = {
    "healthy": healthy(),
    "slow": healthy(latency=200.0),
    "thin": healthy(coverage=0.65),
    "broken": healthy(error=True),
    "few": healthy(2),
    "empty": (),
}
RULES = "traffic: {{stages: [0.5, 1.0]}}\npolicy: {{evidence: {}}}\nwindow: {{settle: {}}}"
AT_ONCE = Clockwork(pane_ms=PANE, lateness_ms=0, topic="t")
ORDERS: dict[str, Literal["kill", "rearm", "pause", "resume", "promote"]] = {
    "kill": "kill",
    "rearm": "rearm",
    "pause": "pause",
    "resume": "resume",
    "promote": "promote",
}
STEPS = [*WINDOWS, *ORDERS]


def state(unit: Unit) -> str:
    """The table's word for a unit's state."""
    if unit.latched:
        return "latched"
    return "settling" if unit.settling else "graduated" if unit.graduated else "running"


def moves(evidence: str, steps: Sequence[str], *, retire: bool = False, settles: bool = True) -> set[Move]:
    """The moves of a unit that meets these windows and orders; pane by pane, each decision a move."""
    rules = flag(RULES.format(evidence, "10s" if settles else "0s"))
    drive, made = Drive(rules, clockwork=CLOCKWORK if settles else AT_ONCE), set[Move]()

    def pane(events: Sequence[Event]) -> None:
        before = state(drive.unit)
        verdicts = [decision.verdict for decision in drive.pane(events)]
        after = state(drive.unit)
        # The span before a stage ends at once where no time is left to settle.
        made.update((before, verdict, after) for verdict in verdicts)
        if not verdicts and before != after:
            made.add((before, "—", after))

    for step in steps:
        if step in ORDERS:
            before = state(drive.unit)
            order = OperationBy(kind=ORDERS[step], ts=drive.now, actor="ada", reason="why not")
            if drive.took(drive.ramp.operate(order, drive.now)):
                made.add((before, step, state(drive.unit)))
            continue
        end = drive.unit.window.end
        while drive.now < end:
            pane(WINDOWS[step] if drive.now + drive.clockwork.pane_ms == end else ())
    if retire:
        before = state(drive.unit)
        drive.took(drive.ramp.retire(OperationBy(kind="retire", ts=drive.now, actor="a", reason="r"), drive.now))
        made.add((before, "retire", state(drive.unit)))
    return made


def test_the_table_is_read() -> None:
    states = {"settling", "running", "graduated", "latched"}
    assert {move[0] for move in MOVES} == {move[2] for move in MOVES} == states
    assert len(MOVES) == len(re.findall(r"(?m)^(?:settling|running|graduated|latched) {2,}\S", ramp.__doc__ or ""))


@given(
    evidence=st.sampled_from(["point", "sequential"]),
    steps=st.lists(st.sampled_from(STEPS), max_size=8),
    retire=st.booleans(),
    settles=st.booleans(),
)
def test_a_unit_makes_no_move_that_is_not_in_the_table(
    evidence: str, steps: list[str], retire: bool, settles: bool
) -> None:
    assert moves(evidence, steps, retire=retire, settles=settles) <= MOVES


def test_every_move_in_the_table_is_made() -> None:
    """A row that nothing can make would be no more than a wish."""
    made: set[Move] = set()
    for settles in (True, False):
        for before in ([], ["healthy"], ["healthy"] * 3, ["broken"]):
            for step in STEPS:
                made |= moves("point", [*before, step], settles=settles)
            made |= moves("point", before, retire=True, settles=settles)
        made |= moves("point", ["rearm", "kill", "rearm", "rearm", "pause", "resume"], settles=settles)
        made |= moves("point", ["rearm"], retire=True, settles=settles) | moves("point", ["rearm", "broken"])
    assert MOVES - made == set()
