"""One decision in words: what it was, why, and what happens next."""

import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tidegate.gates.power import kind_gates
from tidegate.schemas.catalogue import ENDED_WINDOW, REVISION, VERDICTS, causes
from tidegate.schemas.decision import Decision, Exemplar, Forecast, GateResult, RuleResult
from tidegate.schemas.document import quoted
from tidegate.schemas.times import iso
from tidegate.streams.report.text import endings, many, minutes_long, number, percent, plain, problem_words, sentence

_GREEN = ("promote", "pass", "open", "restore")


@dataclass(frozen=True)
class Remark:
    """A sentence, and what belongs to it: the worst events of a rule, what an open gate still needs."""

    text: str
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class Explanation:
    """A decision in words. ``sections``: what stands under Why, Next and Also; empty ones are left out."""

    headline: str
    window: str
    sections: dict[str, tuple[Remark, ...]]


def explanation(decision: Decision) -> Explanation:
    """Put a decision into words."""
    told = {"Why": _why(decision), "Next": _next(decision), "Also": _also(decision)}
    sections = {title: tuple(_remarks(sentences)) for title, sentences in told.items()}
    return Explanation(_headline(decision), _window(decision), {t: s for t, s in sections.items() if s})


def _remarks(sentences: Iterator[str]) -> Iterator[Remark]:
    """Pair sentences with the details behind each, which start with a space."""
    found: list[tuple[str, list[str]]] = []
    for one in sentences:
        if one[:1] == " ":
            found[-1][1].append(one.strip())
        else:
            found.append((sentence(one), []))
    for text, details in found:
        yield Remark(text, tuple(details))


def _headline(decision: Decision) -> str:
    stage = decision.stage
    at, following = percent(stage.canary_weight), stage.next_canary_weight
    unit = plain(decision.flag) + (f" in {plain(decision.region)}" if decision.region else "")
    said = {
        "promote": f"promoted from {at} to {percent(following)}" if following is not None else f"promoted from {at}",
        "pass": f"passed at {at}, its last stage",
        "hold": f"held at {at}",
        "freeze": f"frozen at {at}",
        "rollback": f"rolled back from {at} to 0 %",
        "abort": f"aborted at {at}, canary to 0 %",
        "kill": "killed, canary to 0 %",
        "rearm": f"rearmed, to start again at {at}",
        "pause": f"paused at {at}",
        "resume": f"resumed at {at}",
        "retire": "retired, canary to 0 %",
        "open": "open",
        "close": "closed, canary at 0 %",
        "degrade": "degraded to cite-only answers",
        "fallback": "fallen back from its heavy chains",
        "restore": "restored to full answers" if decision.kind == "safety_guard" else "restored to its heavy chains",
    }[decision.verdict]
    if decision.kind.endswith("_guard") and decision.verdict in ("pass", "hold"):
        said = "nothing to change" if decision.verdict == "pass" else "left as it is"
    return f"{unit}: {said}, at {iso(decision.decided_at)}"


def _window(decision: Decision) -> str:
    window, stage = decision.window, decision.stage
    shadow = not stage.canary_weight and stage.next_canary_weight is not None
    place = f"stage {stage.index}, {'shadow' if shadow else f'canary {percent(stage.canary_weight)}'}"
    if decision.kind != "progressive_rollout":
        place = plain(decision.kind).replace("_", " ")
    if window.start == window.end:
        return f"{place}, no window decided yet"
    cut_short = "" if window.closed else ", cut short"
    last = "last window" if not decision.gates and window.closed else "window"
    return f"{place}, {last} {iso(window.start)} to {iso(window.end)}{cut_short}"


def _why(decision: Decision) -> Iterator[str]:
    """Yield sentences; one that starts with a space belongs to the one before."""
    by = decision.operation
    if by is not None:
        yield f"{quoted(by.actor)} ordered it at {iso(by.ts)}: {quoted(by.reason)}"
    freeze = decision.change_freeze
    if freeze is not None:
        who = f", by {quoted(freeze.by)}" if freeze.by else ""
        until = iso(freeze.end)
        yield f"all gates pass, but a change freeze holds promotes until {until}{who}: {quoted(freeze.reason)}"
    yield from _reasons(decision)
    if {"latched", "rearm", "promote"} & set(decision.reasons):
        return
    told: set[tuple[Exemplar, ...]] = set()
    for rule in decision.abort_rules:
        # A quality gate does not consult soft rules.
        if rule.fired and (rule.severity == "hard" or decision.kind != "quality_gated"):
            yield rule_words(decision, rule)
            yield from _exemplars(decision, rule.kind, told)
    for problem in decision.evidence_problems:
        yield problem_words(problem)
    if _ended(decision):
        return
    judged = [gate for gate in decision.gates if gate.gate in kind_gates(decision.kind) and gate.status != "off"]
    by_status: dict[str, list[GateResult]] = {}
    for gate in judged:
        by_status.setdefault(gate.status, []).append(gate)
    for gate in [*by_status.get("fail", ()), *by_status.get("waived", ())]:
        yield gate_words(decision, gate)
        yield from _exemplars(decision, gate.gate, told)
    undecided = by_status.get("undecided", [])
    if VERDICTS[decision.verdict].ended:
        # There is no more of its traffic to settle them.
        yield from [f"not decided yet, and of no more weight: {_named(undecided)}"] if undecided else []
        undecided = []
    for gate in undecided:
        yield _undecided(decision, gate)
        yield f" {_outlook(gate)}"
    unknown = by_status.get("unknown", [])
    if unknown:
        yield f"not known: {_named(unknown)}"
    if decision.forecast is not None:
        yield from _forecast(decision, decision.forecast)
    passed = [*by_status.get("pass", ()), *by_status.get("not_applicable", ())]
    if decision.verdict in _GREEN or decision.kind == "cost_guard":
        yield from (gate_words(decision, gate) for gate in passed)
    elif len(passed) < len(judged):
        if passed:
            yield f"the other {len(passed)} gates pass" if len(passed) > 1 else "the other gate passes"
    elif judged and not {"hold_windows", "change_freeze"} & set(decision.reasons):
        yield f"all {len(judged)} gates pass"


def _named(gates: list[GateResult]) -> str:
    return ", ".join(_NAMES.get(gate.gate, plain(gate.gate)) for gate in gates)


def _ended(decision: Decision) -> bool:
    """Tell whether an order or a revision ended the window, so that nothing it showed counts any further."""
    return any(name in ENDED_WINDOW for name, _ in causes(decision))


def _reasons(decision: Decision) -> Iterator[str]:
    """Yield the reasons that no gate, rule or problem has named."""
    known = {gate.gate for gate in decision.gates} | {rule.kind for rule in decision.abort_rules}
    known |= {problem.problem for problem in decision.evidence_problems}
    guarded = [gate for gate in decision.gates if gate.gate in kind_gates(decision.kind)]
    words = {name.split("/")[0]: cause.what for name, cause in causes(decision)} | {
        "all_gates_pass": "all gates pass" if len(guarded) != 1 else "the cost gate passes",
        "reason_steps_pass": _reason_steps(decision),
        "manifest_revision": "a new revision of the manifest took over",
    }
    for reason in decision.reasons:
        operated = decision.operation is not None and reason == decision.operation.kind
        frozen = decision.change_freeze is not None and reason == "change_freeze"
        if reason not in known and not operated and not frozen:
            yield words.get(reason, plain(reason))


def _reason_steps(decision: Decision) -> str:
    canary = decision.arms.get("canary")
    counted = f" in {canary.reason_failed:,} of {canary.requests:,} requests" if canary is not None else ""
    return f"the reason step failed{counted or ' rarely enough'}, and none of these was served in full"


_NAMES = {
    "delta_s.median_max": "ΔS median",
    "delta_s.p95_max": "ΔS p95",
    "coverage_min": "coverage",
    "lambda_convergent": "λ",
    "latency_p95_uplift_max": "latency p95",
    "error_rate_max": "error rate",
    "tool_success_min": "tool success",
    "cost_uplift_max": "cost per solved request",
}


def gate_words(decision: Decision, gate: GateResult) -> str:
    """Say what a gate saw and what it is held against."""
    limit = gate.threshold
    if gate.status == "not_applicable":
        return "no tools were called in either arm"
    if gate.gate == "lambda_convergent":
        canary = decision.arms.get("canary")
        what = "probe groups" if canary is not None and canary.lambda_complete == gate.n_canary else "requests"
        good = round(min(gate.observed or 0.0, 1.0) * gate.n_canary)
        return f"λ converges in {good:,} of {gate.n_canary:,} {what}; it has to in all"
    if gate.observed is None or limit is None or gate.gate not in _NAMES:
        if gate.gate == "cost_uplift_max":
            return "the canary solved nothing, so its cost per solved request has no limit that it could keep"
        return f"{plain(gate.gate)}: {gate.status}"
    counts = f"{gate.n_canary:,} and {gate.n_baseline:,}"
    limit = float(limit)
    match gate.gate:
        case "delta_s.median_max" | "delta_s.p95_max":
            said = f"{_change(gate.observed, limit)} the baseline ({_pair(gate)}, {counts} values)"
            said += f"; the limit is {number(limit)}"
        case "latency_p95_uplift_max":
            said = f"{_change(gate.observed, limit, percent)} the baseline ({_pair(gate, ' ms')}, {counts} requests)"
            said += f"; the limit is {percent(limit)}"
        case "cost_uplift_max":
            said = f"{_change(gate.observed, limit, percent)} the baseline ({_pair(gate)}, {counts} solved requests)"
            said += f"; the limit is {percent(limit)}"
            if gate.status == "waived":
                said += ", waived as quality gained"
        case "coverage_min":
            said = f"{number(gate.observed, limit)} ({_against(gate, number, 'values')})"
            said += f"; the limit is at least {number(limit)}"
        case "tool_success_min":
            said = f"{percent(gate.observed, limit)} ({_against(gate, percent, 'calls')})"
            said += f"; the limit is at least {percent(limit)}"
        case _:
            said = f"{percent(gate.observed, limit)} ({_against(gate, percent, 'requests')})"
            said += f"; the limit is {percent(limit)}"
    return f"{_NAMES[gate.gate]} is {said}"


def _undecided(decision: Decision, gate: GateResult) -> str:
    """Describe an open gate: its value, how far its bound reaches, and what that has to exclude."""
    name, n = _NAMES.get(gate.gate, plain(gate.gate)), f"{gate.n_canary:,}"
    show = number if gate.gate.startswith(("delta_s", "coverage")) else percent
    floor = gate.gate in ("coverage_min", "tool_success_min", "lambda_convergent")
    seen, limit = gate.observed, gate.threshold
    if gate.gate == "lambda_convergent" and gate.rule_out is not None:
        # The rule-out value is a share of flips, the bounds are of convergent groups.
        worst = None if gate.lower is None else 1 - gate.lower
        known = "nothing bounds its flip rate yet" if worst is None else f"the flip rate may still be {percent(worst)}"
        return f"not decided yet: λ converges in all of {n}; {known}, and {_ruled(gate, percent)}"
    what = {"coverage_min": "values", "tool_success_min": "calls", "cost_uplift_max": "solved requests"}.get(
        gate.gate, "values" if gate.gate.startswith("delta_s") else "requests"
    )
    value = f"not decided yet: {name} is {_standing(gate, show)} in {n} {what}"
    over = seen is not None and limit is not None and (seen < limit if floor else seen > limit)
    if over:
        end = gate.upper if floor else gate.lower
        bound = "nothing bounds it yet" if end is None else f"it may still be {show(end)}"
        if decision.evidence is not None and decision.evidence.left_out:
            bound += ", windows left out counted in"
        return f"{value}, {'under' if floor else 'over'} the limit of {show(float(limit or 0))}; {bound}"
    end = gate.lower if floor else gate.upper
    bound = "nothing bounds it yet" if end is None else f"it may still be {show(end)}"
    return f"{value}; {bound}, and {_ruled(gate, show)}"


def _ruled(gate: GateResult, show: Callable[[float | None], str]) -> str:
    return f"{show(gate.rule_out)} has to be ruled out"


def _standing(gate: GateResult, show: Callable[[float | None], str]) -> str:
    """Describe a gate's value, against the baseline's where it is compared."""
    if gate.gate in ("delta_s.median_max", "delta_s.p95_max", "latency_p95_uplift_max", "cost_uplift_max"):
        by = gate.observed or 0.0
        return (
            "level with the baseline" if by == 0 else f"{show(abs(by))} {'below' if by < 0 else 'above'} the baseline"
        )
    return show(gate.observed)


def _outlook(gate: GateResult) -> str:
    """Describe what an open gate still needs at its present value and rate."""
    seen = gate.forecast
    if seen is None or seen.outcome is None or seen.canary is None or seen.minutes is None:
        return "it cannot end soon: its value is too near to the limit or to what has to be ruled out"
    more = many(seen.canary, "more canary request")
    if seen.baseline:
        more += f" and {seen.baseline:,} of the baseline"
    return f"at this value it would {seen.outcome} after about {more}, {minutes_long(seen.minutes)}"


def _pair(gate: GateResult, unit: str = "") -> str:
    return f"{number(gate.canary)}{unit} against {number(gate.baseline)}{unit}"


def _against(gate: GateResult, show: Any, what: str) -> str:
    baseline = "" if gate.baseline is None else f", baseline {show(gate.baseline)} of {gate.n_baseline:,}"
    return f"of {gate.n_canary:,} {what}{baseline}"


def _change(by: float, limit: float, show: Any = None) -> str:
    """Describe how far above or below a limit something is."""
    if by == 0:
        return "level with"
    return f"{(show or number)(abs(by), limit)} {'below' if by < 0 else 'above'}"


_RULES = {
    "delta_s_p95_over": ("ΔS p95 is {} above the baseline", "over"),
    "coverage_under": ("coverage is {}", "under"),
    "lambda_flip_rate_over": ("λ flips in {}", "over"),
    "error_rate_over": ("error rate is {}", "over"),
    "latency_p95_over_budget": ("latency p95 is {} above the baseline", "over"),
    "cost_per_solved_over_budget": ("cost per solved request is {} above the baseline", "over"),
    "reason_failure_rate_over": ("the reason step fails in {} of the requests", "over"),
}
_PLAIN_RULES = ("delta_s_p95_over", "coverage_under")


def rule_words(decision: Decision, rule: RuleResult) -> str:
    """Say that an abort rule fired, and on what."""
    name = f"{rule.severity} rule {plain(rule.kind)} fired"
    if rule.kind == "pins_drifted":
        return f"{name}: {many(int(rule.observed or 0), 'pin has', 'pins have')} drifted"
    if rule.kind == "reason_failed_served_in_full":
        full = many(int(rule.observed or 0), "answer was", "answers were")
        return f"{name}: {full} served in full although the reason step failed"
    if rule.observed is None or rule.value is None or rule.kind not in _RULES:
        return name
    words, side = _RULES[rule.kind]
    show = number if rule.kind in _PLAIN_RULES else percent
    early = "" if decision.window.closed else ", sure before the window's end"
    said = words.format(show(rule.observed, rule.value))
    return f"{name}: {said}, {side} {show(rule.value)} (of {rule.n:,} rows{early})"


def _exemplars(decision: Decision, name: str, told: set[tuple[Exemplar, ...]]) -> Iterator[str]:
    """Yield the worst events of a gate or rule, once."""
    found = tuple(decision.exemplars.get(name, ()))
    if not found or found in told:
        return
    told.add(found)
    for one in found:
        value, event = _value(name, one.value), quoted(one.event_id)
        yield f" {value} in event {event}, partition {one.partition}, offset {one.offset}"


def _value(name: str, value: float) -> str:
    if name.startswith("latency"):
        return f"{number(value)} ms"
    if name.startswith("tool"):
        return many(int(value), "failed call", "failed calls")
    if name.startswith(("error", "reason")):
        return "failed"
    if name.startswith("lambda"):
        return "not convergent"
    what = next((word for word in ("cost", "coverage") if name.startswith(word)), "ΔS")
    return f"{what} {number(value)}"


def _forecast(decision: Decision, forecast: Forecast) -> Iterator[str]:
    never = []
    for need in forecast.needs:
        what = f"{plain(need.what).replace('lambda groups', 'λ groups')} in the {need.arm}"
        lacking = need.need - need.have
        some = re.sub(r"s\b", "", what, count=1) if lacking == 1 else what
        yield f"missing: {lacking:,} more {some} ({need.have:,} of {need.need:,})"
        never += [what] if not need.have else []
    if forecast.minutes is None or forecast.requests is None:
        if never:
            yield f"there is no telling when, as none came at all: {', '.join(never)}"
        else:
            yield "more requests alone do not help: too many of those that come lack a metric"
        return
    if decision.evidence is not None:
        yield f"about {forecast.requests:,} more requests, {minutes_long(forecast.minutes)} at the present rate"
        return
    window = decision.window
    whole = (window.end - window.start) / 60_000 + forecast.minutes
    yield f"about {forecast.requests:,} more requests, {minutes_long(forecast.minutes)} at the present rate"
    yield f"a window counts from zero: at this rate it takes a window.length of about {minutes_long(whole)}"


def _next(decision: Decision) -> Iterator[str]:
    stage = decision.stage
    at, flag = percent(stage.canary_weight), shlex.quote(plain(decision.flag))
    guards = decision.kind != "progressive_rollout"
    again = f"nothing is promoted until `tidegate rearm {flag}`, or {REVISION}"
    match decision.verdict:
        case "promote":
            following = stage.next_canary_weight
            yield f"the canary gets {percent(following) if following is not None else 'the next stage'} of the traffic"
            yield "its first window starts once late events and the settling time are over"
        case "pass" if decision.kind == "progressive_rollout":
            yield f"no stage follows: the canary stays at {at}, and every further window is judged"
            if any(arm.pinned_from for arm in decision.arms.values()):
                yield "gates that compare it with the baseline of before only warn from now on; the others act as ever"
        case "freeze":
            yield f"the canary stays at {at} and is not promoted"
            if decision.evidence is not None:
                yield "if it is still so at a window's end it rolls back, unless on_gate_fail is hold"
                return
            yield "a green window promotes it; the next one to fail rolls it back, unless on_gate_fail is hold"
        case "rollback" | "abort":
            yield f"the canary goes to 0 % at once, and {again}"
        case "kill" if decision.kind == "kill_switch":
            yield f"it is off at once in every region, until `tidegate rearm {flag}` or a revision that turns it on"
        case "kill":
            yield f"the canary goes to 0 % at once in every region, and {again}"
        case "retire":
            yield "the flag has left the manifest: nothing more is decided of it until a revision names it again"
        case "pause":
            yield "nothing is promoted until `tidegate resume`; windows are judged as ever, and what aborts still does"
        case "resume":
            yield "the next window that is fit to promote does so"
        case "rearm":
            yield f"the unit starts again at its first stage, canary {at}"
        case "open":
            yield "the gate stays open while ΔS, coverage and λ stay inside their bounds, window by window"
        case "close":
            yield "the canary stays at 0 % until a later window is green on sound evidence"
        case "degrade":
            yield "answers are cite-only until a window on sound evidence in which reason steps do not fail"
        case "fallback":
            yield "heavy chains stay capped until, on sound evidence, the cost uplift is at most 0.9 of its limit"
        case "restore":
            yield "the guard has stepped out; every further window is judged"
        case "hold" if not ("latched" in decision.reasons or _ended(decision) or guards):
            yield f"the canary stays at {at}"
        case "pass":
            yield "weights stay as they are, and the next window is judged afresh"
    problems = {problem.problem for problem in decision.evidence_problems}
    yield from endings(decision, set(decision.reasons) - problems)
    yield from _then(decision)


def _then(decision: Decision) -> Iterator[str]:
    """Yield what follows for a held ramp once nothing holds it any more."""
    held = {name for name, _ in causes(decision)}
    if decision.verdict != "hold" or decision.kind != "progressive_rollout" or not held - _SAY_THEMSELVES:
        return
    goal = "it passes" if decision.stage.next_canary_weight is None else "it is promoted"
    if held <= {"hold_windows", "gate/fail", "patience"}:
        yield f"then {goal}"
        return
    if decision.evidence is None:
        yield f"then {goal} by a green window"
        return
    if held - _TOO_FEW:
        yield "this window is left out of what the stage is judged by, but for hard rules; the others go on adding up"
    yield f"then {goal} at the end of a window, once the stage's evidence settles every gate"


_SAY_THEMSELVES = {
    "latched",
    "rearm",
    "window_unstable/manifest",
    "patience",
    "gate/undecided",
    "change_freeze",
    "paused",
    "promote",
}
"""Causes whose end says what comes next."""
_TOO_FEW = {"insufficient_data", "hold_windows", "gate/unknown", "gate/undecided", "gate/fail/staged", "patience"}
"""Causes that leave no window out of a stage's evidence."""


def _also(decision: Decision) -> Iterator[str]:
    """Yield what blocks nothing but should be known."""
    seen = decision.evidence
    if seen is not None and (seen.windows > 1 or seen.left_out):
        left_out = f"; {many(seen.left_out, 'window')} with an evidence problem left out" if seen.left_out else ""
        yield f"the gates rest on {many(seen.windows, 'window')} of the stage, since {iso(seen.since)}{left_out}"
    pinned = next((arm.pinned_from for arm in decision.arms.values() if arm.pinned_from), None)
    if pinned is not None:
        yield f"the baseline is that of the window {iso(pinned.start)} to {iso(pinned.end)}"
    off = [gate.gate for gate in decision.gates if gate.status == "off"]
    if off:
        yield f"gates that are off: {', '.join(map(plain, off))}"
    relaxed = [name for name in decision.relaxed if name not in off]
    if relaxed:
        yield f"looser than the safe-launch targets: {', '.join(map(plain, relaxed))}"
    for warning in decision.warnings:
        words = _WARNINGS.get(warning.code, f"warning {plain(warning.code)}: {{}}")
        yield words.format(f"{warning.count:,}")


_WARNINGS = {
    "unpinned": "the manifest does not pin {} of the six pins of the canary",
    "lambda_spelling": "{} λ states were misspelt and count as ×",
    "canary_back_in_baseline": "{} sticky ids that an earlier stage served in the canary are back in the baseline",
    "drifted_from_pinned_baseline": "{} gates fail against the pinned baseline of before 100 %; they stop nothing now",
    "sticky_ids_sampled": "there are many sticky ids: one in {} is followed",
    "labels_foreign": "{} labels are of no request that the stage saw, nor carry its arm's pins, so they do not count",
    "labels_not_followed": "{} labels are of requests whose ids are not followed, as there are many: they are left out",
    "cache_namespaces_not_followed": "there are many cache namespaces: {} uses of further ones are not followed",
}
