"""``tidegate simulate``: modelled telemetry to a live broker."""

import asyncio
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress
from rich.text import Text

from tidegate.gates.unit import first_weight
from tidegate.schemas.decision import Command, Decision
from tidegate.schemas.errors import InputError, SettingsError
from tidegate.schemas.load import read_manifest
from tidegate.schemas.manifest import Flag
from tidegate.schemas.times import iso
from tidegate.streams.commands.options import Time
from tidegate.streams.report.terminal import order, outcome, plain_gates, problem_lines, weight_percent
from tidegate.streams.report.text import many
from tidegate.streams.settings import command_settings
from tidegate.streams.simulation.closed_loop import ClosedLoop, latest_start
from tidegate.streams.simulation.scenarios import SCENARIOS, told_scenarios
from tidegate.streams.simulation.service import Arrival, Simulation, read_trace


@click.command(epilog=told_scenarios())
@click.option("--trace", type=click.Path(path_type=Path), required=True, help="TIMESTAMP,ContextTokens,GeneratedTokens")
@click.option(
    "--scenario", type=click.Choice(list(SCENARIOS)), metavar="NAME", required=True, help="what happens, see below"
)
@click.option("--manifest", type=click.Path(path_type=Path), help="the flags and their gates (YAML)")
@click.option("--flag", "flag_name", help="the flag to simulate; the manifest's first if left out")
@click.option("--broker", help="Kafka bootstrap servers")
@click.option("--speed", type=click.FloatRange(0.1, 1000), default=45.0, show_default=True, help="times real time")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="of all that is modelled")
@click.option(
    "--start",
    type=Time(),
    help="event time of the first request: 2026-01-31T12:00:00Z, now or now-2h  [the latest possible]",
)
def command(
    trace: Path,
    scenario: str,
    manifest: Path | None,
    flag_name: str | None,
    broker: str | None,
    speed: float,
    seed: int,
    start: int | None,
) -> None:
    """Publish modelled telemetry over a real trace's arrivals, to watch a worker decide.

    Arrivals and sizes are the trace's; users, latencies, costs, errors and quality are modelled. The simulation obeys
    the commands as a router would: it sends to the canary what the control topic says. Event time runs SPEED times as
    fast as the clock, and lies in the past so that it never overtakes the clock. What happens is timed by the flag's
    window; a scenario of another kind of flag than the manifest's is refused. In kill-switch nothing happens but what
    you order with `tidegate kill`.
    """
    settings = command_settings(broker=broker, manifest=manifest)
    if settings.manifest is None:
        raise SettingsError("no manifest: give --manifest FILE or set TIDEGATE_MANIFEST, the same as the worker's")
    flag = _pick(read_manifest(settings.manifest, pane_ms=settings.pane).flags, flag_name)
    SCENARIOS[scenario].check(flag)
    arrivals = read_trace(trace)
    simulation = Simulation(
        arrivals, SCENARIOS[scenario], flag, settings.clockwork, start=_start(start, arrivals, speed), seed=seed
    )
    progress = Progress(console=Console(soft_wrap=True), disable=not sys.stdout.isatty())
    console = progress.console
    console.print(
        f"{many(len(arrivals), 'request')} from {iso(simulation.start)} on, {', '.join(simulation.sites)} "
        f"at {weight_percent(first_weight(flag))}: {SCENARIOS[scenario].text}",
        highlight=False,
    )

    def named(what: Decision | Command, line: Text) -> Text:
        return Text(f"{what.region}  ").append(line) if len(simulation.sites) > 1 else line

    def tell(what: Decision | Command | str) -> None:
        if isinstance(what, Decision):
            console.print(named(what, outcome(what)))
            for line in filter(None, (plain_gates(what), *problem_lines(what))):
                console.print(Text(f"    {line}", style="dim"))
        else:
            console.print(named(what, order(what)) if isinstance(what, Command) else Text(what, style="yellow"))

    with suppress(KeyboardInterrupt), progress:
        task = progress.add_task("event time", total=simulation.end - simulation.start)
        loop = ClosedLoop(
            simulation,
            settings,
            speed,
            told=tell,
            moved=lambda now: progress.update(task, completed=now - simulation.start),
        )
        asyncio.run(loop.run())
    console.print(f"{many(loop.events, 'event')} published", highlight=False)


def _pick(flags: Mapping[str, Flag], name: str | None) -> Flag:
    if name is not None and name not in flags:
        raise InputError(f"--flag: the manifest has no flag {name}; it has {', '.join(flags)}")
    return flags[name] if name is not None else next(iter(flags.values()))


def _start(start: int | None, trace: list[Arrival], speed: float) -> int:
    latest = latest_start(trace[-1].at, speed, int(time.time() * 1000))
    if start is None:
        return latest // 60_000 * 60_000
    if start > latest:
        raise InputError(
            f"--start: at speed {speed:g} the run would overtake the clock, and events of the future are refused; "
            f"start at {iso(latest)} or earlier, or with --speed 1"
        )
    return start
