"""``tidegate explain``: one decision in words."""

import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import get_args

import click
import msgspec
from rich.console import Console
from rich.text import Text

from tidegate.schemas.decision import Decision, Verdict, decision_from_bytes
from tidegate.schemas.document import quoted
from tidegate.schemas.errors import EventError, InputError
from tidegate.streams.commands.decisions import (
    DEFAULT_FILE,
    broker_option,
    decisions_of,
    decisions_option,
    recorded_lines,
    unit_name,
)
from tidegate.streams.dumps.records import values
from tidegate.streams.files import STANDARD_INPUT, open_log
from tidegate.streams.report.explanation import explanation
from tidegate.streams.report.terminal import GREY, VERDICT_STYLE
from tidegate.streams.report.text import many, plain

LEAST_DIGITS = 8


@click.command()
@click.argument("decision")
@decisions_option
@broker_option
@click.option("--last", type=click.Choice(get_args(Verdict)), help="of a flag: the last decision with this verdict")
def command(decision: str, decisions: Path | None, broker: str | None, last: str | None) -> None:
    """Say in words what was decided, why, and what happens next.

    DECISION is a decision_id, or the first 8 or more of its hex digits; or FLAG or FLAG/REGION, for its last decision;
    or a file that holds one decision, - for standard input.
    """
    digits = re.fullmatch(r"(?:sha256:)?([0-9a-f]{8,64})", decision.lower())
    nowhere = decisions is None and broker is None
    if digits is None and decision.lower().startswith("sha256:"):
        raise InputError(f"{quoted(decision)} is not a decision_id: give {LEAST_DIGITS} to 64 of its hex digits")
    others: list[str] = []
    if digits is None and last is None and nowhere and (Path(decision).is_file() or Path(decision) == STANDARD_INPUT):
        found = _only(decision)
    else:
        lines, where = _kept(decision, decisions, broker)
        if digits is None or (last is not None and not decision.lower().startswith("sha256:")):
            found, others = _last(lines, decision, last, where)
        elif last is not None:
            raise InputError("--last goes with a flag: a decision_id names one decision")
        else:
            found = _pick(lines, digits[1], where)
    console = Console(soft_wrap=True, highlight=False)
    for line in explain(found):
        console.print(line)
    if others:
        console.print(Text(f"also decided: {', '.join(others)}", GREY))


def _kept(name: str, decisions: Path | None, broker: str | None) -> tuple[Iterator[bytes], str]:
    """Open the place to look in. Raises InputError for a name that is not a file, if no place is given or there."""
    if decisions is None and broker is None and not DEFAULT_FILE.is_file():
        raise InputError(
            f"{quoted(name)} is not a file, and to look for a decision or a flag of that name there is no "
            f"{DEFAULT_FILE} here: give --decisions FILE or --broker"
        )
    return recorded_lines(decisions, broker)


def _last(lines: Iterable[bytes], name: str, verdict: str | None, where: str) -> tuple[Decision, list[str]]:
    """Return the last decision of a flag, or of one of its regions, and the units that have others like it."""
    try:
        every = decisions_of(lines, name, where)
    except InputError as error:
        short = re.fullmatch(r"[0-9a-f]+", name.lower())
        hint = f"; of a decision_id give {LEAST_DIGITS} to 64 hex digits" if short else ""
        raise InputError(f"{error}{hint}") from None
    found = [one for one in every if verdict in (None, one.verdict)]
    if not found:
        had = ", ".join(sorted({one.verdict for one in every}))
        raise InputError(f"{where} has no {verdict} of {plain(name)} among {many(len(every), 'decision')}: {had}")
    last = max(enumerate(found), key=lambda one: (one[1].decided_at, one[0]))[1]
    return last, sorted({unit_name(one) for one in found} - {unit_name(last)})


def _only(name: str) -> Decision:
    """Return the one record of a file, or of standard input."""
    path = Path(name)
    where = "standard input" if path == STANDARD_INPUT else name
    try:
        with open_log(path) as file:
            content = file.read()
    except (OSError, EOFError, ValueError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{quoted(name)} is not a decision_id, and as a file: {reason}") from None
    try:
        # It may stand on several lines, as other tools write it.
        return decision_from_bytes(content)
    except EventError as error:
        try:
            records = list(values(path))
        except InputError:
            records = []
        if len(records) > 1 and all(_id_of(record) for record in records[:2]):
            raise InputError(
                f"{where} holds {many(len(records), 'record')}: name one, with --decisions {name}"
            ) from None
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
    """Return the one decision whose id starts with these digits."""
    found: dict[bytes, str] = {}
    records = others = 0
    for line in lines:
        known = _id_of(line)
        records, others = records + (known is not None), others + (known is None)
        if known is not None and known.startswith(f"sha256:{digits}"):
            found[line] = known
    ids = sorted(set(found.values()))
    if not found:
        what = "is not a decision" if others == 1 else "are not decisions"
        rest = f", and {many(others, 'line')} that {what}" if others else ""
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


def explain(decision: Decision) -> Iterator[Text]:
    """Yield the lines that explain a decision: what, why, what happens next."""
    words = explanation(decision)
    yield Text(words.headline, VERDICT_STYLE.get(decision.verdict, "bold"))
    yield Text(words.window, GREY)
    for title, remarks in words.sections.items():
        yield Text(f"\n{title}", "bold")
        for remark in remarks:
            yield Text(f"  - {remark.text}")
            yield from (Text(f"    {detail}") for detail in remark.details)
    yield Text(f"\ndecision {plain(decision.decision_id)}", GREY)
