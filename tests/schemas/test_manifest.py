import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from tidegate.schemas.canonical import canonical
from tidegate.schemas.duration import parse_duration
from tidegate.schemas.errors import ManifestError
from tidegate.schemas.event import PINS
from tidegate.schemas.load import load_manifest, read_manifest
from tidegate.schemas.manifest import (
    PAGE,
    Flag,
    Manifest,
    QualityGain,
)

PAGE_YAML = Path(__file__).parent / "data" / "feature_flags.yml"


def flag(body: str | dict[str, Any], pane_ms: int = 10_000) -> Flag:
    """The flag x of a manifest with nothing else, from flow YAML or builtins."""
    text = body if isinstance(body, str) else yaml.safe_dump(body, default_flow_style=True)
    return load_manifest(f"flags: {{x: {text}}}", pane_ms=pane_ms).flags["x"]


def refusal(text: str | bytes, pane_ms: int = 10_000) -> ManifestError:
    with pytest.raises(ManifestError) as caught:
        load_manifest(text, pane_ms=pane_ms)
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value) == f"{caught.value.path}: {caught.value.problem}; {caught.value.fix}"
    return caught.value


class TestThePageManifest:
    def test_loads_verbatim_comments_and_all(self) -> None:
        manifest = read_manifest(PAGE_YAML)
        (page,) = manifest.flags.values()
        assert page.name == "prompt_pack_vNplus1"
        assert page.scope.tenants == ("all",)
        assert page.scope.regions == ("us-east-1",)
        assert page.scope.endpoints == ("/rag/reason",)
        assert page.versions == {
            "MODEL_VER": "gpt-4o-2025-07-15",
            "PROMPT_VER": "p-2025.08.31-h1",
            "INDEX_HASH": "b7f3...",
            "RERANK_CONF": "bge-rerank-v2@top32",
        }
        assert page.gates.limits() == {
            "delta_s.median_max": 0.03,
            "delta_s.p95_max": 0.10,
            "coverage_min": 0.70,
            "lambda_convergent": True,
            "latency_p95_uplift_max": 0.15,
            "error_rate_max": 0.005,
            "tool_success_min": 0.99,
            "cost_uplift_max": 0.10,
        }
        assert {rule.kind: rule.value for rule in page.abort_rules.hard} == {
            "delta_s_p95_over": 0.15,
            "coverage_under": 0.60,
            "lambda_flip_rate_over": 0.20,
            "error_rate_over": 0.01,
        }
        assert {rule.kind: rule.value for rule in page.abort_rules.soft} == {
            "latency_p95_over_budget": 0.15,
            "cost_per_solved_over_budget": 0.10,
        }

    def test_warns_of_the_two_pins_it_does_not_name_and_relaxes_nothing(self) -> None:
        (page,) = read_manifest(PAGE_YAML).flags.values()
        assert page.unpinned == ("TOK_VER", "ANALYZER_CONF")
        assert page.relaxed == ()

    def test_is_what_a_flag_with_nothing_written_gets(self) -> None:
        (page,) = read_manifest(PAGE_YAML).flags.values()
        bare = flag("{}")
        assert (bare.gates, bare.abort_rules, bare.traffic) == (
            page.gates,
            page.abort_rules,
            page.traffic,
        )

    def test_leaves_our_keys_at_the_contract_s_defaults(self) -> None:
        bare = flag("{}")
        assert bare.kind == "progressive_rollout"
        assert set(dict(bare.scope).values()) == {("all",)}
        assert bare.baseline_versions == {}
        assert (bare.traffic.stages, bare.traffic.shadow) == ((0.05, 0.25, 0.50, 1.0), False)
        window = bare.window
        assert (window.length_ms, window.settle_ms, window.hold_windows) == (900_000, 10_000, 1)
        assert (window.min_requests, window.min_lambda_groups, window.late_max) == (20, 1, 0.01)
        policy = bare.policy
        assert policy.quality_gain == QualityGain(max_cost_uplift=0.30, delta_s_median_gain=0.03, coverage_gain=0.05)
        assert policy.model_dump(exclude={"quality_gain", "rule_out"}) == {
            "on_gate_fail": "rollback",
            "on_pin_drift": "hold",
            "quality_source": "gold_if_present",
            "lambda_source": "probes",
            "sticky_violations_max": 0,
            "sticky_violation_share_max": 0.001,
            "evidence": "sequential",
            "false_stop": 0.05,
            "wrong_promote": 0.05,
            "design_effect": 1.0,
            "patience_ms": 604_800_000,
            "assignment": "reported",
        }

        assert policy.rule_out.model_dump() == {
            "error_rate": 0.01,
            "delta_s_p95": 0.15,
            "coverage": 0.60,
            "lambda_flip_rate": 0.20,
            "delta_s_median": 0.06,
            "latency_p95_uplift": 0.30,
            "cost_uplift": 0.20,
            "tool_success": 0.98,
        }


class TestRuleOut:
    """From which value on a canary is intolerable."""

    @pytest.mark.parametrize(
        ("body", "key", "value"),
        [
            # The hard rule's value, else twice the limit's distance from the ideal.
            ("{abort_rules: {hard: [{kind: error_rate_over, value: 0.03}]}}", "error_rate", 0.03),
            ("{abort_rules: {hard: []}}", "error_rate", 0.01),
            ("{gates: {error_rate_max: 0.002}, abort_rules: {hard: []}}", "error_rate", 0.004),
            ("{gates: {coverage_min: 0.8}, abort_rules: {hard: []}}", "coverage", 0.6),
            ("{gates: {tool_success_min: 0.95}}", "tool_success", 0.9),
            ("{gates: {latency_p95_uplift_max: 0.5}}", "latency_p95_uplift", 1.0),
            # A rule at its gate's limit leaves nothing between the two.
            ("{gates: {error_rate_max: 0.01}}", "error_rate", 0.02),
            # At the ideal there is no distance to double.
            ("{gates: {tool_success_min: 1}}", "tool_success", 0.98),
            ("{gates: {cost_uplift_max: 0}}", "cost_uplift", 0.2),
            ("{abort_rules: {hard: [{kind: lambda_flip_rate_over, value: 0}]}}", "lambda_flip_rate", 0.2),
            # Nothing is worse than the worst; nothing is ruled out for a gate that is off.
            ("{gates: {tool_success_min: 0}}", "tool_success", None),
            ("{gates: {cost_uplift_max: null}}", "cost_uplift", None),
            ("{gates: {lambda_convergent: false}}", "lambda_flip_rate", None),
            ("{policy: {rule_out: {cost_uplift: 0.11}}}", "cost_uplift", 0.11),
        ],
    )
    def test_is_resolved_from_rules_and_gates(self, body: str, key: str, value: float | None) -> None:
        assert getattr(flag(body).policy.rule_out, key) == value

    def test_a_default_that_is_spelled_out_changes_no_hash(self) -> None:
        spelled = flag("{policy: {rule_out: {error_rate: 0.01, tool_success: 0.98}, false_stop: 0.05, patience: 168h}}")
        assert spelled.manifest_hash == flag("{}").manifest_hash

    def test_the_old_name_of_false_stop_is_read(self) -> None:
        old, new = flag("{policy: {early_abort_alpha: 0.1}}"), flag("{policy: {false_stop: 0.1}}")
        assert old.policy.false_stop == 0.1
        assert old.manifest_hash == new.manifest_hash


class TestResolution:
    @pytest.mark.parametrize(
        ("traffic", "stages"),
        [
            ("{canary_weight: 0.05}", (0.05, 0.25, 0.5, 1.0)),
            ("{baseline_weight: 0.95}", (0.05, 0.25, 0.5, 1.0)),
            ("{canary_weight: 0.3}", (0.3, 0.5, 1.0)),
            ("{canary_weight: 0.25, baseline_weight: 0.75}", (0.25, 0.5, 1.0)),
            ("{canary_weight: 1}", (1.0,)),
            ("{stages: [0.1, 0.2]}", (0.1, 0.2)),
            ("{stages: [0.1, 0.2], baseline_weight: 0.9}", (0.1, 0.2)),
            ("{canary_weight: 1e-3, stages: [1e-3, 1]}", (0.001, 1.0)),
            ("{shadow: true}", (0.05, 0.25, 0.5, 1.0)),
        ],
    )
    def test_stages_start_at_the_canary_weight(self, traffic: str, stages: tuple[float, ...]) -> None:
        resolved = flag(f"{{traffic: {traffic}}}").traffic
        assert resolved.stages == stages
        assert resolved.canary_weight == stages[0]
        assert resolved.baseline_weight == pytest.approx(1 - stages[0], abs=1e-12)

    def test_weights_may_miss_one_by_floating_point(self) -> None:
        off = flag("{traffic: {canary_weight: 0.1, baseline_weight: 0.9000000005}}")
        assert off.traffic.baseline_weight == 0.9

    def test_only_a_kill_switch_may_have_weight_zero(self) -> None:
        killed = flag("{kind: kill_switch, traffic: {canary_weight: 0}}")
        assert killed.traffic.stages == (0,)

    def test_a_kill_switch_is_on_for_everybody_unless_a_weight_is_written(self) -> None:
        """It has no ramp; the default of a rollout's first stage is none of its."""
        assert flag("{kind: kill_switch}").traffic.stages == (1.0,)
        assert flag("{kind: kill_switch, traffic: {shadow: false}}").traffic.baseline_weight == 0
        assert flag("{kind: kill_switch, traffic: {canary_weight: 0.3}}").traffic.stages == (0.3,)
        assert flag("{kind: kill_switch, traffic: {baseline_weight: 0.95}}").traffic.stages == (0.05,)

    @pytest.mark.parametrize("traffic", ["{canary_weight: 1}", "{stages: [1.0]}", "{baseline_weight: 0}"])
    def test_a_quality_gate_needs_traffic_for_its_baseline(self, traffic: str) -> None:
        with pytest.raises(ManifestError, match=r"traffic\.canary_weight: a quality gate at weight 1.*less than 1"):
            flag(f"{{kind: quality_gated, traffic: {traffic}}}")

    @pytest.mark.parametrize("weight", ["x", "[1]", "null", "1.5", ".nan", "{a: 1}", "true"])
    @pytest.mark.parametrize("key", ["canary_weight", "baseline_weight"])
    def test_a_wrong_weight_of_a_kill_switch_is_named_where_it_stands(self, key: str, weight: str) -> None:
        with pytest.raises(ManifestError, match=rf"traffic\.{key}: "):
            flag(f"{{kind: kill_switch, traffic: {{{key}: {weight}}}}}")

    @pytest.mark.parametrize(
        "kind",
        ["kill_switch", "progressive_rollout", "quality_gated", "safety_guard", "cost_guard"],
    )
    def test_all_five_flag_kinds_load(self, kind: str) -> None:
        assert flag({"kind": kind}).kind == kind

    def test_a_gate_left_out_has_the_page_s_limit(self) -> None:
        gates = flag("{gates: {delta_s: {p95_max: 0.05}, error_rate_max: 0.001}}").gates
        changed = {"delta_s.p95_max": 0.05, "error_rate_max": 0.001}
        assert gates.limits() == PAGE.gates.limits() | changed

    def test_null_turns_a_gate_off_and_null_delta_s_both(self) -> None:
        off = flag("{gates: {delta_s: ~, coverage_min: null, lambda_convergent: false}}")
        limits = off.gates.limits()
        assert [limits[gate] for gate in list(limits)[:4]] == [None, None, None, False]
        assert flag("{gates: {lambda_convergent: null}}").gates.lambda_convergent is False

    def test_an_abort_list_left_out_is_the_page_s_and_an_empty_one_is_none(self) -> None:
        assert flag("{abort_rules: {}}").abort_rules == PAGE.abort_rules
        no_hard = flag("{abort_rules: {hard: []}}").abort_rules
        assert no_hard.hard == ()
        assert no_hard.soft == PAGE.abort_rules.soft
        no_soft = flag("{abort_rules: {soft: []}}").abort_rules
        assert no_soft.hard == PAGE.abort_rules.hard
        assert no_soft.soft == ()

    def test_a_soft_rule_without_a_value_has_its_gate_s_limit(self) -> None:
        rules = "abort_rules: {soft: [{kind: latency_p95_over_budget}]}"
        on = flag(f"{{gates: {{latency_p95_uplift_max: 0.3}}, {rules}}}")
        assert on.abort_rules.soft[0].value == 0.3
        off = flag(f"{{gates: {{latency_p95_uplift_max: null}}, {rules}}}")
        assert off.abort_rules.soft[0].value is None

    def test_a_hard_limit_may_equal_its_gate(self) -> None:
        rule = "abort_rules: {hard: [{kind: coverage_under, value: 0.7}]}"
        assert flag(f"{{{rule}}}").abort_rules.hard[0].value == 0.7

    def test_a_hard_rule_of_a_gate_that_is_off_may_have_any_value(self) -> None:
        rule = "abort_rules: {hard: [{kind: error_rate_over, value: 0.0001}]}"
        assert flag(f"{{gates: {{error_rate_max: null}}, {rule}}}").abort_rules.hard

    @pytest.mark.parametrize("off", ["off", "false", '"off"', "null"])
    def test_quality_gain_can_be_off(self, off: str) -> None:
        assert flag(f"{{policy: {{quality_gain: {off}}}}}").policy.quality_gain is None

    def test_quality_gain_keys_left_out_take_defaults(self) -> None:
        gain = flag("{policy: {quality_gain: {max_cost_uplift: 0.5}}}").policy.quality_gain
        assert gain == QualityGain(max_cost_uplift=0.5)

    def test_durations_come_out_in_ms(self) -> None:
        window = flag("{window: {length: 1h, settle: 0s}}").window
        assert (window.length_ms, window.settle_ms) == (3_600_000, 0)

    def test_numbers_may_be_whole_or_have_an_exponent(self) -> None:
        gates = flag("{gates: {error_rate_max: 1e-3, cost_uplift_max: 1}}").gates
        assert (gates.error_rate_max, gates.cost_uplift_max) == (0.001, 1.0)

    def test_aliases_and_merge_keys_are_read_as_yaml_has_them(self) -> None:
        text = """
        flags:
          a: &a {window: {length: 1h}, gates: &g {error_rate_max: 0.001, coverage_min: 0.8}}
          b: {<<: *a, gates: {<<: [*g, {coverage_min: 0.9, cost_uplift_max: 0.05}]}}
        """
        a, b = load_manifest(text).flags.values()
        assert (a.name, b.name) == ("a", "b")
        assert b.window == a.window
        assert (b.gates.error_rate_max, b.gates.coverage_min) == (0.001, 0.8)
        assert b.gates.cost_uplift_max == 0.05

    def test_flags_keep_file_order(self) -> None:
        assert list(load_manifest("flags: {b: {}, a: {}, c: {}}").flags) == ["b", "a", "c"]

    def test_a_byte_order_mark_is_no_fault(self) -> None:
        assert load_manifest(b"\xef\xbb\xbfflags: {x: {}}").flags["x"].name == "x"


class TestRelaxed:
    @pytest.mark.parametrize(
        ("body", "ids"),
        [
            ("{gates: {delta_s: {p95_max: 0.12}}}", ("delta_s.p95_max",)),
            ("{gates: {delta_s: null}}", ("delta_s.median_max", "delta_s.p95_max")),
            ("{gates: {coverage_min: 0.65, tool_success_min: 0.9}}",
             ("coverage_min", "tool_success_min")),
            ("{gates: {coverage_min: 0.75, error_rate_max: 0, tool_success_min: 1}}", ()),
            ("{gates: {lambda_convergent: false}}", ("lambda_convergent",)),
            ("{gates: {cost_uplift_max: 0.2}}",
             ("cost_per_solved_over_budget", "cost_uplift_max")),
            ("{gates: {latency_p95_uplift_max: null}}",
             ("latency_p95_over_budget", "latency_p95_uplift_max")),
            ("{abort_rules: {hard: []}}",
             ("coverage_under", "delta_s_p95_over", "error_rate_over", "lambda_flip_rate_over")),
            ("{abort_rules: {soft: [{kind: latency_p95_over_budget, value: 0.2}]}}",
             ("cost_per_solved_over_budget", "latency_p95_over_budget")),
        ],
    )  # fmt: skip
    def test_lists_what_is_looser_than_the_page(self, body: str, ids: tuple[str, ...]) -> None:
        assert flag(body).relaxed == ids

    @pytest.mark.parametrize(
        ("kind", "stricter", "looser"),
        [
            ("delta_s_p95_over", 0.10, 0.16),
            ("coverage_under", 0.65, 0.55),
            ("lambda_flip_rate_over", 0.0, 0.21),
            ("error_rate_over", 0.005, 0.011),
        ],
    )
    def test_a_hard_rule_is_looser_in_the_direction_that_fires_later(
        self, kind: str, stricter: float, looser: float
    ) -> None:
        def hard(value: float) -> dict[str, Any]:
            rules = [rule.model_dump() for rule in PAGE.abort_rules.hard if rule.kind != kind]
            return {"abort_rules": {"hard": [*rules, {"kind": kind, "value": value}]}}

        assert flag(hard(stricter)).relaxed == ()
        assert flag(hard(looser)).relaxed == (kind,)


def test_unpinned_is_empty_once_all_six_pins_are_named() -> None:
    assert flag({"versions": dict.fromkeys(PINS, "v1")}).unpinned == ()
    assert flag("{}").unpinned == PINS


class TestDurations:
    @pytest.mark.parametrize(
        ("text", "ms"),
        [("500ms", 500), ("90s", 90_000), ("15m", 900_000), ("1h", 3_600_000), ("1d", 86_400_000),
         ("0s", 0), ("366d", 366 * 86_400_000)],
    )  # fmt: skip
    def test_are_a_whole_number_and_a_unit(self, text: str, ms: int) -> None:
        assert parse_duration(text) == ms

    @pytest.mark.parametrize("text", ["", "15", "m", "-1s", "1.5h", "1 h", "15M", "١٥m", "1w", "367d", "9" * 400 + "s"])
    def test_are_nothing_else(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"; write .*"):
            parse_duration(text)

    def test_a_bare_number_is_told_its_unit(self) -> None:
        for bare in (15, "15"):
            with pytest.raises(ValueError, match="write a whole number with a unit, such as 15s"):
                parse_duration(bare)


def nest(path: str, value: str) -> str:
    """The block YAML of one value at a path below flag x."""
    lines = ["flags:", "  x:"]
    for depth, key in enumerate(path.split("."), start=2):
        lines.append("  " * depth + f"{key}:")
    return "\n".join(lines) + f" {value}\n"


HARD = "abort_rules.hard"
SOFT = "abort_rules.soft"

AT_ONE_KEY = [
    # below flags.x; its value; the path that is named below flags.x; what the way out says
    ("gate", "{}", "gate", "did you mean gates?"),
    ("name", "y", "name", "use one of kind, scope, versions"),
    ("owner", "me", "owner", "use one of kind"),
    ("scope.tenant", "[a]", "scope.tenant", "did you mean tenants?"),
    ("traffic.canary_wieght", "0.1", "traffic.canary_wieght", "did you mean canary_weight?"),
    ("window.length_ms", "1000", "window.length_ms", "did you mean length?"),
    ("gates.coverage_mim", "0.7", "gates.coverage_mim", "did you mean coverage_min?"),
    ("gates.delta_s.p59_max", "0.1", "gates.delta_s.p59_max", "did you mean p95_max?"),
    ("abort_rules.hrad", "[]", "abort_rules.hrad", "did you mean hard?"),
    ("policy.on_gate_fails", "hold", "policy.on_gate_fails", "did you mean on_gate_fail?"),
    ("policy.quality_gain.max", "1", "policy.quality_gain.max", "use one of max_cost_uplift"),
    (HARD, "[{kind: coverage_under, value: 0.6, vlaue: 1}]", f"{HARD}[0].vlaue", "mean value?"),
    (HARD, "[{kind: error_rate_ovr, value: 0.1}]", f"{HARD}[0].kind", "mean error_rate_over?"),
    (HARD, "[{kind: error_rate_ovr}]", f"{HARD}[0].kind", "did you mean error_rate_over?"),
    (HARD, "[{kind: latency_p95_over_budget, value: 1}]", f"{HARD}[0].kind", "move it to soft"),
    (SOFT, "[{kind: coverage_under}]", f"{SOFT}[0].kind", "move it to hard"),
    (SOFT, "[{kind: costs}]", f"{SOFT}[0].kind", "use one of latency_p95_over_budget, cost_per"),
    (SOFT, "[{}]", f"{SOFT}[0].kind", "write kind: and one of latency_p95_over_budget"),
    (HARD, "[{kind: coverage_under}]", f"{HARD}[0].value", "write value: 0.6, the page's"),
    (HARD, "[{kind: coverage_under, value: null}]", f"{HARD}[0].value", "write digits"),
    (HARD, "[{kind: coverage_under, value: 0.5}, {kind: coverage_under, value: 0.6}]",
     f"{HARD}[1].kind", "keep one rule of a kind"),
    (SOFT, "[{kind: latency_p95_over_budget}, {kind: latency_p95_over_budget}]",
     f"{SOFT}[1].kind", "keep one rule of a kind"),
    (HARD, "[{kind: coverage_under, value: 1.1}]", f"{HARD}[0].value", "a value from 0 to 1"),
    (HARD, "[{kind: delta_s_p95_over, value: 2.1}]", f"{HARD}[0].value", "a value from 0 to 2"),
    (HARD, "[{kind: coverage_under, value: .nan}]", f"{HARD}[0].value", "a finite number"),
    (HARD, "[{kind: delta_s_p95_over, value: 0.09}]", f"{HARD}[0].value", "at least 0.1"),
    (HARD, "[{kind: error_rate_over, value: 0.004}]", f"{HARD}[0].value", "at least 0.005"),
    (HARD, "[{kind: coverage_under, value: 0.71}]", f"{HARD}[0].value", "at most 0.7"),
    (SOFT, "[{kind: latency_p95_over_budget, value: 0.1}]", f"{SOFT}[0].value", "least 0.15"),
    (SOFT, "[{kind: latency_p95_over_budget, value: -1}]", f"{SOFT}[0].value", "at least 0"),
    (HARD, "null", HARD, "write [...]"),
    (HARD, "{kind: coverage_under, value: 0.5}", HARD, "write [...]"),
    (HARD, "[coverage_under]", f"{HARD}[0]", "write keys below it"),
    ("abort_rules", "null", "abort_rules", "{} for the defaults"),
    ("gates", "null", "gates", "{} for the defaults"),
    ("gates.error_rate_max", "0.02", "gates.error_rate_max", "error_rate_over to at least 0.02"),
    ("gates.coverage_min", "0.5", "gates.coverage_min", "coverage_under to at most 0.5"),
    ("gates.delta_s.p95_max", "0.2", "gates.delta_s.p95_max", "delta_s_p95_over to at least 0.2"),
    ("gates.delta_s.p95_max", "2.1", "gates.delta_s.p95_max", "at most 2"),
    ("gates.delta_s.median_max", "-0.1", "gates.delta_s.median_max", "at least 0"),
    ("gates.delta_s", "false", "gates.delta_s", "write keys below it"),
    ("gates.coverage_min", '"0.7"', "gates.coverage_min", "without quotes"),
    ("gates.coverage_min", "true", "gates.coverage_min", "or null to turn the gate off"),
    ("gates.coverage_min", "off", "gates.coverage_min", "or null to turn the gate off"),
    ("gates.coverage_min", "70%", "gates.coverage_min", "or null to turn the gate off"),
    ("gates.coverage_min", "[0.7]", "gates.coverage_min", "or null to turn the gate off"),
    ("gates.coverage_min", "1.1", "gates.coverage_min", "at most 1"),
    ("gates.tool_success_min", "99", "gates.tool_success_min", "at most 1"),
    ("gates.error_rate_max", "-0.0001", "gates.error_rate_max", "at least 0"),
    ("gates.cost_uplift_max", ".inf", "gates.cost_uplift_max", "a finite number"),
    ("gates.cost_uplift_max", "1e999", "gates.cost_uplift_max", "a finite number"),
    ("gates.latency_p95_uplift_max", "-.1", "gates.latency_p95_uplift_max", "at least 0"),
    ("gates.lambda_convergent", '"true"', "gates.lambda_convergent", "write true or false"),
    ("gates.lambda_convergent", "1", "gates.lambda_convergent", "write true or false"),
    ("traffic.canary_weight", "1.5", "traffic.canary_weight", "at most 1"),
    ("traffic.baseline_weight", "-1", "traffic.baseline_weight", "at least 0"),
    ("traffic.canary_weight", "0", "traffic.canary_weight", "start above 0"),
    ("traffic", "{stages: [0, 1]}", "traffic.canary_weight", "start above 0"),
    ("traffic", "{canary_weight: 0.1, baseline_weight: 0.95}", "traffic.canary_weight",
     "write canary_weight: 0.05"),
    ("traffic", "{canary_weight: 0.1, stages: [0.05, 1]}", "traffic.stages[0]", "start the stages"),
    ("traffic", "{baseline_weight: 0.95, stages: [0.1]}", "traffic.stages[0]", "start the stages"),
    ("traffic.stages", "[0.05, 0.5, 0.5]", "traffic.stages[2]", "in rising order"),
    ("traffic.stages", "[0.05, 0.5, 0.25]", "traffic.stages[2]", "in rising order"),
    ("traffic.stages", "[0.05, 1.5]", "traffic.stages[1]", "at most 1"),
    ("traffic.stages", "[]", "traffic.stages", "list at least one, or leave the key out"),
    ("traffic.stages", "0.05", "traffic.stages", "write ["),
    ("traffic.shadow", "0", "traffic.shadow", "write true or false"),
    ("window.length", "15s", "window.length", "write length: 20s"),
    ("window.length", "0s", "window.length", "write length: 10s"),
    ("window.length", "900", "window.length", "a whole number with a unit, such as 900s"),
    ("window.length", "1.5h", "window.length", "a whole number with a unit"),
    ("window.length", "null", "window.length", "a whole number with a unit"),
    ("window.settle", "-1s", "window.settle", "a whole number with a unit"),
    ("window.hold_windows", "0", "window.hold_windows", "at least 1"),
    ("window.min_requests", "0", "window.min_requests", "at least 1"),
    ("window.min_requests", "20.0", "window.min_requests", "without quotes"),
    ("window.min_requests", "true", "window.min_requests", "without quotes"),
    ("window.min_requests", "9" * 40, "window.min_requests", "at most 1000000000"),
    ("window.min_lambda_groups", "0", "window.min_lambda_groups", "at least 1"),
    ("window.late_max", "1.01", "window.late_max", "at most 1"),
    ("policy.early_abort_alpha", "0", "policy.early_abort_alpha", "above 0"),
    ("policy.early_abort_alpha", "0.51", "policy.early_abort_alpha", "at most 0.5"),
    ("policy", "{early_abort_alpha: 0.05, false_stop: 0.05}", "policy.early_abort_alpha", "keep one"),
    ("policy.false_stop", "0", "policy.false_stop", "above 0"),
    ("policy.wrong_promote", "0.6", "policy.wrong_promote", "at most 0.5"),
    ("policy.evidence", "sequental", "policy.evidence", "did you mean sequential?"),
    ("policy.design_effect", "0.9", "policy.design_effect", "at least 1"),
    ("policy.patience", "7", "policy.patience", "a whole number with a unit, such as 7s"),
    ("policy.rule_out", "{error_rate: 0.005}", "policy.rule_out.error_rate", "above 0.005"),
    ("policy.rule_out", "{tool_success: 0.995}", "policy.rule_out.tool_success", "below 0.99"),
    ("policy.rule_out", "{coverage: 0.7}", "policy.rule_out.coverage", "below 0.7"),
    ("policy.rule_out", "{lambda_flip_rate: 0}", "policy.rule_out.lambda_flip_rate", "above 0"),
    ("policy.rule_out", "{delta_s_p95: 3}", "policy.rule_out.delta_s_p95", "at most 2"),
    ("policy.rule_out", "{error_rate: null}", "policy.rule_out.error_rate", "or leave it out"),
    ("policy.rule_out", "{cost_uplft: 0.2}", "policy.rule_out.cost_uplft", "did you mean cost_uplift?"),
    ("policy.sticky_violations_max", "-1", "policy.sticky_violations_max", "at least 0"),
    ("policy.on_gate_fail", "off", "policy.on_gate_fail", "use one of rollback, hold"),
    ("policy.quality_gain", "true", "policy.quality_gain", "write keys below it"),
    ("policy.quality_source", "golden", "policy.quality_source", "did you mean gold?"),
    ("kind", "killswitch", "kind", "did you mean kill_switch?"),
    ("kind", "[kill_switch]", "kind", "use one of kill_switch"),
    ("scope.regions", "us-east-1", "scope.regions", 'write ["us-east-1"]'),
    ("scope.regions", "[]", "scope.regions", "list at least one"),
    ("scope.regions", '[""]', "scope.regions[0]", "write something"),
    ("scope.regions", "[1]", "scope.regions[0]", 'quote it: "1"'),
    ("scope.regions", "[!!binary aGk=]", "scope.regions[0]", "quote it"),
    ("scope.regions", "[a, b, a]", "scope.regions[2]", "remove one"),
    ("scope.regions", "[all, a]", "scope.regions", 'keep either ["all"] or the ids'),
    ("scope.regions", "{a: b}", "scope.regions", "write ["),
    ("versions.MODEL_VER", "1.10", "versions.MODEL_VER", 'quote it: "1.10"'),
    ("versions.MODEL_VER", "2025-07-15", "versions.MODEL_VER", 'quote it: "2025-07-15"'),
    ("versions.MODEL_VER", "2025-13-45", "versions.MODEL_VER", "text in quotes"),
    ("versions.MODEL_VER", "off", "versions.MODEL_VER", 'quote it: "off"'),
    ("versions.MODEL_VER", "", "versions.MODEL_VER", "write text in quotes"),
    ("versions.MODEL_VER", '""', "versions.MODEL_VER", "write something"),
    ("versions.MODEL_VER", '"\\ud800"', "versions.MODEL_VER", "text in quotes"),
    ("versions.1", "a", "versions.1", 'quote it: "1"'),
    ("versions", "[a]", "versions", "write keys below it"),
    ("versions", "!odd {a: b}", "versions", "take it away"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "named", "way_out"), AT_ONE_KEY)
def test_a_wrong_value_is_refused_with_its_path_and_the_way_out(
    path: str, value: str, named: str, way_out: str
) -> None:
    error = refusal(nest(path, value))
    assert error.path == f"flags.x.{named}"
    assert way_out in error.fix


AS_A_WHOLE = [
    ("", "manifest", "write flags:"),
    ("# nothing\n", "manifest", "write flags:"),
    ("null", "manifest", "write flags:"),
    ("{}", "flags", "write flags:"),
    ("flags: {}", "flags", "write flags:"),
    ("flags:", "flags", "write flags:"),
    ("flags: []", "flags", "write flags:"),
    ("flags: [a]", "flags", "write keys below it"),
    ("- flags", "manifest", "write keys below it"),
    ("flags", "manifest", "write keys below it"),
    ("flag: {x: {}}", "flag", "did you mean flags?"),
    ("flags: {x: }", "flags.x", "{} for the defaults"),
    ('flags: {"": {}}', 'flags.""', "rename the flag"),
    ('flags: {" ": {}}', "flags. ", "rename the flag"),
    ("flags: {a|b: {}}", "flags.a|b", "rename the flag"),
    ('flags: {"a\\nb": {}}', r'flags."a\nb"', "rename the flag"),
    ("flags: {1: {}}", "flags.1", 'quote it: "1"'),
    ("flags: {off: {}}", "flags.off", 'quote it: "off"'),
    ("flags: {[a]: {}}", "flags.?", "write text"),
    ("flags: &a {x: *a}", "flags.x", "write the value out"),
    ("flags: {x: {<<: 1}}", "flags.x.<<", "merge an alias"),
    ("flags: {x: {}, y: *nobody}", "manifest", "mend line 1"),
    ("flags:\n  x: [", "manifest", "mend line 2"),
    ("flags: {x: {}}\n---\nflags: {}", "manifest", "mend line 2"),
    ("\tflags: {}", "manifest", "mend line 1"),
    ("flags: \x00", "manifest", "remove"),
    ('flags: "\\UFFFFFFFF"', "manifest", "remove"),
    (b"flags: \xff", "manifest", "save the file as UTF-8"),
    ("[" * 1000, "manifest", "at most six levels"),
]


@pytest.mark.parametrize(("text", "path", "way_out"), AS_A_WHOLE)
def test_a_text_that_is_no_manifest_is_refused(text: str | bytes, path: str, way_out: str) -> None:
    error = refusal(text)
    assert error.path == path
    assert way_out in error.fix


def test_a_duplicate_key_names_its_path_and_both_lines() -> None:
    text = "flags:\n  x:\n    gates:\n      coverage_min: 0.7\n      coverage_min: 0.8\n"
    error = refusal(text)
    assert error.path == "flags.x.gates.coverage_min"
    assert "line 5" in error.problem
    assert "line 4" in error.problem
    assert refusal("flags: {x: {}, x: {}}").path == "flags.x"
    assert refusal("flags: {x: {}}\nflags: {y: {}}").path == "flags"


def test_the_first_fault_in_file_order_is_the_one_named() -> None:
    faults = ["kind: odd", "gates: {coverage_min: 2}", "versions: {A: 1}", "window: {length: 15s}",
              "policy: {x: 1, on_pin_drift: hold, on_pin_drift: hold}"]  # fmt: skip
    paths = ["kind", "gates.coverage_min", "versions.A", "window.length", "policy.x"]
    for i in range(len(faults)):
        turned = faults[i:] + faults[:i]
        error = refusal("flags: {x: {" + ", ".join(turned) + "}}")
        assert error.path == f"flags.x.{paths[i]}"


def test_a_window_is_measured_against_the_worker_s_pane() -> None:
    assert flag("{window: {length: 15s}}", pane_ms=5_000).window.length_ms == 15_000
    assert refusal("flags: {x: {}}", pane_ms=7_000).fix == "write length: 903s"


def test_aliases_that_multiply_are_read_in_no_time() -> None:
    """The billion laughs: 10**30 entries if every alias were copied out."""
    levels = ["  l0: &l0 {k: v}"]
    levels += [f"  l{i}: &l{i} {{<<: [{f'*l{i - 1}, ' * 10}]}}" for i in range(1, 30)]
    assert refusal("flags:\n" + "\n".join(levels)).path == "flags.l0.k"


class TestReadManifest:
    def test_a_missing_file_and_a_folder_are_manifest_errors(self, tmp_path: Path) -> None:
        for path in (tmp_path / "none.yml", tmp_path, "a\0b"):
            with pytest.raises(ManifestError, match="cannot be read") as caught:
                read_manifest(path)
            assert caught.value.path == str(path)

    def test_the_file_is_named_where_no_yaml_path_can_be(self, tmp_path: Path) -> None:
        file = tmp_path / "m.yml"
        file.write_text("flags: [")
        with pytest.raises(ManifestError, match=re.escape(f"{file}: not valid YAML")):
            read_manifest(file)


class TestHash:
    def test_is_sha256_over_the_canonical_json_of_the_resolved_flag(self) -> None:
        (page,) = read_manifest(PAGE_YAML).flags.values()
        digest = hashlib.sha256(canonical(page.resolved())).hexdigest()
        assert page.manifest_hash == f"sha256:{digest}"

    def test_of_the_page_is_what_consumers_have_stored(self) -> None:
        """A change here forks the history of every unit: it needs a line in the change log."""
        (page,) = read_manifest(PAGE_YAML).flags.values()
        assert page.manifest_hash == ("sha256:526c8e213d806921050d20d9c9a06919a0d017f0e7e1db7d27f2ed4a8b99b83c")

    def test_ignores_comments_key_order_and_spelled_out_defaults(self) -> None:
        (page,) = read_manifest(PAGE_YAML).flags.values()
        body = yaml.safe_load(PAGE_YAML.read_text())
        turned = yaml.safe_dump(body, sort_keys=True)
        assert load_manifest(turned).flags[page.name].manifest_hash == page.manifest_hash
        (flag_body,) = body["flags"].values()
        for key in ("traffic", "gates", "abort_rules"):
            del flag_body[key]
        short = yaml.safe_dump(body)
        assert load_manifest(short).flags[page.name].manifest_hash == page.manifest_hash
        flag_body |= {
            "kind": "progressive_rollout",
            "window": {"length": "900s", "min_requests": 20},
            "traffic": {"stages": [0.05, 0.25, 0.5, 1]},
            "abort_rules": {"soft": [
                {"kind": "latency_p95_over_budget", "value": 0.15},
                {"kind": "cost_per_solved_over_budget"},
            ]},
            "policy": {"quality_gain": {"coverage_gain": 0.05}},
        }  # fmt: skip
        spelled = yaml.safe_dump(body)
        assert load_manifest(spelled).flags[page.name].manifest_hash == page.manifest_hash

    def test_takes_the_flag_s_name_and_every_value_in(self) -> None:
        bodies = ["{}", "{kind: cost_guard}", "{scope: {regions: [eu]}}", "{versions: {A: b}}",
                  "{baseline_versions: {A: b}}", "{traffic: {shadow: true}}",
                  "{window: {settle: 0s}}", "{gates: {coverage_min: 0.8}}",
                  "{abort_rules: {soft: []}}", "{policy: {assignment: sha256}}"]  # fmt: skip
        hashes = {flag(body).manifest_hash for body in bodies}
        hashes.add(load_manifest("flags: {y: {}}").flags["y"].manifest_hash)
        assert len(hashes) == len(bodies) + 1


def as_written(resolved: dict[str, Any]) -> dict[str, Any]:
    """A resolved flag in the manifest's own syntax."""
    body = {key: value for key, value in resolved.items() if key != "name"}
    for section in ("window", "policy"):
        body[section] = {
            key.removesuffix("_ms"): f"{value}ms" if key.endswith("_ms") else value
            for key, value in body[section].items()
        }
    if body["policy"]["quality_gain"] is None:
        body["policy"] = body["policy"] | {"quality_gain": "off"}
    return body


shares = st.floats(0, 1)
uplifts = st.floats(0, 1e6)
ids = st.lists(st.sampled_from(["a", "b", "€", "x y"]), min_size=1, unique=True)
pins = st.dictionaries(st.sampled_from(PINS), st.text("ab.€ 1", min_size=1))


def optional(**keys: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=keys)


def _all_traffic(traffic: dict[str, Any]) -> bool:
    """Whether the first stage leaves none for a baseline, which no quality gate may."""
    first = traffic.get("stages", [traffic.get("canary_weight", 0)])[0]
    return bool(first >= 1 or traffic.get("baseline_weight", 1) < 1e-9)


bodies = optional(
    kind=st.sampled_from(["progressive_rollout", "quality_gated", "cost_guard", "kill_switch"]),
    scope=optional(tenants=ids, regions=ids, cohorts=ids),
    versions=pins,
    baseline_versions=pins,
    traffic=st.one_of(
        st.builds(lambda w: {"canary_weight": w}, st.floats(0.001, 1)),
        st.builds(lambda w: {"baseline_weight": w}, st.floats(0, 0.9)),
        st.builds(
            lambda s, shadow: {"stages": sorted(s), "shadow": shadow},
            st.lists(st.floats(0.001, 1), min_size=1, unique=True),
            st.booleans(),
        ),
    ),
    window=optional(
        length=st.integers(1, 1000).map(lambda n: f"{n * 10}s"),
        settle=st.integers(0, 10**6).map(lambda n: f"{n}ms"),
        hold_windows=st.integers(1, 9),
        min_requests=st.integers(1, 10**9),
        late_max=shares,
    ),
    gates=optional(
        delta_s=st.none() | optional(median_max=st.floats(0, 2), p95_max=st.none()),
        coverage_min=st.none() | st.floats(0.6, 1),
        lambda_convergent=st.booleans() | st.none(),
        latency_p95_uplift_max=st.none() | uplifts,
        error_rate_max=st.none() | st.floats(0, 0.01),
        tool_success_min=st.none() | shares,
        cost_uplift_max=st.none() | uplifts,
    ),
    abort_rules=optional(
        hard=st.just([]) | st.just([{"kind": "lambda_flip_rate_over", "value": 0.5}]),
        soft=st.just([]) | st.just([{"kind": "cost_per_solved_over_budget", "value": 1e6}]),
    ),
    policy=optional(
        on_gate_fail=st.sampled_from(["rollback", "hold"]),
        quality_gain=st.just(False) | optional(max_cost_uplift=uplifts, coverage_gain=shares),
        early_abort_alpha=st.floats(1e-300, 0.5),
        evidence=st.sampled_from(["sequential", "point"]),
        design_effect=st.floats(1, 1e6),
        patience=st.integers(0, 10**9).map(lambda n: f"{n}ms"),
        rule_out=optional(delta_s_median=st.just(2.0), lambda_flip_rate=st.floats(0.01, 1)),
    ),
).filter(lambda body: body.get("kind") != "quality_gated" or not _all_traffic(body.get("traffic", {})))


@given(bodies)
def test_a_resolved_flag_written_out_and_loaded_again_is_the_same_flag(
    body: dict[str, Any],
) -> None:
    first = load_manifest(yaml.safe_dump({"flags": {"x": body}})).flags["x"]
    text = yaml.safe_dump({"flags": {"x": as_written(first.resolved())}}, allow_unicode=True)
    again = load_manifest(text).flags["x"]
    assert again.manifest_hash == first.manifest_hash
    assert again.relaxed == first.relaxed
    kept = Flag.from_resolved(json.loads(canonical(first.resolved())))
    assert (kept.name, kept.manifest_hash) == ("x", first.manifest_hash)


def assert_answered(text: str | bytes) -> None:
    try:
        assert isinstance(load_manifest(text), Manifest)
    except ManifestError as error:
        refused = error
    else:
        return
    assert len(str(refused).splitlines()) == 1
    assert all((refused.path, refused.problem, refused.fix))


WORDS = """flags x gates scope tenants traffic window length 15m 1e-3 .nan .inf off ~ null true 0x 0b2
2025-13-45 12:30:45 !!int !!float !!binary !!timestamp !!set !!omap !!python/name:os.x &a *a <<
: - [ ] { } , ? | > " ' # % @ = \t --- ... abort_rules hard soft kind value coverage_under 0.5
stages quality_gain delta_s versions "\\ud800" 9999999999999999999999"""
words = st.sampled_from(WORDS.split())
soups = st.lists(words | st.sampled_from(["\n", " ", "  "]), max_size=40).map(" ".join)


@given(st.text() | st.binary() | soups)
@example("!!timestamp x")
@example("!!bool x")
@example("!!int ''")
@example("flags: {x: !!python/object/apply:os.system [true]}")
@example("x: 0x" + "f" * 9000)
@example("? - a")
@example("? {a: b}\n: c")
@example("%YAML " + "9" * 5000 + ".1\n--- a")
def test_garbage_is_a_manifest_or_one_line_of_refusal(text: str | bytes) -> None:
    assert_answered(text)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEYS = ["kind", "scope", "versions", "traffic", "window", "gates", "abort_rules", "policy"]
INNER = ["tenants", "canary_weight", "stages", "length", "delta_s", "coverage_min", "hard", "soft"]


@given(
    st.dictionaries(
        st.sampled_from(KEYS),
        plain | st.dictionaries(st.sampled_from([*INNER, "quality_gain", "late_max"]), plain),
        min_size=1,
    )
)
def test_any_value_at_any_key_is_a_manifest_or_one_line_of_refusal(body: dict[str, Any]) -> None:
    assert_answered(yaml.safe_dump({"flags": {"x": body}}))


class TestFreezeWindows:
    """A change-freeze calendar for all flags of a manifest."""

    @staticmethod
    def calendar(text: str, name: str = "x") -> Flag:
        return load_manifest(f"freeze_windows: {text}\nflags: {{{name}: {{}}}}").flags[name]

    @pytest.mark.parametrize(
        ("written", "start"),
        [
            ('"2026-12-24T00:00:00Z"', 1_798_070_400_000),
            ("2026-12-24T00:00:00Z", 1_798_070_400_000),
            ('"2026-12-24T00:00:00+01:00"', 1_798_066_800_000),
            ("2026-12-24T00:00:00+01:00", 1_798_066_800_000),
            ('"2026-12-24T00:00:00.250-00:30"', 1_798_072_200_250),
            ("2026-12-24 00:00:00 Z", 1_798_070_400_000),
        ],
    )
    def test_a_time_with_its_offset_comes_out_in_ms(self, written: str, start: int) -> None:
        """Quoted or as YAML has it."""
        window = self.calendar(f'[{{from: {written}, to: "2027-01-02T00:00:00Z", reason: r}}]').frozen_at(start)
        assert window is not None
        assert (window.start, window.end) == (start, 1_798_848_000_000)

    def test_a_freeze_lasts_from_its_start_up_to_its_end(self) -> None:
        """``to`` is exclusive; outside there is none, and of several the first in the file is the one."""
        flag = self.calendar(
            "[{from: 1970-01-01T00:00:01Z, to: 1970-01-01T00:00:03Z, reason: one, by: ada},"
            " {from: 1970-01-01T00:00:02Z, to: 1970-01-01T00:00:04Z, reason: two}]"
        )
        reasons = {ts: window and window.reason for ts in (999, 1_000, 2_999, 3_000, 3_999, 4_000)
                   for window in [flag.frozen_at(ts)]}  # fmt: skip
        assert reasons == {999: None, 1_000: "one", 2_999: "one", 3_000: "two", 3_999: "two", 4_000: None}
        first, second = flag.frozen_at(1_000), flag.frozen_at(3_000)
        assert first is not None
        assert second is not None
        assert (first.by, second.by) == ("ada", None)

    def test_it_holds_for_every_flag_of_the_manifest(self) -> None:
        window = "{from: 1970-01-01T00:00:00Z, to: 1970-01-01T00:00:01Z, reason: r}"
        manifest = load_manifest(f"flags: {{a: {{}}, b: {{}}}}\nfreeze_windows: [{window}]")
        assert all(flag.frozen_at(0) for flag in manifest.flags.values())

    def test_none_is_the_default_and_an_empty_list_says_the_same(self) -> None:
        """An empty calendar does not change what a flag is."""
        assert flag("{}").frozen_at(0) is None
        assert self.calendar("[]").manifest_hash == flag("{}").manifest_hash

    def test_a_calendar_is_no_part_of_what_a_flag_is(self) -> None:
        """``manifest_hash`` is over the resolved flag, without freezes: a new freeze starts no rollout over."""
        window = '{{from: {}, to: "2027-01-02T00:00:00Z", reason: {}}}'
        one = self.calendar(f"[{window.format('2026-12-24T00:00:00Z', 'r')}]")
        assert one.manifest_hash == flag("{}").manifest_hash
        frozen = one.frozen_at(1_798_070_400_000)
        assert frozen is not None
        assert (frozen.start, frozen.end, frozen.reason, frozen.by) == (1_798_070_400_000, 1_798_848_000_000, "r", None)

    @pytest.mark.parametrize(
        ("window", "path", "way_out"),
        [
            ("{}", "[0].from", "write from: beside the others"),
            ("{from: 2026-12-24T00:00:00Z, to: 2027-01-02T00:00:00Z}", "[0].reason", "write reason:"),
            ("{from: 2026-12-24T00:00:00Z, reason: r}", "[0].to", "write to:"),
            ("{from: 2026-12-24, to: 2027-01-02T00:00:00Z, reason: r}", "[0].from", "2026-12-24T00:00:00Z"),
            ('{from: "2026-12-24T00:00:00", to: 2027-01-02T00:00:00Z, reason: r}', "[0].from", "write it like"),
            ("{from: 2026-12-24 00:00:00, to: 2027-01-02T00:00:00Z, reason: r}", "[0].from", "write it like"),
            ("{from: tomorrow, to: 2027-01-02T00:00:00Z, reason: r}", "[0].from", "write it like"),
            ("{from: 1798070400000, to: 2027-01-02T00:00:00Z, reason: r}", "[0].from", "write it like"),
            ("{from: 2026-12-24T00:00:00Z, to: null, reason: r}", "[0].to", "write it like"),
            ("{from: 2027-01-02T00:00:00Z, to: 2026-12-24T00:00:00Z, reason: r}", "[0].to", "a later time"),
            ("{from: 2027-01-02T00:00:00Z, to: 2027-01-02T00:00:00Z, reason: r}", "[0].to", "a later time"),
            ('{from: 2026-12-24T00:00:00Z, to: 2027-01-02T00:00:00Z, reason: ""}', "[0].reason", "write something"),
            ("{from: 2026-12-24T00:00:00Z, to: 2027-01-02T00:00:00Z, reason: 7}", "[0].reason", 'quote it: "7"'),
            (
                "{from: 2026-12-24T00:00:00Z, until: 2027-01-02T00:00:00Z, reason: r}",
                "[0].until",
                "use one of from, to",
            ),
            ("{start: 2026-12-24T00:00:00Z, to: 2027-01-02T00:00:00Z, reason: r}", "[0].start", "use one of"),
            ("December", "[0]", "write keys below it"),
        ],
    )
    def test_a_wrong_window_is_refused_with_its_path_and_the_way_out(
        self, window: str, path: str, way_out: str
    ) -> None:
        """A freeze that is silently ignored would be as bad as a rule."""
        error = refusal(f"freeze_windows: [{window}]\nflags: {{x: {{}}}}")
        assert error.path == f"freeze_windows{path}"
        assert way_out in error.fix

    @pytest.mark.parametrize("text", ["null", "{}", "{from: a}", "yes", "5"])
    def test_what_is_no_list_is_refused(self, text: str) -> None:
        error = refusal(f"freeze_windows: {text}\nflags: {{x: {{}}}}")
        assert (error.path, error.fix) == ("freeze_windows", "write [...]")

    def test_a_freeze_belongs_beside_the_flags_and_not_into_one(self) -> None:
        """It is for all flags of the manifest."""
        assert refusal("flags: {x: {freeze_windows: []}}").path == "flags.x.freeze_windows"

    @given(st.dictionaries(st.sampled_from(["from", "to", "reason", "by"]), st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.datetimes(), st.dates(),
        st.datetimes(timezones=st.timezones()),
    )))  # fmt: skip
    def test_any_value_at_any_key_is_a_manifest_or_one_line_of_refusal(self, window: dict[str, Any]) -> None:
        text = yaml.safe_dump({"freeze_windows": [window], "flags": {"x": {}}}, default_flow_style=True)
        assert_answered(text)
