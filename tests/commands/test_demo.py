"""The demo as a user runs it, and the commands that show what a worker decided."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from tests.streams.play import play
from tidegate.schemas.catalogue import VERDICTS, engaged_after
from tidegate.schemas.decision import Verdict, command_from_bytes, decision_from_bytes
from tidegate.schemas.load import load_manifest
from tidegate.streams.report.terminal import VERDICT_STYLE, Standings, gate_rows, outcome, state, state_bar
from tidegate.streams.simulation.scenarios import SCENARIOS, waits

ROOT = Path(__file__).parents[2]


def tidegate(*arguments: str, seconds: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")}
    return subprocess.run(
        [sys.executable, "-m", "tidegate.streams.commands", *arguments],
        env=clean | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=seconds,
    )


def test_the_demo_shows_its_scenario_and_replays_to_the_same_bytes(tmp_path: Path) -> None:
    """Whatever the environment says of the worker's settings; the files it leaves replay by hand too."""
    done = tidegate(
        *("demo", "--scenario", "errors", "--speed", "150", "--out", str(tmp_path)),
        TIDEGATE_PANE="60s",
        TIDEGATE_SECURITY_PROTOCOL="SSL",
        TIDEGATE_TOPIC_PREFIX="other",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "replayed 5 decisions and 2 commands" in done.stdout
    assert "recorded events: the same bytes" in done.stdout
    assert "CC BY 4.0" in done.stdout
    assert "abort (error_rate_over)" in done.stdout
    decisions = [decision_from_bytes(line) for line in (tmp_path / "decisions.ndjson").read_bytes().splitlines()]
    told = [decision for decision in decisions if not waits(decision)]
    assert tuple(decision.verdict for decision in told) == SCENARIOS["errors"].verdicts
    assert not told[1].window.closed
    commands = [command_from_bytes(line) for line in (tmp_path / "commands.ndjson").read_bytes().splitlines()]
    assert [(command.action, command.weights.canary) for command in commands] == [("promote", 0.25), ("abort", 0.0)]
    with gzip.open(tmp_path / "telemetry.ndjson.gz") as lines:
        first = json.loads(next(iter(lines)))
    assert first.keys() == {"partition", "offset", "timestamp", "value"}
    again = tidegate(
        *("replay", "--manifest", "examples/manifest.yml", "--events", str(tmp_path / "telemetry.ndjson.gz")),
        *("--out", str(tmp_path / "again.ndjson"), "--compare", str(tmp_path / "decisions.ndjson")),
    )
    assert again.returncode == 0, again.stdout + again.stderr
    assert (tmp_path / "again.ndjson").read_bytes() == (tmp_path / "decisions.ndjson").read_bytes()


def test_the_demos_kill_goes_through_the_operations_topic_and_replays_from_its_file(tmp_path: Path) -> None:
    """Every region is killed by name and reason; the worker's records and the replay's are the same."""
    done = tidegate("demo", "--scenario", "kill-switch", "--speed", "150", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "demo orders: kill prompt_pack_vNplus1" in done.stdout
    assert "kill by demo: answers cite a withdrawn source" in done.stdout
    assert "replayed 2 decisions and 2 commands" in done.stdout
    assert "recorded events: the same bytes" in done.stdout
    decisions = [decision_from_bytes(line) for line in (tmp_path / "decisions.ndjson").read_bytes().splitlines()]
    (order,) = (tmp_path / "operations.ndjson").read_bytes().splitlines()
    assert {decision.region for decision in decisions} == {"us-east-1", "eu-west-1"}
    for decision in decisions:
        assert decision.operation is not None
        assert decision.decided_at == decision.operation.ts == json.loads(order)["ts"]


def test_every_verdict_has_a_colour() -> None:
    """None looks like plain text."""
    assert VERDICT_STYLE.keys() == set(get_args(Verdict))


@pytest.mark.parametrize(
    ("name", "states"),
    [
        ("quality-gate", ["open", "open", "closed", "closed", "open"]),
        ("cost-guard", ["full chain", "light chain", "light chain", "full chain", "full chain"]),
        (
            "safety-guard",
            ["full answers", "cite-only answers", "cite-only answers", "full answers", "full answers"],
        ),
        ("kill-switch", ["killed", "killed"]),
    ],
)
def test_a_flag_that_is_no_ramp_shows_its_state(name: str, states: list[str]) -> None:
    """As each decision leaves it, in words and in the bar."""
    played, standings, shown = play(name), Standings(), []
    for decision in played.decisions:
        standings.follow(decision)
        engaged = standings.engaged(decision.key)
        shown.append(state(decision.kind, 0.25, engaged=engaged).removesuffix(", canary 25 %"))
        assert f"[{shown[-1]}]" in state_bar(played.simulation.flag, 0.25, engaged=engaged).plain
    assert shown == states


def test_a_hold_leaves_a_guard_as_it_is_and_a_kill_closes_a_gate() -> None:
    """What cannot be judged changes nothing."""

    def after(verdict: Verdict, kind: str, before: bool) -> bool | None:
        return engaged_after(before, verdict, kind, reasons=[], closed=True)

    assert after("hold", "cost_guard", True)
    assert not after("hold", "cost_guard", False)
    assert not after("kill", "quality_gated", True)


def test_every_verdict_has_its_row() -> None:
    assert VERDICTS.keys() == set(get_args(Verdict))


def test_what_a_flag_does_not_decide_on_is_shown_as_that() -> None:
    """A cost guard judges cost alone, a safety guard its own two rules."""
    _, fallback, *_ = play("cost-guard").decisions
    assert [row.name for row in gate_rows(fallback, only_judged=True)] == ["cost_uplift_max"]
    assert {row.status for row in gate_rows(fallback) if not row.judged} == {"not judged"}
    _, degrade, *_ = play("safety-guard").decisions
    full, rate = gate_rows(degrade, only_judged=True)
    assert (full.name, full.limit, full.status) == ("reason_failed_served_in_full", "≤ 0", "fired")
    assert (rate.name, rate.limit, rate.status) == ("reason_failure_rate_over", "≤ 1 %", "fired")


def test_the_bar_marks_the_stage_and_no_stage_once_the_canary_is_gone() -> None:
    """A weight of 0 is the shadow stage only before the end."""
    flag = load_manifest("flags: {f: {traffic: {shadow: true}}}").flags["f"]
    assert state_bar(flag, 0.25, engaged=False).plain.startswith("shadow → 5 % → [25 %] → 50 % → 100 %   ██████████░")
    assert "[shadow]" in state_bar(flag, 0.0, engaged=False).plain
    assert "[" not in state_bar(flag, 0.0, engaged=False, ended=True).plain


def test_a_line_tells_a_closed_gate_from_an_open_one() -> None:
    """The weight alone would say 0 %."""
    opens, stays_open, *_ = play("quality-gate").decisions
    assert "  closed    open (all_gates_pass)" in outcome(opens).plain
    assert "  at  25 %  open (all_gates_pass)" in outcome(stays_open).plain


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("demo", "--broker", "127.0.0.1:9", "--out", "OUT"), "no Kafka answers at 127.0.0.1:9"),
        (("demo", "--out", "LICENSE/x"), "--out: LICENSE/x: "),
        (("demo", "--scenario", "unheard"), "'unheard' is not one of 'healthy', 'drift', "),
        (("watch", "--broker", "127.0.0.1:9"), "127.0.0.1:9 (TIDEGATE_BROKER) cannot be read"),
        (("simulate", "--trace", "none.csv", "--scenario", "slow"), "no manifest"),
        (
            ("simulate", "--trace", "none.csv", "--scenario", "slow", "--manifest", "examples/manifest.yml"),
            "none.csv: No such file or directory",
        ),
        (
            ("simulate", "--trace", "none.csv", "--scenario", "cost-guard", "--manifest", "examples/manifest.yml"),
            "--scenario: it needs a flag with kind: cost_guard in prompt_pack_vNplus1",
        ),
    ],
)
def test_a_users_mistake_is_a_clear_line_and_exit_code_2(
    arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    """No traceback."""
    done = tidegate(*(str(tmp_path) if argument == "OUT" else argument for argument in arguments))
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith(("Usage: ", "Try ")) and line]
    assert message in line
