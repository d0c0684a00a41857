"""After an operation or a revision nothing that was served before it is evidence, whatever came before."""

import random

import pytest

from tests.gates.build import CLOCKWORK, PANE, Drive, Event, flag, healthy
from tidegate.schemas.decision import Decision

RUNS = 12
FATES: tuple[list[Event], ...] = (
    healthy(),
    healthy(),
    healthy(),
    healthy(error=True),
    healthy(coverage=0.65),
    healthy(latency=900.0),
    [],
)
KINDS = ("progressive_rollout", "quality_gated", "cost_guard", "safety_guard")


def scripted(seed: int, kind: str) -> tuple[list[Decision], list[tuple[int, int]]]:
    """Decisions of a unit under random traffic and orders; the orders as (decisions before, ts)."""
    rng = random.Random(seed)
    body = f"kind: {kind}\nwindow: {{length: {rng.choice(['20s', '1m'])}, settle: {rng.choice(['0s', '10s', '45s'])}}}"
    drive, orders = Drive(flag(body)), []
    for revision in range(2):
        for _ in range(60):
            events = rng.choice(FATES)
            drive.pane([Event(**{**vars(event), "reason": "ok", "mode": "full"}) for event in events])
            if rng.random() < 0.15:
                ts = drive.now + rng.choice([-25_000, 0, 1, 7_000, 90_000])
                drive.operate(rng.choice(["kill", "rearm", "rearm"]), ts)
                if drive.decisions[-1].verdict == "rearm":
                    orders.append((len(drive.decisions), ts))
        if not revision:
            list(drive.took(drive.ramp.cut(drive.now)))
            drive.unit.fresh_from = CLOCKWORK.stage_start(drive.now, drive.flag.window.settle_ms)
            later = Drive(flag(f"{body}\nscope: {{tenants: [a]}}"), drive.now, before=drive.unit)
            later.decisions, later.commands = drive.decisions, drive.commands
            orders.append((len(drive.decisions), drive.now))
            later.took(later.ramp.begun())
            drive = later
    return drive.decisions, orders


@pytest.mark.parametrize("kind", KINDS)
def test_no_window_that_began_before_an_order_is_judged_after_it(kind: str) -> None:
    """Windows that are judged lie wholly behind the last rearm or revision."""
    judged = 0
    for seed in range(RUNS):
        decisions, orders = scripted(seed, kind)
        for number, decision in enumerate(decisions):
            after = [ts for before, ts in orders if before <= number]
            if after and decision.operation is None and decision.window.closed and decision.gates:
                judged += 1
                assert decision.window.start >= max(after[-1], 0), f"seed {seed}, decision {number}"
                assert decision.window.start % PANE == 0
    assert judged > RUNS


@pytest.mark.parametrize("kind", KINDS)
def test_what_holds_after_an_order_ends(kind: str) -> None:
    """Healthy traffic from then on is judged again, and promotes, opens or passes."""
    for seed in range(RUNS):
        rng = random.Random(seed)
        drive = Drive(flag(f"kind: {kind}"))
        for _ in range(rng.randrange(12)):
            drive.pane(rng.choice(FATES))
        for _ in range(rng.randrange(1, 4)):
            drive.operate("rearm", drive.now + rng.choice([0, 7_000, 90_000]))
            drive.pane(healthy())
        steady = [Event(**{**vars(event), "reason": "ok", "mode": "full"}) for event in healthy()]
        made = [decision for _ in range(40) for decision in drive.pane(steady)]
        assert {"promote", "open", "pass"} & {decision.verdict for decision in made}, f"seed {seed}"
