"""Judge the last window again when late events come for it: a correction tells what it would have been."""

import msgspec

from tidegate.gates.recorder import engine, sources
from tidegate.gates.records import Judgement, summaries
from tidegate.gates.unit import Closed, Unit
from tidegate.gates.window import UnitWindow
from tidegate.schemas.clockwork import Clockwork
from tidegate.schemas.correction import Correction, Said, seal_correction
from tidegate.schemas.decision import Decision, Span
from tidegate.schemas.manifest import Flag


def remembered(before: Unit, decision: Decision) -> Closed:
    """Return what a decision rested on. ``before``: the unit as it was judged."""
    return Closed(
        window=before.window,
        decision_id=decision.decision_id,
        hash=decision.hash,
        verdict=decision.verdict,
        reasons=decision.reasons,
        problems=decision.evidence_problems,
        stage=before.stage,
        number=before.number,
        green=before.green,
        strike=before.strike,
        engaged=before.engaged,
        pinned=before.pinned,
        # A copy: pins that are seen later are locked in the unit's own.
        locked={arm: dict(pins) for arm, pins in before.locked.items()},
        graduated=before.graduated,
        evidence=before.evidence,
        told=decision.verdict,
    )


def as_it_was(unit: Unit, closed: Closed) -> Unit:
    """Return the unit as it was when it decided a window, with the window's late events in it."""
    return msgspec.structs.replace(
        unit,
        window=closed.window.made_whole(),
        stage=closed.stage,
        number=closed.number,
        green=closed.green,
        strike=closed.strike,
        engaged=closed.engaged,
        pinned=closed.pinned,
        locked=closed.locked,
        graduated=closed.graduated,
        evidence=closed.evidence,
        latched=False,
        cut=False,
        settling=False,
        closed=None,
    )


def correction(
    flag: Flag, unit: Unit, clockwork: Clockwork, judgement: Judgement, closed: Closed, at: int
) -> Correction:
    """Return the record of a judgement that late events changed. ``unit``: as it was, ``at``: when it is told, ms."""
    late = closed.window.behind or UnitWindow(0, 0)
    return seal_correction(
        Correction(
            flag=flag.name,
            region=unit.region,
            kind=flag.kind,
            decision_id=closed.decision_id,
            decision_hash=closed.hash,
            window=Span(start=closed.window.start, end=closed.window.end, closed=True),
            corrected_at=at,
            said=Said(verdict=closed.verdict, reasons=closed.reasons),
            corrected=Said(verdict=judgement.verdict, reasons=judgement.reasons),
            late={"baseline": late.baseline.accepted, "canary": late.canary.accepted},
            left_out=closed.window.left_out,
            gates=judgement.gates,
            abort_rules=judgement.rules,
            evidence_problems=judgement.problems,
            arms=summaries(judgement.reading),
            source=sources(unit, clockwork),
            manifest_hash=flag.manifest_hash,
            engine=engine(clockwork),
        )
    )
