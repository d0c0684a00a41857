"""Whoever follows a unit's records knows where it stands: open or closed, stepped in or not."""

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.streams.events import NOON, PANE, healthy_pane, written
from tests.streams.kafka.test_operations import Gate, by
from tidegate.schemas.load import load_manifest
from tidegate.schemas.timeline import Revision, Timeline
from tidegate.streams.audit.chain import read_link
from tidegate.streams.audit.ledger import acting
from tidegate.streams.engine.gate_log import Order
from tidegate.streams.report.board import Board

FLAG = """
flags:
  f:
    kind: %s
    traffic: {canary_weight: %s}
    window: {length: 20s, settle: 0s, min_requests: 6}
    gates: {lambda_convergent: false}
"""
GONE = "flags:\n  g: {}\n"
KINDS = ("progressive_rollout", "quality_gated", "cost_guard", "cost_guard", "safety_guard", "kill_switch")
PANES = 24
OPENED_THEN_COST_GUARD = (FLAG % ("quality_gated", 0.05), FLAG % ("cost_guard", 0.05))


def revisions(texts: list[str], every: int) -> Timeline:
    starts = [0, *(NOON + number * every * PANE for number in range(1, len(texts)))]
    return Timeline(
        [
            Revision(number, at, load_manifest(text).flags, "signer")
            for number, (at, text) in enumerate(zip(starts, texts, strict=True), 1)
        ]
    )


def lived(rng: random.Random, known: Timeline) -> tuple[Gate, Board]:
    """A unit's life: good and bad panes, operators' orders. What a watcher says is held against it throughout."""
    gate, board = Gate(known), Board()
    for pane in range(PANES):
        bad: dict[str, Any] = rng.choice([{}, {}, {"cost": 0.1}, {"coverage": 0.1}, {"reason_status": "failed"}])
        reasons: dict[str, Any] = {"reason_status": "ok", "output_mode": "full"} | bad
        decisions = gate.telemetry(written(healthy_pane(NOON + pane * PANE, **reasons)))
        if rng.random() < 0.1:
            decisions += gate.order(Order("f", by(rng.choice(["kill", "rearm"]), NOON + pane * PANE), pane))
        for decision in decisions:
            board.take(decision)
        running = gate.state.ramps.get("f|")
        if running is not None and "f|" in board.decisions:
            unit = running.unit
            expected = unit.latched if running.flag.kind == "kill_switch" else unit.engaged
            last = board.decisions["f|"]
            if last.manifest_hash == unit.manifest_hash:
                assert board.standings.engaged("f|") == expected, (
                    f"pane {pane}: {last.kind} {last.verdict} {last.reasons}"
                )
    return gate, board


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_watcher_and_an_auditor_know_what_a_unit_is_engaged_in(seed: int) -> None:
    """Whatever kinds a flag goes through; and the audit asks for just the commands that were given."""
    rng = random.Random(seed)
    texts = [
        GONE if rng.random() < 0.15 else FLAG % (rng.choice(KINDS), rng.choice([0.05, 0.25]))
        for _ in range(rng.randrange(1, 5))
    ]
    gate, _ = lived(rng, revisions(texts, rng.randrange(3, 7)))
    links = [read_link("here", n, decision.to_bytes()) for n, decision in enumerate(gate.decisions)]
    carried = {command.decision_id for command in gate.commands}
    for link, asks in zip(links, acting(links), strict=True):
        assert asks is None or asks == (link.id in carried), f"{link.said}"


def test_a_cost_guard_that_never_stepped_in_has_its_full_chain_after_a_revision() -> None:
    """The flag was a quality gate that was open; nobody was told that a guard had stepped in."""
    gate, board = Gate(revisions(list(OPENED_THEN_COST_GUARD), 5)), Board()
    for pane in range(14):
        gold = [event | {"source": "gold"} for event in healthy_pane(NOON + pane * PANE)]
        for decision in gate.telemetry(written(gold)):
            board.take(decision)
    assert "open" in [decision.verdict for decision in gate.decisions]
    assert board.decisions["f|"].kind == "cost_guard"
    assert "fallback" not in [decision.verdict for decision in gate.decisions]
    assert board.standings.engaged("f|") is False


@pytest.mark.parametrize("kind", ["safety_guard", "cost_guard"])
def test_a_guard_that_becomes_one_of_another_kind_steps_out(kind: str) -> None:
    """A light chain is no cite-only answer: the service is told that the old guard is out."""
    gate = Gate(
        revisions([FLAG % ("cost_guard", 0.25), FLAG.replace("min_requests: 6", "min_requests: 7") % (kind, 0.25)], 5)
    )
    for pane in range(10):
        gate.telemetry(written(healthy_pane(NOON + pane * PANE, cost=0.1, reason_status="ok", output_mode="full")))
    said = [(command.action, command.reasons) for command in gate.commands]
    assert said[0] == ("fallback", ["cost_uplift_max"])
    assert (("rearm", ["manifest_revision"]) in said) == (kind == "safety_guard")
