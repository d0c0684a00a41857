"""What closed panes tell of the telemetry: each event in one count, whoever sends a pane again."""

import pytest

from tests.streams.events import NOON, PANE, fresh, record, tick
from tidegate.schemas.decision import OperationBy
from tidegate.streams.engine.event_classes import LeftOut
from tidegate.streams.engine.gate_log import Order, Partial, order_codec, order_key, partial_codec, pieces, split
from tidegate.streams.engine.runs import Run
from tidegate.streams.kafka.recent import Recent

GATES = 3
LOG = [
    record(event_id="1"),
    record(event_id="2", region="eu"),
    record(event_id="2", region="eu"),
    record(event_id="3", flag="mistyped"),
    record(event_id="4", source="warmup"),
    record(event_id="5", flag="narrow", tenant="nobody"),
    b"garbage",
    tick(NOON + 3 * PANE),
    record(event_id="6"),
    tick(NOON + 9 * PANE),
]


def panes() -> list[tuple[int, bytes, bytes]]:
    """Gate, key and value of what a worker sends for the log."""
    return [
        (gate, b"%d|%d" % (partial.partition, partial.pane), piece)
        for partial in fresh(0).step(Run(0, LOG)).partials
        for gate, part in enumerate(split(partial, GATES))
        for piece in pieces(part)
    ]


def counted(entries: list[tuple[int, bytes, bytes]]) -> Recent:
    seen = Recent(PANE)
    for entry in entries:
        seen.take(*entry)
    return seen


def test_each_event_is_in_one_count_whatever_the_number_of_gates() -> None:
    seen = counted(panes())
    tally = seen.tally
    assert (tally.step.accepted, tally.step.duplicates, tally.late, tally.refused) == (2, 1, 1, 1)
    everything = "region, tenant, endpoint, cohort, surface"
    assert tally.step.left == LeftOut(warmup=1, unknown={"mistyped": 1}, outside={everything: 1})
    assert seen.told().startswith("telemetry: 2 events counted; left out: 1 out of scope by ")
    assert '1 of a flag that the manifest does not name ("mistyped"), 1 warm-up, 1 late, 1 repeated' in seen.told()
    assert tally.reasons == {f"by {everything}", "of mistyped", "warm-up", "late", "repeated", "refused"}


def test_a_unit_is_counted_in_every_pane_one_after_the_other() -> None:
    log = [record(event_id=str(n), ts=NOON + n * PANE // 4) for n in range(40)]
    entries = [
        (gate, b"0|%d" % partial.pane, piece)
        for partial in fresh(0).step(Run(0, [*log, tick(NOON + 30 * PANE)])).partials
        for gate, part in enumerate(split(partial, GATES))
        for piece in pieces(part)
    ]
    assert counted(entries).tally.step.accepted == 40
    again = [sent for at in range(len(entries)) for sent in entries[max(at - 7, 0) : at + 1]]
    assert counted(again).tally.step.accepted == 40


@pytest.mark.parametrize("back", [1, 2, 5, 100])
def test_what_is_sent_again_after_a_crash_is_counted_once(back: int) -> None:
    entries = panes()
    again = [sent for at in range(len(entries)) for sent in entries[max(at - back, 0) : at + 1]]
    assert counted(again).told() == counted(entries).told()


def test_pieces_of_one_pane_are_counted_once_each() -> None:
    (whole,) = [p for p in fresh(0).step(Run(0, LOG)).partials if p.pane == NOON // PANE]
    units = list(whole.units.items())
    first = Partial(whole.partition, whole.pane, whole.previous, 0, dict(units[:1]), more=True)
    rest = Partial(whole.partition, whole.pane, whole.previous, whole.dead_letters, dict(units[1:]), left=whole.left)
    one, other = (partial_codec.dump(part) for part in (first, rest))
    sent = [(0, b"0|0", value) for value in (one, one, other, one, other)]
    assert counted(sent).told() == counted([(0, b"0|0", partial_codec.dump(whole))]).told()


def test_an_order_between_the_panes_is_passed_over() -> None:
    order = Order("f", OperationBy(kind="kill", ts=NOON, actor="ada", reason="why not"), 3)
    seen = counted([(0, order_key(order), order_codec.dump(order))])
    assert seen.told() == "telemetry: none in a pane that was closed in the last 5 minutes"


def test_what_another_version_wrote_is_said_to_be_that() -> None:
    seen = Recent(PANE)
    seen.take(0, b"0|1", b"\xc1")
    assert "not known here: the workers are of another version" in seen.told()
