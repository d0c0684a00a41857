"""``tidegate verify``: whether decisions and commands are still what was once written."""

import asyncio
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import click
from aiokafka import ConsumerRecord
from aiokafka.errors import KafkaError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tidegate.schemas.errors import InputError, TopicError
from tidegate.schemas.signed import TrustedKeys
from tidegate.schemas.times import iso
from tidegate.streams.audit.signing import CheckedRecord, SignedKind, SignedRecord, beginning, check
from tidegate.streams.audit.verify import Audit, Report
from tidegate.streams.commands.options import LogFile, Time
from tidegate.streams.dumps.log import read_records
from tidegate.streams.kafka.manifests import load_trusted
from tidegate.streams.kafka.tail import tail
from tidegate.streams.report.text import many, plain
from tidegate.streams.settings import Settings, command_settings

ROUNDS_MAX = 10


@click.command()
@click.argument("decisions", nargs=-1, type=LogFile())
@click.option("--commands", type=LogFile(), multiple=True, help="commands, NDJSON or a dump; may be repeated")
@click.option("--broker", help="read the decisions and control topics of this Kafka instead of files")
@click.option("--trusted-keys", type=click.Path(path_type=Path), help="public keys; every record must be signed by one")
@click.option("--signed-since", type=Time(), help="with --trusted-keys: what was written before needs no signature")
@click.option("--from-middle", is_flag=True, help="the records before the first ones given are somewhere else")
def command(
    decisions: tuple[Path, ...],
    commands: tuple[Path, ...],
    broker: str | None,
    trusted_keys: Path | None,
    signed_since: int | None,
    from_middle: bool,
) -> None:
    """Check that decisions are an unbroken chain of unchanged records, and that commands carry them out.

    DECISIONS are NDJSON files in the order in which they were written, or dumps of `tidegate export`, .gz and .parquet
    allowed; - is standard input. For every flag and region: hashes, ids, links, windows that move forward; with
    --commands also their seq, and that each decision that asks for a command has it once and says the same. Identical
    repeats, as a crash leaves, are legal. With --trusted-keys also signatures, of topics and of dumps.

    Exits with 1 if anything is found; each finding is one line. A chain cannot tell that its end is missing: compare
    the last hash with one that you know.
    """
    if broker is None and not decisions:
        raise InputError("nothing to verify: give files of decisions, or --broker")
    if signed_since is not None and trusted_keys is None:
        raise InputError("--signed-since goes with --trusted-keys, which say what a signature is worth")
    trusted = load_trusted(trusted_keys) if trusted_keys is not None else None
    if broker is None:
        audit = Audit(commands=bool(commands), from_middle=from_middle)
        read = partial(placed_in_files, trusted=trusted is not None)
        said = audit_records(audit, (read("decision", decisions), read("command", commands)), trusted, signed_since)
        _tell(audit.report(), ", ".join(map(str, decisions)), with_commands=bool(commands))
        if said:
            click.echo(said)
        return
    if decisions or commands:
        raise InputError("--broker and files are two places to read from: give one of them")
    settings = command_settings(broker=broker)
    audit = Audit(from_middle=from_middle, compacted=True)
    decided, ordered = asyncio.run(read_decided(settings))
    placed = placed_in_topic("decision", decided), placed_in_topic("command", ordered)
    said = audit_records(audit, placed, trusted, signed_since)
    _tell(audit.report(), settings.decisions_topic, with_commands=True)
    signed = f"{said}; " if said else ""
    click.echo(
        f"{signed}{settings.control_topic} is compacted: of a unit's commands only the last one has to be there, "
        "and those that are were checked"
    )


def placed_in_files(kind: SignedKind, paths: Sequence[Path], *, trusted: bool) -> Iterator[SignedRecord]:
    """Yield the records of files. Raises InputError for one without headers where signatures are looked at."""
    for path in paths:
        for number, record in read_records(path, headers=trusted):
            if record.end is not None:
                continue
            if trusted and record.offset is None:
                raise InputError(
                    f"{path}:{number}: not the line of a dump, and signatures are in the headers of records: "
                    "give dumps of `tidegate export`, or --broker"
                )
            yield SignedRecord(
                f"{path}:{number}", kind, record.partition, record.timestamp, record.value, record.headers
            )


def placed_in_topic(kind: SignedKind, records: Sequence[ConsumerRecord]) -> Iterator[SignedRecord]:
    """Give the records of a topic with their places."""
    for record in records:
        where = f"{record.topic}-{record.partition} offset {record.offset}"
        yield SignedRecord(where, kind, record.partition, record.timestamp, record.value, record.headers)


async def read_decided(settings: Settings) -> tuple[list[ConsumerRecord], list[ConsumerRecord]]:
    """Return the records of both topics, to an end at which neither had more: a worker may be writing."""
    topic = settings.decisions_topic
    try:
        async with tail(settings, topic) as decisions, tail(settings, settings.control_topic) as control:
            decided, ordered = await decisions.history(), await control.history()
            for _ in range(ROUNDS_MAX):
                more, orders = await decisions.history(), await control.history()
                decided, ordered = decided + more, ordered + orders
                if not (more or orders):
                    break
    except KafkaError as error:
        raise TopicError(f"topics {topic} and {settings.control_topic} cannot be read: {error}") from None
    return decided, ordered


def audit_records(
    audit: Audit,
    placed: Sequence[Iterator[SignedRecord]],
    trusted: TrustedKeys | None,
    since: int | None,
) -> str:
    """Give the records to the audit, with what is wrong with their signatures; what is to be said of these."""
    checked: list[CheckedRecord] = []
    # A compacted topic may hold tombstones.
    records = (one for one in chain(*placed) if one.value is not None or one.kind == "decision")
    for one in map(CheckedRecord, records) if trusted is None else check(records, trusted, since):
        checked.append(one)
        if one.fault is None:
            take = audit.decision if one.record.kind == "decision" else audit.command
            take(one.record.where, one.record.value or b"")
        else:
            audit.note("signature", one.record.where, one.fault)
    if trusted is None:
        return ""
    before, first, all_since = beginning(checked)
    keys = f"signed by one of {many(len(trusted), 'trusted key')}"
    if not before:
        return f"every record is {keys}"
    if since is None and first is not None:
        audit.note(
            "signature",
            first.where,
            f"the first signed record, of {iso(first.timestamp)}; {many(before, 'record')} from before the first of "
            f"their partition are not signed; if signing was turned on then, give --signed-since {iso(all_since)}",
        )
    elif since is None:
        audit.note("signature", "", f"none of {many(before, 'record')} is signed")
    began = f"the first signed is {first.where}, of {iso(first.timestamp)}" if first is not None else "none is signed"
    return f"every record since {iso(since or 0)} is {keys}, {many(before, 'record')} of before not; {began}"


def _tell(report: Report, source: str, *, with_commands: bool) -> None:
    """Print what was found and exit with 1, or what was read if nothing was."""
    if not (report.units or report.findings):
        raise InputError(f"{source}: no decision in it")
    decisions, commands = (sum(getattr(unit, of) for unit in report.units) for of in ("decisions", "commands"))
    commanded = f", {many(commands, 'command')}" if with_commands else ""
    read = f"{many(decisions, 'decision')}{commanded}"
    read += f", {many(len(report.units), 'unit')}"
    if report.findings:
        for finding in report.findings:
            click.echo(plain(str(finding)))
        click.echo(f"{many(len(report.findings), 'finding')} in {read}")
        raise SystemExit(1)
    table = Table("unit", box=None, pad_edge=False, header_style="")
    for title in ("decisions", "commands", "repeats"):
        table.add_column(title, justify="right")
    table.add_column("last hash", no_wrap=True)
    for unit in report.units:
        counts = unit.decisions, unit.commands if with_commands else "-", unit.repeats
        table.add_row(Text(plain(unit.unit)), *map(str, counts), unit.last_hash)
    console = Console(soft_wrap=True, highlight=False)
    if not console.is_terminal:
        console.width = 1_000
    console.print(table)
    earlier = f"; {many(report.earlier, 'command')} from before them" if report.earlier else ""
    console.print(f"nothing found: {read}{earlier}", highlight=False)
