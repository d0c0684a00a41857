"""``tidegate explain``: each verdict in words, whatever the record holds, and each mistake in one line."""

import asyncio
import gzip
import io
import json
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiokafka import AIOKafkaProducer

from tests.commands.invoke import tidegate
from tidegate.gates.evidence import DETECTORS
from tidegate.schemas.catalogue import CAUSES
from tidegate.schemas.decision import (
    ArmSummary,
    ChangeFreeze,
    Decision,
    Engine,
    EvidenceSpan,
    Exemplar,
    Forecast,
    GateResult,
    Need,
    OperationBy,
    PinnedFrom,
    Problem,
    RuleResult,
    Span,
    Stage,
    Warning,
    decision_from_bytes,
    seal_decision,
)
from tidegate.schemas.errors import EventError
from tidegate.streams.commands.explain import explain
from tidegate.streams.report.text import number, sentence
from tidegate.streams.settings import load_settings
from tidegate.streams.simulation.embedded_broker import embedded_broker

START, END = 1_756_635_300_000, 1_756_636_200_000
LIMITS: dict[str, float | bool] = {
    "delta_s.median_max": 0.03,
    "delta_s.p95_max": 0.1,
    "coverage_min": 0.7,
    "lambda_convergent": True,
    "latency_p95_uplift_max": 0.15,
    "error_rate_max": 0.005,
    "tool_success_min": 0.99,
    "cost_uplift_max": 0.1,
}
HEALTHY = {
    "delta_s.median_max": (0.012, 0.112, 0.1, 640, 11_980),
    "delta_s.p95_max": (-0.004, 0.176, 0.18, 640, 11_980),
    "coverage_min": (0.86, 0.86, 0.87, 640, 11_980),
    "lambda_convergent": (1.0, 1.0, 1.0, 4, 4),
    "latency_p95_uplift_max": (0.03, 350.2, 340.0, 640, 11_980),
    "error_rate_max": (0.003125, 0.003125, 0.002, 640, 11_980),
    "tool_success_min": (0.996, 0.996, 0.9971, 250, 4_800),
    "cost_uplift_max": (0.0512, 0.01051, 0.01, 600, 11_000),
}


def gate(name: str, status: str = "pass", seen: tuple[Any, ...] = ()) -> GateResult:
    """One gate: observed, canary, baseline and the rows of both; healthy unless given."""
    observed, canary, baseline, n_canary, n_baseline = seen or HEALTHY[name]
    return GateResult(
        gate=name,
        status=status,  # type: ignore[arg-type]
        observed=observed,
        threshold=None if status == "off" else LIMITS[name],
        canary=canary,
        baseline=baseline,
        n_canary=n_canary,
        n_baseline=n_baseline,
        lower=None,
        upper=None,
    )


def gates(**changed: tuple[Any, ...]) -> list[GateResult]:
    """All eight, healthy but for those given as (status, observed, canary, baseline, rows, rows)."""
    by_name = {name.replace(".", "_"): name for name in LIMITS}
    others = {by_name[name]: gate(by_name[name], seen[0], seen[1:]) for name, seen in changed.items()}
    return [others.get(name) or gate(name) for name in LIMITS]


def arm(**fields: Any) -> ArmSummary:
    """An arm's summary, zero but for what is given."""
    names = [field.name for field in msgspec.structs.fields(ArmSummary) if field.required]
    return ArmSummary(**(dict.fromkeys(names, 0) | {"quality_source": "traffic"} | fields))


def rule(kind: str, value: float | None, observed: float, n: int = 640, severity: Any = "hard") -> RuleResult:
    """A rule that fired."""
    return RuleResult(kind=kind, severity=severity, value=value, observed=observed, n=n, fired=True)


def decided(verdict: str, reasons: list[str], **fields: Any) -> Decision:
    """A sealed decision at 5 %, with 25 % to follow."""
    record = {
        "flag": "prompt_pack",
        "region": "us-east-1",
        "kind": "progressive_rollout",
        "window": Span(start=START, end=END, closed=True),
        "decided_at": END,
        "stage": Stage(index=0, canary_weight=0.05, next_canary_weight=0.25),
        "gates": gates(),
        "abort_rules": [],
        "evidence_problems": [],
        "arms": {"canary": arm(lambda_complete=4), "baseline": arm()},
        "late": 0,
        "duplicates": 0,
        "dead_letters": 0,
        "warnings": [],
        "relaxed": [],
        "source": [],
        "manifest_hash": "sha256:" + "0" * 64,
        "versions": {},
        "engine": Engine(pane_ms=10_000, lateness_ms=10_000, sketch="s/1"),
    }
    return seal_decision(Decision(verdict=verdict, reasons=reasons, **(record | fields)), None)  # type: ignore[arg-type]


def told(decision: Decision) -> str:
    """The explanation, its last line apart, which is the decision's id."""
    *lines, last = "\n".join(line.plain for line in explain(decision)).splitlines()
    assert last == f"decision {decision.decision_id}"
    return "\n".join(lines).strip() + "\n"


PROMOTE = decided("promote", ["all_gates_pass"])
INSUFFICIENT = decided(
    "hold",
    ["insufficient_data"],
    gates=[gate(name, "unknown", (None, None, None, 8, 312)) for name in LIMITS],
    evidence_problems=[Problem(problem="insufficient_data", detail={"canary": 8, "baseline": 312, "min_requests": 20})],
    forecast=Forecast(
        needs=[
            Need(reason="insufficient_data", arm="canary", what="requests", have=8, need=20),
            Need(reason="lambda_convergent", arm="canary", what="lambda groups", have=1, need=2),
        ],
        requests=480,
        minutes=22.5,
    ),
)
DRIFTED = decided(
    "hold",
    ["pins_drifted"],
    evidence_problems=[
        Problem(
            problem="pins_drifted",
            detail={
                "arm": "canary",
                "pin": "INDEX_HASH",
                "old": "b7f3...",
                "new": "5e1d...",
                "kind": "against_manifest",
                "requests": 1_535,
                "first": {"partition": 2, "offset": 4711},
            },
        )
    ],
    warnings=[Warning(code="unpinned", count=2)],
)
SLOW = gates(latency_p95_uplift_max=("fail", 0.2118, 412.0, 340.0, 640, 11_980))
SLOWEST = [Exemplar(event_id="e-17", value=2310.5, partition=2, offset=4711)]
FREEZE = decided(
    "freeze",
    ["latency_p95_uplift_max", "latency_p95_over_budget"],
    gates=SLOW,
    abort_rules=[rule("latency_p95_over_budget", 0.15, 0.2118, severity="soft")],
    exemplars={"latency_p95_uplift_max": SLOWEST, "latency_p95_over_budget": SLOWEST},
)
ROLLBACK = decided(
    "rollback",
    ["error_rate_max", "coverage_min"],
    gates=gates(
        error_rate_max=("fail", 0.0078125, 0.0078125, 0.002, 640, 11_980),
        coverage_min=("fail", 0.65, 0.65, 0.87, 640, 11_980),
    ),
    exemplars={
        "error_rate_max": [Exemplar(event_id="e-1", value=1.0, partition=0, offset=12)],
        "coverage_min": [Exemplar(event_id="e-2", value=0.0, partition=1, offset=3)],
    },
)
ABORT = decided(
    "abort",
    ["error_rate_over"],
    window=Span(start=START, end=END, closed=False),
    decided_at=START + 190_000,
    gates=gates(
        error_rate_max=("fail", 0.0442, 0.0442, 0.0, 294, 733),
        lambda_convergent=("unknown", None, None, None, 0, 4),
    ),
    abort_rules=[rule("error_rate_over", 0.01, 0.0442, 294)],
    exemplars={
        "error_rate_over": [Exemplar(event_id=f"e-{i}", value=1.0, partition=i, offset=10 * i) for i in (1, 2, 3)]
    },
)
KILL = decided(
    "kill",
    ["kill"],
    decided_at=END + 61_500,
    gates=[],
    arms={},
    operation=OperationBy(kind="kill", ts=END + 61_500, actor="alice", reason="answers in the wrong language"),
)
CLOSE = decided(
    "close",
    ["lambda_convergent"],
    kind="quality_gated",
    stage=Stage(index=0, canary_weight=0.05, next_canary_weight=None),
    gates=gates(lambda_convergent=("fail", 0.75, 0.75, 1.0, 4, 4), error_rate_max=("fail", 0.5, 0.5, 0.0, 640, 11_980)),
    exemplars={"lambda_convergent": [Exemplar(event_id="probe-3", value=1.0, partition=0, offset=7)]},
)
DEGRADE = decided(
    "degrade",
    ["reason_failed_served_in_full", "reason_failure_rate_over"],
    kind="safety_guard",
    stage=Stage(index=0, canary_weight=0.05, next_canary_weight=None),
    abort_rules=[
        rule("reason_failed_served_in_full", 0.0, 2.0, severity="soft"),
        rule("reason_failure_rate_over", 0.01, 0.0234, severity="soft"),
    ],
    exemplars={"reason_failed_served_in_full": [Exemplar(event_id="e-5", value=1.0, partition=0, offset=70)]},
)
FALLBACK = decided(
    "fallback",
    ["cost_uplift_max"],
    kind="cost_guard",
    stage=Stage(index=0, canary_weight=0.05, next_canary_weight=None),
    gates=gates(cost_uplift_max=("fail", 0.2512, 0.012512, 0.01, 600, 11_000)),
    exemplars={"cost_uplift_max": [Exemplar(event_id="e-9", value=0.92, partition=3, offset=1)]},
)


def test_a_promote_in_full() -> None:
    assert told(PROMOTE) == (
        """\
prompt_pack in us-east-1: promoted from 5 % to 25 %, at 2025-08-31T10:30:00Z
stage 0, canary 5 %, window 2025-08-31T10:15:00Z to 2025-08-31T10:30:00Z

Why
  - All gates pass.
  - ΔS median is 0.012 above the baseline (0.112 against 0.1, 640 and 11,980 values); the limit is 0.03.
  - ΔS p95 is 0.004 below the baseline (0.176 against 0.18, 640 and 11,980 values); the limit is 0.1.
  - Coverage is 0.86 (of 640 values, baseline 0.87 of 11,980); the limit is at least 0.7.
  - λ converges in 4 of 4 probe groups; it has to in all.
  - Latency p95 is 3 % above the baseline (350.2 ms against 340 ms, 640 and 11,980 requests); the limit is 15 %.
  - Error rate is 0.3125 % (of 640 requests, baseline 0.2 % of 11,980); the limit is 0.5 %.
  - Tool success is 99.6 % (of 250 calls, baseline 99.71 % of 4,800); the limit is at least 99 %.
  - Cost per solved request is 5.12 % above the baseline (0.01051 against 0.01, 600 and 11,000 solved requests); """
        """the limit is 10 %.

Next
  - The canary gets 25 % of the traffic.
  - Its first window starts once late events and the settling time are over.
"""
    )


def test_a_hold_for_too_few_requests_in_full() -> None:
    assert told(INSUFFICIENT) == (
        """\
prompt_pack in us-east-1: held at 5 %, at 2025-08-31T10:30:00Z
stage 0, canary 5 %, window 2025-08-31T10:15:00Z to 2025-08-31T10:30:00Z

Why
  - Evidence problem insufficient_data: 8 requests in the canary, 312 in the baseline; it takes 20.
  - Not known: ΔS median, ΔS p95, coverage, λ, latency p95, error rate, tool success, cost per solved request.
  - Missing: 12 more requests in the canary (8 of 20).
  - Missing: 1 more λ group in the canary (1 of 2).
  - About 480 more requests, 22.5 minutes at the present rate.
  - A window counts from zero: at this rate it takes a window.length of about 37.5 minutes.

Next
  - The canary stays at 5 %.
  - Too few requests to judge the canary by; it ends by itself once there are enough requests, in one window.
  - Then it is promoted by a green window.
"""
    )


def test_a_hold_for_drifted_pins_in_full() -> None:
    assert told(DRIFTED) == (
        """\
prompt_pack in us-east-1: held at 5 %, at 2025-08-31T10:30:00Z
stage 0, canary 5 %, window 2025-08-31T10:15:00Z to 2025-08-31T10:30:00Z

Why
  - Evidence problem pins_drifted: INDEX_HASH of the canary is "5e1d...", the manifest says "b7f3...", """
        """in 1,535 requests, first at partition 2, offset 4711.
  - All 8 gates pass.

Next
  - The canary stays at 5 %.
  - Requests come with another version than the manifest names; it lasts for as long as such requests come: """
        """until services run what the manifest names, or a revision names what they run (`tidegate sign`, """
        """`tidegate publish`); a rearm does not end it.
  - Then it is promoted by a green window.

Also
  - The manifest does not pin 2 of the six pins of the canary.
"""
    )


def test_labels_that_do_not_count_are_told_of() -> None:
    """Who sends them learns why nothing comes of them."""
    counts = [Warning(code="labels_foreign", count=1_200), Warning(code="labels_not_followed", count=7)]
    text = told(msgspec.structs.replace(FREEZE, warnings=counts))
    assert "1,200 labels are of no request that the stage saw, nor carry its arm's pins, so they do not count." in text
    assert "7 labels are of requests whose ids are not followed, as there are many: they are left out." in text


def test_a_freeze_in_full() -> None:
    """The exemplars that gate and rule share are told once."""
    assert told(FREEZE) == (
        """\
prompt_pack in us-east-1: frozen at 5 %, at 2025-08-31T10:30:00Z
stage 0, canary 5 %, window 2025-08-31T10:15:00Z to 2025-08-31T10:30:00Z

Why
  - Soft rule latency_p95_over_budget fired: latency p95 is 21.18 % above the baseline, over 15 % (of 640 rows).
    2,310 ms in event "e-17", partition 2, offset 4711
  - Latency p95 is 21.18 % above the baseline (412 ms against 340 ms, 640 and 11,980 requests); the limit is 15 %.
  - The other 7 gates pass.

Next
  - The canary stays at 5 % and is not promoted.
  - A green window promotes it; the next one to fail rolls it back, unless on_gate_fail is hold.
"""
    )


def test_a_rollback_in_full() -> None:
    assert told(ROLLBACK) == (
        """\
prompt_pack in us-east-1: rolled back from 5 % to 0 %, at 2025-08-31T10:30:00Z
stage 0, canary 5 %, window 2025-08-31T10:15:00Z to 2025-08-31T10:30:00Z

Why
  - Coverage is 0.65 (of 640 values, baseline 0.87 of 11,980); the limit is at least 0.7.
    coverage 0 in event "e-2", partition 1, offset 3
  - Error rate is 0.7812 % (of 640 requests, baseline 0.2 % of 11,980); the limit is 0.5 %.
    failed in event "e-1", partition 0, offset 12
  - The other 6 gates pass.

Next
  - The canary goes to 0 % at once, and nothing is promoted until `tidegate rearm prompt_pack`, """
        """or a revision of the manifest that changes the flag.
"""
    )


def test_an_early_abort_in_full() -> None:
    assert told(ABORT) == (
        """\
prompt_pack in us-east-1: aborted at 5 %, canary to 0 %, at 2025-08-31T10:18:10Z
stage 0, canary 5 %, window 2025-08-31T10:15:00Z to 2025-08-31T10:30:00Z, cut short

Why
  - Hard rule error_rate_over fired: error rate is 4.42 %, over 1 % (of 294 rows, sure before the window's end).
    failed in event "e-1", partition 1, offset 10
    failed in event "e-2", partition 2, offset 20
    failed in event "e-3", partition 3, offset 30
  - Error rate is 4.42 % (of 294 requests, baseline 0 % of 733); the limit is 0.5 %.
  - Not known: λ.
  - The other 6 gates pass.

Next
  - The canary goes to 0 % at once, and nothing is promoted until `tidegate rearm prompt_pack`, """
        """or a revision of the manifest that changes the flag.
"""
    )


def test_a_kill_in_full() -> None:
    assert told(KILL) == (
        """\
prompt_pack in us-east-1: killed, canary to 0 %, at 2025-08-31T10:31:01.500Z
stage 0, canary 5 %, last window 2025-08-31T10:15:00Z to 2025-08-31T10:30:00Z

Why
  - "alice" ordered it at 2025-08-31T10:31:01.500Z: "answers in the wrong language".

Next
  - The canary goes to 0 % at once in every region, and nothing is promoted until `tidegate rearm prompt_pack`, """
        """or a revision of the manifest that changes the flag.
"""
    )


def test_a_close_in_full() -> None:
    """A quality gate does not consult errors."""
    assert told(CLOSE) == (
        """\
prompt_pack in us-east-1: closed, canary at 0 %, at 2025-08-31T10:30:00Z
quality gated, window 2025-08-31T10:15:00Z to 2025-08-31T10:30:00Z

Why
  - λ converges in 3 of 4 probe groups; it has to in all.
    not convergent in event "probe-3", partition 0, offset 7
  - The other 3 gates pass.

Next
  - The canary stays at 0 % until a later window is green on sound evidence.
  - A gate is outside its bounds; it ends by itself with the first window inside all of them on sound evidence.
"""
    )


def test_a_degrade_in_full() -> None:
    assert told(DEGRADE) == (
        """\
prompt_pack in us-east-1: degraded to cite-only answers, at 2025-08-31T10:30:00Z
safety guard, window 2025-08-31T10:15:00Z to 2025-08-31T10:30:00Z

Why
  - Soft rule reason_failed_served_in_full fired: 2 answers were served in full although the reason step failed.
    failed in event "e-5", partition 0, offset 70
  - Soft rule reason_failure_rate_over fired: the reason step fails in 2.34 % of the requests, over 1 % (of 640 rows).

Next
  - Answers are cite-only until a window on sound evidence in which reason steps do not fail.
"""
    )


def test_a_fallback_in_full() -> None:
    assert told(FALLBACK) == (
        """\
prompt_pack in us-east-1: fallen back from its heavy chains, at 2025-08-31T10:30:00Z
cost guard, window 2025-08-31T10:15:00Z to 2025-08-31T10:30:00Z

Why
  - Cost per solved request is 25.12 % above the baseline (0.01251 against 0.01, 600 and 11,000 solved requests); """
        """the limit is 10 %.
    cost 0.92 in event "e-9", partition 3, offset 1

Next
  - Heavy chains stay capped until, on sound evidence, the cost uplift is at most 0.9 of its limit.
"""
    )


@pytest.mark.parametrize(
    ("decision", "words"),
    [
        (
            decided("pass", ["all_gates_pass"], stage=Stage(index=3, canary_weight=1.0, next_canary_weight=None)),
            ["passed at 100 %, its last stage", "No stage follows: the canary stays at 100 %"],
        ),
        (
            decided("hold", ["latched"], stage=Stage(index=1, canary_weight=0.0, next_canary_weight=None)),
            ["held at 0 %", "The canary was stopped before and stays at 0 %", "only with `tidegate rearm prompt_pack`"],
        ),
        (
            decided("hold", ["hold_windows"]),
            [
                "All gates pass, but not yet in as many windows",
                "with the last of window.hold_windows green windows in a row",
            ],
        ),
        (
            decided(
                "hold",
                ["change_freeze"],
                change_freeze=ChangeFreeze(start=START, end=END + 3_600_000, reason="year's end", by="ops"),
            ),
            ['change freeze holds promotes until 2025-08-31T11:30:00Z, by "ops": "year\'s end"', "after the freeze"],
        ),
        (
            decided("rearm", ["rearm"], gates=[], operation=OperationBy(kind="rearm", ts=END, actor="bo", reason="ok")),
            ["rearmed, to start again at 5 %", '"bo" ordered it', "first stage, canary 5 %"],
        ),
        (
            decided("rearm", ["manifest_revision"], gates=[]),
            ["A new revision of the manifest took over", "starts again at its first stage"],
        ),
        (
            decided("open", ["all_gates_pass"], kind="quality_gated"),
            ["us-east-1: open", "Coverage is 0.86", "stays open while"],
        ),
        (
            decided("restore", ["all_gates_pass"], kind="cost_guard"),
            ["restored to its heavy chains", "The cost gate passes", "the guard has stepped out"],
        ),
        (
            decided(
                "restore",
                ["reason_steps_pass"],
                kind="safety_guard",
                arms={"canary": arm(requests=600, reason_failed=3), "baseline": arm()},
            ),
            ["restored to full answers", "The reason step failed in 3 of 600 requests, and none"],
        ),
        (
            decided("pass", ["all_gates_pass"], kind="cost_guard"),
            ["nothing to change", "Cost per solved request is 5.12 % above", "Weights stay as they are"],
        ),
        (
            decided("hold", ["hysteresis"], kind="cost_guard"),
            ["left as it is", "not yet by the margin", "Cost per solved request is 5.12 % above"],
        ),
        (
            decided("hold", ["reason_status"], kind="safety_guard"),
            ["left as it is", "Too few requests tell whether their reason step failed"],
        ),
        (
            decided(
                "hold",
                ["window_unstable"],
                window=Span(start=START, end=END, closed=False),
                evidence_problems=[
                    Problem(problem="window_unstable", detail={"manifest": "sha256:1", "changed_at": START + 60_000})
                ],
            ),
            ["The manifest changed at 2025-08-31T10:16:00Z".lower(), "the flag starts again at its first stage"],
        ),
        (
            decided("hold", ["rearm"], window=Span(start=START, end=END, closed=False)),
            ["rearm ended the window", "the unit starts again at its first stage"],
        ),
    ],
    ids=lambda value: f"{value.kind} {value.verdict} {value.reasons[0]}" if isinstance(value, Decision) else "",
)
def test_every_other_verdict_has_words(decision: Decision, words: list[str]) -> None:
    said = told(decision).lower()
    for one in words:
        assert one.lower() in said
    for reason in decision.reasons:
        assert f"- {reason}." not in said


@pytest.mark.parametrize(
    ("problem", "detail", "said"),
    [
        ("no_pinned_baseline", {"requests": 0}, "the baseline has no requests"),
        (
            "no_pinned_baseline",
            {"pins": {"MODEL_VER": ["a", "b"]}},
            'the baseline ran with more than one value of a pin: MODEL_VER "a", "b"',
        ),
        (
            "pins_missing",
            {"arm": "canary", "requests": {"TOK_VER": 1200}},
            "requests of the canary do not name their pins: TOK_VER in 1,200",
        ),
        (
            "pins_drifted",
            {
                "arm": "baseline",
                "pin": "INDEX_HASH",
                "old": "a",
                "new": "b",
                "kind": "alias_flip",
                "requests": 1,
                "first": {"partition": 0, "offset": 9},
            },
            'INDEX_HASH of the baseline was "a", now "b", with the manifest unchanged, in 1 request, first at '
            "partition 0, offset 9",
        ),
        (
            "sticky_violation",
            {"ids": 3, "xxh3": [], "followed": "1 id in 2"},
            "3 sticky ids changed arms within the stage (1 id in 2 followed)",
        ),
        (
            "cache_namespace_shared",
            {"namespaces": 2, "first": [{"namespace": "ns", "pins": [{}, {}]}], "not_followed": 0},
            '2 cache namespaces used under two sets of pins: "ns"',
        ),
        (
            "rate_limit_storm",
            {"events": 12, "share": 0.081, "baseline": 0.005, "stage_before": None},
            "12 requests of the canary met a 429, 8.1 %; the baseline has 0.5 %",
        ),
        (
            "tool_loop",
            {"requests": 1, "first": [{"tool": "search", "partition": 1, "offset": 2}]},
            '1 request called one tool again and again with the same arguments, first of tool "search" at partition 1, '
            "offset 2",
        ),
        (
            "unfenced_side_effect",
            {
                "what": "write_without_key",
                "requests": 2,
                "first": [{"tool": "mail", "partition": 1, "offset": 2}],
            },
            '2 writes had no idempotency key, first of tool "mail" at partition 1, offset 2',
        ),
        (
            "unfenced_side_effect",
            {"what": "key_with_two_effects", "keys": 1, "xxh3": [], "followed": "1 key in 1"},
            "1 idempotency key had two effects each",
        ),
        (
            "client_evaluated",
            {"events": {"canary": 12}},
            "clients chose the arm of events: 12 of the canary; they are kept out of the evidence",
        ),
        (
            "assignment_mismatch",
            {"rows": {"baseline": 3, "canary": 1}},
            "rows that the hash of their sticky id sends to the other arm: 3 of the baseline and 1 of the canary",
        ),
        (
            "sample_ratio_mismatch",
            {"ids": {"canary": 400, "baseline": 9_600}, "share": 0.04, "weight": 0.05},
            "4 % of the stage's sticky ids are in the canary (400 of 10,000), its weight is 5 %",
        ),
        (
            "region_divergence",
            {"regions": {"eu": ["sha256:1"], "": ["sha256:2"]}},
            'regions run under different manifests: "eu" sha256:1; "" sha256:2',
        ),
        (
            "window_unstable",
            {"late": 31, "share": 0.032, "limit": 0.01},
            "31 late events, 3.2 % of the window; at most 1 % may be",
        ),
        (
            "window_unstable",
            {"dead_letters": 31, "share": 0.032, "limit": 0.01},
            "31 dead letters, 3.2 % of the window; at most 1 % may be",
        ),
        (
            "orphan_telemetry",
            {"ids": 12, "of": 300, "limit": 0.01},
            "12 of 300 sticky ids had no exposure; at most 1 % may",
        ),
        ("something_new", {"a": [1, {"b": None}], "c": 0.5}, "a 1, (b null), c 0.5"),
        ("orphan_telemetry", {"ids": "many"}, 'ids "many"'),
    ],
)
def test_every_evidence_problem_is_told_with_what_was_seen(problem: str, detail: dict[str, Any], said: str) -> None:
    """Also one that this version does not know, or whose detail is not as expected."""
    decision = decided("hold", [problem], evidence_problems=[Problem(problem=problem, detail=detail)])
    assert f"  - Evidence problem {problem}: {said}.\n" in told(decision)


def test_a_forecast_without_a_time_says_why() -> None:
    def hold(what: str, have: int) -> str:
        needs = [Need(reason="x", arm="canary", what=what, have=have, need=20)]
        return told(decided("hold", ["x"], forecast=Forecast(needs=needs, requests=None, minutes=None)))

    assert "no telling when, as none came at all: λ groups in the canary." in hold("lambda groups", 0)
    assert "too many of those that come lack a metric" in hold("rows with delta_s", 7)


def test_what_is_off_looser_waived_or_not_applicable_is_told() -> None:
    said = told(
        decided(
            "promote",
            ["all_gates_pass"],
            gates=gates(
                coverage_min=("off", 0.5, 0.5, 0.5, 1, 1),
                tool_success_min=("not_applicable", None, None, None, 0, 0),
                cost_uplift_max=("waived", 0.21, 0.0121, 0.01, 600, 11_000),
            ),
            relaxed=["coverage_min", "error_rate_over"],
            arms={"canary": arm(), "baseline": arm(pinned_from=PinnedFrom(start=START, end=END, hash="sha256:1"))},
        )
    )
    assert "the limit is 10 %, waived as quality gained.\n" in said
    assert "No tools were called in either arm.\n" in said
    assert "Gates that are off: coverage_min.\n" in said
    assert "Looser than the safe-launch targets: error_rate_over.\n" in said
    assert "The baseline is that of the window 2025-08-31T10:15:00Z to 2025-08-31T10:30:00Z.\n" in said
    assert "Coverage is" not in said


def test_a_value_just_beyond_its_limit_is_told_apart_from_it() -> None:
    assert number(0.1500004, 0.15) == "0.1500004"
    assert number(0.15, 0.15) == "0.15"
    over = gates(error_rate_max=("fail", 0.00500001, 0.00500001, 0.002, 640, 11_980))
    assert "Error rate is 0.500001 %" in told(decided("rollback", ["error_rate_max"], gates=over))


def test_no_change_is_neither_above_nor_below() -> None:
    same = gates(latency_p95_uplift_max=("pass", 0.0, 340.0, 340.0, 640, 11_980))
    assert "Latency p95 is level with the baseline (340 ms" in told(decided("promote", ["all_gates_pass"], gates=same))


HELD: dict[str, tuple[dict[str, Any], str]] = {
    # The detail by which two of one name are told apart, and the kind of flag.
    "no_pinned_baseline/pins": ({"pins": {}}, "progressive_rollout"),
    "pins_drifted/window": ({}, "cost_guard"),
    "pins_drifted/against_manifest": ({"kind": "against_manifest"}, "progressive_rollout"),
    "window_unstable/lost": ({"lost": "telemetry"}, "progressive_rollout"),
    "window_unstable/manifest": ({"manifest": "sha256:1"}, "progressive_rollout"),
}


@pytest.mark.parametrize("name", CAUSES)
def test_what_holds_a_unit_is_told_with_when_that_ends(name: str) -> None:
    """Each cause, once, with the operator's command spelt out where there is one."""
    first, _, rest = name.partition("/")
    verdict, evidence, flag = "hold", None, "pack of two"
    fields: dict[str, Any] = {}
    if first == "gate":
        status, _, more = rest.partition("/")
        verdict = "close" if more == "close" else "hold"
        evidence = EvidenceSpan(windows=1, left_out=0, since=START) if more == "staged" else None
        reasons, fields["gates"] = ["coverage_min"], gates(coverage_min=(status, 0.6, 0.6, 0.87, 640, 11_980))
    elif first == "rule":
        verdict, reasons = "close", ["coverage_under"]
        fields["abort_rules"] = [rule("coverage_under", 0.6, 0.5)]
    else:
        verdict = "close" if rest == "close" else "hold"
        reasons, detail = [first], HELD.get(name, ({}, "progressive_rollout"))
        if first in {detector.__name__ for detector in DETECTORS}:
            fields["evidence_problems"] = [Problem(problem=first, detail=detail[0])]
        fields["kind"] = detail[1]
    decision = decided(verdict, reasons, flag=flag, evidence=evidence, **fields)
    span = "one window" if evidence is None else "the windows of the stage together"
    until = CAUSES[name].until.format(flag="'pack of two'", span=span, settled="promotes the canary")
    said, what = told(decision), CAUSES[name].what
    if first in {"gate", "rule"} or "evidence_problems" in fields:
        assert said.count(f"  - {sentence(f'{what}; {until}')}\n") == 1
    else:
        why, following = said.split("\nNext\n")
        assert sentence(what).removesuffix(".") in why or name == "change_freeze"
        assert following.count(f"  - {sentence(until)}\n") == 1


def test_of_a_window_that_an_order_ended_no_gate_is_foretold() -> None:
    """What it showed counts no further; nor does the canary stay at the weight of before."""
    open_ = gates(error_rate_max=("undecided", 0.0, 0.0, 0.0, 30, 300))
    said = told(decided("hold", ["rearm"], gates=open_, window=Span(start=START, end=END, closed=False)))
    assert "decided yet" not in said
    assert "stays at" not in said


def test_of_a_stop_no_gate_is_foretold() -> None:
    """There is no more traffic to settle it; which were open is told."""
    open_ = gates(error_rate_max=("undecided", 0.0, 0.0, 0.0, 30, 300), coverage_min=("fail", 0.5, 0.5, 0.87, 640, 640))
    said = told(decided("rollback", ["coverage_min"], gates=open_))
    assert "Not decided yet, and of no more weight: error rate." in said
    assert "would pass" not in said


DULL = [("gates", i) for i in (0, 1, 2, 5, 6, 7)]
"""What goes the same ways as its neighbours."""
HOSTILE = '\x1b[2J\x1b]0;x\x07\r\n[red]x[/red]\u202e"\\\x9b'


def strings(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every string and number in a JSON value."""
    if isinstance(value, dict | list):
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from strings(one, (*path, key))
    else:
        yield path


def test_nothing_in_a_record_reaches_the_terminal_as_it_pleases() -> None:
    """Every text becomes control characters and markup, every number an extreme; what still is a decision is told."""
    tried = 0
    for decision in (INSUFFICIENT, DRIFTED, FREEZE, KILL, DEGRADE):
        text = decision.to_bytes()
        paths = [path for path in strings(json.loads(text)) if path[:2] not in DULL]
        for path in paths:
            for poison in (HOSTILE, 10**30, 1e308, [HOSTILE], {HOSTILE: HOSTILE}):
                record = json.loads(text)
                place = record
                for key in path[:-1]:
                    place = place[key]
                place[path[-1]] = poison
                with suppress(EventError):
                    poisoned = decision_from_bytes(json.dumps(record).encode())
                    tried += 1
                    for line in explain(poisoned):
                        assert line.plain.removeprefix("\n").isprintable(), (path, poison)
    assert tried > 300


def test_markup_and_control_characters_are_shown_and_not_obeyed(tmp_path: Path) -> None:
    """On the way through the terminal's renderer as well."""
    path = tmp_path / "one.json"
    worst = {"latency_p95_uplift_max": [Exemplar(event_id=HOSTILE, value=1.0, partition=0, offset=0)]}
    path.write_bytes(decided("freeze", ["x"], flag=f"a{HOSTILE}", gates=SLOW, exemplars=worst).to_bytes())
    done = tidegate("explain", path)
    assert done.code == 0
    assert done.out.startswith("a\\u001b[2J")
    assert "[red]x[/red]" in done.out
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", done.out)


class TestFinding:
    @pytest.fixture
    def here(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A folder with a ``decisions.ndjson`` of all of them, some twice, and a line that is none."""
        records = [PROMOTE, DRIFTED, ABORT, PROMOTE, KILL]
        lines = [record.to_bytes() for record in records]
        (tmp_path / "decisions.ndjson").write_bytes(b"\n".join([*lines, b"", b'{"a": 1}', b"{"]))
        monkeypatch.chdir(tmp_path)
        return tmp_path

    @pytest.mark.parametrize("cut", [slice(None), slice(7, None), slice(7, 15), slice(0, 15)])
    def test_an_id_or_its_beginning_is_enough(self, here: Path, cut: slice) -> None:
        """In the file of the current folder, with and without sha256:, in either case."""
        for name in (ABORT.decision_id[cut], ABORT.decision_id[cut].upper()):
            done = tidegate("explain", name)
            assert done.code == 0
            assert done.out.startswith("prompt_pack in us-east-1: aborted at 5 %")
            assert done.out.endswith(f"decision {ABORT.decision_id}\n")

    def test_another_file_is_named_plain_or_compressed(self, here: Path, tmp_path: Path) -> None:
        other = tmp_path / "other.ndjson.gz"
        other.write_bytes(gzip.compress(FREEZE.to_bytes() + b"\n"))
        assert "frozen at 5 %" in tidegate("explain", FREEZE.decision_id, "--decisions", other).out
        assert "frozen at 5 %" in tidegate("explain", other).out
        assert tidegate("explain", FREEZE.decision_id).code == 2

    def test_one_record_comes_from_a_file_or_from_standard_input(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """However it is laid out."""
        laid_out = json.dumps(json.loads(KILL.to_bytes()), indent=2).encode()
        (tmp_path / "kill.json").write_bytes(laid_out)
        assert "killed" in tidegate("explain", tmp_path / "kill.json").out
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(laid_out)))
        assert "killed" in tidegate("explain", "-").out

    def test_lines_are_not_broken_where_there_is_no_terminal(self, here: Path) -> None:
        """One sentence a line, for whatever reads on."""
        out = tidegate("explain", DRIFTED.decision_id).out
        assert "\x1b" not in out
        assert max(map(len, out.splitlines())) > 120

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (
                ("abcdef0123",),
                "decisions.ndjson has no decision sha256:abcdef0123… among 5, and 2 lines that are not decisions",
            ),
            (("abcdef0123", "--decisions", "none.ndjson"), "none.ndjson: No such file or directory"),
            (
                ("abc",),
                'no decision of "abc"; did you mean prompt_pack or prompt_pack/us-east-1?; of a decision_id give 8',
            ),
            (("sha256:xyz",), '"sha256:xyz" is not a decision_id'),
            (("f" * 65,), "of a decision_id give 8 to 64 hex digits"),
            (
                ("promt_pack", "--decisions", "decisions.ndjson"),
                'no decision of "promt_pack"; did you mean prompt_pack',
            ),
            (("prompt_pack/eu",), 'no decision of "prompt_pack/eu"; did you mean prompt_pack'),
            (
                ("prompt_pack", "--last", "rollback"),
                "no rollback of prompt_pack among 4 decisions: abort, hold, kill",
            ),
            ((ABORT.decision_id, "--last", "abort"), "--last goes with a flag"),
            (("decisions.ndjson",), "decisions.ndjson holds 7 records: name one, with --decisions decisions.ndjson"),
            (("empty.json",), "empty.json: not a decision"),
            (("text.gz",), "Not a gzipped file"),
            (("abcdef0123", "--decisions", "x", "--broker", "y"), "two places to look in"),
            (("abcdef0123", "--broker", "127.0.0.1:9"), "cannot be read"),
        ],
    )
    def test_a_mistake_is_answered_with_one_line(self, here: Path, arguments: tuple[str, ...], message: str) -> None:
        (here / "empty.json").write_bytes(b"{}")
        (here / "text.gz").write_bytes(b"text")
        done = tidegate("explain", *arguments)
        assert (done.code, done.out) == (2, "")
        assert message in done.line

    def test_a_beginning_that_fits_several_asks_for_more(self, here: Path) -> None:
        ids = ["sha256:" + "ab" * 6 + f"{i:052x}" for i in range(5)]
        records = [json.loads(PROMOTE.to_bytes()) | {"decision_id": one} for one in ids]
        (here / "many.ndjson").write_text("\n".join(map(json.dumps, records)))
        done = tidegate("explain", "abababab", "--decisions", "many.ndjson")
        assert done.code == 2
        assert f"has 5 decisions sha256:abababab…: give more digits, as of {ids[0]}, {ids[1]}, {ids[2]}" in done.line
        assert tidegate("explain", ids[3], "--decisions", "many.ndjson").code == 0

    def test_a_dump_of_the_topic_is_the_records_in_it(self, here: Path) -> None:
        line = b'{"partition":0,"offset":7,"timestamp":0,"key":"a|b","value":%s}' % PROMOTE.to_bytes()
        (here / "dump.ndjson").write_bytes(line)
        assert tidegate("explain", PROMOTE.decision_id, "--decisions", "dump.ndjson").code == 0

    def test_a_flag_or_a_region_of_it_is_explained_by_its_last_decision(self, here: Path) -> None:
        """Or by its last one of a verdict; the other regions are named."""
        abroad = decided("hold", ["hold_windows"], region="eu", decided_at=END + 3_600_000)
        lines = [record.to_bytes() for record in (PROMOTE, ABORT, KILL, abroad)]
        (here / "decisions.ndjson").write_bytes(b"\n".join(lines))
        latest = tidegate("explain", "prompt_pack").out
        assert latest.startswith("prompt_pack in eu: held at 5 %")
        assert latest.endswith("also decided: prompt_pack/us-east-1\n")
        assert tidegate("explain", "prompt_pack/us-east-1").out.startswith("prompt_pack in us-east-1: killed")
        aborted = tidegate("explain", "prompt_pack", "--last", "abort").out
        assert aborted.startswith("prompt_pack in us-east-1: aborted at 5 %")
        assert "also decided" not in aborted

    def test_what_is_no_file_where_nothing_else_is_says_where_to_look(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        done = tidegate("explain", "prompt_pack")
        assert done.code == 2
        assert "there is no decisions.ndjson here: give --decisions FILE or --broker" in done.line

    def test_two_records_of_one_id_are_not_chosen_between(self, here: Path) -> None:
        """An id names window and verdict, not the numbers: two runs may share it."""
        other = msgspec.structs.replace(PROMOTE, late=1)
        (here / "two.ndjson").write_bytes(PROMOTE.to_bytes() + b"\n" + other.to_bytes())
        done = tidegate("explain", PROMOTE.decision_id, "--decisions", "two.ndjson")
        assert done.code == 2
        assert "2 different records" in done.line


def test_a_decision_is_found_in_the_topic() -> None:
    """Only with --broker; a repeat does not matter."""
    with embedded_broker({"tidegate.decisions": 2}) as servers:
        settings = load_settings(broker=servers, fetch_wait=50)

        async def write() -> None:
            async with AIOKafkaProducer(**settings.kafka) as producer:
                for record in (PROMOTE, FREEZE, FREEZE):
                    await producer.send_and_wait(settings.decisions_topic, record.to_bytes(), key=record.key.encode())

        asyncio.run(write())
        done = tidegate("explain", FREEZE.decision_id[7:17], "--broker", servers)
        assert (done.code, done.err) == (0, "")
        assert "frozen at 5 %" in done.out
        missing = tidegate("explain", "0123456789", "--broker", servers)
        assert missing.code == 2
        assert "tidegate.decisions has no decision sha256:0123456789… among 3" in missing.line
