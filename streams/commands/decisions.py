"""Decisions from a file or the topic, by flag and region: what `explain` and `history` look through."""

import asyncio
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path

import click
from aiokafka.errors import KafkaError

from tidegate.schemas.decision import Decision, decision_from_bytes
from tidegate.schemas.document import quoted
from tidegate.schemas.errors import EventError, InputError, TopicError
from tidegate.streams.commands.options import LogFile
from tidegate.streams.dumps.records import values
from tidegate.streams.kafka.tail import tail
from tidegate.streams.report.text import many, plain
from tidegate.streams.settings import Settings, command_settings

DEFAULT_FILE = Path("decisions.ndjson")
NAMES_SHOWN = 3

decisions_option = click.option(
    "--decisions",
    type=LogFile(),
    help=f"where to look: NDJSON or a dump, .gz and .parquet allowed  [default: {DEFAULT_FILE}]",
)
broker_option = click.option("--broker", help="look in the decisions topic of this Kafka instead")


def recorded_lines(decisions: Path | None, broker: str | None) -> tuple[Iterator[bytes], str]:
    """Return the records of the place that was named, and what to call it. Raises InputError if two were."""
    if decisions is not None and broker is not None:
        raise InputError("--decisions and --broker are two places to look in: give one of them")
    if broker is None:
        path = decisions or DEFAULT_FILE
        return values(path), str(path)
    settings = command_settings(broker=broker)
    return _in_topic(settings), settings.decisions_topic


def _in_topic(settings: Settings) -> Iterator[bytes]:
    topic = settings.decisions_topic

    async def read() -> list[bytes]:
        async with tail(settings, topic) as records:
            return [record.value for record in await records.history() if record.value is not None]

    try:
        yield from asyncio.run(read())
    except KafkaError as error:
        raise TopicError(f"topic {topic} at {settings.broker} cannot be read: {error}") from None


def unit_name(decision: Decision) -> str:
    """Return a decision's unit as people write it: FLAG/REGION, or FLAG where there are no regions."""
    return plain(decision.flag) + (f"/{plain(decision.region)}" if decision.region else "")


def decisions_of(lines: Iterable[bytes], name: str | None, where: str) -> list[Decision]:
    """Return the decisions of a FLAG, a FLAG/REGION, or of all, each once, in the order of their records.

    Raises InputError, with the nearest names, if there is none.
    """
    units: dict[str, None] = {}
    found: dict[str, Decision] = {}
    others = 0
    for line in lines:
        try:
            decision = decision_from_bytes(line)
        except EventError:
            others += 1
            continue
        whole = f"{decision.flag}/{decision.region}"
        units |= dict.fromkeys((decision.flag, whole))
        if name is None or name in (decision.flag, whole):
            found.setdefault(decision.decision_id, decision)
    if found:
        return list(found.values())
    if not units:
        rest = f", but {many(others, 'line')} of something else" if others else ""
        raise InputError(f"{where} has no decision{rest}")
    near = get_close_matches(name or "", units, NAMES_SHOWN) or list(units)[:NAMES_SHOWN]
    raise InputError(f"{where} has no decision of {quoted(name or '')}; did you mean {' or '.join(map(plain, near))}?")
