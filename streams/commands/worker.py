"""``tidegate worker``: the Faust worker."""

import asyncio
import signal
from importlib.metadata import version
from pathlib import Path

import click
import structlog

from tidegate.schemas.errors import SettingsError, TopicError
from tidegate.schemas.signed import TrustedKeys, is_signed, read_private
from tidegate.schemas.timeline import Timeline
from tidegate.streams.engine.native import running
from tidegate.streams.kafka.checkpoints import check_layout
from tidegate.streams.kafka.manifests import load_trusted, read_file, read_files, read_topic, tell
from tidegate.streams.kafka.topics import check_group, check_topics, create_topics
from tidegate.streams.settings import Settings, command_settings
from tidegate.streams.worker import logs
from tidegate.streams.worker.health import Check, Metrics, serve

log = structlog.get_logger("tidegate")


def _from_file(path: Path, settings: Settings, trusted: TrustedKeys | None) -> Timeline:
    if not settings.unsigned_manifest and not is_signed(read_file(path)):
        raise SettingsError(
            f"{path} is not signed: sign it with `tidegate sign`, or set TIDEGATE_UNSIGNED_MANIFEST=true to take it so"
        )
    return read_files([path], settings, trusted)


async def _try_address(settings: Settings) -> None:
    """Find out that the address is taken while one clear line can still say so."""
    await (await serve(settings.http_host, settings.http_port, Metrics(), dict)).cleanup()


async def _await_manifest(settings: Settings, trusted: TrustedKeys) -> bool:
    """Wait, not ready, until the manifests topic has a revision; False if told to stop meanwhile."""
    probe = await serve(
        settings.http_host,
        settings.http_port,
        Metrics(),
        lambda: {"manifest": Check.of(False), "partitions": Check.of(False)},
    )
    waiting = asyncio.create_task(read_topic(settings, trusted, wait=True, told=tell))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, waiting.cancel)
    try:
        log.info("waiting for a manifest", topic=settings.manifests_topic)
        await waiting
        return True
    except asyncio.CancelledError:
        log.info("stopped")
        return False
    finally:
        await probe.cleanup()


def _settings_help() -> str:
    lines = []
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else f" [{field.default}]"
        lines.append(f"  TIDEGATE_{name.upper()}{default}\n      {field.description}")
    return (
        "\b\nSettings, from the environment (durations in ms where a default is shown; write 10s, 15m):\n"
        + "\n".join(lines)
    )


@click.command(epilog=_settings_help())
@click.option("--manifest", type=click.Path(path_type=Path), help="the flags and their gates, signed or YAML")
@click.option("--broker", help="Kafka bootstrap servers")
@click.option(
    "--accept-loss",
    is_flag=True,
    default=None,
    help="go on without records that a topic deleted before they were read; windows they touch are held",
)
def command(manifest: Path | None, broker: str | None, accept_loss: bool | None) -> None:
    """Run the gate evaluator beside a Kafka.

    Reads telemetry, writes decisions and commands. Any number of workers share the partitions; each may be stopped
    or killed at any time. Missing topics are made where the broker allows it. Without a manifest file it takes the
    signed revisions of the manifests topic, and waits for the first.
    """
    settings = command_settings(manifest=manifest, broker=broker, accept_loss=accept_loss)
    trusted = load_trusted(settings.trusted_keys) if settings.trusted_keys else None
    if trusted is None and not (settings.manifest and settings.unsigned_manifest):
        raise SettingsError(
            "no trusted keys: set TIDEGATE_TRUSTED_KEYS to a file of public keys (see `tidegate keygen`); "
            "to go without signatures, give --manifest FILE and set TIDEGATE_UNSIGNED_MANIFEST=true"
        )
    signing = read_private(read_file(settings.signing_key), str(settings.signing_key)) if settings.signing_key else None
    timeline = _from_file(settings.manifest, settings, trusted) if settings.manifest else None
    asyncio.run(_try_address(settings))
    logs.configure(settings)
    log.info("starting", version=version("tidegate"), decoder=running())
    try:
        made = asyncio.run(create_topics(settings))
        if made:
            log.info("topics made", topics=made)
    except TopicError as error:
        # An account without the right to make topics is fine as long as they are there.
        log.warning("topics not made", error=str(error))
    partitions, gates = asyncio.run(check_topics(settings))
    asyncio.run(check_group(settings))
    asyncio.run(check_layout(settings))
    if timeline is None and not asyncio.run(_await_manifest(settings, trusted or {})):
        return
    # Imported late: Faust takes most of a second, and `--help` should not.
    from tidegate.streams.worker.app import Worker
    from tidegate.streams.worker.run import run

    run(Worker(settings, timeline, trusted, partitions, gates, signing))
