"""``tidegate publish``: a signed revision to the manifests topic."""

import asyncio
import time
from pathlib import Path

import click
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from schemas.errors import SettingsError, TopicError
from schemas.signed import MAX_BYTES, TrustedKeys
from streams.loop import shown
from streams.manifests import accept, load_trusted, read_file, read_topic, record_key
from streams.reach import why
from streams.settings import Settings, load_settings


@click.command()
@click.argument("signed", type=click.Path(path_type=Path))
@click.option("--trusted-keys", type=click.Path(path_type=Path), help="public keys, as the workers have them")
@click.option("--broker", help="Kafka bootstrap servers")
def command(signed: Path, trusted_keys: Path | None, broker: str | None) -> None:
    """Publish the revision SIGNED, if the workers will take it.

    It is checked as they check it: signature, manifest, a number above the last one, and a time far enough ahead
    (TIDEGATE_MANIFEST_LEAD) at which a pane starts. Exits with 2 and the reason if it is refused.
    """
    settings = load_settings(broker=broker, trusted_keys=trusted_keys)
    if settings.trusted_keys is None:
        raise SettingsError("no trusted keys: give --trusted-keys FILE or set TIDEGATE_TRUSTED_KEYS")
    document, trusted = read_file(signed), load_trusted(settings.trusted_keys)
    raise SystemExit(0 if asyncio.run(_publish(settings, document, trusted)) else 1)


async def _publish(settings: Settings, document: bytes, trusted: TrustedKeys) -> bool:
    now = int(time.time() * 1000)
    before = await read_topic(settings, trusted)
    revision = accept(before, document, now, settings, trusted)
    await send(settings, settings.manifests_topic, record_key(revision), document)
    # What counts is what the workers read: another revision may have been quicker, or the broker's clock differ.
    taken = (await read_topic(settings, trusted)).revisions
    if revision not in taken:
        click.echo(f"revision {revision.number} was written, but is refused: sign and publish it again", err=True)
        return False
    click.echo(
        f"revision {revision.number}, signed by {revision.by}, is in force from {shown(revision.effective_from)} on: "
        f"{', '.join(revision.flags)}"
    )
    return True


async def send(settings: Settings, topic: str, key: bytes, value: bytes) -> int:
    """Write one record and wait until it is safe; its timestamp, ms. Raises TopicError if that fails."""
    producer = AIOKafkaProducer(**settings.kafka, acks="all", enable_idempotence=True, max_request_size=2 * MAX_BYTES)
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
