"""What ``explain`` says of a stage whose evidence has not settled every gate."""

import pytest

from tests.gates.build import Drive, flag, healthy, probes, requests
from tests.gates.test_staged import both, mixed, sequential
from tidegate.streams.commands.explain import explain
from tidegate.streams.report.terminal import verdict


def words(drive: Drive) -> str:
    return "\n".join(line.plain for line in explain(drive.decisions[-1]))


def test_an_undecided_gate_says_its_value_its_bound_and_what_has_to_be_ruled_out() -> None:
    drive = Drive(sequential())
    drive.window(mixed(500, 1, error=True))
    said = words(drive)
    assert "Not decided yet: error rate is 0.2 % in 500 requests; it may still be 1." in said
    assert "and 1 % has to be ruled out." in said
    assert "at this value it would pass after about " in said
    assert "a window counts from zero" not in said
    assert "the stage's windows add up until every gate is settled" in said


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"latency": 500.0}, "not decided yet: latency p95 is"),
        ({"delta_s": 0.09}, "ΔS p95 is"),
        ({"coverage": 0.65}, "coverage is"),
        ({"cost": 5.0}, "cost per solved request is"),
        ({"tool_calls": 1, "tool_ok": 0}, "tool success is"),
    ],
)
def test_every_gate_that_is_open_has_words(bad: dict[str, float], said: str) -> None:
    drive = Drive(sequential())
    drive.window([*both(57), *requests("canary", 3, **bad)])
    assert said.lower() in words(drive).lower()
    assert "None" not in words(drive)


def test_lambda_says_how_many_groups_converge_and_what_flip_rate_has_to_be_ruled_out() -> None:
    drive = Drive(sequential(probes=True))
    drive.window([*both(50), *(e for q in range(20) for e in probes("canary", f"q{q}", sticky="canary-0"))])
    assert "Not decided yet: λ converges in all of 20; the flip rate may still be " in words(drive)
    assert "and 20 % has to be ruled out." in words(drive)


def test_a_value_between_limit_and_rule_out_is_said_not_to_end_soon() -> None:
    drive = Drive(sequential())
    drive.window(mixed(1000, 7, error=True))
    assert "it cannot end soon" in words(drive)
    assert "0.7 % in 1,000 requests, over the limit of 0.5 %" in words(drive)


def test_a_line_tells_gates_that_are_open_from_those_that_fail() -> None:
    """A hold for open gates is no failure of theirs; a rollback is."""
    drive = Drive(sequential(probes=True))
    drive.window(both(60))
    said = verdict(drive.decisions[-1]).plain
    assert said.startswith("hold (undecided: ")
    assert said.endswith("; unknown: lambda_convergent)")
    failed = Drive(flag())
    failed.window(healthy(coverage=0.65))
    assert verdict(failed.decisions[-1]).plain == "rollback (coverage_min)"


def test_windows_that_count_and_those_left_out_are_told() -> None:
    drive = Drive(sequential())
    drive.window(both(100))
    drive.window(both(100), late=50)
    drive.window(both(100))
    assert (
        "The gates rest on 2 windows of the stage, since 1970-01-01T00:00:00Z; 1 window with an evidence problem"
        in (words(drive))
    )


def test_a_stage_that_outlasts_patience_asks_somebody_to_look() -> None:
    drive = Drive(sequential("patience: 90s"))
    for _ in range(2):
        drive.window(both(20))
    assert "longer than policy.patience: somebody should look at it" in words(drive)


def test_a_freeze_within_a_window_says_what_its_end_brings() -> None:
    drive = Drive(sequential())
    drive.pane(both(300, latency=900.0))
    assert "if it is still so at a window's end it rolls back" in words(drive).replace("If", "if")


def test_a_gate_over_its_limit_that_rows_left_out_do_not_prove_says_so() -> None:
    drive = Drive(sequential(body="abort_rules: {hard: []}"))
    drive.window(both(3000), late=3000)
    drive.window(mixed(400, 20, error=True))
    said = words(drive)
    assert "error rate is 5 % in 400 requests, over the limit of 0.5 %; it may still be 0." in said
    assert " %, windows left out counted in." in said
    assert "a few seconds" not in said
