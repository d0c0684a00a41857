"""Logs of a real run, damaged in every way at hundreds of places: each damage is found, and named for what it is."""

import json
import random
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest

from schemas.canonical import canonical, sha256_of
from schemas.errors import EventError
from schemas.operation import Operation
from schemas.timeline import Revision, Timeline
from streams import verify as module
from streams.chain import read_link
from streams.ledger import read_entry
from streams.panes import Run
from streams.replay import Pipeline
from streams.verify import Audit, Report
from tests.streams.events import CLOCKWORK, NOON, PANE, flags, healthy_pane, tick, written

PLACES = 3000
MANIFEST = """
flags:
  ramp: &ramp
    versions: {MODEL_VER: m1}
    traffic: {canary_weight: 0.25, baseline_weight: 0.75, stages: [0.25, 0.5, 1.0]}
    window: &window {length: 20s, settle: 5s, min_requests: 6, min_lambda_groups: 1}
  quality: {<<: *ramp, kind: quality_gated, traffic: {canary_weight: 0.2, baseline_weight: 0.8}}
  cost: {<<: *ramp, kind: cost_guard}
  safety: {<<: *ramp, kind: safety_guard}
  switch: {kind: kill_switch, scope: {regions: [eu, us]}}
"""
LATER = MANIFEST.replace("settle: 5s, ", "settle: 15s, ")
SEEDS = [("ramp", "eu"), ("ramp", "us"), ("ramp", "a|b"), ("quality", ""), ("cost", ""), ("safety", "")]
PANES = 32


def _canary(flag: str, region: str, pane: int) -> dict[str, Any]:
    """How the canary differs from a healthy one in a pane."""
    changes: dict[str, Any] = {"flag": flag, "region": region}
    if flag == "ramp" and region == "us":
        changes |= {"latency_ms": 130.0} if 2 <= pane < 8 else {}
    elif flag == "ramp" and region == "a|b":
        changes |= {"status": 500} if 5 <= pane < 9 else {}
    elif flag == "quality":
        changes |= {"coverage": 0.5} if pane % 10 in (6, 7, 8, 9) else {}
    elif flag == "cost":
        changes |= {"cost": 0.02} if pane % 12 >= 5 else {}
    elif flag == "safety":
        changes |= {"reason_status": "failed" if pane % 12 >= 5 else "ok", "output_mode": "full"}
    return changes


def _operation(kind: Any, flag: str, pane: int) -> Operation:
    return Operation(actor="ann", flag=flag, kind=kind, reason="a drill", ts=NOON + pane * PANE + 7)


@cache
def run(cost: float = 0.01) -> tuple[list[bytes], list[bytes]]:
    """Decisions and commands of all kinds of flags, under two revisions of the manifest, with operators at work."""
    timeline = Timeline([Revision(1, 0, flags(MANIFEST)), Revision(2, NOON + 19 * PANE, flags(LATER))])
    pipeline = Pipeline(
        timeline,
        1,
        CLOCKWORK,
        [
            _operation("kill", "switch", 4),
            _operation("rearm", "switch", 6),
            _operation("rearm", "ramp", 12),
            _operation("kill", "quality", 15),
            _operation("rearm", "quality", 17),
            _operation("kill", "switch", 20),
            _operation("kill", "ramp", 29),
        ],
    )
    log: list[bytes | None] = []
    for pane in range(PANES):
        for flag, region in SEEDS:
            for number, one in enumerate(healthy_pane(NOON + pane * PANE, cost=cost)):
                own = _canary(flag, region, pane) if one["arm"] == "canary" else {"flag": flag, "region": region}
                log += written([one | own | {"event_id": f"{flag}/{region}/{pane}/{number}"}])
    log.append(tick(NOON + (PANES + 3) * PANE))
    outcomes = [*pipeline.step(0, Run(0, log)), *pipeline.finish()]
    commands = [command.to_bytes() for _, command in outcomes if command is not None]
    return [decision.to_bytes() for decision, _ in outcomes], commands


@dataclass
class Log:
    """Decisions and commands as an auditor finds them; a record stands at ``d0``, ``d1``… or ``c0``, ``c1``…"""

    decisions: list[bytes]
    commands: list[bytes]

    def report(self, **how: bool) -> Report:
        audit = Audit(**how)
        for number, value in enumerate(self.decisions):
            audit.decision(f"d{number}", value)
        for number, value in enumerate(self.commands):
            audit.command(f"c{number}", value)
        return audit.report()

    def found(self, **how: bool) -> list[tuple[str, str, str]]:
        """Kind, place and unit of every finding."""
        return [(found.kind, found.where, found.unit) for found in self.report(**how).findings]


def fresh() -> Log:
    """The whole run."""
    decisions, commands = run()
    return Log(list(decisions), list(commands))


def some(rng: random.Random, *, switches: bool = True) -> Log:
    """The records of two units, as they stood among those of all; ``switches``: kill switches may be among them."""
    log = fresh()
    names = sorted({unit_of(value) for value in log.decisions})
    units = rng.sample([name for name in names if switches or "switch" not in name], 2)
    return Log(*([value for value in one if unit_of(value) in units] for one in (log.decisions, log.commands)))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records are read once in a test and not once an audit: thousands of audits share most of their records."""
    for name, read in (("read_link", cache(_read_link)), ("read_entry", cache(_read_entry))):

        def again(where: str, order: int, value: bytes, read: Callable[[bytes], Any] = read) -> Any:
            known = read(value)
            if isinstance(known, EventError):
                raise known
            record = copy(known)
            record.where, record.order = where, order
            return record

        monkeypatch.setattr(module, name, again)


def _read_link(value: bytes) -> Any:
    try:
        return read_link("", 0, value)
    except EventError as error:
        return error


def _read_entry(value: bytes) -> Any:
    try:
        return read_entry("", 0, value)
    except EventError as error:
        return error


@cache
def fields(value: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(value)
    return found


def unit_of(value: bytes) -> str:
    return f"{fields(value)['flag']}|{fields(value)['region']}"


def sealed(record: dict[str, Any]) -> bytes:
    """A decision as a forger writes it who knows how ids and hashes are made."""
    identity = {name: record[name] for name in ("flag", "region", "manifest_hash", "decided_at", "verdict")}
    identity |= {"stage": record["stage"]["index"], "start": record["window"]["start"], "end": record["window"]["end"]}
    content = {name: value for name, value in record.items() if name != "hash"}
    content["decision_id"] = sha256_of(identity)
    return canonical(content | {"hash": sha256_of(content)})


def ordered(record: dict[str, Any]) -> bytes:
    """A command with the id that belongs to its fields."""
    identity = {name: record[name] for name in ("decision_id", "action")}
    return canonical(record | {"command_id": sha256_of(identity)})


def siblings(records: list[bytes], at: int) -> list[int]:
    """Where the records of the same unit stand."""
    return [index for index, value in enumerate(records) if unit_of(value) == unit_of(records[at])]


def command_of(log: Log, decision: bytes) -> int | None:
    """Where the command of a decision stands."""
    wanted = fields(decision)["decision_id"]
    return next((at for at, value in enumerate(log.commands) if fields(value)["decision_id"] == wanted), None)


def places(name: str) -> Iterator[random.Random]:
    """A source of random numbers for each place; what fails names the number that repeats it."""
    for number in range(PLACES):
        try:
            yield random.Random(f"{name} {number}")
        except GeneratorExit:
            print(f"place {number} of {name!r}")
            raise


def flipped(value: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(value))
    return value[:at] + bytes([value[at] ^ rng.randrange(1, 256)]) + value[at + 1 :]


# -- undamaged --------------------------------------------------------------------------------------------------------


def test_a_run_of_all_kinds_of_flags_has_no_findings() -> None:
    """With every verdict and every action in it."""
    log = fresh()
    verdicts = {fields(value)["verdict"] for value in log.decisions}
    assert verdicts == {
        *("promote", "pass", "hold", "freeze", "rollback", "abort", "kill", "rearm"),
        *("open", "close", "degrade", "restore", "fallback"),
    }
    assert {fields(value)["action"] for value in log.commands} == verdicts - {"pass", "hold"}
    report = log.report()
    assert report.findings == []
    assert sum(unit.decisions for unit in report.units) == len(log.decisions)
    assert sum(unit.commands for unit in report.units) == len(log.commands)
    for unit in report.units:
        assert unit.last_hash == [fields(v)["hash"] for v in log.decisions if unit_of(v) == unit.unit][-1]


def test_identical_repeats_are_counted_and_legal() -> None:
    """A worker that was killed sends a stretch again, and so may one that was thought dead."""
    for rng in places("repeats"):
        log = some(rng)
        repeats = 0
        for records in (log.decisions, log.commands):
            for _ in range(rng.randrange(3)):
                start = rng.randrange(len(records))
                again = records[start : start + rng.randrange(1, 9)]
                end = rng.randrange(start + len(again), len(records) + 1)
                records[end:end] = again
                repeats += len(again)
        report = log.report()
        assert report.findings == []
        assert sum(unit.repeats for unit in report.units) == repeats


def test_without_commands_only_the_chain_is_checked() -> None:
    """No decision is blamed for a command that nobody gave."""
    assert Log(fresh().decisions, []).found(commands=False) == []


# -- damaged decisions ------------------------------------------------------------------------------------------------


def test_a_flipped_byte_of_a_decision_is_the_one_thing_found() -> None:
    """Whatever it hits: a number, a name, a hash, the JSON itself. Links and commands around it are not blamed."""
    for rng in places("flipped"):
        log = some(rng)
        at = rng.randrange(len(log.decisions))
        unit = unit_of(log.decisions[at])
        log.decisions[at] = flipped(log.decisions[at], rng)
        found = log.found()
        assert {(where, named) for _, where, named in found} == {(f"d{at}", unit)}
        assert {kind for kind, *_ in found} <= {"changed", "unreadable", "not canonical"}


def test_a_dropped_decision_is_found_as_missing_between_its_neighbours() -> None:
    """And the command that it left behind; the chain's first one as a chain that starts after it."""
    for rng in places("dropped"):
        log = some(rng)
        at = rng.randrange(len(log.decisions))
        all_of_it = siblings(log.decisions, at)
        order, unit = command_of(log, log.decisions[at]), unit_of(log.decisions[at])
        gone = log.decisions.pop(at)
        expected = [("missing", f"c{order}", unit)] if order is not None else []
        if at != all_of_it[-1]:
            follower = all_of_it[all_of_it.index(at) + 1] - 1
            kind = "missing" if at != all_of_it[0] else "starts after"
            expected.append((kind, f"d{follower}", unit))
            text = next(f.text for f in log.report().findings if f.where == f"d{follower}")
            if kind == "missing":
                assert f"d{all_of_it[all_of_it.index(at) - 1]}:" in text
            else:
                assert fields(gone)["hash"] in text
        assert sorted(log.found()) == sorted(expected)


def test_a_moved_decision_is_found_as_out_of_order() -> None:
    """It alone; of two neighbours that changed places, either."""
    for rng in places("moved"):
        log = some(rng)
        at = rng.randrange(len(log.decisions))
        all_of_it = siblings(log.decisions, at)
        to = rng.choice([other for other in all_of_it if other != at])
        steps = abs(all_of_it.index(to) - all_of_it.index(at))
        unit = unit_of(log.decisions[at])
        log.decisions.insert(to, log.decisions.pop(at))
        ((kind, where, named),) = log.found()
        assert (kind, named) == ("out of order", unit)
        assert where == f"d{to}" or steps == 1


def test_a_decision_repeated_with_changes_is_found_as_that() -> None:
    """With the hash it had, or with one that fits; wherever it is put."""
    for rng in places("changed repeat"):
        log = some(rng)
        at = rng.randrange(len(log.decisions))
        record = fields(log.decisions[at]) | {"late": 77}
        again = rng.choice([canonical(record), sealed(record)])
        to = rng.randrange(len(log.decisions) + 1)
        unit, last = unit_of(again), at == siblings(log.decisions, at)[-1]
        log.decisions.insert(to, again)
        ((kind, where, named),) = log.found()
        assert (kind, named) == ("repeated with changes", unit)
        # Of two that fit equally well at the end of a chain, nobody can tell which was first.
        assert where == f"d{to}" or (last and where == f"d{at + 1}")


def test_an_inserted_decision_is_found_as_that() -> None:
    """A forged one with ids and a hash that fit, linked to a record of the chain, wherever it is put."""
    for rng in places("inserted"):
        log = some(rng)
        all_of_it = siblings(log.decisions, rng.randrange(len(log.decisions)))
        # Put after the last but one, it would fit as well as the last: nobody could tell which of them was there first.
        parent = fields(log.decisions[rng.choice(all_of_it[: max(1, len(all_of_it) - 2)])])
        forged = parent | {"verdict": "hold", "previous_hash": parent["hash"], "decided_at": rng.randrange(10**12)}
        to = rng.randrange(len(log.decisions) + 1)
        log.decisions.insert(to, sealed(forged))
        assert log.found() == [("inserted", f"d{to}", unit_of(log.decisions[to]))]


def test_two_ends_of_a_chain_are_both_named() -> None:
    """Whichever of them was put in, the finding leads to both."""
    log = fresh()
    parent, last = (fields(log.decisions[at]) for at in siblings(log.decisions, 0)[-2:])
    forged = sealed(last | {"verdict": "kill", "previous_hash": parent["hash"]})
    log.decisions.append(forged)
    (found,) = (one for one in log.report().findings if one.kind == "inserted")
    assert found.where == f"d{len(log.decisions) - 1}"
    assert f"d{siblings(log.decisions, 0)[-2]}" in found.text


def test_a_decision_of_another_run_is_found_as_inserted() -> None:
    """It has a chain of its own, of which nothing is here."""
    others, _ = run(cost=0.011)
    for rng in places("another run"):
        log = some(rng, switches=False)
        units = {unit_of(value) for value in log.decisions}
        stranger = rng.choice([value for value in others if unit_of(value) in units and value not in run()[0]])
        own = [at for at, value in enumerate(log.decisions) if unit_of(value) == unit_of(stranger)]
        to = rng.randrange(own[0] + 1, own[-1] + 1)
        log.decisions.insert(to, stranger)
        ((kind, where, named),) = log.found()
        assert (where, named) == (f"d{to}", unit_of(stranger))
        same = {fields(value)["decision_id"] for value in log.decisions[:to] + log.decisions[to + 1 :]}
        assert kind == ("repeated with changes" if fields(stranger)["decision_id"] in same else "inserted")


# -- damaged commands -------------------------------------------------------------------------------------------------


def test_a_flipped_byte_of_a_command_is_the_one_thing_found() -> None:
    """Although no hash covers it as a whole: what its decision and its neighbours say does."""
    for rng in places("flipped command"):
        log = some(rng)
        at = rng.randrange(len(log.commands))
        unit = unit_of(log.commands[at])
        log.commands[at] = flipped(log.commands[at], rng)
        found = log.found()
        assert {(where, named) for _, where, named in found} == {(f"c{at}", unit)}
        assert {kind for kind, *_ in found} <= {"changed", "unreadable", "not canonical"}


def test_a_dropped_command_is_found_as_missing_at_its_decision() -> None:
    """The last one too: its decision tells."""
    for rng in places("dropped command"):
        log = some(rng)
        at = rng.randrange(len(log.commands))
        gone = log.commands.pop(at)
        of = fields(gone)["decision_id"]
        owner = next(number for number, value in enumerate(log.decisions) if fields(value)["decision_id"] == of)
        (found,) = log.report().findings
        assert (found.kind, found.where, found.unit) == ("missing", f"d{owner}", unit_of(gone))
        assert f"seq {fields(gone)['seq']}" in found.text


def test_a_moved_command_is_found_as_out_of_order() -> None:
    """It alone; of two neighbours that changed places, either."""
    for rng in places("moved command"):
        log = some(rng)
        at = rng.randrange(len(log.commands))
        all_of_it = siblings(log.commands, at)
        to = rng.choice([other for other in all_of_it if other != at])
        steps = abs(all_of_it.index(to) - all_of_it.index(at))
        log.commands.insert(to, log.commands.pop(at))
        ((kind, where, named),) = log.found()
        assert (kind, named) == ("out of order", unit_of(log.commands[to]))
        assert where == f"c{to}" or steps == 1


def test_a_command_repeated_with_changes_is_found_as_that() -> None:
    """The one that fits its decision is the first, wherever it stands."""
    for rng in places("changed repeat of a command"):
        log = some(rng)
        at, to = rng.randrange(len(log.commands)), rng.randrange(len(log.commands) + 1)
        changes: list[dict[str, Any]] = [
            {"weights": {"baseline": 0.125, "canary": 0.875}},
            {"manifest_hash": "sha256:" + "7" * 64},
            {"reasons": ["because"]},
            {"severity": "soft", "rule": "coverage_under"},
        ]
        log.commands.insert(to, canonical(fields(log.commands[at]) | rng.choice(changes)))
        assert log.found() == [("repeated with changes", f"c{to}", unit_of(log.commands[to]))]


def test_an_inserted_command_is_found_as_that() -> None:
    """With a seq that is taken, or for a decision that asks for none."""
    for rng in places("inserted command"):
        log = some(rng, switches=False)
        record = fields(rng.choice(log.commands))
        quiet = [value for value in log.decisions if command_of(log, value) is None]
        chosen = fields(rng.choice(quiet))
        forged = rng.choice(
            [
                record | {"decision_id": f"sha256:{rng.getrandbits(256):064x}"},
                record
                | {"flag": chosen["flag"], "region": chosen["region"], "decision_id": chosen["decision_id"]}
                | {"action": rng.choice(["promote", "rollback"]), "manifest_hash": chosen["manifest_hash"]},
            ]
        )
        to = rng.randrange(len(log.commands) + 1)
        log.commands.insert(to, ordered(forged))
        assert log.found() == [("inserted", f"c{to}", unit_of(log.commands[to]))]


# -- several at once --------------------------------------------------------------------------------------------------


def test_whatever_is_done_to_a_log_is_found_and_nothing_breaks_the_audit() -> None:
    """Several damages at once, garbage among the lines, in either log."""
    for rng in places("anything"):
        log = some(rng)
        for _ in range(rng.randrange(1, 6)):
            records = rng.choice([log.decisions, log.commands])
            at, to = rng.randrange(len(records) - 1), rng.randrange(len(records))
            match rng.randrange(6):
                case 0:
                    records[at] = flipped(records[at], rng)
                case 1:
                    del records[0 if records is log.decisions else at]
                case 2:
                    records[at], records[to] = flipped(records[to], rng), flipped(records[at], rng)
                case 3:
                    records.insert(to, flipped(records[at], rng))
                case 4:
                    garbage = [
                        b"{}",
                        b"null",
                        b"[" * 10_000,
                        b"\xff",
                        b'{"flag":7}',
                        b'{"a":1e999}',
                        b'{"a":"\\ud800"}',
                    ]
                    records.insert(to, rng.choice([*garbage, b"9" * 5_000]))
                case 5:
                    (log.commands if records is log.decisions else log.decisions).append(records[at])
        found = log.report().findings
        assert found
        assert all(str(one).startswith(f"{one.where}: {one.kind}: ") for one in found)
