"""``tidegate explain``: one decision in words."""

import asyncio
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
from aiokafka.errors import KafkaError
from rich.console import Console
from rich.text import Text

from tidegate.schemas.decision import Decision, decision_from_bytes
from tidegate.schemas.document import quoted
from tidegate.schemas.errors import EventError, InputError, TopicError
from tidegate.streams.commands.options import LogFile
from tidegate.streams.dumps.records import values
from tidegate.streams.files import STANDARD_INPUT, open_log
from tidegate.streams.kafka.tail import tail
from tidegate.streams.report.explanation import explanation
from tidegate.streams.report.terminal import VERDICT_STYLE
from tidegate.streams.report.text import plain
from tidegate.streams.settings import Settings, command_settings

DEFAULT_FILE = Path("decisions.ndjson")
LEAST_DIGITS = 8


@click.command()
@click.argument("decision")
@click.option(
    "--decisions",
    type=LogFile(),
    help=f"where to look: NDJSON or a dump, .gz and .parquet allowed  [default: {DEFAULT_FILE}]",
)
@click.option("--broker", help="look in the decisions topic of this Kafka instead")
def command(decision: str, decisions: Path | None, broker: str | None) -> None:
    """Say in words what was decided, why, and what happens next.

    DECISION is a decision_id, or the first 8 or more of its hex digits; or a file that holds one decision, - for
    standard input.
    """
    if decisions is not None and broker is not None:
        raise InputError("--decisions and --broker are two places to look in: give one of them")
    digits = re.fullmatch(r"(?:sha256:)?([0-9a-f]{8,64})", decision.lower())
    if digits is None and (decisions is not None or broker is not None or _short_id(decision)):
        raise InputError(f"{quoted(decision)} is no decision_id: give {LEAST_DIGITS} to 64 of its hex digits")
    if digits is None:
        found = _only(decision)
    elif broker is not None:
        found = _in_topic(command_settings(broker=broker), digits[1])
    else:
        path = decisions or DEFAULT_FILE
        found = _pick(values(path), digits[1], str(path))
    console = Console(soft_wrap=True, highlight=False)
    for line in explain(found):
        console.print(line)


def _short_id(name: str) -> bool:
    """Whether a name that is no file's looks like too little of an id, or too much."""
    return re.fullmatch(r"sha256:.*|[0-9a-f]+", name.lower(), re.DOTALL) is not None and not Path(name).is_file()


def _only(name: str) -> Decision:
    """The one record of a file, or of standard input."""
    path = Path(name)
    where = "standard input" if path == STANDARD_INPUT else name
    try:
        with open_log(path) as file:
            content = file.read()
    except (OSError, EOFError, ValueError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{quoted(name)} is no decision_id, and as a file: {reason}") from None
    try:
        # It may stand on several lines, as other tools write it.
        return decision_from_bytes(content)
    except EventError as error:
        try:
            records = list(values(path))
        except InputError:
            records = []
        if len(records) > 1 and all(_id_of(record) for record in records[:2]):
            raise InputError(f"{where} holds {len(records)} records: name one, with --decisions {name}") from None
        if len(records) != 1 or records[0] == content.strip():
            raise InputError(f"{where}: {error}") from None
    try:
        return decision_from_bytes(records[0])
    except EventError as error:
        raise InputError(f"{where}: {error}") from None


class _Identity(msgspec.Struct):
    decision_id: str


def _id_of(line: bytes) -> str | None:
    try:
        return msgspec.json.decode(line, type=_Identity).decision_id
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None


def _pick(lines: Iterator[bytes], digits: str, where: str) -> Decision:
    """The one decision whose id starts with these digits."""
    found: dict[bytes, str] = {}
    records = others = 0
    for line in lines:
        known = _id_of(line)
        records, others = records + (known is not None), others + (known is None)
        if known is not None and known.startswith(f"sha256:{digits}"):
            found[line] = known
    ids = sorted(set(found.values()))
    if not found:
        rest = f", and {others:,} lines that are none" if others else ""
        raise InputError(f"{where} has no decision sha256:{digits}… among {records:,}{rest}")
    if len(ids) > 1:
        some = ", ".join(map(plain, ids[:3]))
        raise InputError(f"{where} has {len(ids):,} decisions sha256:{digits}…: give more digits, as of {some}")
    if len(found) > 1:
        raise InputError(
            f"{where} has {len(found):,} different records of {plain(ids[0])}: give a file with one of them"
        )
    try:
        return decision_from_bytes(next(iter(found)))
    except EventError as error:
        raise InputError(f"{where}: {error}") from None


def _in_topic(settings: Settings, digits: str) -> Decision:
    topic = settings.decisions_topic

    async def read() -> list[bytes]:
        async with tail(settings, topic) as records:
            return [record.value for record in await records.history() if record.value is not None]

    try:
        return _pick(iter(asyncio.run(read())), digits, topic)
    except KafkaError as error:
        raise TopicError(f"topic {topic} at {settings.broker} cannot be read: {error}") from None


def explain(decision: Decision) -> Iterator[Text]:
    """Yield the lines that explain a decision: what, why, what happens next."""
    words = explanation(decision)
    yield Text(words.headline, VERDICT_STYLE.get(decision.verdict, "bold"))
    yield Text(words.window, "dim")
    for title, remarks in words.sections.items():
        yield Text(f"\n{title}", "bold")
        for remark in remarks:
            yield Text(f"  - {remark.text}")
            yield from (Text(f"    {detail}") for detail in remark.details)
    yield Text(f"\ndecision {plain(decision.decision_id)}", "dim")
