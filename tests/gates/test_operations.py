"""Kill, rearm and new revisions of the manifest, sentence by sentence, on one unit."""

import dataclasses
from typing import Any

import pytest

from tests.gates.build import CLOCKWORK, PANE, PINNED, WINDOW, Drive, Event, exposures, flag, healthy, requests
from tidegate.gates.unit import ASLEEP_AFTER, begin, dormant
from tidegate.schemas.canonical import sha256_of
from tidegate.schemas.clockwork import Clockwork
from tidegate.schemas.decision import Decision

KINDS = ("progressive_rollout", "quality_gated", "cost_guard", "safety_guard", "kill_switch")
BROKEN = healthy(error=True)
SETTLED = PANE * 2
"""S - E with the lateness and settle of these tests."""
TO_FULL = "traffic: {stages: [0.05, 1.0]}"


def found(decision: Decision) -> list[str]:
    return [problem.problem for problem in decision.evidence_problems]


def reasoned(**canary: Any) -> list[Event]:
    return healthy(reason="ok", mode="full", **canary)


# kill


@pytest.mark.parametrize("kind", KINDS)
def test_a_kill_is_canary_0_in_any_kind_of_flag(kind: str) -> None:
    """kill: operator or kill switch; needs no telemetry; canary 0."""
    drive = Drive(flag(f"kind: {kind}"))
    decision = drive.operate("kill", 5_000)
    command = drive.command()
    assert (decision.verdict, decision.reasons) == ("kill", ["kill"])
    assert (command.action, command.severity, command.rule) == ("kill", "hard", None)
    assert (command.weights.canary, command.weights.baseline) == (0, 1)
    assert command.previous_weights.canary == {"quality_gated": 0, "kill_switch": 1}.get(kind, 0.05)


def test_a_kill_says_who_ordered_it_and_why() -> None:
    """shows in the decisions with who and why."""
    decision = Drive(flag()).operate("kill", 5_000)
    assert decision.operation is not None
    assert (decision.operation.kind, decision.operation.ts) == ("kill", 5_000)
    assert (decision.operation.actor, decision.operation.reason) == ("ada", "why not")
    assert Drive(flag()).window(healthy()).operation is None


def test_a_kill_is_decided_at_and_effective_from_its_ts() -> None:
    """with decided_at = effective_from = its ts, whatever the watermark."""
    for ts in (0, 12_345, 10**9):
        drive = Drive(flag())
        drive.window(healthy())
        assert drive.operate("kill", ts).decided_at == drive.command().effective_from == ts


def test_a_kill_has_empty_gates_and_abort_rules() -> None:
    """and empty gates and abort_rules: it rests on no window, so nothing of one is in it."""
    drive = Drive(flag())
    drive.pane([*healthy(), Event("canary", pins={})], late=5, dead_letters=7)
    decision = drive.operate("kill")
    assert (decision.gates, decision.abort_rules, decision.evidence_problems) == ([], [], [])
    assert (decision.arms, decision.source, decision.warnings, decision.exemplars) == ({}, [], [], {})
    assert (decision.late, decision.duplicates, decision.dead_letters) == (0, 0, 0)


def test_a_kill_names_the_last_decided_window() -> None:
    """its record names the last decided window."""
    drive = Drive(flag())
    drive.window(healthy())
    drive.pane()
    decision = drive.operate("kill")
    assert (decision.window.start, decision.window.end, decision.window.closed) == (0, WINDOW, True)


def test_a_kill_before_any_window_was_decided_starts_and_ends_at_its_ts() -> None:
    """none yet: start = end = ts, closed: false."""
    drive = Drive(flag())
    drive.pane(healthy())
    decision = drive.operate("kill", 11_111)
    assert (decision.window.start, decision.window.end, decision.window.closed) == (11_111, 11_111, False)


def test_an_early_abort_has_not_decided_its_window() -> None:
    """The window that an early abort cut is decided at its nominal end; a kill before that names the one before."""
    drive = Drive(flag("window: {length: 1m, hold_windows: 9}"))
    drive.window(healthy())
    assert [d.verdict for d in drive.pane(BROKEN)] == ["abort"]
    decision = drive.operate("kill")
    assert (decision.window.start, decision.window.end, decision.window.closed) == (0, WINDOW, True)


def test_a_unit_without_telemetry_is_killed_all_the_same() -> None:
    """one per region that the manifest names or telemetry has shown: a region that sent nothing yet, too."""
    drive = Drive(flag(), unit=dormant(flag(), "us", CLOCKWORK))
    assert drive.ramp.asleep
    drive.operate("kill", 7)
    assert drive.commanded() == [("kill", 0)]
    assert drive.pane(BROKEN) == []


def test_telemetry_that_comes_after_a_kill_finds_the_unit_latched() -> None:
    """A region that was killed before its first event promotes nothing when it comes."""
    drive = Drive(flag(), start=30_000, unit=dormant(flag(), "us", CLOCKWORK))
    drive.operate("kill", 7)
    drive.ramp.wake(30_000)
    decision = drive.window(healthy())
    assert (decision.verdict, decision.reasons) == ("hold", ["latched"])
    assert (decision.window.start, decision.window.end) == (30_000, 90_000)


@pytest.mark.parametrize("kind", KINDS[:-1])
def test_after_a_kill_windows_are_decided_as_hold_latched_without_commands(kind: str) -> None:
    """After abort, rollback or kill windows are still decided, as `hold` with reason `latched`, without commands."""
    drive = Drive(flag(f"kind: {kind}"))
    drive.window(reasoned())
    drive.operate("kill")
    n = len(drive.commands)
    for events in (reasoned(), BROKEN, [], reasoned(cost=9.0)):
        decision = drive.window(events)
        assert (decision.verdict, decision.reasons, decision.stage.canary_weight) == ("hold", ["latched"], 0)
    assert len(drive.commands) == n


def test_nothing_is_promoted_after_a_kill() -> None:
    """After rollback, abort or kill a unit promotes nothing."""
    drive = Drive(flag())
    drive.window(healthy())
    drive.operate("kill")
    for _ in range(5):
        drive.window(healthy())
    assert drive.commanded() == [("promote", 0.25), ("kill", 0)]


def test_a_kill_in_the_middle_of_a_window_leaves_no_abort_to_follow() -> None:
    """Order: kill, abort; a killed unit's hard rules fire nothing, neither at a pane nor at the window's end."""
    drive = Drive(flag())
    drive.pane(healthy())
    drive.operate("kill")
    assert drive.pane(BROKEN) == []
    assert drive.window(BROKEN).reasons == ["latched"]


def test_a_kill_while_a_stage_settles_ends_the_ramp_there() -> None:
    """Nothing is promoted: the stage that was to come does not begin, and its windows are decided latched."""
    drive = Drive(flag())
    drive.window(healthy())
    drive.pane()
    decision = drive.operate("kill")
    assert (decision.stage.index, drive.command().previous_weights.canary) == (0, 0.25)
    after = drive.window(healthy())
    assert (after.reasons, after.stage.index, after.window.start) == (["latched"], 0, WINDOW + SETTLED)


def test_each_kill_is_carried_out_and_counted() -> None:
    """A second kill of a killed unit says so again, in the chain and in the sequence of commands."""
    drive = Drive(flag())
    first, second = drive.operate("kill", 5), drive.operate("kill", 6)
    assert second.previous_hash == first.hash
    assert [command.seq for command in drive.commands] == [1, 2]
    assert (drive.command().previous_weights.canary, drive.command().weights.canary) == (0, 0)


def test_records_of_operations_are_in_the_chain_with_ids_over_what_the_contract_names() -> None:
    """decision_id over {flag, region, manifest_hash, stage, start, end, decided_at, verdict}, chained by hash."""
    drive = Drive(flag())
    window, kill, rearm = drive.window(healthy()), drive.operate("kill"), drive.operate("rearm")
    assert (kill.previous_hash, rearm.previous_hash) == (window.hash, kill.hash)
    identity = {
        "flag": "f",
        "region": "us",
        "manifest_hash": drive.flag.manifest_hash,
        "stage": 0,
        "start": 0,
        "end": WINDOW,
        "decided_at": WINDOW,
        "verdict": "kill",
    }
    assert kill.decision_id == sha256_of(identity)
    assert drive.command().command_id == sha256_of({"decision_id": rearm.decision_id, "action": "rearm"})


def test_a_killed_unit_that_is_read_back_at_every_pane_gives_the_same_bytes() -> None:
    """What an operation changed is all in the unit."""
    runs = []
    for restore in (False, True):
        drive = Drive(flag(TO_FULL), restore=restore)
        drive.window(healthy())
        drive.pane()
        drive.operate("kill", 71_000)
        drive.pane([Event("baseline", sticky="mover")])
        drive.operate("rearm", 85_000)
        drive.pane([Event("canary", sticky="mover")])
        for _ in range(3):
            drive.window(healthy())
        runs.append([d.to_bytes() for d in drive.decisions] + [c.to_bytes() for c in drive.commands])
    assert runs[0] == runs[1]


# rearm


@pytest.mark.parametrize(
    ("kind", "weight"),
    [
        ("progressive_rollout", 0.05),
        ("quality_gated", 0),
        ("cost_guard", 0.05),
        ("safety_guard", 0.05),
        ("kill_switch", 1.0),
    ],
)
def test_a_rearm_commands_the_first_stage_s_weights(kind: str, weight: float) -> None:
    """rearm: the first stage's weights; a quality gate starts closed."""
    drive = Drive(flag(f"kind: {kind}"))
    drive.operate("kill", 5)
    decision = drive.operate("rearm", 9)
    command = drive.command()
    assert (decision.verdict, decision.reasons, decision.decided_at) == ("rearm", ["rearm"], 9)
    assert (command.action, command.severity, command.rule, command.effective_from) == ("rearm", None, None, 9)
    assert (command.weights.canary, command.previous_weights.canary) == (weight, 0)
    assert decision.operation is not None
    assert decision.operation.kind == "rearm"


def test_a_rearm_of_a_shadow_ramp_goes_back_to_weight_0() -> None:
    """With traffic.shadow: true a stage of canary weight 0 comes first."""
    drive = Drive(flag("traffic: {shadow: true}"))
    drive.operate("kill")
    assert drive.operate("rearm").stage.canary_weight == 0
    assert drive.command().weights.canary == 0


def test_a_rearm_has_an_empty_record_like_a_kill() -> None:
    """rearm takes effect by the same rule: at once, with the last decided window and nothing of the open one."""
    drive = Drive(flag())
    drive.window(BROKEN)
    drive.pane(healthy())
    decision = drive.operate("rearm")
    assert (decision.window.start, decision.window.end, decision.window.closed) == (0, WINDOW, True)
    assert (decision.gates, decision.abort_rules, decision.arms, decision.source) == ([], [], {}, [])
    assert decision.stage.index == 0


@pytest.mark.parametrize("end", ["abort", "rollback", "kill"])
def test_after_a_rearm_the_unit_restarts_at_its_first_stage(end: str) -> None:
    """After rollback, abort or kill a unit promotes nothing until … an operator's rearm; it restarts there."""
    drive = Drive(flag())
    drive.window(healthy())
    drive.window(healthy())
    if end == "kill":
        drive.until(drive.unit.window.end)
        drive.operate("kill")
    else:
        assert drive.window(BROKEN if end == "abort" else healthy(coverage=0.65)).verdict == end
    assert drive.window(healthy()).reasons == ["latched"]
    drive.operate("rearm")
    ramp = [drive.window(healthy()) for _ in range(4)]
    assert [d.verdict for d in ramp] == ["promote", "promote", "promote", "pass"]
    assert [d.stage.canary_weight for d in ramp] == [0.05, 0.25, 0.5, 1]


def test_a_rearm_ends_the_window_that_is_open() -> None:
    """It is said of it what it showed, as `hold` with reason `rearm`; the next begins after lateness and settling."""
    drive = Drive(flag())
    drive.window(healthy(coverage=0.65))
    drive.pane(healthy())
    drive.operate("rearm")
    held, rearm = drive.decisions[-2:]
    assert (held.verdict, held.reasons, rearm.verdict) == ("hold", ["rearm"], "rearm")
    assert (held.window.start, held.window.end, held.window.closed) == (WINDOW, 2 * WINDOW, False)
    assert (held.decided_at, held.arms["canary"].requests, held.stage.canary_weight) == (drive.now, 46, 0)
    decision = drive.window(healthy())
    assert (decision.verdict, decision.stage.index) == ("promote", 0)
    assert decision.window.start == WINDOW + PANE + SETTLED


def test_a_rearm_ends_no_window_of_which_no_pane_has_closed() -> None:
    """Nothing was seen, nothing is said; the new window begins after settling all the same."""
    drive = Drive(flag())
    drive.window(healthy(coverage=0.65))
    drive.operate("rearm")
    assert [decision.verdict for decision in drive.decisions] == ["rollback", "rearm"]
    assert drive.window(healthy()).window.start == WINDOW + SETTLED


@pytest.mark.parametrize("ahead", [0, 1, 5_000, 123_456, 10 * WINDOW])
@pytest.mark.parametrize("kind", KINDS[:-1])
def test_no_window_that_began_before_an_operation_is_evidence_for_what_follows_it(kind: str, ahead: int) -> None:
    """Telemetry may be behind: what was served before the rearm is in no window that is judged after it."""
    drive = Drive(flag(f"kind: {kind}"))
    drive.window(reasoned())
    drive.operate("kill")
    drive.pane(reasoned())
    ts = drive.now + ahead
    drive.operate("rearm", ts)
    while not drive.decisions[-1].window.closed or drive.decisions[-1].verdict == "rearm":
        drive.pane(reasoned())
    assert drive.decisions[-1].window.start >= ts
    assert drive.decisions[-1].window.start % PANE == 0
    assert "latched" not in drive.decisions[-1].reasons


def test_a_rearm_ends_the_window_that_an_early_abort_cut() -> None:
    """What was served before the abort counts for nothing after the rearm, and the canary is watched at once."""
    drives = [Drive(flag()), Drive(flag())]
    for drive in drives:
        drive.pane(BROKEN)
        drive.operate("rearm")
        assert [decision.verdict for decision in drive.decisions] == ["abort", "hold", "rearm"]
    good, bad = drives
    assert good.window(healthy()).verdict == "promote"
    assert [decision.verdict for decision in bad.pane(BROKEN)] == ["abort"]


@pytest.mark.parametrize("before", ["nothing", "abort", "rollback", "kill", "promote", "settling"])
def test_after_a_rearm_the_abort_rules_are_looked_at_with_every_pane(before: str) -> None:
    """From the first served row after any operation: a canary that fails is stopped in the pane that shows it."""
    for waits in range(9):
        drive = Drive(flag())
        drive.window(healthy(coverage=0.65) if before == "rollback" else healthy())
        if before == "settling":
            drive.pane()
        elif before != "promote":
            drive.until(drive.unit.window.end)
        if before == "abort":
            drive.pane(BROKEN)
        if before == "kill":
            drive.operate("kill")
        drive.operate("rearm")
        drive.until(drive.now + waits * PANE)
        assert [decision.verdict for decision in drive.pane(BROKEN)] == ["abort"]


def test_a_window_after_a_settling_span_that_an_abort_cut_is_not_cut_itself() -> None:
    """The rearm takes effect in it, and it is watched like any other."""
    drives = [Drive(flag()), Drive(flag())]
    for drive in drives:
        drive.window(healthy())
        assert [decision.verdict for decision in drive.pane(BROKEN)] == ["abort"]
        drive.until(drive.unit.window.end)
        drive.operate("rearm")
    good, bad = drives
    assert good.window(healthy()).verdict == "promote"
    assert [decision.verdict for decision in bad.pane(BROKEN)] == ["abort"]


def test_a_rearm_in_the_middle_of_a_ramp_starts_it_over() -> None:
    """The unit restarts at its first stage, latched or not."""
    drive = Drive(flag())
    drive.window(healthy())
    drive.window(healthy())
    drive.until(drive.unit.window.end - 3 * PANE)
    drive.operate("rearm")
    assert (drive.command().previous_weights.canary, drive.command().weights.canary) == (0.5, 0.05)
    decision = drive.window(healthy())
    assert (decision.verdict, decision.stage.index) == ("promote", 0)


def test_a_rearm_while_a_stage_settles_begins_a_new_settling_span() -> None:
    """The span between the stages is judged by nothing but the abort rules, before and after the rearm."""
    drive = Drive(flag())
    drive.window(healthy())
    drive.pane()
    drive.operate("rearm")
    assert [decision.verdict for decision in drive.decisions] == ["promote", "rearm"]
    decision = drive.window(healthy())
    assert (decision.verdict, decision.stage.index) == ("promote", 0)
    assert (decision.window.start, decision.window.end) == (WINDOW + PANE + SETTLED, 2 * WINDOW + PANE + SETTLED)


def test_a_settling_span_ends_however_often_it_is_begun_again() -> None:
    """Every rearm begins one, and the last of them is over after lateness and settle."""
    drive = Drive(flag("window: {length: 1m, settle: 5m}"))
    drive.window(healthy())
    for _ in range(4):
        drive.pane()
        drive.operate("rearm")
    began = drive.now
    decision = drive.window(healthy())
    assert (decision.verdict, decision.window.start) == ("promote", began + 310_000)


def test_a_rearm_forgets_strikes_green_windows_and_the_pinned_baseline() -> None:
    """A new ramp: two strikes again, hold_windows again, and its own baseline."""
    drive = Drive(flag("window: {length: 1m, hold_windows: 2}\n" + TO_FULL))
    assert drive.window(healthy(latency=200.0)).verdict == "freeze"
    drive.operate("rearm")
    assert drive.window(healthy(latency=200.0)).verdict == "freeze"
    drive.window(healthy())
    drive.operate("rearm")
    assert [drive.window(healthy()).verdict for _ in range(2)] == ["hold", "promote"]
    drive.until(drive.unit.window.end)
    assert drive.unit.pinned is not None
    drive.operate("rearm")
    decision = drive.window([event for event in healthy() if event.arm == "canary"])
    assert found(decision) == ["insufficient_data", "no_pinned_baseline"]


def test_a_rearm_forgets_what_the_arms_were_locked_to() -> None:
    """A pin that both arms changed since is what the new rollout is held to; another change is a drift again."""
    drive = Drive(flag())
    drive.window(healthy())
    redeployed = [dataclasses.replace(e, pins={**PINNED, "TOK_VER": "u"}) for e in healthy()]
    assert found(drive.window(redeployed)) == ["pins_drifted"] * 2
    drive.operate("rearm")
    assert drive.window(redeployed).verdict == "promote"
    assert found(drive.window(healthy())) == ["pins_drifted"] * 2


def test_a_rearm_does_not_forget_the_manifest_s_pins() -> None:
    """What the manifest names holds for every rollout of it."""
    drive = Drive(flag("versions: {MODEL_VER: m2}"))
    drive.operate("rearm")
    assert set(found(drive.window(healthy()))) == {"pins_drifted"}


def test_ids_may_move_while_a_rearm_is_applied_and_no_longer() -> None:
    """Users go from the baseline to the canary as its weight comes back within a window: no sticky violation."""
    drive = Drive(flag())
    drive.window(healthy(coverage=0.65))
    drive.pane([Event("baseline", sticky="mover")])
    drive.operate("rearm", drive.now + 1_000)
    for _ in range(3):
        drive.pane([Event("baseline", sticky="mover"), Event("canary", sticky="mover")])
    assert not drive.unit.settling
    drive.pane([Event("canary", sticky="mover")])
    assert drive.window(healthy()).verdict == "promote"
    drive.operate("rearm")
    both = [Event("baseline", sticky="mover"), Event("canary", sticky="mover")]
    assert found(drive.window([*healthy(), *both])) == ["sticky_violation"]


def test_ids_that_came_before_a_rearm_are_no_sample_of_its_stage() -> None:
    """The share of a latched unit's ids, none in the canary, is not held against the first stage."""
    drive = Drive(flag())
    drive.window(healthy(coverage=0.65))
    drive.operate("rearm")
    crowd = [Event("baseline", sticky=f"b{i}") for i in range(3000)]
    drive.pane(crowd)
    assert drive.window(healthy()).verdict == "promote"


def test_exposures_from_before_a_rearm_still_count() -> None:
    """Who was exposed stays exposed: no orphans after a rearm."""
    drive = Drive(flag())
    drive.window([*healthy(coverage=0.65), *exposures(healthy())])
    drive.operate("rearm")
    assert drive.window(healthy()).verdict == "promote"


def test_a_rearm_has_the_whole_level_of_early_aborts_again() -> None:
    """alpha is per rollout, and a rearm begins one."""
    drive = Drive(flag("window: {length: 1m, hold_windows: 9}"))
    for _ in range(4):
        drive.window(healthy())
    assert drive.unit.number == 5
    drive.operate("rearm")
    assert drive.unit.number == 1


# A new revision of the manifest


def test_a_window_in_which_the_manifest_changes_is_unstable() -> None:
    """window_unstable (manifest changed in the window): decided where it is cut, and never promoted on."""
    drive = Drive(flag())
    drive.pane(healthy())
    (decision,) = drive.took(drive.ramp.cut(drive.now))
    assert (decision.verdict, decision.reasons) == ("hold", ["window_unstable"])
    assert (decision.window.end, decision.window.closed, decision.decided_at) == (WINDOW, False, PANE)
    (problem,) = decision.evidence_problems
    assert problem.problem == "window_unstable"
    assert problem.detail == {"manifest": drive.flag.manifest_hash, "changed_at": PANE}
    assert drive.commands == []


@pytest.mark.parametrize("kind", KINDS[:-1])
def test_a_cut_window_shows_its_rules_and_fires_none(kind: str) -> None:
    """Every fired rule is listed, with exactly one command: where nothing is judged, none is."""
    drive = Drive(flag(f"kind: {kind}\nwindow: {{length: 1m, min_requests: 90}}"))
    drive.feed([*healthy(90, coverage=0.5), *requests("canary", 1, reason="failed", mode="full")])
    (decision,) = drive.took(drive.ramp.cut(PANE))
    assert [rule.kind for rule in decision.abort_rules if rule.fired] == []
    assert {rule.kind: rule.observed for rule in decision.abort_rules}["coverage_under"] is not None
    assert drive.commands == []


def test_a_latched_unit_s_cut_window_is_latched() -> None:
    """After abort, rollback or kill windows are still decided, as `hold` with reason `latched`."""
    drive = Drive(flag())
    drive.operate("kill")
    drive.pane(healthy())
    (decision,) = drive.took(drive.ramp.cut(drive.now))
    assert (decision.verdict, decision.reasons) == ("hold", ["latched"])
    assert "window_unstable" in found(decision)


@pytest.mark.parametrize("moment", ["start", "settling", "asleep", "switch"])
def test_where_no_window_is_open_there_is_none_to_cut(moment: str) -> None:
    """A change at a window's start, between stages or while a unit sleeps is in no window."""
    rules = flag("kind: kill_switch" if moment == "switch" else "")
    drive = Drive(rules, unit=dormant(rules, "us", CLOCKWORK) if moment == "asleep" else None)
    if moment in ("start", "settling"):
        drive.window(healthy(coverage=0.65 if moment == "start" else 0.8))
    if moment == "settling":
        drive.pane()
    assert list(drive.ramp.cut(max(drive.now, PANE))) == []


def test_a_new_revision_commands_its_first_weights_where_they_differ() -> None:
    """until a new manifest revision: the unit begins again, and says so with a command if its weight changes."""
    drive = Drive(flag())
    drive.window(healthy())
    later = Drive(flag("traffic: {canary_weight: 0.1, baseline_weight: 0.9}"), drive.now, before=drive.unit)
    (decision,) = later.took(later.ramp.begun())
    command = later.command()
    assert (decision.verdict, decision.reasons, decision.operation) == ("rearm", ["manifest_revision"], None)
    assert (command.weights.canary, command.previous_weights.canary, command.seq) == (0.1, 0.25, 2)
    assert decision.previous_hash == drive.decisions[-1].hash
    same = Drive(flag("traffic: {stages: [0.05, 1.0]}"), before=begin(flag(), "us", 0, CLOCKWORK))
    assert list(same.ramp.begun()) == []


def test_a_quality_gate_of_a_new_revision_starts_closed_with_a_command() -> None:
    """starts closed, a command on each change: what was open under the old manifest is closed."""
    rules = flag("kind: quality_gated")
    drive = Drive(rules)
    assert drive.window(healthy()).verdict == "open"
    later = Drive(flag("kind: quality_gated\ngates: {cost_uplift_max: null}"), drive.now, before=drive.unit)
    (decision,) = later.took(later.ramp.begun())
    assert (decision.verdict, later.commanded()) == ("close", [("close", 0)])
    assert later.window(healthy()).verdict == "open"


def test_ids_may_move_while_a_new_revision_s_weights_are_applied() -> None:
    """Users of the old stage go back to the baseline as its weight comes down: no violation of the new ramp."""
    drive = Drive(flag())
    drive.window(healthy())
    drive.until(drive.unit.window.end)
    later = Drive(flag("gates: {cost_uplift_max: null}"), drive.now, before=drive.unit)
    later.took(later.ramp.begun())
    crowd = [Event("canary", sticky=f"old{i}") for i in range(2000)]
    later.pane([*crowd, *[dataclasses.replace(event, arm="baseline") for event in crowd]])
    assert later.window(healthy()).verdict == "promote"


def test_a_revision_that_turns_a_kill_switch_on_again_rearms_it() -> None:
    """A switch that was killed by canary_weight 0 comes back with a new revision's weight."""
    killed = begin(flag("kind: kill_switch\ntraffic: {canary_weight: 0}"), "us", 0, CLOCKWORK)
    assert killed.weight == 0
    later = Drive(flag("kind: kill_switch\ntraffic: {canary_weight: 0.5, baseline_weight: 0.5}"), before=killed)
    later.took(later.ramp.begun())
    assert later.commanded() == [("rearm", 0.5)]


# Sleep


def test_a_unit_without_events_sleeps_and_an_operation_does_not_wake_it() -> None:
    """After 1,000 windows in a row without an event a unit is not decided until its next one."""
    drive = Drive(flag(), unit=dormant(flag(), "us", CLOCKWORK))
    assert (drive.ramp.deadline, drive.unit.idle) == (None, ASLEEP_AFTER)
    drive.operate("kill", 5)
    drive.operate("rearm", 6)
    assert drive.ramp.asleep
    assert drive.pane() == []
    drive.ramp.wake(PANE)
    decision = drive.window(healthy())
    assert (decision.verdict, decision.window.start) == ("promote", 3 * PANE)


def test_a_unit_that_wakes_long_after_a_rearm_has_settled() -> None:
    """Its first window begins with its first event."""
    drive = Drive(flag(), unit=dormant(flag(), "us", CLOCKWORK))
    drive.operate("rearm", 6)
    drive.until(9 * PANE)
    drive.ramp.wake(9 * PANE)
    assert drive.window(healthy()).window.start == 9 * PANE


def test_the_span_in_which_ids_may_move_follows_lateness_and_settle() -> None:
    """From the change on: lateness and settle, rounded up to a pane, as a promote settles."""
    drive = Drive(flag("window: {length: 1m, settle: 1s}"), clockwork=Clockwork(PANE, 5_000, "t"))
    drive.operate("rearm", 14_000)
    assert drive.unit.moving_until == CLOCKWORK.pane_ms * 2
