"""``tidegate worker``: the Faust worker."""

import asyncio
import gc
import os
import threading
from pathlib import Path

import click
import structlog

from schemas.errors import SettingsError, TopicError
from schemas.manifest import read_manifest
from streams import logs
from streams.settings import Settings, load_settings
from streams.topics import check_topics, create_topics

log = structlog.get_logger("tidegate")

STOP_SECONDS = 4.5


def _give_up() -> None:
    log.error("stopped in haste", reason=f"the broker confirmed nothing for {STOP_SECONDS} s")
    os._exit(1)


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
@click.option("--manifest", type=click.Path(path_type=Path), help="the flags and their gates (YAML)")
@click.option("--broker", help="Kafka bootstrap servers")
def command(manifest: Path | None, broker: str | None) -> None:
    """Run the gate evaluator beside a Kafka.

    Reads telemetry, writes decisions and commands. Any number of workers share the partitions; each may be stopped
    or killed at any time. Missing topics are made where the broker allows it.
    """
    settings = load_settings(manifest=manifest, broker=broker)
    if settings.manifest is None:
        raise SettingsError("no manifest: give --manifest FILE or set TIDEGATE_MANIFEST")
    flags = read_manifest(settings.manifest, pane_ms=settings.pane).flags
    unsupported = sorted(name for name, flag in flags.items() if flag.kind != "progressive_rollout")
    if unsupported:
        raise SettingsError(f"only progressive_rollout is evaluated so far, not the kind of: {', '.join(unsupported)}")
    logs.configure(settings)
    try:
        made = asyncio.run(create_topics(settings))
        if made:
            log.info("topics made", topics=made)
    except TopicError as error:
        # An account without the right to make topics is fine as long as they are there.
        log.warning("topics not made", error=str(error))
    partitions, gates = asyncio.run(check_topics(settings))
    # Imported late: Faust takes most of a second, and `--help` should not.
    import faust

    from streams.app import Worker

    class _Runner(faust.Worker):
        def _flag_as_shutdown_by_signal(self) -> None:
            super()._flag_as_shutdown_by_signal()
            # A broker that is gone would hold the stop up; what is not saved is read again.
            deadline = threading.Timer(STOP_SECONDS, _give_up)
            deadline.daemon = True
            deadline.start()

    worker = Worker(settings, flags, partitions, gates)
    # What was made up to here lives as long as the process: the collector need not look at it again and again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)
    # Logging is set up already, one form for all.
    runner = _Runner(worker.app, quiet=True, override_logging=False)
    runner.spinner = None
    try:
        runner.execute_from_commandline()
    except SystemExit as stop:
        # Threads of the consumer may still wait on the broker; everything that matters is saved by now.
        os._exit(1 if worker.failed else int(stop.code or 0))
