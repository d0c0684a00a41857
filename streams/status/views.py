"""Answers of the status page, as JSON: documented in docs/status.md."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from tidegate.schemas.decision import ArmSummary, Decision
from tidegate.streams.report.board import ATTENTION, GONE, GOOD, STOPPED, WAITING, minutes_left
from tidegate.streams.report.explanation import explanation
from tidegate.streams.report.rollout import ramp, sign_of
from tidegate.streams.report.terminal import gate_rows
from tidegate.streams.report.text import endings, plain, problem_words, sentence
from tidegate.streams.status.state import StatusState, UnitKey

LEVELS = {STOPPED: "stopped", ATTENTION: "attention", WAITING: "waiting", GOOD: "good", GONE: "gone"}
DECISIONS_SHOWN = 100


def unit_line(state: StatusState, unit: UnitKey, now: int) -> dict[str, Any]:
    """Say how a unit stands; ``now``: ms, as times of other days have their date."""
    last, stands = state.last(unit), state.standing(unit, now)
    assert last is not None  # noqa: S101 - units have a decision
    return {
        "flag": last.flag,
        "region": last.region,
        "kind": last.kind,
        "state": LEVELS[stands.level],
        "sign": stands.sign,
        "words": stands.words,
        "canary_weight": state.weight(unit),
        "stage": msgspec.to_builtins(last.stage),
        "verdict": last.verdict,
        "reasons": last.reasons,
        "decision_id": last.decision_id,
        "decided_at": last.decided_at,
        "written_at": state.written(unit),
        "minutes_left": minutes_left(last),
    }


def all_units(state: StatusState, now: int) -> dict[str, Any]:
    """Say how every unit stands, the worst first."""
    order = list(LEVELS.values())
    lines = [unit_line(state, unit, now) for unit in state.units]
    lines.sort(key=lambda line: (order.index(line["state"]), line["flag"], line["region"]))
    return {"units": lines, "not_shown": len(state.refused), "broker_away_since": state.away_since, "now": now}


def unit_view(state: StatusState, unit: UnitKey, now: int) -> dict[str, Any]:
    """Tell everything that is known of a unit.

    ``because``, ``gates`` and ``problems`` are of the decision that says how it stands: of a stopped unit, the one that
    stopped it.
    """
    last, history = state.last(unit), state.history(unit)
    assert last is not None  # noqa: S101 - units have a decision
    telling = state.standing(unit, now).decision
    return unit_line(state, unit, now) | {
        "because": decision_words(telling),
        "until": [sentence(one) for one in endings(last)],
        "because_id": telling.decision_id,
        "because_at": telling.decided_at,
        "gates": gates_view(telling),
        "problems": [
            {"problem": one.problem, "words": sentence(problem_words(one))} for one in telling.evidence_problems
        ],
        "manifest_hash": last.manifest_hash,
        "versions": last.versions,
        "ramp": [
            {
                "at": step.at,
                "canary_weight": step.weight,
                "decision_id": step.decision.decision_id if step.decision else None,
            }
            for step in ramp(history)
        ],
        "series": series(history.decisions),
        "decisions": [decision_line(one) for one in reversed(history.decisions[-DECISIONS_SHOWN:])],
    }


def gates_view(decision: Decision) -> list[dict[str, Any]]:
    """Give each gate as it is shown, and its numbers."""
    numbers = {plain(gate.gate): gate for gate in decision.gates}
    found = []
    for row in gate_rows(decision):
        gate = numbers.get(row.name)
        found.append(
            {
                "gate": row.name,
                "status": row.status.replace(" ", "_"),
                "observed": row.observed,
                "bound": row.bound,
                "limit": row.limit,
                "rule_out": row.rule_out,
                "along": row.along,
                "canary_rows": row.canary_rows,
                "baseline_rows": row.baseline_rows,
                "judged": row.judged,
                "value": gate.observed if gate else None,
                "threshold": gate.threshold if gate else None,
                "lower": gate.lower if gate else None,
                "upper": gate.upper if gate else None,
            }
        )
    return found


SERIES = ("delta_s_p50", "delta_s_p95", "latency_p50", "latency_p95", "requests")


def series(decisions: Sequence[Decision]) -> dict[str, Any]:
    """Give both arms' medians and 95th percentiles as each decision judged them; null where they are not known."""
    judged = [one for one in decisions if one.arms]

    def column(arm: str, of: Callable[[ArmSummary], float | None]) -> list[float | None]:
        return [of(one.arms[arm]) if arm in one.arms else None for one in judged]

    def reader(name: str) -> Callable[[ArmSummary], float | None]:
        return lambda arm: getattr(arm, name)

    return {
        "at": [one.decided_at for one in judged],
        **{arm: {name: column(arm, reader(name)) for name in SERIES} for arm in ("canary", "baseline")},
    }


def decision_line(decision: Decision) -> dict[str, Any]:
    """Give a decision in one line."""
    return {
        "decision_id": decision.decision_id,
        "decided_at": decision.decided_at,
        "window": msgspec.to_builtins(decision.window),
        "stage": msgspec.to_builtins(decision.stage),
        "verdict": decision.verdict,
        "sign": sign_of(decision.verdict),
        "reasons": decision.reasons,
    }


def decision_words(decision: Decision) -> dict[str, Any]:
    """Give a decision in words."""
    words = explanation(decision)
    return {
        "headline": words.headline,
        "window": words.window,
        "sections": [
            {"title": title, "remarks": [{"text": one.text, "details": list(one.details)} for one in remarks]}
            for title, remarks in words.sections.items()
        ],
    }


def decision_view(state: StatusState, decision: Decision) -> dict[str, Any]:
    """Tell everything of a decision: its record as it was written, its words, its gates, its command."""
    command = state.command_of(decision)
    return {
        "decision": msgspec.to_builtins(decision),
        "words": decision_words(decision),
        "gates": gates_view(decision),
        "command": None if command is None else msgspec.to_builtins(command),
    }
