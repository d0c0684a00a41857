"""Stored logs give the stored bytes: whoever has a log can compute its decisions again, with any later version."""

import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest
import rfc8785

from tests.golden.make import CASES, RENEW, decide, folder, log_of
from tidegate.streams.audit.compare import first_difference

pytestmark = pytest.mark.usefixtures("decoder")

ADVICE = f"If that is meant: {RENEW}, and read the diff of tests/golden before you commit it."


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the caller's environment."""
    for name in [name for name in os.environ if name.upper().startswith("TIDEGATE_")]:
        monkeypatch.delenv(name)


def stored(name: str, what: str) -> bytes:
    return (folder(name) / f"{what}.ndjson").read_bytes()


def records(name: str, what: str) -> list[dict[str, Any]]:
    return [msgspec.json.decode(line) for line in stored(name, what).splitlines()]


def by_unit(name: str, what: str) -> dict[str, list[dict[str, Any]]]:
    units: dict[str, list[dict[str, Any]]] = {}
    for record in records(name, what):
        units.setdefault(f"{record['flag']}|{record['region']}", []).append(record)
    return units


def check(name: str, what: str, found: bytes) -> None:
    """Fail with the first record that differs, and with what to do about it."""
    expected = stored(name, what)
    if found != expected:
        difference = first_difference(found.splitlines(), expected.splitlines()) or "in the order of units"
        pytest.fail(f"{name}: {what}: {difference}. {ADVICE}", pytrace=False)


@pytest.mark.parametrize("name", CASES)
def test_a_stored_log_gives_the_stored_decisions_and_commands(name: str, tmp_path: Path) -> None:
    """To the byte, in order."""
    decisions, commands = decide(name, tmp_path)
    check(name, "decisions", decisions)
    check(name, "commands", commands)


@pytest.mark.parametrize("name", CASES)
def test_the_stored_decisions_are_what_the_case_is_about(name: str) -> None:
    """Renewing the files cannot make a promote of a rollback."""
    found = {unit: tuple(record["verdict"] for record in made) for unit, made in by_unit(name, "decisions").items()}
    assert found == {unit: tuple(verdicts) for unit, verdicts in CASES[name].verdicts.items()}


def digest(record: Mapping[str, Any]) -> str:
    return "sha256:" + sha256(rfc8785.dumps(dict(record))).hexdigest()


@pytest.mark.parametrize("name", CASES)
def test_the_stored_records_are_canonical_chained_and_bound_to_each_other(name: str) -> None:
    """Every hash and id is computed here from the record alone."""
    for what in ("decisions", "commands"):
        assert stored(name, what).splitlines() == [rfc8785.dumps(record) for record in records(name, what)]
    for unit, decisions in by_unit(name, "decisions").items():
        previous = None
        for record in decisions:
            assert record["previous_hash"] == previous
            previous = record["hash"]
            assert previous == digest({key: value for key, value in record.items() if key != "hash"})
        commands = by_unit(name, "commands").get(unit, [])
        assert [command["seq"] for command in commands] == list(range(1, len(commands) + 1))
        ids = [record["decision_id"] for record in decisions]
        for command in commands:
            named = {"decision_id": command["decision_id"], "action": command["action"]}
            assert command["command_id"] == digest(named)
            assert command["decision_id"] in ids


class TestWhatTheCasesShow:
    """That the logs hold what they are stored for."""

    def test_healthy_knows_every_gate_up_to_all_traffic(self) -> None:
        decisions = records("healthy", "decisions")
        assert [d["stage"]["canary_weight"] for d in decisions] == [0.25, 0.5, 1]
        assert {gate["status"] for d in decisions for gate in d["gates"]} == {"pass"}
        assert not [problem for d in decisions for problem in d["evidence_problems"]]
        assert [command["weights"]["canary"] for command in records("healthy", "commands")] == [0.5, 1]

    def test_abort_comes_before_its_window_ends(self) -> None:
        abort = records("abort", "decisions")[0]
        assert not abort["window"]["closed"]
        assert abort["decided_at"] < abort["window"]["end"]
        assert [rule["kind"] for rule in abort["abort_rules"] if rule["fired"]] == ["error_rate_over"]
        (command,) = records("abort", "commands")
        assert (command["action"], command["weights"]["canary"]) == ("abort", 0)

    def test_rollback_follows_a_freeze(self) -> None:
        freeze, rollback = records("rollback", "commands")
        assert (freeze["action"], freeze["weights"]["canary"]) == ("freeze", 0.25)
        assert (rollback["action"], rollback["weights"]["canary"], rollback["severity"]) == ("rollback", 0, "soft")

    def test_pins_are_named_although_every_gate_passes(self) -> None:
        for decision in records("pins", "decisions"):
            assert {gate["status"] for gate in decision["gates"]} == {"pass"}
            assert [problem["problem"] for problem in decision["evidence_problems"]] == ["pins_drifted"]
        assert records("pins", "commands") == []

    def test_partitions_hold_all_that_goes_wrong_with_a_log(self) -> None:
        decisions = records("partitions", "decisions")
        for count in ("late", "duplicates", "dead_letters"):
            assert any(decision[count] for decision in decisions), count
        assert {source["partition"] for decision in decisions for source in decision["source"]} == {0, 1, 2}
        (unstable,) = by_unit("partitions", "decisions")["rerank|eu"]
        assert "window_unstable" in unstable["reasons"]


def test_every_stored_file_belongs_to_a_case() -> None:
    """What nobody replays proves nothing."""
    here = folder("x").parent
    assert {path.name for path in here.iterdir() if path.is_dir() and path.name != "__pycache__"} == set(CASES)
    for name in CASES:
        files = {"manifest.yml", "decisions.ndjson", "commands.ndjson", log_of(name).name}
        assert {path.name for path in folder(name).iterdir()} == files
