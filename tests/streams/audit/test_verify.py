"""Logs of a real run, damaged in every way at hundreds of places: each damage is found, and named for what it is."""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest

from tests.streams.events import CLOCKWORK, NOON, PANE, flags, healthy_pane, tick, written
from tidegate.schemas.canonical import canonical, sha256_of
from tidegate.schemas.errors import EventError
from tidegate.schemas.operation import Operation
from tidegate.schemas.timeline import Revision, Timeline
from tidegate.streams.audit import verify as module
from tidegate.streams.audit.chain import Link, read_link
from tidegate.streams.audit.ledger import read_entry
from tidegate.streams.audit.verify import Audit, Report
from tidegate.streams.engine.pipeline import Pipeline
from tidegate.streams.engine.runs import Run

PLACES = 200
MANIFEST = """
flags:
  ramp: &ramp
    versions: {MODEL_VER: m1}
    traffic: {canary_weight: 0.25, baseline_weight: 0.75, stages: [0.25, 0.5, 1.0]}
    window: &window {length: 20s, settle: 5s, min_requests: 6, min_lambda_groups: 1}
    policy: {evidence: point}
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
def run(cost: float = 0.01, panes: int = PANES) -> tuple[list[bytes], list[bytes]]:
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
            _operation("pause", "ramp", 13),
            _operation("resume", "ramp", 14),
            _operation("promote", "ramp", 16),
            _operation("kill", "quality", 15),
            _operation("rearm", "quality", 17),
            _operation("kill", "switch", 20),
            _operation("kill", "ramp", 29),
        ],
    )
    log: list[bytes | None] = []
    for pane in range(panes):
        for flag, region in SEEDS:
            for number, one in enumerate(healthy_pane(NOON + pane * PANE, cost=cost)):
                own = _canary(flag, region, pane) if one["arm"] == "canary" else {"flag": flag, "region": region}
                log += written([one | own | {"event_id": f"{flag}/{region}/{pane}/{number}"}])
    log.append(tick(NOON + (panes + 3) * PANE))
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


CLAIMED: dict[bytes, str] = {}


@cache
def known(read: Callable[[str, int, bytes], Any], value: bytes) -> Any:
    """What a record reads as, or the error."""
    try:
        record = read("", 0, value)
    except EventError as error:
        return error
    CLAIMED[value] = record.unit
    return record


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record is read once and not once an audit: thousands of audits share most of their records."""
    for name, read in (("read_link", read_link), ("read_entry", read_entry)):

        def again(where: str, order: int, value: bytes, read: Callable[[str, int, bytes], Any] = read) -> Any:
            found = known(read, value)
            if isinstance(found, EventError):
                raise found
            # An audit writes on its records.
            found.where, found.order, found.number, found.repeats = where, order, 0, 0
            found.unit = CLAIMED[value]
            if isinstance(found, Link):
                found.linked = found.apart = False
            else:
                found.of = None
            return found

        monkeypatch.setattr(module, name, again)


@cache
def unit_of(value: bytes) -> str:
    return f"{fields(value)['flag']}|{fields(value)['region']}"


@cache
def fields(value: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(value)
    return found


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


def places(name: str, count: int = PLACES) -> Iterator[random.Random]:
    """A source of random numbers for each place; what fails names the number that repeats it."""
    for number in range(count):
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
        *("promote", "pass", "hold", "freeze", "rollback", "abort", "kill", "rearm", "pause", "resume"),
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
    for rng in places("repeats", 50):
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


def test_a_first_command_goes_on_from_weights_that_no_decision_shows() -> None:
    """A kill switch leaves no records as long as nobody pulls it; here it has become a rollout when it is killed."""
    switch = "flags: {f: {kind: kill_switch, traffic: {canary_weight: 1.0, baseline_weight: 0.0}}}"
    revisions = [Revision(1, 0, flags(switch)), Revision(2, NOON + 3 * PANE, flags("flags: {f: {}}"))]
    pipeline = Pipeline(Timeline(revisions), 1, CLOCKWORK, [_operation("kill", "f", 6)])
    seen = written([one for pane in range(2) for one in healthy_pane(NOON + pane * PANE)])
    outcomes = [*pipeline.step(0, Run(0, [*seen, tick(NOON + 20 * PANE)])), *pipeline.finish()]
    commands = [command for _, command in outcomes if command is not None]
    assert [command.previous_weights.canary for command in commands] == [1.0]
    log = Log([decision.to_bytes() for decision, _ in outcomes], [command.to_bytes() for command in commands])
    assert log.found() == []


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


def test_a_lost_line_break_is_the_one_thing_found() -> None:
    """Two decisions in one line are none, of one unit or of two."""
    for rng in places("line break", 50):
        log = some(rng)
        at = rng.randrange(len(log.decisions) - 1)
        pair = log.decisions[at : at + 2]
        log.decisions[at : at + 2] = [b" ".join(pair)]
        assert log.found() == [("unreadable", f"d{at}", ", ".join(sorted(set(map(unit_of, pair)))))]


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
    others = [value for value in run(cost=0.011, panes=12)[0] if value not in set(run()[0])]
    for rng in places("another run"):
        log = some(rng, switches=False)
        units = {unit_of(value) for value in log.decisions}
        stranger = rng.choice([value for value in others if unit_of(value) in units])
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


@pytest.mark.parametrize(
    ("verdict", "change", "said"),
    [
        ("promote", {"seq": 9}, "seq 9, 1 is due"),
        ("promote", {"weights": {"baseline": 0.25, "canary": 0.75}}, "canary weight 0.75, by its decision 0.5"),
        ("promote", {"weights": {"baseline": 0.4, "canary": 0.5}}, "its weights do not sum to 1"),
        ("promote", {"previous_weights": {"baseline": 0.5, "canary": 0.5}}, "previous canary weight 0.5, it was 0.25"),
        ("promote", {"effective_from": NOON + 50_000}, "the new stage starts at 2023-11-14T22:14:00Z"),
        ("promote", {"action": "freeze"}, 'action "freeze", by its decision "promote"'),
        ("promote", {"region": "mars"}, 'flag and region "ramp|mars", by its decision "ramp|'),
        ("promote", {"more": 1}, 'no command has a field "more"'),
        ("promote", {"command_id": "sha256:" + "0" * 64}, "its command_id is not that of its decision_id and action"),
        ("freeze", {"weights": {"baseline": 1.0, "canary": 0.0}}, "canary weight 0, by its decision 0.5"),
        ("rollback", {"severity": None}, 'severity null, by its decision "soft"'),
        ("abort", {"rule": None}, 'rule null, by its decision "error_rate_over"'),
        (
            "kill",
            {"effective_from": NOON},
            "13:20Z, by its decision 2023-11-14T22:14:00.007Z",
        ),
        ("open", {"weights": {"baseline": 0.5, "canary": 0.5}}, "canary weight 0.5, by the decision after its own 0.2"),
        ("rearm", {"weights": {"baseline": 0.5, "canary": 0.5}}, "canary weight 0.5, by its decision"),
        ("degrade", {"reasons": ["a whim"]}, 'reasons "a whim", by its decision "reason_failed_served_in_full'),
    ],
)
def test_what_a_command_says_otherwise_than_its_decision_is_named(
    verdict: str, change: dict[str, Any], said: str
) -> None:
    log = fresh()
    at = next(at for at, value in enumerate(log.commands) if fields(value)["action"] == verdict)
    log.commands[at] = canonical(fields(log.commands[at]) | change)
    (found,) = log.report().findings
    assert (found.kind, found.where) == ("changed", f"c{at}")
    assert said in found.text


# -- from the middle, and compacted -----------------------------------------------------------------------------------


def test_a_log_from_the_middle_is_whole_if_it_is_said_to_be_one() -> None:
    """What came before is not missed; commands from before it are counted. Otherwise each cut chain is a finding."""
    for rng in places("middle", 50):
        log = some(rng)
        cut = rng.randrange(1, len(log.decisions))
        before, log.decisions = log.decisions[:cut], log.decisions[cut:]
        report = log.report(from_middle=True)
        assert report.findings == []
        assert report.earlier == sum(command_of(log, value) is not None for value in before)
        cut_units = {unit_of(value) for value in before} & {unit_of(value) for value in log.decisions}
        assert {unit for kind, _, unit in log.found() if kind == "starts after"} == cut_units


def test_in_a_compacted_log_the_last_command_of_each_unit_has_to_be_there() -> None:
    """Any of those before it may be gone; those that are there are checked as ever."""
    for rng in places("compacted", 50):
        log = some(rng)
        last = {unit_of(value): value for value in log.commands}
        kept = [value for value in log.commands if rng.random() < 0.5 or value in last.values()]
        log.commands = kept
        assert log.found(compacted=True) == []
        at = rng.randrange(len(kept))
        log.commands = [*kept[:at], canonical(fields(kept[at]) | {"seq": 99}), *kept[at + 1 :]]
        assert log.found(compacted=True) == [("changed", f"c{at}", unit_of(kept[at]))]
        gone = rng.choice(sorted(last))
        log.commands = [value for value in kept if value != last[gone]]
        assert [(kind, unit) for kind, _, unit in log.found(compacted=True)] == [("missing", gone)]


# -- what holds together but says something impossible ----------------------------------------------------------------


def forge_last(unit: str, **changes: Any) -> list[tuple[str, str]]:
    """Kinds and texts found where a unit's last decision was forged by somebody who can make hashes."""
    log = fresh()
    at = max(at for at, value in enumerate(log.decisions) if unit_of(value) == unit)
    content = {name: value for name, value in (fields(log.decisions[at]) | changes).items() if name != "hash"}
    log.decisions[at] = canonical(content | {"hash": sha256_of(content)})
    return [(found.kind, found.text) for found in log.report(commands=False).findings if found.where == f"d{at}"]


def test_an_id_that_is_not_that_of_its_decision_is_found() -> None:
    """Although its hash and its links fit."""
    ((kind, text),) = forge_last("cost|", decision_id="sha256:" + "0" * 64)
    assert kind == "contradiction"
    assert text.startswith("its decision_id is sha256:000")


def test_something_that_is_no_decision_is_found_although_its_hash_fits() -> None:
    ((kind, text),) = forge_last("cost|", verdict="maybe")
    assert kind == "contradiction"
    assert "not a decision: Invalid enum value 'maybe' - at `$.verdict`" in text


@pytest.mark.parametrize(
    ("unit", "window", "decided_at", "said"),
    [
        ("cost|", (300, 320, True), 320, "its window starts 20000 ms before the one before it ends"),
        ("cost|", (310, 330, True), 320, "decided outside its window"),
        ("cost|", (310, 330, False), 310, "decided outside its window"),
        ("switch|eu", (0, 20, True), 200, "its window is not the last one decided before it"),
    ],
)
def test_windows_move_forward(unit: str, window: tuple[int, int, bool], decided_at: int, said: str) -> None:
    """A decision is made in its window or at its end; an operator's shows the last one decided."""
    start, end = (NOON + second * 1_000 for second in window[:2])
    found = forge_last(
        unit,
        window={"start": start, "end": end, "closed": window[2]},
        decided_at=NOON + decided_at * 1_000,
    )
    assert ("contradiction", said) in found


def test_a_chain_that_begins_again_is_found() -> None:
    """As after the loss of a worker's state: its commands count from 1 again, and are not blamed for it."""
    log = fresh()
    at = next(at for at, value in enumerate(log.decisions) if fields(value)["verdict"] == "promote")
    order = command_of(log, log.decisions[at])
    assert order is not None
    moment = NOON + 10**6
    window = {"start": moment - 20_000, "end": moment, "closed": True}
    again = sealed(fields(log.decisions[at]) | {"window": window, "decided_at": moment})
    identity = {"decision_id": fields(again)["decision_id"], "effective_from": moment + 20_000}
    log.decisions.append(again)
    log.commands.append(ordered(fields(log.commands[order]) | identity))
    assert log.found() == [("starts again", f"d{len(log.decisions) - 1}", unit_of(again))]


def test_whoever_writes_the_rest_of_a_chain_anew_is_betrayed_by_the_last_hash_alone() -> None:
    """No check of the records can find it: that is what the summary shows the hash for, and records are signed for."""
    log = fresh()
    unit = "cost|"
    honest = next(one.last_hash for one in log.report().units if one.unit == unit)
    previous = None
    for at in [at for at, value in enumerate(log.decisions) if unit_of(value) == unit]:
        log.decisions[at] = sealed(fields(log.decisions[at]) | {"late": 1, "previous_hash": previous})
        previous = fields(log.decisions[at])["hash"]
    report = log.report()
    assert report.findings == []
    assert next(one.last_hash for one in report.units if one.unit == unit) == previous != honest


# -- several at once --------------------------------------------------------------------------------------------------


def test_whatever_is_done_to_a_log_is_found_and_nothing_breaks_the_audit() -> None:
    """Several damages at once, garbage among the lines, in either log."""
    for rng in places("anything", 50):
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
