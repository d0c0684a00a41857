"""One row for each verdict, what it leaves behind, and for each cause of a hold: what it is, and when it ends.

Gates, commands, screens and audits all read these tables.
"""

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from tidegate.schemas.decision import Decision, Problem, Verdict
from tidegate.schemas.manifest import FlagKind


class Leaves(NamedTuple):
    """The state that a verdict leaves behind.

    ``engaged``: whether a quality gate is open, or a guard has stepped in; None: as it was. ``canary``: the weight
    that the unit has then. ``ended``: whether the rollout is over until an operator or a revision begins another;
    None: as it was.
    """

    engaged: bool | None
    canary: Literal["next", "first", "same", "none"]
    ended: bool | None = None


VERDICTS: Mapping[Verdict, Leaves] = {
    "promote": Leaves(None, "next"),
    "pass": Leaves(False, "same"),
    "hold": Leaves(None, "same"),
    "freeze": Leaves(None, "same"),
    "rollback": Leaves(None, "none", ended=True),
    "abort": Leaves(None, "none", ended=True),
    "kill": Leaves(False, "none", ended=True),
    "rearm": Leaves(False, "first", ended=False),
    "pause": Leaves(None, "same"),
    "resume": Leaves(None, "same"),
    "open": Leaves(True, "first"),
    "close": Leaves(False, "none"),
    "degrade": Leaves(True, "same"),
    "fallback": Leaves(True, "same"),
    "restore": Leaves(False, "same"),
    "retire": Leaves(False, "none", ended=True),
}
FLOORS = frozenset({"coverage_min", "tool_success_min", "lambda_convergent"})
"""Gates whose limit is the least that passes."""
GUARDS = frozenset({"cost_guard", "safety_guard"})
"""Kinds that step in and out without changing weights, and that a revision does not make step out."""
MANIFEST_REVISION = "manifest_revision"
"""The reason of a revision's first word to a unit, which takes no guard out."""


def engaged_after(before: bool | None, verdict: Verdict, kind: str, *, reasons: list[str], closed: bool) -> bool | None:
    """Tell whether a flag of ``kind`` is engaged after a decision; ``before``: whether it was; None: not known.

    ``closed``: whether the decision's window ran to its end. A kill switch counts as engaged while it is off.
    """
    if kind == "kill_switch":
        ended = VERDICTS[verdict].ended
        return before if ended is None else ended
    if kind in GUARDS and verdict == "rearm" and reasons == [MANIFEST_REVISION]:
        return before
    if kind not in GUARDS and verdict == "hold" and not closed:
        # A rearm or a revision cut the window: the unit begins again.
        return False
    left = VERDICTS[verdict].engaged
    return before if left is None else left


def retired_after(before: bool, verdict: Verdict) -> bool:
    """Tell whether a unit's flag has left the manifest, after a decision; it can still be killed."""
    return verdict == "retire" or (before and verdict == "kill")


def engaged_under(before: bool | None, old_kind: str, kind: FlagKind | str, *, same_manifest: bool) -> bool | None:
    """Tell whether a flag stays engaged when a manifest with another ``manifest_hash``, or kind, takes over.

    A guard that has stepped in stays in while it is a guard of the same kind; everything else begins at rest.
    """
    return before if same_manifest or (kind == old_kind and kind in GUARDS) else False


Ends = Literal[
    "window", "evidence", "settled", "count", "versions", "manifest", "clock", "stage", "operator", "at once"
]
"""Ways in which a cause of a hold ends.

``window``: with the first window that does not show it. ``evidence``: once enough has come; ``settled``: once it can
be said either way. ``count``: after as many ids as it took. ``versions``: once its requests are gone, or with a rearm;
``manifest``: once they are gone, or with a revision, not with a rearm. ``clock``: at a time. ``stage``: with the stage.
``operator``: by no window, only with a rearm or a revision. ``at once``: it has ended with what it held.
"""


class Cause(NamedTuple):
    """Why a unit is held: ``what`` it is, how it ``ends``, and ``until`` when, in clauses for people.

    ``{flag}``: the flag's name, as a shell reads it; ``{span}``, ``{settled}``: see ``span_of`` and ``settled_by``.
    """

    what: str
    ends: Ends
    until: str


REARM = "`tidegate rearm {flag}`"
RESUME = "`tidegate resume {flag} --reason …`"
REVISION = "a revision of the manifest that changes the flag"
CAUSES: Mapping[str, Cause] = {
    # Reasons
    "hold_windows": Cause(
        "all gates pass, but not yet in as many windows in a row as the stage has to be held",
        "evidence",
        "it ends by itself with the last of window.hold_windows green windows in a row; after any other the count "
        "starts again",
    ),
    "change_freeze": Cause(
        "all gates pass, but a change freeze holds promotes",
        "clock",
        "it ends by itself with the first green window that ends after the freeze",
    ),
    "paused": Cause(
        "all gates pass, but an operator has paused promotes",
        "operator",
        f"it ends with {RESUME}: the next green window then promotes; `tidegate promote` passes over it",
    ),
    "latched": Cause(
        "the canary was stopped before and stays at 0 %",
        "operator",
        f"it ends with no window: only with {REARM}, or {REVISION}",
    ),
    "latched/close": Cause(
        "a hard rule closed the gate before the window's end",
        "window",
        "it ends by itself with the next window, which is judged afresh",
    ),
    "rearm": Cause(
        "an operator's rearm ended the window before its end",
        "at once",
        "the unit starts again at its first stage, on evidence from after the rearm",
    ),
    "promote": Cause(
        "an operator's promote ended the window before its end",
        "at once",
        "the next stage is judged on evidence from after the promote",
    ),
    "patience": Cause(
        "the stage has lasted longer than policy.patience: somebody should look at it",
        "stage",
        "it is said of every hold until the stage ends, and holds nothing itself",
    ),
    "hysteresis": Cause(
        "the cost is within its limit, but not yet by the margin at which the guard steps out",
        "window",
        "it ends by itself with the first window whose cost uplift is at most 0.9 of its limit",
    ),
    "reason_status": Cause(
        "too few requests tell whether their reason step failed",
        "window",
        "it ends by itself with the first window in which window.min_requests requests of the canary tell",
    ),
    # Gates, by their status
    "gate/unknown": Cause(
        "the value of a gate cannot be told",
        "evidence",
        "it ends by itself once there is enough to tell it from, in {span}",
    ),
    "gate/undecided": Cause(
        "the evidence does not settle a gate yet",
        "settled",
        "it ends by itself: the stage's windows add up until every gate is settled, which {settled} at a window's "
        "end, or stops it as soon as that is proven",
    ),
    "gate/fail": Cause(
        "a gate fails, and policy.on_gate_fail is hold",
        "window",
        "it ends by itself with the first green window",
    ),
    "gate/fail/staged": Cause(
        "a gate fails, and policy.on_gate_fail is hold",
        "settled",
        "what failed stays in the stage's evidence: it ends once every gate passes on all of it, or with "
        f"{REARM}, which starts again at the first stage",
    ),
    "gate/fail/close": Cause(
        "a gate is outside its bounds",
        "window",
        "it ends by itself with the first window inside all of them on sound evidence",
    ),
    "rule/close": Cause(
        "a hard rule fired",
        "window",
        "it ends by itself with the first whole window in which none does, on sound evidence",
    ),
    # Evidence problems; after a slash what tells one of two apart
    "insufficient_data": Cause(
        "too few requests to judge the canary by",
        "evidence",
        "it ends by itself once there are enough requests, in {span}",
    ),
    "served_at_weight_zero": Cause(
        "the canary served users in a stage of weight 0",
        "window",
        "it ends by itself with the first window in which the canary serves none: routers have to apply the weight",
    ),
    "no_pinned_baseline": Cause(
        "there is no baseline to compare with",
        "evidence",
        "it ends by itself once requests of the baseline come",
    ),
    "no_pinned_baseline/pins": Cause(
        "the baseline ran with more than one value of a pin",
        "window",
        "it ends by itself with the first window in which all its requests name the same",
    ),
    "pins_missing": Cause(
        "requests do not name their versions",
        "window",
        "it ends by itself with the first window in which every request names all six pins",
    ),
    "pins_drifted": Cause(
        "requests come with another version than the rollout began with",
        "versions",
        "it lasts for as long as such requests come: until a window without any, or until "
        f"{REARM}, which takes what then runs as right and starts again at the first stage",
    ),
    "pins_drifted/window": Cause(
        "a version changed within the window",
        "window",
        "it ends by itself with the first window that has one throughout",
    ),
    "pins_drifted/against_manifest": Cause(
        "requests come with another version than the manifest names",
        "manifest",
        "it lasts for as long as such requests come: until services run what the manifest names, or a revision names "
        "what they run (`tidegate sign`, `tidegate publish`); a rearm does not end it",
    ),
    "sticky_violation": Cause(
        "too many users changed arms",
        "window",
        "it ends by itself with the first window in which few enough do; who did before is not counted again",
    ),
    "cache_namespace_shared": Cause(
        "a cache may have served one arm the other's answers",
        "window",
        "it ends by itself with the first window in which each cache namespace is used under one set of pins",
    ),
    "rate_limit_storm": Cause(
        "the canary meets rate limits that the baseline does not",
        "window",
        "it ends by itself with the first window in which it meets few: raise its quota",
    ),
    "tool_loop": Cause(
        "requests called one tool again and again with the same arguments",
        "window",
        "it ends by itself with the first window in which none does",
    ),
    "unfenced_side_effect": Cause(
        "a write may have been carried out twice",
        "window",
        "it ends by itself with the first window in which each write has an idempotency key and each key one effect",
    ),
    "client_evaluated": Cause(
        "clients chose the arm",
        "window",
        "it ends by itself with the first window in which servers choose it for all",
    ),
    "assignment_mismatch": Cause(
        "users were served in the arm that the hash of their sticky id does not give",
        "window",
        "it ends by itself with the first window in which all are served where it says",
    ),
    "sample_ratio_mismatch": Cause(
        "the arms' shares of users are not the stage's weights",
        "count",
        "it lasts until as many sticky ids as it took to find it have come without one, from the next window on, or "
        f"until {REARM}, which starts again at the first stage",
    ),
    "region_divergence": Cause(
        "regions of the flag assign users by different manifests",
        "window",
        "it ends by itself with the first window in which all of them assign by one",
    ),
    "window_unstable": Cause(
        "the window's numbers are not whole",
        "window",
        "it ends by itself with the first window that has few late events and few dead letters",
    ),
    "window_unstable/lost": Cause(
        "records were lost before they were read",
        "window",
        "it ends by itself with the first window that misses none",
    ),
    "window_unstable/manifest": Cause(
        "a new revision of the manifest took over in the middle of the window",
        "at once",
        "under it the flag starts again at its first stage with its next event, or is retired if it is not named",
    ),
    "orphan_telemetry": Cause(
        "users were served without an exposure",
        "window",
        "it ends by itself with the first window in which nearly all have one",
    ),
}
"""Every cause that a hold may have, or a close; a gate by its status."""


def cause_of(problem: Problem, kind: str) -> str:
    """Return the row of ``CAUSES`` that an evidence problem has in a flag of ``kind``."""
    name, detail = problem.problem, problem.detail
    if name == "pins_drifted" and detail.get("kind") == "against_manifest":
        return "pins_drifted/against_manifest"
    if name == "pins_drifted" and kind != "progressive_rollout":
        return "pins_drifted/window"
    if name == "no_pinned_baseline" and "pins" in detail:
        return "no_pinned_baseline/pins"
    if name == "window_unstable":
        return next((f"{name}/{what}" for what in ("manifest", "lost") if what in detail), name)
    return name


def causes(decision: Decision) -> Iterator[tuple[str, Cause]]:
    """Yield each cause that holds a unit, or keeps a quality gate closed, after a decision, by its row's name.

    Nothing of a verdict that moves on, and nothing of a record whose words this version does not know.
    """
    if decision.verdict not in ("hold", "close"):
        return
    found: dict[str, None] = {}
    if "latched" in decision.reasons:
        found["latched/close" if decision.verdict == "close" else "latched"] = None
    else:
        status = {gate.gate: gate.status for gate in decision.gates}
        problems = {problem.problem for problem in decision.evidence_problems}
        fired = {rule.kind for rule in decision.abort_rules if rule.fired}
        closed = decision.verdict == "close"
        for reason in decision.reasons:
            if reason in problems:
                rows = [one for one in decision.evidence_problems if one.problem == reason]
                found |= dict.fromkeys(cause_of(one, decision.kind) for one in rows)
            elif reason in status and status[reason] != "fail":
                found[f"gate/{status[reason]}"] = None
            elif reason in status:
                found["gate/fail/close" if closed else "gate/fail/staged" if decision.evidence else "gate/fail"] = None
            elif closed and reason in fired:
                found["rule/close"] = None
            else:
                found[reason] = None
    yield from ((name, CAUSES[name]) for name in found if name in CAUSES)


ENDED_WINDOW = frozenset({"rearm", "promote", "window_unstable/manifest"})
"""Causes that ended the window before its end: what it showed so far is evidence for nothing."""


def span_of(decision: Decision) -> str:
    """Name the evidence that a decision judges together, as ``{span}`` in a cause."""
    return "one window" if decision.evidence is None else "the windows of the stage together"


def settled_by(decision: Decision) -> str:
    """Say what happens to a stage whose gates all pass, as ``{settled}`` in a cause."""
    return "passes the canary" if decision.stage.next_canary_weight is None else "promotes the canary"
