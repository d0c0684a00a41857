"""``tidegate report``: a rollout as one file for who has to answer for it."""

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path

import click
from aiokafka import ConsumerRecord

from tidegate.schemas.decision import Decision, command_from_bytes, decision_from_bytes
from tidegate.schemas.document import quoted
from tidegate.schemas.errors import EventError, InputError
from tidegate.schemas.operation import Operation
from tidegate.schemas.signed import TrustedKeys
from tidegate.streams.audit import recorded as past
from tidegate.streams.audit.compare import first_difference
from tidegate.streams.audit.replay import replay
from tidegate.streams.audit.verify import Audit, Report
from tidegate.streams.commands.options import LogFile, bars
from tidegate.streams.commands.outcomes import OutcomeWriter, Output
from tidegate.streams.commands.replay import decide_topics, operations_from, timeline_from
from tidegate.streams.commands.verify import audit_records, placed_in_files, placed_in_topic, read_decided
from tidegate.streams.dumps.log import count_partitions
from tidegate.streams.dumps.records import is_dump, values
from tidegate.streams.files import located
from tidegate.streams.kafka.history import History
from tidegate.streams.kafka.manifests import load_trusted
from tidegate.streams.report.document import ReportCheck, RolloutReport, report_html
from tidegate.streams.report.rollout import UnitHistory
from tidegate.streams.report.text import many, plain
from tidegate.streams.settings import Settings, command_settings

FINDINGS_SHOWN = 50
FILE_NAMES: Mapping[str, tuple[str, ...]] = {
    "decisions": ("decisions",),
    "commands": ("control", "commands"),
    "operations": ("operations",),
    "manifest": ("manifests", "manifest"),
    "events": ("telemetry",),
}
"""Names of files in a folder, by the option that otherwise names them."""
ENDINGS = ("ndjson.gz", "parquet", "ndjson", "yml")


@dataclass
class Sources:
    """The files that a report is made from, by the options that name them."""

    folder: Path | None = None
    decisions: list[Path] = field(default_factory=list)
    commands: list[Path] = field(default_factory=list)
    operations: list[Path] = field(default_factory=list)
    manifest: list[Path] = field(default_factory=list)
    events: list[Path] = field(default_factory=list)

    def find(self) -> None:
        """Fill in, of what no option names, what is in the folder."""
        if self.folder is None:
            return
        for kind, names in FILE_NAMES.items():
            there = (self.folder / f"{name}.{ending}" for name in names for ending in ENDINGS)
            first = next((path for path in there if path.is_file()), None)
            if not getattr(self, kind) and first is not None:
                setattr(self, kind, [first])

    def every(self) -> Iterator[Path]:
        """Give every file, in the order in which a reader asks for them."""
        for kind in FILE_NAMES:
            yield from getattr(self, kind)

    def options(self, *kinds: str) -> list[str]:
        """Return them as options of a command."""
        return [word for kind in kinds for path in getattr(self, kind) for word in (f"--{kind}", str(path))]

    def arguments(self, partitions: int) -> list[str]:
        """Return them as they were given to this command."""
        first = [self.folder] if self.folder else self.decisions
        rest = self.options("commands", "operations", "manifest", "events")
        return [*map(str, first), *rest, *(["--partitions", str(partitions)] if partitions > 1 else [])]


@click.command()
@click.argument("source", nargs=-1, type=LogFile())
@click.option("--commands", type=LogFile(), multiple=True, help="commands, NDJSON or a dump; may be repeated")
@click.option("--operations", type=LogFile(), help="operators' orders, NDJSON or a dump")
@click.option("--events", type=LogFile(), multiple=True, help="telemetry to decide from once more; may be repeated")
@click.option("--manifest", "manifests", type=click.Path(path_type=Path), multiple=True, help="the flags to decide by")
@click.option("--partitions", type=click.IntRange(1, 10_000), default=1, show_default=True, help="of the telemetry")
@click.option("--broker", help="read the topics of this Kafka instead of files; nothing is written there")
@click.option("--replay", "replayed", is_flag=True, help="with --broker: also decide from the telemetry once more")
@click.option("--trusted-keys", type=click.Path(path_type=Path), help="public keys to verify signatures with")
@click.option("--from-middle", is_flag=True, help="the records before the first ones given are somewhere else")
@click.option("--flag", help="only this flag")
@click.option("--out", type=click.Path(path_type=Path), default="report.html", show_default=True, help="the file")
def command(
    source: tuple[Path, ...],
    commands: tuple[Path, ...],
    operations: Path | None,
    events: tuple[Path, ...],
    manifests: tuple[Path, ...],
    partitions: int,
    broker: str | None,
    replayed: bool,
    trusted_keys: Path | None,
    from_middle: bool,
    flag: str | None,
    out: Path,
) -> None:
    """Write a rollout as one HTML file, for whoever has to answer for it.

    SOURCE is a folder that `tidegate export` or `tidegate demo` left, or files of decisions, NDJSON or dumps. The file
    says who decided what, when and why, and shows the ramp. It has the result of checking the chain of decisions and
    their commands, and of deciding once more where telemetry and manifest are given, and the commands that make it
    again. It prints on A4, needs nothing but itself, and runs no script. The same input gives the same bytes.

    Exits with 1 if a check failed; the file is written all the same, and says which.
    """
    if (broker is None) == (not source):
        raise InputError("a report is of one source: give a folder or files of decisions, or --broker")
    folder = source[0] if len(source) == 1 and source[0].is_dir() else None
    given = Sources(
        folder,
        [] if folder else list(source),
        list(commands),
        [operations] if operations else [],
        list(manifests),
        list(events),
    )
    settings = command_settings(broker=broker, trusted_keys=trusted_keys)
    trusted = load_trusted(settings.trusted_keys) if settings.trusted_keys else None
    words = ["tidegate", "report", *(["--from-middle"] if from_middle else []), *(["--flag", flag] if flag else [])]
    words += ["--out", str(out), *_keys(trusted_keys)]
    if broker is None:
        words[2:2] = given.arguments(partitions)
        given.find()
        if not given.decisions:
            raise InputError(f"{folder}: no decisions in it, such as decisions.ndjson")
        if any(out.resolve() == path.resolve() for path in given.every()):
            raise InputError(f"--out: {out} is also an input; the report would overwrite it")
        found = _from_files(given, settings, trusted, partitions, from_middle=from_middle)
    elif any(given.decisions + given.commands + given.operations + given.events):
        raise InputError("--broker and files are two places to read from: give one of them")
    else:
        words[2:2] = ["--broker", broker, *(["--replay"] if replayed else []), *given.options("manifest")]
        found = _from_topics(settings, trusted, manifests, replayed=replayed, from_middle=from_middle)
    report = _report(found, flag, words)
    with Output(out) as file:
        file.write(report_html(report).encode())
    for check in found.checks:
        click.echo(plain(f"{check.name}: {check.words}"))
    told = sum(len(unit.decisions) for unit in report.units)
    click.echo(plain(f"{out}: {many(told, 'decision')} of {many(len(report.units), 'unit')}"))
    if any(check.passed is False for check in found.checks):
        raise SystemExit(1)


def _keys(path: Path | None) -> list[str]:
    return ["--trusted-keys", str(path)] if path else []


@dataclass(frozen=True)
class _Found:
    """The records that were read, the results of the checks, and how to make them again."""

    decisions: Sequence[bytes]
    commands: Sequence[bytes]
    operations: Sequence[Operation]
    checks: Sequence[ReportCheck]
    inputs: Sequence[tuple[str, str]]
    again: Sequence[Sequence[str]]


def _report(found: _Found, flag: str | None, words: list[str]) -> RolloutReport:
    """Raises InputError where there is no decision to report."""
    every = _units(found)
    units = [unit for unit in every if flag in (None, unit.flag)]
    if not units:
        known = ", ".join(sorted({quoted(unit.flag) for unit in every})) or "none"
        raise InputError(f"no decision of {quoted(flag) if flag else 'any flag'}; flags with decisions: {known}")
    chosen = {unit.flag for unit in units}
    return RolloutReport(
        units=units,
        checks=found.checks,
        operations=[one for one in found.operations if one.flag in chosen],
        inputs=found.inputs,
        again=[words, *found.again],
        version=version("tidegate"),
    )


def _units(found: _Found) -> list[UnitHistory]:
    """Return the units that decisions were read of; of records that cannot be read the checks tell."""
    orders = {}
    for value in found.commands:
        with suppress(EventError):
            order = command_from_bytes(value)
            orders[order.decision_id] = order
    units: dict[tuple[str, str], list[Decision]] = defaultdict(list)
    for value in dict.fromkeys(found.decisions):
        with suppress(EventError):
            decision = decision_from_bytes(value)
            units[decision.flag, decision.region].append(decision)
    return [
        UnitHistory(*unit, its, {one.decision_id: orders[one.decision_id] for one in its if one.decision_id in orders})
        for unit, its in sorted(units.items())
    ]


def _from_files(
    given: Sources, settings: Settings, trusted: TrustedKeys | None, partitions: int, *, from_middle: bool
) -> _Found:
    decisions = [value for path in given.decisions for value in values(path)]
    commands = [value for path in given.commands for value in values(path)]
    operations = operations_from(given.operations[0], settings, trusted) if given.operations else []
    with_headers = trusted is not None and all(map(is_dump, [*given.decisions, *given.commands]))
    audit = Audit(commands=bool(given.commands), from_middle=from_middle)
    read = partial(placed_in_files, trusted=with_headers)
    records = read("decision", given.decisions), read("command", given.commands)
    said = audit_records(audit, records, trusted if with_headers else None, None)
    chain = _chain_check(audit.report(), commands=bool(given.commands), from_middle=from_middle)
    if trusted is None:
        why = "give --trusted-keys to check who signed the records"
    else:
        why = said or "the files hold bare records, and signatures are in dumps alone"
    checks = [chain[0], _signature_check(chain[1], why, checked=with_headers)]
    again = [["tidegate", "verify", *map(str, given.decisions), *given.options("commands")]]
    engine = next(iter(dict.fromkeys(_engines(decisions))), None)
    if from_middle or not (given.events and given.manifest) or engine is None:
        lacking = "--events and --manifest" if not given.events else "--manifest"
        why = "the log begins in its middle" if from_middle else f"it takes {lacking}"
        checks.append(ReportCheck("Decided once more", None, f"not done: {why}"))
    else:
        pane, lateness = engine
        timed = command_settings(trusted_keys=settings.trusted_keys, pane=pane, lateness=lateness)
        checks.append(_again_from_files(given, timed, trusted, partitions, operations, decisions))
        files = given.options("manifest", "events", "operations")
        clock = ["--partitions", str(partitions), "--pane", f"{pane}ms", "--lateness", f"{lateness}ms"]
        compare = [word for path in given.decisions for word in ("--compare", str(path))]
        again.append(["tidegate", "replay", *files, *clock, "--out", "again.ndjson", *compare])
    return _Found(
        decisions=decisions,
        commands=commands,
        operations=operations,
        checks=checks,
        inputs=[(str(path), f"sha256:{_digest(path)}") for path in given.every()],
        again=[[*words, *_keys(settings.trusted_keys)] for words in again],
    )


def _digest(path: Path) -> str:
    with located(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _engines(decisions: Iterable[bytes]) -> Iterator[tuple[int, int]]:
    for value in decisions:
        with suppress(EventError):
            engine = decision_from_bytes(value).engine
            yield engine.pane_ms, engine.lateness_ms


def _again_from_files(
    given: Sources,
    settings: Settings,
    trusted: TrustedKeys | None,
    partitions: int,
    operations: Sequence[Operation],
    decisions: Sequence[bytes],
) -> ReportCheck:
    name = "Decided once more"
    try:
        timeline = timeline_from(given.manifest, settings, trusted)
    except InputError as error:
        return ReportCheck(name, None, f"not done: {error}")
    made = OutcomeWriter(None, None, None, keep=True)
    with bars() as progress, made:
        deciding = progress.add_task("deciding", total=None)
        advance = partial(progress.advance, deciding)
        count = count_partitions(given.events, partitions)
        made.take(replay(given.events, timeline, count, settings.clockwork, advance, operations))
    return _again_check(first_difference(made.decisions, decisions), len(made.decisions), "the telemetry in the files")


def _again_check(difference: str | None, count: int, source: str) -> ReportCheck:
    name = "Decided once more"
    if difference is not None:
        return ReportCheck(name, False, f"from {source}, and something differs", (difference,))
    same = "decision is" if count == 1 else "decisions are"
    return ReportCheck(name, True, f"from {source}: {count:,} {same} the same to the byte")


def _chain_check(report: Report, *, commands: bool, from_middle: bool) -> tuple[ReportCheck, list[str]]:
    """Return what came of the chain, and the findings about signatures."""
    found = [str(one) for one in report.findings if one.kind != "signature"]
    signatures = [str(one) for one in report.findings if one.kind == "signature"]
    decisions, ordered = (sum(getattr(unit, of) for unit in report.units) for of in ("decisions", "commands"))
    words = f"{many(decisions, 'decision')}, {many(ordered, 'command')}, {many(len(report.units), 'unit')}: "
    words += f"{many(len(found), 'finding')}" if found else "hashes, ids, links and times agree"
    if commands and not found:
        words += ", and each command carries out its decision"
    elif not commands:
        words += "; no commands were given, so none were checked"
    if from_middle:
        words += "; what came before the first records is not here"
    return ReportCheck("Chain of decisions", not found, words, _shown(found)), signatures


def _signature_check(findings: list[str], words: str, *, checked: bool) -> ReportCheck:
    if findings:
        return ReportCheck("Signatures", False, many(len(findings), "finding"), _shown(findings))
    return ReportCheck("Signatures", True if checked else None, words)


def _shown(findings: Sequence[str]) -> tuple[str, ...]:
    rest = len(findings) - FINDINGS_SHOWN
    return (*findings[:FINDINGS_SHOWN], *([f"and {rest:,} more; `tidegate verify` lists all"] if rest > 0 else []))


def _from_topics(
    settings: Settings, trusted: TrustedKeys | None, manifests: tuple[Path, ...], *, replayed: bool, from_middle: bool
) -> _Found:
    decided, ordered = asyncio.run(read_decided(settings))
    with History(settings) as history:
        topic = settings.operations_topic
        records = history.records(topic) if history.has(topic) else []
    operations, _ = past.read_orders(records, settings, trusted)
    audit = Audit(from_middle=from_middle, compacted=True)
    placed = placed_in_topic("decision", decided), placed_in_topic("command", ordered)
    said = audit_records(audit, placed, trusted, None)
    chain, signatures = _chain_check(audit.report(), commands=True, from_middle=from_middle)
    why = said or "give --trusted-keys to check who signed the records"
    checks = [chain, _signature_check(signatures, why, checked=trusted is not None)]
    if replayed:
        made = OutcomeWriter(None, None, None, keep=True)
        again, _ = decide_topics(settings, manifests, None, None, made)
        difference = again.difference(made.decisions, made.orders)
        checks.append(_again_check(difference, len(made.decisions), "the telemetry in the topics"))
    else:
        checks.append(ReportCheck("Decided once more", None, "not done: it takes --replay"))
    at = ["--broker", settings.broker, *_keys(settings.trusted_keys)]
    chosen = [word for path in manifests for word in ("--manifest", str(path))]
    return _Found(
        decisions=[record.value for record in decided if record.value is not None],
        commands=[record.value for record in ordered if record.value is not None],
        operations=list(operations),
        checks=checks,
        inputs=[*_described(decided), *_described(ordered), *_described(records)],
        again=[
            ["tidegate", "verify", *at],
            ["tidegate", "replay", *at, *chosen, "--out", "again.ndjson", "--compare"],
            ["tidegate", "export", "--broker", settings.broker, "--out", "dump"],
        ],
    )


def _described(records: Sequence[ConsumerRecord]) -> Iterator[tuple[str, str]]:
    """Name what was read of a topic, partition by partition: offsets, and a digest over the values."""
    parts: dict[int, list[ConsumerRecord]] = defaultdict(list)
    for record in records:
        parts[record.partition].append(record)
    for partition, its in sorted(parts.items()):
        digest = hashlib.sha256(b"".join((record.value or b"") + b"\n" for record in its)).hexdigest()
        span = f"offsets {its[0].offset} to {its[-1].offset}, {many(len(its), 'record')}"
        yield f"{its[0].topic}, partition {partition}", f"{span}; values, a line each: sha256:{digest}"
