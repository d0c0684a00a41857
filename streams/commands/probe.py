"""``tidegate probe``: gold probes of both arms, once or on a schedule."""

import asyncio
import importlib
import sys
from collections.abc import Callable
from contextlib import suppress
from inspect import iscoroutinefunction
from pathlib import Path
from statistics import fmean, median
from typing import Any

import click

from tidegate.schemas.errors import InputError, SettingsError
from tidegate.streams.client.publisher import TelemetryPublisher
from tidegate.streams.commands.options import DurationType
from tidegate.streams.probes.gold import read_gold
from tidegate.streams.probes.probing import Summary, probe, probe_every
from tidegate.streams.report.text import many
from tidegate.streams.settings import Settings, command_settings


@click.command()
@click.option("--gold", "path", type=click.Path(path_type=Path), required=True, help="questions, paraphrases, anchors")
@click.option("--ask", metavar="MODULE:FUNCTION", required=True, help="async: arm, question, seed -> Answer")
@click.option("--embed", metavar="MODULE:FUNCTION", help="text -> vector, for anchors and answers in words")
@click.option("--every", type=DurationType(), help="probe again and again; otherwise once")
@click.option("--concurrency", type=click.IntRange(1), default=4, show_default=True, help="questions asked at a time")
@click.option("--broker", help="Kafka bootstrap servers")
def command(path: Path, ask: str, embed: str | None, every: int | None, concurrency: int, broker: str | None) -> None:
    """Ask both arms every question of a gold set, in three paraphrases with two seeds, and publish the probes.

    They carry ΔS to the anchor, the coverage of the target section and λ, and count as gold in the next decision.
    The functions are yours, in a module of this folder or of the environment; see docs/probes.md.
    """
    if every == 0:
        raise SettingsError("--every: must be longer than 0")
    settings, gold = command_settings(broker=broker), read_gold(path)
    asking = _function(ask, "--ask")
    if not iscoroutinefunction(asking):
        raise InputError(f"--ask: {ask} is not an async function: write `async def`")
    work: dict[str, Any] = {"embed": _function(embed, "--embed") if embed else None, "concurrency": concurrency}

    async def run(telemetry: TelemetryPublisher) -> None:
        if every is None:
            _tell(await probe(gold, asking, telemetry, **work))
        else:
            await probe_every(every / 1000, gold, asking, telemetry, done=_tell, **work)

    lost = asyncio.run(_published(settings, run))
    if lost:
        click.echo(f"{many(lost, 'probe')} did not reach {settings.telemetry_topic}; the lines above say why", err=True)
        sys.exit(1)


async def _published(settings: Settings, run: Callable[[TelemetryPublisher], Any]) -> int:
    telemetry = TelemetryPublisher(settings)
    async with telemetry:
        # What Ctrl-C ends is the schedule: what is published goes out.
        with suppress(asyncio.CancelledError):
            await run(telemetry)
    return telemetry.failed + telemetry.dropped + telemetry.rejected


def _function(name: str, option: str) -> Any:
    module, _, function = name.partition(":")
    if not module or not function:
        raise InputError(f"{option}: {name} is not MODULE:FUNCTION")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), function, None)
    except Exception as error:
        raise InputError(f"{option}: {module} cannot be imported: {type(error).__name__}: {error}") from None
    finally:
        sys.path.pop(0)
    if not callable(found):
        raise InputError(f"{option}: {module} has no function {function}")
    return found


def _tell(summaries: dict[Any, Summary]) -> None:
    for arm, summary in summaries.items():
        measured = [
            f"{summary.converged} of {many(summary.groups, 'question')} convergent",
            many(summary.errors, "error"),
        ]
        if summary.delta_s:
            measured.append(f"ΔS median {median(summary.delta_s):.3f}")
        if summary.coverage:
            measured.append(f"coverage {fmean(summary.coverage):.3f}")
        click.echo(f"{arm}: {many(summary.events, 'probe')}, {', '.join(measured)}")
