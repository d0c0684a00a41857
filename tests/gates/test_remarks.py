"""What can never decide or never guard is said before anything is measured, and nothing else is."""

from typing import get_args

import pytest

from tests.gates.build import flag
from tidegate.gates.remarks import KIND_WORDS, remarks
from tidegate.schemas.load import load_manifest
from tidegate.schemas.manifest import FlagKind

FINE = {
    "progressive_rollout": "",
    "quality_gated": "traffic: {shadow: true}",
    "cost_guard": "",
    "safety_guard": "",
    "kill_switch": "",
}


@pytest.mark.parametrize("kind", get_args(FlagKind))
def test_nothing_is_said_of_a_flag_with_the_defaults(kind: str) -> None:
    text = f"flags: {{f: {{kind: {kind}, {FINE[kind]}}}}}"
    assert remarks(load_manifest(text).flags["f"]) == []
    assert kind in KIND_WORDS


ROLLOUT = [
    ("traffic: {stages: [1.0]}", "the first stage leaves no traffic for a baseline"),
    ("traffic: {stages: [0.05, 0.5]}", "the stages end at 0.5"),
    ("traffic: {canary_weight: 0.5, stages: [0.5], shadow: true}", "the stages end at 0.5"),
    (
        "gates: {delta_s: null, coverage_min: null, lambda_convergent: false, latency_p95_uplift_max: null,"
        " error_rate_max: null, tool_success_min: null, cost_uplift_max: null}",
        "every gate is off: any canary with enough requests is promoted",
    ),
    ("gates: {tool_success_min: 0}", "no value fails tool_success_min 0"),
    (
        "gates: {error_rate_max: 1}\nabort_rules: {hard: [{kind: error_rate_over, value: 1}]}",
        "no value fails error_rate_max 1",
    ),
    ("abort_rules: {hard: [{kind: error_rate_over, value: 1}]}", "no value is beyond error_rate_over 1"),
    ("abort_rules: {hard: [{kind: coverage_under, value: 0}]}", "no value is beyond coverage_under 0"),
    ("abort_rules: {hard: [{kind: lambda_flip_rate_over, value: 1}]}", "beyond lambda_flip_rate_over 1"),
    ("abort_rules: {hard: [{kind: delta_s_p95_over, value: 2}]}", "beyond delta_s_p95_over 2"),
    ("gates: {cost_uplift_max: null}", "the gate of cost_per_solved_over_budget is off"),
    ("abort_rules: {hard: []}", "there is no hard rule: nothing aborts within a window"),
    ("abort_rules: {hard: []}\npolicy: {on_gate_fail: hold}", "takes no canary back"),
    ("policy: {early_abort_alpha: 0.5}", "up to one healthy canary in 2 is aborted"),
    ("window: {length: 1m, min_requests: 1}", "a single request decides"),
    ("window: {length: 1m, min_requests: 19}", "the p95 of fewer than 20 requests is about their largest"),
    ("window: {length: 1m, late_max: 1}", "no share of late events"),
    ("policy: {sticky_violation_share_max: 1}", "no share of ids that change arms"),
    ("versions: {MODEL_VER: a}\nbaseline_versions: {MODEL_VER: a}", "nothing that the two arms differ in"),
]
OTHERS = [
    ("quality_gated", "policy: {quality_source: traffic}", "it never opens"),
    ("quality_gated", "", "it opens on gold requests of both arms alone"),
    (
        "quality_gated",
        "gates: {delta_s: null, coverage_min: null, lambda_convergent: false}",
        "it opens for any canary with enough requests",
    ),
    ("quality_gated", "policy: {early_abort_alpha: 0.2}", "up to one healthy canary in 5 is closed"),
    ("quality_gated", "traffic: {stages: [0.1, 0.2]}", "only the first, 0.1, is ever served"),
    ("quality_gated", "gates: {error_rate_max: 0.001}", "a quality gate is not decided by error_rate_max"),
    ("cost_guard", "gates: {cost_uplift_max: null}", "it never falls back"),
    ("cost_guard", "traffic: {canary_weight: 1}", "it can never fall back"),
    ("cost_guard", "abort_rules: {hard: []}", "hard rules never fire on a cost guard"),
    ("cost_guard", "window: {length: 1m, min_requests: 1}", "a single request decides"),
    ("safety_guard", "gates: {coverage_min: 0.9}", "a safety guard is not decided by coverage_min"),
    ("safety_guard", "traffic: {shadow: true}", "traffic.shadow changes nothing"),
    ("safety_guard", "window: {length: 1m, late_max: 1}", "no share of late events"),
    ("kill_switch", "traffic: {stages: [0.5, 1]}", "a kill switch has no ramp"),
    ("kill_switch", "gates: {coverage_min: 0.9}", "does not look at gates, window"),
]


@pytest.mark.parametrize(
    ("kind", "body", "said"), [*(("progressive_rollout", body, said) for body, said in ROLLOUT), *OTHERS]
)
def test_what_can_never_decide_or_guard_is_said(kind: str, body: str, said: str) -> None:
    found = remarks(flag(f"kind: {kind}\n{body}"))
    assert [remark for remark in found if said in remark], found
    assert all(len(remark.splitlines()) == 1 for remark in found)


@pytest.mark.parametrize(
    "body",
    [
        "traffic: {stages: [1.0], shadow: true}",
        "window: {length: 1m, min_requests: 20, late_max: 0.99}",
        "policy: {early_abort_alpha: 0.1}",
        "versions: {MODEL_VER: a}\nbaseline_versions: {MODEL_VER: b}",
        "abort_rules: {hard: [{kind: error_rate_over, value: 0.9}]}",
    ],
)
def test_what_can_decide_is_not_said_to_be_unable(body: str) -> None:
    """A shadow stage has all of the traffic as its baseline, and pins it for the stage at 1."""
    assert remarks(flag(body)) == []
