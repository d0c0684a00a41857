"""The change-freeze calendar: promotes are blocked with reason ``change_freeze``, aborts are not."""

from datetime import UTC, datetime
from textwrap import indent

import pytest

from tests.gates.build import PANE, WINDOW, Drive, Event, flag, healthy, requests
from tidegate.schemas.load import load_manifest
from tidegate.schemas.manifest import Flag

BROKEN = healthy(error=True)
UNKNOWN = [event for event in healthy() if event.probe is None]


def iso(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat()


def frozen(start: int, end: int, body: str = "", *, more: str = "") -> Flag:
    """A flag under a manifest with a freeze of [start, end), ms."""
    text = f"""
freeze_windows:
  - {{from: "{iso(start)}", to: "{iso(end)}", reason: year end, by: cab}}
{more}
flags:
  f:
    window: {{length: 1m}}
    policy: {{evidence: point}}
{indent(body, "    ")}"""
    return load_manifest(text, pane_ms=PANE).flags["f"]


FOR_EVER = frozen(0, 10**12)


def test_a_promote_in_a_freeze_is_held_with_reason_change_freeze() -> None:
    """promotes are blocked with reason `change_freeze`."""
    drive = Drive(FOR_EVER)
    decision = drive.window(healthy())
    assert (decision.verdict, decision.reasons, drive.commands) == ("hold", ["change_freeze"], [])
    assert {gate.status for gate in decision.gates} <= {"pass", "not_applicable"}


def test_the_decision_names_the_freeze_with_who_and_why() -> None:
    """shows in the decisions with who and why, and from when to when."""
    freeze = Drive(frozen(5_000, 10**9)).window(healthy()).change_freeze
    assert freeze is not None
    assert (freeze.start, freeze.end, freeze.reason, freeze.by) == (5_000, 10**9, "year end", "cab")


def test_a_window_that_would_not_promote_names_no_freeze() -> None:
    """set where it alone blocks a promote."""
    for events in (UNKNOWN, healthy(coverage=0.65), BROKEN, []):
        decision = Drive(FOR_EVER).window(events)
        assert decision.change_freeze is None
        assert "change_freeze" not in decision.reasons


@pytest.mark.parametrize(
    ("start", "end", "verdict"),
    [
        (0, WINDOW, "promote"),
        (0, WINDOW + 1_000, "hold"),
        (WINDOW, 2 * WINDOW, "hold"),
        (WINDOW + 1_000, 2 * WINDOW, "promote"),
    ],
)
def test_a_freeze_holds_where_the_window_ends_in_it(start: int, end: int, verdict: str) -> None:
    """A promote is decided at the window's end; a freeze is from its start up to, not including, its end."""
    assert Drive(frozen(start, end)).window(healthy()).verdict == verdict


def test_aborts_are_not_blocked() -> None:
    """aborts are not: at a pane and at a window's end."""
    drive = Drive(FOR_EVER)
    assert [d.verdict for d in drive.pane(BROKEN)] == ["abort"]
    assert drive.commanded() == [("abort", 0)]
    at_end = Drive(FOR_EVER)
    assert at_end.window([*healthy(), *requests("canary", 1, error=True)]).verdict == "abort"


def test_rollbacks_freezes_and_second_strikes_are_not_blocked() -> None:
    """Whatever makes a rollout safer goes on."""
    assert Drive(FOR_EVER).window(healthy(coverage=0.65)).verdict == "rollback"
    drive = Drive(FOR_EVER)
    assert [drive.window(healthy(latency=200.0)).verdict for _ in range(2)] == ["freeze", "rollback"]


def test_kills_and_rearms_are_not_blocked() -> None:
    """An operator may always."""
    drive = Drive(FOR_EVER)
    drive.operate("kill")
    drive.operate("rearm")
    assert drive.commanded() == [("kill", 0), ("rearm", 0.05)]


def test_evidence_and_unknown_gates_are_named_before_a_freeze() -> None:
    """What is wrong with the evidence is wrong in a freeze as well."""
    drive = Drive(FOR_EVER)
    assert drive.window(healthy(), late=50).reasons == ["window_unstable"]
    assert drive.window(UNKNOWN).reasons == ["lambda_convergent"]


def test_after_the_freeze_the_next_green_window_promotes() -> None:
    """The hold ends with the freeze."""
    drive = Drive(frozen(0, 150_000))
    assert [drive.window(healthy()).verdict for _ in range(3)] == ["hold", "hold", "promote"]


def test_green_windows_in_a_freeze_are_consecutive() -> None:
    """hold_windows are consecutive: a freeze breaks no row of green windows."""
    text = f"""
freeze_windows: [{{from: "{iso(0)}", to: "{iso(170_000)}", reason: r}}]
flags: {{f: {{window: {{length: 1m, hold_windows: 2}}, policy: {{evidence: point}}}}}}"""
    drive = Drive(load_manifest(text).flags["f"])
    decisions = [drive.window(healthy()) for _ in range(3)]
    assert [d.reasons for d in decisions] == [["hold_windows"], ["change_freeze"], ["all_gates_pass"]]


def test_a_pass_at_the_last_stage_is_no_promote() -> None:
    """pass: the same at the last stage, in a freeze too."""
    last = frozen(WINDOW + 1_000, 10**12, "traffic: {stages: [0.05, 1.0]}")
    drive = Drive(last)
    assert [drive.window(healthy()).verdict for _ in range(2)] == ["promote", "pass"]


def test_the_first_of_several_freezes_is_named() -> None:
    """Where two overlap the one that is written first stands in the decision."""
    second = f'  - {{from: "{iso(0)}", to: "{iso(10**9)}", reason: second}}'
    assert (
        Drive(frozen(0, 10**9, more=second)).window(healthy()).change_freeze
        == Drive(frozen(0, 10**9)).window(healthy()).change_freeze
    )
    later = Drive(frozen(0, 1_000, more=second)).window(healthy()).change_freeze
    assert later is not None
    assert (later.reason, later.by) == ("second", None)


def test_without_a_freeze_nothing_is_held() -> None:
    """The default is none."""
    assert Drive(flag()).window(healthy()).change_freeze is None


@pytest.mark.parametrize("kind", ["cost_guard", "safety_guard"])
def test_guards_step_in_and_out_in_a_freeze(kind: str) -> None:
    """They promote nothing."""
    drive = Drive(frozen(0, 10**12, f"kind: {kind}"))
    bad = [*healthy(reason="ok", mode="full", cost=0.9), Event("canary", sticky="canary-0", reason="failed")]
    good = healthy(reason="ok", mode="full")
    for events in (bad, good):
        drive.window(events)
    assert [command.action for command in drive.commands][1:] == ["restore"]
