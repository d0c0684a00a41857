"""The demo as a user runs it, and the commands that show what a worker decided."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from schemas.decision import command_from_bytes, decision_from_bytes
from streams.simulate import SCENARIOS

ROOT = Path(__file__).parents[2]


def tidegate(*arguments: str, seconds: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")}
    return subprocess.run(
        [sys.executable, "-m", "streams.commands", *arguments],
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
    assert "replayed 3 decisions and 2 commands" in done.stdout
    assert "recorded events: the same bytes" in done.stdout
    assert "CC BY 4.0" in done.stdout
    assert "abort (error_rate_over)" in done.stdout
    decisions = [decision_from_bytes(line) for line in (tmp_path / "decisions.ndjson").read_bytes().splitlines()]
    assert tuple(decision.verdict for decision in decisions) == SCENARIOS["errors"].verdicts
    assert not decisions[1].window.closed
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("demo", "--broker", "127.0.0.1:9", "--out", "OUT"), "no Kafka answers at 127.0.0.1:9"),
        (("demo", "--out", "LICENSE/x"), "--out: LICENSE/x: "),
        (("demo", "--scenario", "unheard"), "'unheard' is not one of 'healthy', 'drift', 'slow', 'errors', 'pins'"),
        (("watch", "--broker", "127.0.0.1:9"), "127.0.0.1:9 (TIDEGATE_BROKER) cannot be read"),
        (("simulate", "--trace", "none.csv", "--scenario", "slow"), "no manifest"),
        (
            ("simulate", "--trace", "none.csv", "--scenario", "slow", "--manifest", "examples/manifest.yml"),
            "none.csv: No such file or directory",
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
