"""Decisions that a flag can never reach, and harm it can never see, whatever its telemetry says."""

from collections.abc import Iterator

from tidegate.gates.power import judged_gates, kind_gates
from tidegate.gates.verdict import to_pass
from tidegate.schemas.catalogue import GUARDS
from tidegate.schemas.manifest import DEFAULT_STAGES, PAGE, Flag

KIND_WORDS = {
    "progressive_rollout": "a rollout",
    "quality_gated": "a quality gate",
    "cost_guard": "a cost guard",
    "safety_guard": "a safety guard",
    "kill_switch": "a kill switch",
}
P95_ROWS = 20
"""With fewer rows than this a p95 is close to their largest."""
ALPHA_MAX = 0.1
"""A chance of an early abort of a healthy canary above which it is worth a remark."""
_P95_GATES = frozenset({"delta_s.p95_max", "latency_p95_uplift_max"})
_EXTREMES = {
    "delta_s.median_max": 2.0,
    "delta_s.p95_max": 2.0,
    "coverage_min": 0.0,
    "error_rate_max": 1.0,
    "tool_success_min": 0.0,
    "delta_s_p95_over": 2.0,
    "coverage_under": 0.0,
    "lambda_flip_rate_over": 1.0,
    "error_rate_over": 1.0,
}
"""Limits that no value can be beyond."""


def remarks(flag: Flag) -> list[str]:
    """Return remarks on a flag before anything has been measured: a line each, with the way out."""
    found = [*stuck(flag), *_stages(flag), *_gates(flag), *_unread(flag)]
    if flag.kind != "kill_switch":
        found += [*_rules(flag), *_evidence(flag)]
    return found


def probes_wanted(flag: Flag) -> str | None:
    """Say which probes λ needs, and how to do without; None where nothing waits for it."""
    if "lambda_convergent" not in judged_gates(flag) or flag.policy.lambda_source != "probes":
        return None
    settle = ""
    if flag.kind == "progressive_rollout" and flag.policy.evidence == "sequential":
        groups = next(takes.rows for takes in to_pass(flag) if takes.gate == "lambda_convergent")
        settle = "" if groups is None else f" ({groups:,} such groups without a flip are enough)"
    return (
        "lambda_convergent stays unknown, and holds every window, without probes: for each query_id send lambda_state "
        f"with paraphrase 1 to 3 and seed 1 to 2{settle}; or write gates.lambda_convergent: false, or "
        "policy.lambda_source: traffic to judge the lambda_state of every request"
    )


def stuck(flag: Flag) -> Iterator[str]:
    """Why a flag can never decide anything but to stay as it is, and the way out."""
    first = flag.traffic.stages[0]
    if flag.kind == "progressive_rollout" and first >= 1 and not flag.traffic.shadow:
        yield (
            "the first stage leaves no traffic for a baseline: it can never be judged; "
            "start lower, or set traffic.shadow: true"
        )
    if flag.kind == "cost_guard" and first >= 1:
        yield "at weight 1 no traffic is left for a baseline: it can never fall back; write less than 1"
    if flag.kind == "quality_gated" and flag.policy.quality_source == "traffic" and not flag.traffic.shadow:
        yield (
            "it never opens: while it is closed the canary serves nobody, and neither mirrored nor gold requests "
            "count; set traffic.shadow: true, or leave policy.quality_source out"
        )


def _stages(flag: Flag) -> Iterator[str]:
    stages, name = flag.traffic.stages, KIND_WORDS[flag.kind]
    first, last = stages[0], stages[-1]
    if flag.kind != "progressive_rollout":
        ramp = () if flag.kind == "kill_switch" else DEFAULT_STAGES
        defaults = (first, *(stage for stage in ramp if stage > first))
        if len(stages) > 1 and stages != defaults:
            yield f"{name} has no ramp: of traffic.stages only the first, {first:g}, is ever served"
        by_gold = flag.policy.quality_source != "traffic" and not flag.traffic.shadow
        if flag.kind == "quality_gated" and by_gold:
            yield (
                "while it is closed the canary serves nobody: it opens on gold requests of both arms alone; "
                "send them, or set traffic.shadow: true"
            )
        return
    if last < 1:
        yield f"the stages end at {last:g}: the canary never gets all traffic; end them at 1.0 if it is to"


def _gates(flag: Flag) -> Iterator[str]:
    limits, judged = flag.gates.limits(), judged_gates(flag)
    never = [gate for gate in judged if limits[gate] == _EXTREMES.get(gate)]
    if not kind_gates(flag.kind):
        return
    if not judged:
        yield {
            "progressive_rollout": "every gate is off: any canary with enough requests is promoted",
            "quality_gated": "ΔS, coverage and λ are all off: it opens for any canary with enough requests",
            "cost_guard": "gates.cost_uplift_max is off: it never falls back",
        }[flag.kind]
    if never:
        yield f"no value fails {', '.join(f'{gate} {limits[gate]:g}' for gate in never)}"


def _rules(flag: Flag) -> Iterator[str]:
    hard = flag.abort_rules.hard
    if flag.kind in GUARDS:
        if hard != PAGE.abort_rules.hard:
            yield f"hard rules never fire on {KIND_WORDS[flag.kind]}: abort_rules.hard guards nothing"
        return
    never = [f"{rule.kind} {rule.value:g}" for rule in hard if rule.value == _EXTREMES[rule.kind]]
    if never:
        yield f"no value is beyond {', '.join(never)}: that rule never fires"
    idle = [rule.kind for rule in flag.abort_rules.soft if rule.value is None]
    if idle and flag.kind == "progressive_rollout":
        yield f"the gate of {', '.join(idle)} is off and it has no value of its own: that rule never fires"
    closes = "closes the gate" if flag.kind == "quality_gated" else "aborts"
    if not hard:
        stays = flag.kind == "progressive_rollout" and flag.policy.on_gate_fail == "hold"
        more = ", and on_gate_fail: hold takes no canary back after one" if stays else ""
        yield f"there is no hard rule: nothing {closes} within a window{more}"
    alpha = flag.policy.false_stop
    if hard and alpha > ALPHA_MAX:
        verb = "closed" if flag.kind == "quality_gated" else "aborted"
        yield (
            f"false_stop {alpha:g}: up to one healthy canary in {1 / alpha:.3g} is {verb} within a window; "
            f"the default is {PAGE.policy.false_stop:g}"
        )


def _evidence(flag: Flag) -> Iterator[str]:
    window, least = flag.window, flag.window.min_requests
    if least == 1:
        yield "window.min_requests 1: a single request decides"
    elif least < P95_ROWS and _P95_GATES.intersection(judged_gates(flag)):
        yield f"window.min_requests {least}: the p95 of fewer than {P95_ROWS} requests is about their largest value"
    if window.late_max >= 1:
        yield "window.late_max 1: no share of late events makes a window unstable"
    if flag.policy.sticky_violation_share_max >= 1:
        yield "policy.sticky_violation_share_max 1: no share of ids that change arms is a sticky_violation"
    if flag.versions and flag.versions == flag.baseline_versions:
        yield "versions and baseline_versions are the same: there is nothing that the two arms differ in"


def _unread(flag: Flag) -> Iterator[str]:
    """Keys that are written and that the kind does not look at."""
    given = flag.model_fields_set
    if flag.kind == "kill_switch":
        unread = [key for key in given if key in ("window", "gates")]
        # What is worked out from gates and rules stands there in any case.
        if flag.policy.model_fields_set - {"rule_out"}:
            unread.append("policy")
        if flag.abort_rules != PAGE.abort_rules:
            unread.append("abort_rules")
        if unread:
            yield f"a kill switch measures nothing, and does not look at {', '.join(sorted(unread))}"
    if flag.traffic.shadow and flag.kind not in ("progressive_rollout", "quality_gated"):
        yield f"{KIND_WORDS[flag.kind]} reads no mirrored requests: traffic.shadow changes nothing"
    judged = kind_gates(flag.kind)
    if "gates" in given and flag.kind in ("safety_guard", "cost_guard", "quality_gated"):
        limits, page = flag.gates.limits(), PAGE.gates.limits()
        others = [gate for gate, limit in limits.items() if gate not in judged and limit != page[gate]]
        if others:
            yield f"{KIND_WORDS[flag.kind]} is not decided by {', '.join(others)}"
