"""Operators' hands: pauses hold promotes alone and end by a resume; a promote by hand is one stage, told as theirs."""

import pytest

from tests.streams.events import NOON, PANE, RAMP, healthy_pane, written
from tests.streams.kafka.test_operations import SETTLED, SWITCH, Gate, by, kill, rearm, timeline
from tidegate.schemas.decision import Decision
from tidegate.schemas.load import load_manifest
from tidegate.streams.audit.verify import Audit
from tidegate.streams.engine.gate_log import Order

STAGED = RAMP.replace("    policy: {evidence: point}\n", "").replace("length: 20s", "length: 40s")
CHANGED = RAMP.replace("min_requests: 6", "min_requests: 5")
REGIONS = RAMP + "    scope: {regions: [all]}\n"


def order(kind: str, pane: float = 0, offset: int = 0) -> Order:
    return Order("f", by(kind, NOON + int(pane * PANE)), offset)


def told(decisions: list[Decision]) -> list[tuple[str, list[str], int]]:
    """Verdict, reasons and stage."""
    return [(one.verdict, one.reasons, one.stage.index) for one in decisions]


def check(gate: Gate) -> None:
    """The chain and its commands hold, as an auditor sees them."""
    audit = Audit()
    for number, decision in enumerate(gate.decisions):
        audit.decision(f"d{number}", decision.to_bytes())
    for number, command in enumerate(gate.commands):
        audit.command(f"c{number}", command.to_bytes())
    assert audit.report().findings == []


def test_a_pause_holds_promotes_until_a_resume() -> None:
    """Windows go on to be judged, and what they show is kept: the next green one promotes. Weights do not change."""
    gate = Gate(timeline(RAMP))
    gate.until(1)
    assert told(gate.order(order("pause", 1))) == [("pause", ["pause"], 0)]
    assert told(gate.until(6, first=1)) == [("hold", ["paused"], 0)] * 3
    assert told(gate.order(order("resume", 6, 1))) == [("resume", ["resume"], 0)]
    assert told(gate.until(8, first=6))[0] == ("promote", ["all_gates_pass"], 0)
    pause, resume = gate.commands[:2]
    assert [command.action for command in gate.commands[:2]] == ["pause", "resume"]
    assert pause.weights == pause.previous_weights == resume.weights
    assert gate.decisions[0].operation == by("pause", NOON + PANE)
    check(gate)


def test_a_pause_aborts_as_ever() -> None:
    gate = Gate(timeline(RAMP))
    gate.order(order("pause"))
    gate.until(1)
    gate.order(order("pause", 1, 1))
    failing = [event for pane in range(1, 5) for event in healthy_pane(NOON + pane * PANE, error=True)]
    gate.telemetry(written(failing))
    assert "abort" in [decision.verdict for decision in gate.decisions]
    assert gate.commands[-1].weights.canary == 0
    check(gate)


@pytest.mark.parametrize("between", ["kill", "rearm", "revision"])
def test_a_pause_outlives_a_kill_a_rearm_and_a_revision(between: str) -> None:
    """It ends by a resume alone."""
    gate = Gate(timeline(RAMP, (NOON + 4 * PANE, CHANGED)) if between == "revision" else timeline(RAMP))
    gate.until(1)
    gate.order(order("pause", 1))
    if between == "kill":
        gate.order(kill(ts=NOON + PANE, offset=1))
    if between != "revision":
        gate.order(rearm(ts=NOON + PANE + 1, offset=2))
    gate.restart()
    gate.until(14, first=1)
    assert ["paused"] in [decision.reasons for decision in gate.decisions]
    assert "promote" not in [decision.verdict for decision in gate.decisions]
    gate.order(order("resume", 14, 3))
    gate.until(18, first=14)
    assert "promote" in [decision.verdict for decision in gate.decisions]
    check(gate)


def test_a_region_that_comes_later_begins_paused_and_says_so() -> None:
    gate = Gate(timeline(REGIONS))
    gate.until(1, "eu")
    gate.order(order("pause", 1))
    gate.restart()
    later = [one for one in gate.until(7, "us", first=1) if one.region == "us"]
    assert told(later)[0] == ("pause", ["pause"], 0)
    assert later[0].operation == by("pause", NOON + PANE)
    assert ("hold", ["paused"], 0) in told(later)
    gate.order(order("resume", 7, 1))
    gate.until(11, "us", first=7)
    assert ("us", "promote") in [(one.region, one.verdict) for one in gate.decisions]
    check(gate)


def test_a_flag_that_leaves_the_manifest_takes_its_pause_with_it() -> None:
    other = RAMP.replace("  f:", "  g:")
    gate = Gate(timeline(RAMP, (NOON + 3 * PANE, other), (NOON + 6 * PANE, RAMP)))
    gate.until(1)
    gate.order(order("pause", 1))
    gate.until(14, first=1)
    assert "promote" in [decision.verdict for decision in gate.decisions]


@pytest.mark.parametrize("manifest", [RAMP, STAGED], ids=["point", "sequential"])
def test_a_promote_by_hand_is_to_the_next_stage_and_shown_as_the_operators(manifest: str) -> None:
    """It ends the window; the next stage's first one begins after lateness and settling, on evidence of its own."""
    gate = Gate(timeline(manifest))
    gate.until(1)
    cut, promote = gate.order(order("promote", 1))
    assert told([cut, promote]) == [("hold", ["promote"], 0), ("promote", ["promote"], 0)]
    assert promote.operation == by("promote", NOON + PANE)
    assert (promote.stage.canary_weight, promote.stage.next_canary_weight) == (0.25, 1.0)
    (command,) = gate.commands
    assert (command.action, command.weights.canary, command.effective_from) == ("promote", 1.0, NOON + PANE)
    first = gate.until(9, first=1)[0]
    assert (first.stage.index, first.stage.canary_weight) == (1, 1.0)
    assert first.window.start == NOON + PANE + SETTLED
    assert "sticky_violation" not in first.reasons
    if first.evidence is not None:
        assert (first.evidence.windows, first.evidence.since) == (1, first.window.start)
    check(gate)


def test_a_promote_by_hand_passes_over_a_pause_which_stays() -> None:
    three = RAMP.replace("[0.25, 1.0]", "[0.25, 0.5, 1.0]")
    gate = Gate(timeline(three))
    gate.until(1)
    gate.order(order("pause", 1))
    assert "promote" in [decision.verdict for decision in gate.order(order("promote", 1.1, 1))]
    assert ("hold", ["paused"], 1) in told(gate.until(9, first=1))
    check(gate)


def test_a_stage_that_aborts_after_a_promote_by_hand_does_so_while_it_settles() -> None:
    gate = Gate(timeline(RAMP))
    gate.until(1)
    gate.order(order("promote", 1))
    failing = [event for pane in range(1, 5) for event in healthy_pane(NOON + pane * PANE, error=True)]
    gate.telemetry(written(failing))
    assert gate.commands[-1].action == "abort"
    check(gate)


def test_what_cannot_be_promoted_is_not_and_nothing_is_written() -> None:
    """A unit that settles, that was stopped, that is at its last stage, or that no event has reached."""
    gate = Gate(timeline(RAMP))
    assert gate.order(order("promote")) == []
    gate.until(1)
    gate.order(order("promote", 1, 1))
    assert gate.order(order("promote", 1.1, 2)) == []
    gate.until(5, first=1)
    assert gate.order(order("promote", 5, 3)) == []
    gate.order(kill(ts=NOON + 5 * PANE, offset=4))
    assert gate.order(order("promote", 5.2, 5)) == []
    assert [command.action for command in gate.commands] == ["promote", "kill"]


def test_flags_without_stages_are_neither_paused_nor_promoted() -> None:
    gate = Gate(timeline(SWITCH % 1.0))
    assert gate.order(*(Order("s", by(kind), n) for n, kind in enumerate(("pause", "promote", "resume")))) == []
    assert load_manifest(SWITCH % 1.0).flags["s"].kind == "kill_switch"
