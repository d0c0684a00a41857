"""``tidegate verify``: whether decisions and commands are still what was once written."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import click
from aiokafka import ConsumerRecord
from aiokafka.errors import KafkaError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from schemas.errors import InputError, SignatureError, TopicError
from schemas.seal import RecordKind, verify_record
from schemas.signed import TrustedKeys
from streams.commands.options import LogFile
from streams.commands.words import many, plain
from streams.manifests import load_trusted
from streams.replay import read_records
from streams.settings import Settings, load_settings
from streams.tail import tail
from streams.verify import Audit, Report

ROUNDS_MAX = 10


@click.command()
@click.argument("decisions", nargs=-1, type=LogFile())
@click.option("--commands", type=LogFile(), multiple=True, help="commands, NDJSON or a dump; may be repeated")
@click.option("--broker", help="read the decisions and control topics of this Kafka instead of files")
@click.option("--trusted-keys", type=click.Path(path_type=Path), help="public keys; every record must be signed by one")
@click.option("--from-middle", is_flag=True, help="the records before the first ones given are somewhere else")
def command(
    decisions: tuple[Path, ...],
    commands: tuple[Path, ...],
    broker: str | None,
    trusted_keys: Path | None,
    from_middle: bool,
) -> None:
    """Check that decisions are an unbroken chain of unchanged records, and that commands carry them out.

    DECISIONS are NDJSON files in the order in which they were written, or dumps of `tidegate export`, .gz and .parquet
    allowed; - is standard input. For
    every flag and region: hashes, ids, links, windows that move forward; with --commands also their seq, and that each
    decision that asks for a command has it once and says the same. Identical repeats, as a crash leaves, are legal.

    Exits with 1 if anything is found; each finding is one line. A chain cannot tell that its end is missing: compare
    the last hash with one that you know.
    """
    if broker is None:
        if not decisions:
            raise InputError("nothing to verify: give files of decisions, or --broker")
        if trusted_keys is not None:
            raise InputError("--trusted-keys goes with --broker: signatures are in the records' headers, not in files")
        audit = Audit(commands=bool(commands), from_middle=from_middle)
        _take_files(decisions, "decision", audit.decision)
        _take_files(commands, "command", audit.command)
        _tell(audit.report(), ", ".join(map(str, decisions)), with_commands=bool(commands))
        return
    if decisions or commands:
        raise InputError("--broker and files are two places to read from: give one of them")
    settings = load_settings(broker=broker)
    trusted = load_trusted(trusted_keys) if trusted_keys is not None else None
    audit = Audit(from_middle=from_middle, compacted=True)
    decided, ordered = asyncio.run(_read_topics(settings))
    _take_records(audit, "decision", decided, trusted)
    _take_records(audit, "command", ordered, trusted)
    _tell(audit.report(), settings.decisions_topic, with_commands=True)
    signed = f"every record is signed by one of {many(len(trusted), 'trusted key')}; " if trusted is not None else ""
    click.echo(
        f"{signed}{settings.control_topic} is compacted: of a unit's commands only the last one has to be there, "
        "and those that are were checked"
    )


def _take_files(paths: Sequence[Path], kind: RecordKind, take: Callable[[str, bytes], None]) -> None:
    for path in paths:
        for number, record in read_records(path):
            # A compacted topic may hold tombstones.
            if record.value is not None or kind == "decision":
                take(f"{path}:{number}", record.value or b"")


async def _read_topics(settings: Settings) -> tuple[list[ConsumerRecord], list[ConsumerRecord]]:
    """The records of both topics, to an end at which neither had more: a worker may be writing."""
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


def _take_records(
    audit: Audit, kind: RecordKind, records: Sequence[ConsumerRecord], trusted: TrustedKeys | None
) -> None:
    take = audit.decision if kind == "decision" else audit.command
    for record in records:
        # A compacted topic may hold tombstones.
        if record.value is None and kind == "command":
            continue
        where = f"{record.topic}-{record.partition} offset {record.offset}"
        if trusted is not None:
            try:
                verify_record(record.value, record.headers, kind, trusted)
            except SignatureError as error:
                audit.note("signature", where, str(error))
                continue
        take(where, record.value or b"")


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
