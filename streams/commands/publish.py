"""``tidegate publish``: a signed revision to the manifests topic."""

import asyncio
import shlex
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

import click
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from tidegate.schemas.decision import decision_from_bytes
from tidegate.schemas.errors import EventError, InputError, Refusal, SettingsError, TopicError
from tidegate.schemas.signed import DOCUMENT_BYTES_MAX, TrustedKeys, read_private
from tidegate.schemas.timeline import Revision, Timeline
from tidegate.schemas.times import iso
from tidegate.streams.kafka.connect import why
from tidegate.streams.kafka.manifests import (
    accept,
    load_trusted,
    open_revision,
    read_file,
    read_topic,
    record_key,
    with_retired,
)
from tidegate.streams.kafka.tail import tail
from tidegate.streams.report.terminal import Standings
from tidegate.streams.report.text import plain
from tidegate.streams.settings import Settings, command_settings


@click.command()
@click.argument("signed", type=click.Path(path_type=Path))
@click.option("--trusted-keys", type=click.Path(path_type=Path), help="public keys, as the workers have them")
@click.option("--retire", multiple=True, help="a flag that it leaves out: its canary goes to 0; needs --key")
@click.option("--key", type=click.Path(path_type=Path), help="private key (PEM) to sign it again with --retire")
@click.option("--broker", help="Kafka bootstrap servers")
def command(
    signed: Path, trusted_keys: Path | None, retire: tuple[str, ...], key: Path | None, broker: str | None
) -> None:
    """Publish the revision SIGNED, if the workers will take it.

    It is checked as they check it: signature, manifest, a number above the last one, and a time far enough ahead
    (TIDEGATE_MANIFEST_LEAD) at which a pane starts. A revision that leaves out a flag which decisions were made for has
    to retire it, here or with `tidegate sign --retire`. Exits with 2 and the reason if it is refused. One that is there
    already is not written again.
    """
    settings = command_settings(broker=broker, trusted_keys=trusted_keys)
    if settings.trusted_keys is None:
        raise SettingsError("no trusted keys: give --trusted-keys FILE or set TIDEGATE_TRUSTED_KEYS")
    document, trusted = read_file(signed), load_trusted(settings.trusted_keys)
    if retire:
        if key is None:
            raise InputError(
                "--retire: what a revision retires is signed; give --key FILE, or `tidegate sign --retire`"
            )
        document = with_retired(document, settings, trusted, read_private(read_file(key), str(key)), retire)
    raise SystemExit(0 if asyncio.run(_publish(settings, document, trusted)) else 1)


async def _publish(settings: Settings, document: bytes, trusted: TrustedKeys) -> bool:
    now = int(time.time() * 1000)
    before = await read_topic(settings, trusted)
    there = already(before, document, settings, trusted)
    if there is not None:
        click.echo(there)
        return True
    revision = accept(before, document, now, settings, trusted)
    check_dropped(before, revision, await _units(settings))
    await send(settings, settings.manifests_topic, record_key(revision), document)
    # What counts is what the workers read: another revision may have been quicker, or the broker's clock differ.
    taken = (await read_topic(settings, trusted)).revisions
    if revision not in taken:
        click.echo(f"revision {revision.number} was written, but is refused: sign and publish it again", err=True)
        return False
    retires = f"; it retires {', '.join(map(plain, revision.retires))}" if revision.retires else ""
    click.echo(
        f"revision {revision.number}, signed by {revision.by}, is in force from {iso(revision.effective_from)} on: "
        f"{', '.join(revision.flags)}{retires}"
    )
    return True


def already(before: Timeline, document: bytes, settings: Settings, trusted: TrustedKeys) -> str | None:
    """Describe a revision that was taken before, whoever signed it; None for any other.

    Raises Refusal for a document that is no revision.
    """
    revision = open_revision(document, settings.deployment, trusted, settings.pane)
    for at, taken in enumerate(before.revisions):
        if replace(taken, by=revision.by) == revision:
            later = before.revisions[at + 1 :]
            until = (
                f" to {iso(later[0].effective_from)}, when revision {later[0].number} takes over" if later else " on"
            )
            return (
                f"revision {taken.number}, signed by {taken.by}, is there already: in force from "
                f"{iso(taken.effective_from)}{until}; nothing was written"
            )
    return None


def check_dropped(before: Timeline, revision: Revision, units: Mapping[str, str] | None) -> None:
    """Refuse a revision that leaves out a flag with units, unless it retires it: routers would go on serving it.

    ``units``: the last verdict by ``flag|region``, of those that are not retired; None: not known, so that every flag
    counts as one that has some. Raises Refusal with the flag, its units and the way on.
    """
    last = before.revisions[-1].flags.keys() if before.revisions else None
    served: dict[str, list[str]] = {} if units is not None else {flag: [] for flag in last or ()}
    for unit, verdict in sorted((units or {}).items()):
        flag, region = unit.split("|", 1)
        # What an earlier revision takes out, it retires.
        if last is None or flag in last:
            served.setdefault(flag, []).append(f"{plain(region) or 'no region'} (last {verdict})")
    for flag, regions in served.items():
        if flag in revision.flags or flag in revision.retires:
            continue
        where = f"units in {', '.join(regions)}" if regions else "units, as far as is known"
        word = shlex.quote(plain(flag))
        raise Refusal(
            f"revision {revision.number} leaves out {plain(flag)}, which has {where}: routers would go on serving it. "
            f"Keep the flag, or take its canary to 0 for good: sign the revision again with --retire {word}, or give "
            f"--retire {word} --key FILE here"
        )
    known = served.keys() | (last or set())
    for flag in revision.retires:
        if flag not in known and units is not None:
            near = get_close_matches(flag, sorted(known), 1)
            hint = f"; did you mean {plain(near[0])}?" if near else ""
            raise Refusal(f"revision {revision.number} retires {plain(flag)}, and there is no such flag{hint}")


async def _units(settings: Settings) -> dict[str, str] | None:
    """Return the last verdict of every unit that is not retired, by its decisions; None where they cannot be read."""
    standings = Standings()
    try:
        async with tail(settings, settings.decisions_topic) as decisions:
            for record in await decisions.history():
                with suppress(EventError):
                    standings.follow(decision_from_bytes(record.value))
    except TopicError as error:
        click.echo(f"which flags have units is not known: {error}", err=True)
        return None
    return {unit: last.verdict for unit, last in standings.last.items() if not standings.retired(unit)}


async def send(settings: Settings, topic: str, key: bytes, value: bytes) -> int:
    """Write one record and wait until it is safe; its timestamp, ms. Raises TopicError if that fails."""
    producer = AIOKafkaProducer(
        **settings.kafka, acks="all", enable_idempotence=True, max_request_size=2 * DOCUMENT_BYTES_MAX
    )
    try:
        await producer.start()
        sent = await producer.send_and_wait(topic, value, key=key, partition=0)
        return int(sent.timestamp)
    except (KafkaError, OSError) as error:
        reason = await why(settings, error)
        raise TopicError(f"topic {topic} at {settings.broker} cannot be written: {reason}") from None
    finally:
        # Also where it never started: left alone it would complain on stderr.
        await producer.stop()
