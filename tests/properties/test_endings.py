"""What is said of when a hold ends is what happens: by itself after so much, or only by the command that is named."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.gates.build import PANE, PINNED, WINDOW, Drive, Event, exposures, flag, healthy, requests
from tests.gates.test_freeze import frozen
from tests.properties.test_problems import PROBLEMS as ALL
from tests.properties.test_problems import Problem, by_hash
from tidegate.gates.evidence import DETECTORS
from tidegate.gates.regions import Regions
from tidegate.gates.window import LostRange
from tidegate.schemas.catalogue import CAUSES, causes
from tidegate.schemas.decision import Decision
from tidegate.schemas.manifest import Flag

BOUNCED = [Event(arm, sticky="both") for arm in ("baseline", "canary")]


def lose(drive: Drive) -> None:
    """Records that a partition lost to retention."""
    drive.unit.window.lose(LostRange("telemetry", 2, 10, 20))


PROBLEMS = ALL | {
    # Of so few ids that they show no share.
    "ids in both arms": Problem("sticky_violation", BOUNCED),
    "records lost": Problem("window_unstable", prepare=lose),
}
KINDS = ("progressive_rollout", "quality_gated", "cost_guard", "safety_guard")
GREEN = ("promote", "open", "pass")
LASTING = {
    "drift in the canary": "versions",
    "drift in the baseline": "versions",
    "two pin sets in the baseline": "versions",
    "the wrong share": "count",
    "few in the baseline": "evidence",
    "no baseline": "evidence",
}
"""Those of the problems that do not end with the window in a rollout."""


def names(decision: Decision) -> set[str]:
    """The causes that a decision is said to be held by."""
    return {name for name, _ in causes(decision)}


def ends(decision: Decision) -> set[str]:
    return {cause.ends for _, cause in causes(decision)}


def answered(events: Sequence[Event]) -> list[Event]:
    """The same with a reason step, which a safety guard asks for."""
    return [event if event.reason else replace(event, reason="ok", mode="full") for event in events]


def rules(kind: str, policy: str = "", evidence: str = "point") -> Flag:
    """A flag of any kind; of a rollout with the evidence asked for."""
    chosen = [f"evidence: {evidence}"] if kind == "progressive_rollout" else []
    policies = ", ".join([*chosen, *([policy] if policy else [])])
    return flag(f"kind: {kind}\npolicy: {{{policies}}}")


def showing(problem: Problem) -> list[Event]:
    return answered(problem.change([*healthy(), *problem.events]))


def sound(problem: Problem) -> list[Event]:
    """A window that does not show it."""
    if problem.name == "assignment_mismatch":
        return answered(by_hash(healthy()))
    if problem.name == "orphan_telemetry":
        return answered([*healthy(), *exposures(healthy())])
    return answered(healthy())


def window(drive: Drive, problem: Problem, events: Sequence[Event], *, shown: bool) -> Decision:
    """One window that shows a problem, or does not."""
    if drive.unit.settling:
        drive.until(drive.ramp.unit.window.end)
    drive.until(drive.ramp.unit.window.end - PANE)
    if shown:
        problem.prepare(drive)
    elif problem.name == "region_divergence":
        drive.ramp.regions.note("eu", ["h1"])
    return drive.pane(events, late=problem.late * shown, dead_letters=problem.dead_letters * shown)[-1]


def held(problem: Problem, kind: str, evidence: str, times: int) -> tuple[Drive, Decision]:
    """A unit that has shown a problem in so many windows in a row, and was held for it in each."""
    drive = Drive(rules(kind, problem.policy, evidence), regions=Regions())
    for _ in range(times):
        decision = window(drive, problem, showing(problem), shown=True)
        assert decision.verdict in ("hold", "close")
        assert problem.name in decision.reasons
        assert any(name.split("/")[0] == problem.name for name in names(decision))
    return drive, decision


ASKED = {
    "progressive_rollout": set(PROBLEMS),
    "quality_gated": set(PROBLEMS) - {"the wrong share", "users of a canary that should serve nobody"},
    "cost_guard": set(PROBLEMS) - {"the wrong share", "users of a canary that should serve nobody"},
    "safety_guard": set(PROBLEMS)
    - {"the wrong share", "users of a canary that should serve nobody", "no baseline", "few in the baseline"}
    - {"two pin sets in the baseline"},
}
"""What each kind is held for: a safety guard asks nothing of the baseline, shares and weights are a rollout's."""
CASES = [
    (kind, evidence, name)
    for kind in KINDS
    for evidence in (("point", "sequential") if kind == "progressive_rollout" else ("point",))
    for name in PROBLEMS
    if name in ASKED[kind] and not (kind != "progressive_rollout" and name == "the wrong arm")
]


@pytest.mark.parametrize(("kind", "evidence", "name"), CASES)
def test_a_problem_that_is_said_to_end_with_a_window_ends_with_the_first_that_does_not_show_it(
    kind: str, evidence: str, name: str
) -> None:
    """And not before: while windows show it, they are held for it, however many."""
    problem = PROBLEMS[name]
    drive, last = held(problem, kind, evidence, 3)
    lasting = LASTING.get(name, "window") if kind == "progressive_rollout" else None
    if lasting is not None:
        assert lasting in ends(last)
    if name == "the wrong share":
        return
    after = window(drive, problem, sound(problem), shown=False)
    assert not after.evidence_problems
    assert problem.name not in after.reasons
    if evidence == "point" and kind == "progressive_rollout":
        assert after.verdict == "promote"
    elif kind != "progressive_rollout":
        assert after.verdict in GREEN
    else:
        # Windows that showed it are left out of what the stage is judged by; too few are only too few.
        assert after.evidence is not None
        assert after.evidence.left_out == (0 if last.reasons == ["insufficient_data"] else 3)


@pytest.mark.parametrize("evidence", ["point", "sequential"])
def test_a_drift_lasts_while_the_new_version_comes_and_a_rearm_takes_it_as_right(evidence: str) -> None:
    """By no number of windows; and by the command that is named."""
    moved = [replace(event, pins={**PINNED, "TOK_VER": "new"}) for event in healthy()]
    drive = Drive(rules("progressive_rollout", evidence=evidence))
    drive.pane(healthy())
    for _ in range(5):
        decision = drive.window(moved)
        assert names(decision) >= {"pins_drifted"}
        assert ends(decision) <= {"versions", "window"}
    drive.operate("rearm")
    after = drive.window(moved)
    assert not after.evidence_problems
    assert after.verdict == ("promote" if evidence == "point" else "hold")


@pytest.mark.parametrize("kind", KINDS)
def test_a_drift_from_the_manifest_ends_with_a_revision_or_the_named_version_and_with_no_rearm(kind: str) -> None:
    named = "versions: {MODEL_VER: named}"
    policy = "\npolicy: {evidence: point}" if kind == "progressive_rollout" else ""
    other = answered(healthy())
    right = [replace(e, pins={**PINNED, "MODEL_VER": "named"}) if e.arm == "canary" else e for e in other]
    drive = Drive(flag(f"kind: {kind}\n{named}{policy}"))
    for _ in range(3):
        decision = drive.window(other)
        assert names(decision) == {"pins_drifted/against_manifest"}
        assert ends(decision) == {"manifest"}
    drive.operate("rearm")
    assert names(drive.window(other)) == {"pins_drifted/against_manifest"}
    revised = Drive(flag(f"kind: {kind}\nversions: {{MODEL_VER: m}}{policy}"), drive.now, before=drive.unit)
    assert revised.window(other).verdict in GREEN
    assert drive.window(right).verdict in GREEN


@pytest.mark.parametrize("kind", ["quality_gated", "cost_guard", "safety_guard"])
def test_outside_a_rollout_a_version_may_change_between_windows(kind: str) -> None:
    """Only the window in which it changes is held, or closed, for it."""
    drive = Drive(rules(kind))
    old, new = answered(healthy()), [replace(e, pins={**PINNED, "TOK_VER": "new"}) for e in answered(healthy())]
    drive.window(old)
    mixed = drive.window([*old, *new])
    assert "pins_drifted/window" in names(mixed)
    assert drive.window(new).verdict in GREEN


def many(n: int, first: int = 0) -> list[Event]:
    """Healthy traffic of very many users, a twentieth of them in the canary."""
    canary = [Event("canary", sticky=f"c{first + i}") for i in range(n // 20)]
    baseline = [Event("baseline", sticky=f"b{first + i}") for i in range(n - n // 20)]
    return [*canary, *baseline, *(event for event in healthy() if event.probe)]


def test_a_wrong_share_lasts_until_as_many_ids_have_come_without_or_until_a_rearm() -> None:
    def found() -> tuple[Drive, int]:
        drive = Drive(rules("progressive_rollout"))
        window(drive, PROBLEMS["the wrong share"], healthy(), shown=True)
        assert ends(drive.decisions[-1]) == {"count"}
        return drive, drive.unit.assignments.needed

    drive, needed = found()
    seen, step = 0, 3_000
    while seen + step < needed:
        seen += step
        assert names(drive.window(many(step, seen))) == {"sample_ratio_mismatch"}, seen
    assert drive.window(many(2 * step, seen + step)).verdict == "promote"

    drive, _ = found()
    drive.operate("rearm")
    assert drive.window(healthy()).verdict == "promote"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("end", ["rearm", "revision"])
def test_a_latch_ends_with_no_window_and_with_a_rearm_or_a_revision(kind: str, end: str) -> None:
    drive = Drive(rules(kind))
    drive.pane(answered(healthy()))
    drive.operate("kill")
    for _ in range(5):
        decision = drive.window(answered(healthy()))
        assert (names(decision), ends(decision)) == ({"latched"}, {"operator"})
    if end == "rearm":
        drive.operate("rearm")
    else:
        changed = flag(f"kind: {kind}\nscope: {{tenants: [a]}}" + "\npolicy: {evidence: point}" * (kind == KINDS[0]))
        drive = Drive(changed, drive.now, before=drive.unit)
    assert drive.window(answered(healthy())).verdict in GREEN


def test_a_gate_closed_by_a_hard_rule_is_judged_anew_with_the_next_window() -> None:
    drive = Drive(rules("quality_gated"))
    assert drive.window(healthy()).verdict == "open"
    closed = drive.pane([*healthy(), *requests("canary", 400, error=True), *requests("baseline", 400)])[-1]
    assert (closed.verdict, closed.window.closed) == ("close", False)
    drive.until(drive.unit.window.end - PANE)
    (cut,) = drive.pane(healthy())
    assert "latched/close" in names(cut) or cut.reasons == closed.reasons
    assert drive.window(healthy()).verdict == "open"


def test_green_windows_are_counted_anew_after_any_other() -> None:
    drive = Drive(flag("window: {length: 1m, hold_windows: 3}"))
    for events in (healthy(), healthy(), [], healthy(), healthy()):
        decision = drive.window(events)
        assert names(decision) == ({"hold_windows"} if events else {"insufficient_data", "no_pinned_baseline"})
    assert drive.window(healthy()).verdict == "promote"


def test_a_change_freeze_ends_with_the_first_green_window_after_it() -> None:
    drive = Drive(frozen(0, 3 * WINDOW))
    for _ in range(2):
        assert names(drive.window(healthy())) == {"change_freeze"}
    assert drive.window(healthy()).verdict == "promote"
    assert drive.now == 3 * WINDOW


def test_the_window_that_a_rearm_ended_is_followed_by_one_that_is_judged() -> None:
    drive = Drive(rules("progressive_rollout"))
    drive.pane(healthy())
    drive.operate("rearm")
    cut = next(decision for decision in drive.decisions if decision.verdict == "hold")
    assert (names(cut), ends(cut)) == ({"rearm"}, {"at once"})
    assert drive.window(healthy()).verdict == "promote"


def test_the_window_that_a_revision_ended_is_followed_by_one_that_is_judged() -> None:
    drive = Drive(rules("progressive_rollout"))
    drive.pane(healthy())
    (cut,) = drive.took(drive.ramp.cut(drive.now))
    assert (names(cut), ends(cut)) == ({"window_unstable/manifest"}, {"at once"})
    assert Drive(drive.flag, drive.now, before=drive.unit).window(healthy()).verdict == "promote"


def test_patience_is_said_until_the_stage_ends_and_holds_nothing() -> None:
    drive = Drive(flag("policy: {evidence: sequential, patience: 90s}\ngates: {lambda_convergent: false}"))
    few = [*requests("canary", 60), *requests("baseline", 60)]
    said = [drive.window(few) for _ in range(3)]
    assert ["patience" in names(decision) for decision in said] == [False, True, True]
    while said[-1].verdict == "hold":
        said.append(drive.window([*requests("canary", 300), *requests("baseline", 300)]))
        assert len(said) < 10
    assert said[-1].verdict == "promote"
    assert "patience" not in names(drive.window(few))


UNPROBED = [event for event in healthy() if event.probe is None]


class TestGates:
    """Reasons that are gates."""

    def test_an_unknown_value_ends_with_a_window_that_tells_it(self) -> None:
        drive = Drive(flag())
        for _ in range(3):
            assert names(drive.window(UNPROBED)) == {"gate/unknown"}
        assert drive.window(healthy()).verdict == "promote"

    def test_an_unknown_value_of_a_stage_ends_once_its_windows_together_tell_it(self) -> None:
        """No single window has enough of the canary."""
        body = "gates: {lambda_convergent: false}\npolicy: {evidence: sequential}"
        drive = Drive(flag(body))
        few = [*requests("canary", 7), *requests("baseline", 40)]
        held = [names(drive.window(few)) for _ in range(3)]
        assert held[0] == held[1] == {"insufficient_data"}
        assert held[2] == {"gate/undecided"} or held[2] == {"gate/undecided", "gate/unknown"}

    def test_an_undecided_gate_ends_either_way(self) -> None:
        body = "gates: {lambda_convergent: false}\npolicy: {evidence: sequential}"
        for canary, verdicts in (({}, {"promote"}), ({"error": True}, {"rollback", "abort"})):
            drive = Drive(flag(body))
            events = [*requests("canary", 60), *requests("baseline", 60)]
            decision = drive.window(events)
            assert "gate/undecided" in names(decision)
            for _ in range(20):
                decision = drive.window([*requests("canary", 60, **canary), *requests("baseline", 60)])
                if decision.verdict not in ("hold", "freeze"):
                    break
            assert {d.verdict for d in drive.decisions} & verdicts

    def test_a_failed_gate_that_only_holds_ends_with_a_green_window(self) -> None:
        drive = Drive(flag("policy: {on_gate_fail: hold}"))
        for _ in range(3):
            assert names(drive.window(healthy(coverage=0.65))) == {"gate/fail"}
        assert drive.window(healthy()).verdict == "promote"

    def test_one_of_a_stages_evidence_stays_in_it_until_a_rearm(self) -> None:
        body = "gates: {lambda_convergent: false}\npolicy: {evidence: sequential, on_gate_fail: hold}"
        drive, good = Drive(flag(body)), [*requests("canary", 600), *requests("baseline", 600)]
        bad = [*requests("canary", 2000, delta_s=0.09), *requests("baseline", 2000)]
        for events in (bad, good):
            assert names(drive.window(events)) == {"gate/fail/staged"}
        drive.operate("rearm")
        assert drive.window(good).verdict == "promote"


class TestGuards:
    """Reasons that only guards have."""

    def test_hysteresis_ends_with_a_window_well_inside_the_limit(self) -> None:
        drive = Drive(rules("cost_guard"))
        assert drive.window(healthy(cost=0.6)).verdict == "fallback"
        near, well = healthy(cost=0.553), healthy(cost=0.5)
        for _ in range(3):
            assert names(drive.window(near)) == {"hysteresis"}
        assert drive.window(well).verdict == "restore"

    def test_too_few_reason_steps_end_with_a_window_of_enough(self) -> None:
        drive = Drive(rules("safety_guard"))
        for _ in range(3):
            assert names(drive.window(healthy())) == {"reason_status"}
        assert drive.window(answered(healthy())).verdict == "pass"


def test_every_problem_has_a_row() -> None:
    assert {detector.__name__ for detector in DETECTORS} <= CAUSES.keys()


def _is_clause(text: str) -> bool:
    return text[0].islower() and text[-1] not in ".:;," and text.count("`") % 2 == 0


@pytest.mark.parametrize("name", CAUSES)
def test_each_row_says_whether_it_ends_by_itself_and_else_by_which_command(name: str) -> None:
    cause = CAUSES[name]
    assert _is_clause(cause.what)
    assert _is_clause(cause.until)
    alone = "it ends by itself" in cause.until
    if cause.ends in ("window", "evidence", "clock"):
        assert alone
        assert "rearm" not in cause.until
    if cause.ends in ("versions", "count", "operator"):
        assert not alone
        command = "`tidegate resume {flag} --reason …`" if name == "paused" else "`tidegate rearm {flag}`"
        assert command in cause.until
    if cause.ends == "manifest":
        assert "a rearm does not end it" in cause.until
        assert "`tidegate publish`" in cause.until
