"""The evidence that a hold still waits for, and the time it takes at the window's own rate."""

import math
from collections.abc import Iterator, Sequence

from tidegate.gates.metrics import LABELLED, MISSING_MAX, ArmMetrics
from tidegate.gates.power import judged_gates
from tidegate.gates.rules import QUALITY_GATES
from tidegate.gates.sequential import COST_LEAST
from tidegate.schemas.decision import Forecast, GateResult, Need, Problem
from tidegate.schemas.event import ArmName
from tidegate.schemas.manifest import Flag

SHARES = (
    "rows with delta_s",
    "rows with coverage",
    "rows with lambda_state",
    "requests with tool_ok",
    "requests with cost",
    "requests with cost and solved",
)
"""Needs that are a share of the window's rows: at the window's own rate that share stays too small."""


def forecast(
    flag: Flag,
    canary: ArmMetrics,
    baseline: ArmMetrics,
    gates: Sequence[GateResult],
    problems: Sequence[Problem],
    window_ms: int,
    *,
    pinned: bool = False,
) -> Forecast | None:
    """Return the rows missing before a held window could be decided; None if more requests would not help.

    They do not help a failed gate, an evidence problem other than too little data, or a gate that is unknown although
    nothing countable is missing. ``pinned``: the baseline is an earlier window's and grows no more. Of each kind of
    event the next ones are taken to come as often as those of this window, which is ``window_ms`` long; so there is
    no time to tell where none came, or where more than a small share of the rows lack a metric.
    """
    judged = [gate for gate in gates if gate.gate in judged_gates(flag)]
    if any(gate.status == "fail" for gate in judged) or not all(
        _too_few(found, staged=_staged(flag)) for found in problems
    ):
        return None
    reasons = ["insufficient_data"] if problems else []
    reasons += [gate.gate for gate in judged if gate.status == "unknown"]
    if flag.kind == "safety_guard" and canary.served["reason_rows"] < flag.window.min_requests:
        reasons.append("reason_status")
    needs: dict[tuple[str, str], Need] = {}
    for reason in reasons:
        unmet = [need for need in _needs(reason, flag, canary, baseline) if need.have < need.need]
        if not unmet or (pinned and any(need.arm == "baseline" for need in unmet)):
            return None
        for need in unmet:
            known = needs.setdefault((need.arm, need.what), need)
            if need.need > known.need:
                needs[need.arm, need.what] = need
    if not needs:
        return None
    listed = list(needs.values())
    if not all(need.have and need.what not in SHARES for need in listed):
        return Forecast(needs=listed, requests=None, minutes=None)
    rows = canary.rows + (0 if pinned else baseline.rows)
    return Forecast(
        needs=listed,
        requests=max(-(-(need.need - need.have) * rows // need.have) for need in listed),
        minutes=round(max((need.need - need.have) * window_ms / (need.have * 60_000) for need in listed), 1),
    )


def _staged(flag: Flag) -> bool:
    return flag.kind == "progressive_rollout" and flag.policy.evidence == "sequential"


def _too_few(found: Problem, *, staged: bool) -> bool:
    """Tell whether a problem is one of too little data.

    A window without any baseline is one, too; not in a stage, which leaves such a window out."""
    no_baseline = found.problem == "no_pinned_baseline" and found.detail.get("requests") == 0
    return found.problem == "insufficient_data" or (no_baseline and not staged)


def _needs(reason: str, flag: Flag, canary: ArmMetrics, baseline: ArmMetrics) -> Iterator[Need]:
    """Everything countable that a gate, or the window as a whole, has to have, met or not."""
    least, groups = flag.window.min_requests, flag.window.min_lambda_groups
    arms: tuple[tuple[ArmName, ArmMetrics], ...] = (("canary", canary), ("baseline", baseline))

    def need(arm: ArmName, what: str, have: int, enough: int) -> Need:
        return Need(reason=reason, arm=arm, what=what, have=have, need=enough)

    def share(arm: ArmName, what: str, have: int, rows: int) -> Need:
        return need(arm, what, have, _present(rows))

    if reason == "reason_status":
        yield need("canary", "requests with reason_status", canary.served["reason_rows"], least)
        return
    labelled = _by_labels(reason, flag, canary, baseline)
    for name, arm in arms:
        if reason in QUALITY_GATES:
            if labelled:
                metric, field = METRIC_FIELDS.get(reason, ("delta_s", "delta_s"))
                yield need(name, f"labels with {field}", LABELLED[metric](arm.labels), least)
            else:
                yield need(name, _source_rows(flag, name, canary, baseline), arm.quality_rows, least)
        # A safety guard reads the canary alone.
        elif name == "canary" or flag.kind != "safety_guard":
            yield need(name, "requests", arm.rows, least)
    match reason:
        case "delta_s.median_max" | "delta_s.p95_max" | "coverage_min" if labelled:
            # All of them have it.
            pass
        case "delta_s.median_max" | "delta_s.p95_max":
            for name, arm in arms:
                yield share(name, "rows with delta_s", arm.delta_s.count, arm.delta_s_rows)
        case "coverage_min":
            yield share("canary", "rows with coverage", canary.coverage_count, canary.coverage_rows)
        case "lambda_convergent" if flag.policy.lambda_source == "probes":
            yield need("canary", "lambda groups", canary.lambda_.complete, groups)
        case "lambda_convergent":
            yield need("canary", "events with lambda_state", canary.lambda_count, groups)
            if not labelled:
                yield share("canary", "rows with lambda_state", canary.lambda_count, canary.lambda_rows)
        case "tool_success_min":
            calling = canary.served["tool_rows"]
            yield share("canary", "requests with tool_ok", calling - canary.served["tool_missing"], calling)
            # Without a call in either arm the gate does not apply.
            if any(arm.served[counter] for _, arm in arms for counter in ("tool_calls", "tool_missing")):
                yield need("canary", "tool calls", canary.served["tool_calls"], 1)
        case "cost_uplift_max":
            for name, arm in arms:
                if labelled:
                    yield need(name, "labels with solved", arm.served_labels["solved_rows"], least)
                    yield share(name, "requests with cost", arm.cost_rows, arm.rows)
                else:
                    both = min(arm.cost_rows, arm.solved_known)
                    yield share(name, "requests with cost and solved", both, arm.rows)
            if _staged(flag):
                for name, arm in arms:
                    yield need(name, "solved requests", arm.solved, COST_LEAST)
            else:
                yield need("baseline", "solved requests", baseline.solved, 1)


METRIC_FIELDS = {"coverage_min": ("coverage", "coverage"), "lambda_convergent": ("lambda", "lambda_state")}
"""Of a quality gate the metric and the field; the others read ΔS."""


def _by_labels(gate: str, flag: Flag, canary: ArmMetrics, baseline: ArmMetrics) -> bool:
    """Tell whether labels decide a gate's value: an arm that it reads has no value of its own, and there are labels.

    Labels stand for requests where both arms have enough of them. Else both are read together, and then it is the
    share of the requests with a value that is too small. Probe groups are counted whoever tells of them.
    """
    both, probes = (canary, baseline), flag.policy.lambda_source == "probes"
    if gate == "cost_uplift_max":
        tells = LABELLED["solved"]
        return not all(tells(arm.served) for arm in both) and any(tells(arm.served_labels) for arm in both)
    if gate not in QUALITY_GATES or (gate == "lambda_convergent" and probes):
        return False
    tells = LABELLED[METRIC_FIELDS.get(gate, ("delta_s", ""))[0]]
    read = (canary,) if gate in METRIC_FIELDS else both
    return not all(tells(arm.quality) for arm in read) and any(tells(arm.labels) for arm in both)


def _present(rows: int) -> int:
    """Count how many of ``rows`` must have a metric for it to count as known."""
    return rows - math.floor(MISSING_MAX * rows)


def _source_rows(flag: Flag, name: ArmName, canary: ArmMetrics, baseline: ArmMetrics) -> str:
    """Name the rows of the quality source: served ones are traffic and gold together."""
    apart = {"canary": canary.quality_rows != canary.rows, "baseline": baseline.quality_rows != baseline.rows}
    if flag.policy.quality_source == "gold" or (flag.policy.quality_source != "traffic" and all(apart.values())):
        return "gold rows"
    return "quality rows" if apart[name] else "requests"
