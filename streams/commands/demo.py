"""``tidegate demo``: the whole of it on one machine, and a check that a replay gives the same bytes."""

import asyncio
import gzip
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import ExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import click
from aiokafka.errors import KafkaError
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from tidegate.schemas.decision import Command, Decision
from tidegate.schemas.errors import InputError, TidegateError
from tidegate.schemas.load import read_manifest
from tidegate.schemas.manifest import Flag
from tidegate.schemas.timeline import Timeline
from tidegate.schemas.times import clock
from tidegate.streams.audit.compare import by_unit, first_difference
from tidegate.streams.audit.replay import replay
from tidegate.streams.commands.publish import send
from tidegate.streams.kafka.tail import tail
from tidegate.streams.kafka.topics import connect, create_topics, topics
from tidegate.streams.report.terminal import (
    Standings,
    gates_table,
    order,
    outcome,
    plain_gates,
    problem_lines,
    state_bar,
)
from tidegate.streams.report.text import many
from tidegate.streams.settings import Settings, command_settings
from tidegate.streams.simulation.closed_loop import ClosedLoop
from tidegate.streams.simulation.embedded_broker import embedded_broker
from tidegate.streams.simulation.scenarios import SCENARIOS, Scenario, told_scenarios, waits
from tidegate.streams.simulation.service import Simulation, Site, read_trace

PACKAGE = Path(__file__).parents[2]
ROOT = PACKAGE.parent
# As a user would type them, where the demo runs in the source folder.
EXAMPLES_FOLDER = (
    Path("examples") if Path("examples").resolve() == (PACKAGE / "examples").resolve() else PACKAGE / "examples"
)
TRACE = EXAMPLES_FOLDER / "data" / "azure_llm_conv_2023.csv.gz"
DEMO_MANIFEST = EXAMPLES_FOLDER / "manifest.yml"
CITATION = (
    "Trace: Azure LLM inference traces 2023 (conversation), © Microsoft, CC BY 4.0; Patel et al., "
    '"Splitwise: Efficient Generative LLM Inference Using Phase Splitting", ISCA 2024. '
    "Arrivals and sizes are real; users, latency, cost, errors and quality are modelled."
)
READY_SECONDS = 60.0
DECISION_SECONDS = 60.0
"""A busy machine makes the demo slow, not another story; a worker that ends is noticed at once."""
WORKER_STOP_SECONDS = 10.0
FRAME_SECONDS = 0.25
AFTERMATH_MS = 60_000
"""Event time that is shown after the last decision, so that its command is seen at work."""
LOG_LINES = 15
# The worker dies with the demo, however the demo dies, where the system can be asked for that.
_LAUNCH = (
    "import ctypes, sys\n"
    "sys.platform == 'linux' and ctypes.CDLL(None).prctl(1, 9)\n"
    "from tidegate.streams.commands import main\n"
    "main(['worker'])"
)
SETTINGS = {
    "partitions": "4",
    "gate_partitions": "4",
    "pane": "10s",
    "lateness": "10s",
    "checkpoint_every": "1s",
    "tick_idle_after": "off",
    # Its manifest lies in the source folder: nobody signs it.
    "unsigned_manifest": "true",
    "fetch_wait": "50ms",
    "http_host": "127.0.0.1",
    "http_port": "0",
    "log_level": "INFO",
    "log_format": "json",
}
EMBEDDED = {
    "security_protocol": "PLAINTEXT",
    "topic_prefix": "tidegate",
    "application_id": "tidegate",
    # Below what a real Kafka allows.
    "session_timeout": "3s",
    "heartbeat": "500ms",
}


@click.command(epilog=told_scenarios())
@click.option(
    "--scenario",
    type=click.Choice(list(SCENARIOS)),
    metavar="NAME",
    default="healthy",
    show_default=True,
    help="what happens, see below",
)
@click.option("--broker", envvar="TIDEGATE_BROKER", help="a Kafka to use in place of the embedded broker")
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo-out"), show_default=True, help="a folder")
@click.option("--speed", type=click.FloatRange(1, 200), default=45.0, show_default=True, help="times real time")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="of all that is modelled")
def command(scenario: str, broker: str | None, out: Path, speed: float, seed: int) -> None:
    """Watch a canary ramp to 100 %, or be held or stopped, in about a minute.

    Starts an embedded broker, a real worker as its own process, and a simulated service under a real request trace
    that obeys the worker's commands. Leaves manifest, decisions, commands and all telemetry in OUT, then decides once
    more from that telemetry alone and compares the bytes. Exits with 1 if they differ, or if the verdicts are not
    those that the scenario is about.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "worker.log").write_bytes(b"")
        manifest = out / "manifest.yml"
        manifest.write_text(SCENARIOS[scenario].manifest(DEMO_MANIFEST.read_text(encoding="utf-8")), encoding="utf-8")
    except OSError as error:
        raise InputError(f"--out: {error.filename}: {error.strerror}") from None
    given = SETTINGS | {"manifest": str(manifest)}
    with ExitStack() as stack:
        if broker is None:
            shapes = {topic.name: topic.partitions for topic in topics(command_settings(**given | EMBEDDED))}
            given |= EMBEDDED | {"broker": stack.enter_context(embedded_broker(shapes))}
        else:
            # Topics of its own: what is in the others would mix with the demo.
            name = f"tidegate-demo-{int(time.time())}"
            given |= {"broker": broker, "topic_prefix": name, "application_id": name}
        demo = Demo(SCENARIOS[scenario], given, out, speed=speed, seed=seed)
        try:
            same = asyncio.run(demo.run(own_topics=broker is not None))
        except (KeyboardInterrupt, asyncio.CancelledError):
            raise SystemExit(130) from None
    raise SystemExit(0 if same else 1)


def _worker_environment(given: Mapping[str, str]) -> dict[str, str]:
    """Return the settings of the demo, and from the caller's environment only how to reach the broker."""
    kept = ("TIDEGATE_SECURITY_PROTOCOL", "TIDEGATE_SASL_", "TIDEGATE_SSL_")
    env = {k: v for k, v in os.environ.items() if not k.upper().startswith("TIDEGATE_") or k.upper().startswith(kept)}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [env.get("PYTHONPATH")])])
    return env | {f"TIDEGATE_{name.upper()}": value for name, value in given.items()}


class WorkerProcess:
    """The worker's process; it never outlives the demo."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process, self._log = process, log

    async def ready(self) -> None:
        """Wait until it has its partitions. Raises ClickException, with the end of its log, if it does not."""
        for _ in range(int(READY_SECONDS / FRAME_SECONDS)):
            if any(b'"event": "ready"' in line for line in self._log.read_bytes().splitlines()):
                return
            if self._process.returncode is not None:
                break
            await asyncio.sleep(FRAME_SECONDS)
        raise self.failure("did not get ready")

    async def died(self) -> None:
        """Wait for an end that nobody asked for, and raise ClickException."""
        code = await self._process.wait()
        raise self.failure(f"ended with exit code {code}")

    async def stop(self) -> None:
        """End it as an operator would, by SIGTERM; by SIGKILL if it does not listen."""
        if self._process.returncode is None:
            self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), WORKER_STOP_SECONDS)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()

    def failure(self, what: str) -> click.ClickException:
        """Return an error that shows the end of the worker's log."""
        lines = self._log.read_text(errors="replace").splitlines()[-LOG_LINES:]
        return click.ClickException("\n".join([f"the worker {what}; the end of {self._log}:", *lines]))


@asynccontextmanager
async def running_worker(given: Mapping[str, str], log: Path) -> AsyncIterator[WorkerProcess]:
    """Yield a worker with its log in a file, stopped at the end."""
    with log.open("wb") as lines:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", _LAUNCH),
            env=_worker_environment(given),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=lines,
            stderr=lines,
            # Ctrl-C is for the demo, which then stops its worker.
            start_new_session=True,
        )
    worker = WorkerProcess(process, log)
    try:
        yield worker
    finally:
        await asyncio.shield(worker.stop())


@dataclass
class Demo:
    """One run: ``given`` are the settings that differ from the defaults, as environment variables would have them."""

    scenario: Scenario
    given: Mapping[str, str]
    out: Path
    speed: float
    seed: int
    console: Console = field(default_factory=lambda: Console(highlight=False))
    decisions: list[Decision] = field(default_factory=list)
    notes: list[Text] = field(default_factory=list)
    standings: Standings = field(default_factory=Standings)

    def __post_init__(self) -> None:
        self.settings = command_settings(**self.given)
        self.flags = read_manifest(self.out / "manifest.yml", pane_ms=self.settings.pane).flags
        self.flag: Flag = next(iter(self.flags.values()))
        trace = read_trace(TRACE)
        # In the past by the length of the trace, so that no event is ahead of the clock.
        start = (int(time.time() * 1000) - trace[-1].at) // 60_000 * 60_000
        self.simulation = Simulation(
            trace, self.scenario, self.flag, self.settings.clockwork, start=start, seed=self.seed
        )
        self.loop = ClosedLoop(
            *(self.simulation, self.settings, self.speed),
            patience=DECISION_SECONDS,
            until=self._has_shown_its_point,
            told=self._tell,
            moved=self._moved,
        )
        self._order_is_due = asyncio.Event()
        self.operation = self.scenario.operation(self.flag, start)
        self.ordered_at: float | None = None
        self.shown_at: int | None = None

    def _has_shown_its_point(self) -> bool:
        least = min(len(self._of(unit)) for unit in self.simulation.sites)
        if least >= len(self.scenario.verdicts) and self.shown_at is None:
            self.shown_at = self.simulation.now
        return self.shown_at is not None and self.simulation.now >= self.shown_at + AFTERMATH_MS

    def _moved(self, now: int) -> None:
        if self.operation is not None and now >= self.operation.ts:
            self._order_is_due.set()

    def _of(self, unit: str) -> list[Decision]:
        return [decision for decision in self.decisions if decision.key == unit and not waits(decision)]

    async def run(self, *, own_topics: bool) -> bool:
        """Run, record, replay, compare; whether all was as it should be.

        Raises TidegateError if Kafka cannot be used, ClickException if the worker ends.
        """
        # Ended by SIGTERM, the demo cleans up as after Ctrl-C.
        this = asyncio.current_task()
        if this is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)
        if own_topics:
            await create_topics(self.settings)
        try:
            self._say(f"{self.scenario.text}", style="bold")
            self._say(CITATION, style="dim")
            async with running_worker(self.given, self.out / "worker.log") as worker:
                await self._play(worker)
            return await self._check()
        finally:
            if own_topics:
                await self._delete_topics()

    async def _play(self, worker: WorkerProcess) -> None:
        """Run the simulation against the worker, showing it."""
        with self.console.status("starting the worker") if self.console.is_terminal else nullcontext():
            await worker.ready()
        self._began = time.monotonic()
        tasks = [asyncio.create_task(work) for work in (self.loop.run(), worker.died(), self._show(), self._operate())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _operate(self) -> None:
        """Give the operator's order when its time has come."""
        operation = self.operation
        if operation is not None:
            await self._order_is_due.wait()
            self.ordered_at = time.monotonic()
            self._note([Text(f"{clock(operation.ts)}  {operation.actor} orders: {operation.kind} {operation.flag}")])
            await send(self.settings, self.settings.operations_topic, operation.flag.encode(), operation.to_bytes())
        await asyncio.Event().wait()

    async def _show(self) -> None:
        if not self.console.is_terminal:
            await asyncio.Event().wait()
        with Live(self._frame(), console=self.console, auto_refresh=False) as live:
            try:
                while True:
                    await asyncio.sleep(FRAME_SECONDS)
                    live.update(self._frame(), refresh=True)
            finally:
                live.update(self._frame(), refresh=True)

    def _frame(self) -> Group:
        simulation, seconds = self.simulation, max(time.monotonic() - self._began, 0.001)
        minutes = (simulation.now - simulation.start) / 60_000
        progress = (
            f"event time {clock(simulation.now)}, minute {minutes:.1f} at {self.speed:g} times real time; "
            f"{many(self.loop.events, 'event')}, {self.loop.events / seconds:,.0f} a second"
        )
        parts: list[RenderableType] = [self._stands(site) for site in simulation.sites.values()]
        parts.append(Text(progress, style="dim"))
        if self.flag.kind != "kill_switch":
            start, end = simulation.sites[simulation.unit].window
            share = min(max((simulation.now - start) / (end - start), 0.0), 1.0)
            parts.append(Text(f"this window {clock(start)}-{clock(end)}: {share:.0%}", style="dim"))
        parts += self.notes
        if self.decisions and self.decisions[-1].gates:
            window = self.decisions[-1].window
            seen = self.decisions[-1].evidence
            whole = f" and the stage's {seen.windows} windows so far" if seen is not None and seen.windows > 1 else ""
            title = Text(f"\ngates of {clock(window.start)}-{clock(window.end)}{whole}")
            parts += [title, gates_table(self.decisions[-1])]
        return Group(*parts)

    def _stands(self, site: Site) -> Text:
        router, weight = self.simulation.router, self.simulation.weight(site)
        bar = state_bar(self.flag, weight, engaged=self.standings.engaged(site.unit), ended=router.ended(site.unit))
        return Text(f"{site.region:10} ").append(bar) if len(self.simulation.sites) > 1 else bar

    def _tell(self, what: Decision | Command | str) -> None:
        several = len(self.simulation.sites) > 1
        if isinstance(what, str):
            self._note([Text(what, style="yellow")])
            return
        where = Text(f"{what.region:10} " if several else "")
        if isinstance(what, Command):
            self._note([Text("  ").append(where).append(order(what)).append(self._delay(), style="dim")])
            return
        self.decisions.append(what)
        self.standings.follow(what)
        self._note([where.append(outcome(what)), *(Text(f"  {line}", style="yellow") for line in problem_lines(what))])
        if not self.console.is_terminal and what.gates:
            self.console.print(f"  {plain_gates(what)}", soft_wrap=True)

    def _delay(self) -> str:
        """Format the time from the operator's order to a command."""
        return "" if self.ordered_at is None else f", {time.monotonic() - self.ordered_at:.2f} s after the order"

    def _note(self, notes: list[Text]) -> None:
        self.notes += notes
        if not self.console.is_terminal:
            for note in notes:
                self.console.print(note, soft_wrap=True)

    def _say(self, text: str, style: str = "") -> None:
        self.console.print(text, style=style, soft_wrap=not self.console.is_terminal)

    async def _check(self) -> bool:
        """Write what the topics hold, decide again from the telemetry alone, and compare."""
        settings, out = self.settings, self.out
        decided = await _units(settings, settings.decisions_topic)
        ordered = await _units(settings, settings.control_topic)
        _write(out / "decisions.ndjson", decided)
        _write(out / "commands.ndjson", ordered)
        telemetry = out / "telemetry.ndjson.gz"
        recorded = await _dump(settings, telemetry)
        operations = [self.operation] if self.operation else []
        _write(out / "operations.ndjson", [operation.to_bytes() for operation in operations])
        outcomes = list(
            replay([telemetry], Timeline.of(self.flags), settings.partitions, settings.clockwork, operations=operations)
        )
        decided_again = [decision.to_bytes() for decision, _ in outcomes]
        ordered_again = [command.to_bytes() for _, command in outcomes if command is not None]
        difference = first_difference(decided_again, decided) or first_difference(ordered_again, ordered)
        counts = f"{_many(decided_again, 'decision')} and {_many(ordered_again, 'command')}"
        self._say(
            f"replayed {counts} from {recorded:,} recorded events: {difference or 'the same bytes'}",
            style="bold red" if difference else "bold green",
        )
        self._say(f"{out}: manifest.yml, decisions.ndjson, commands.ndjson, telemetry.ndjson.gz, worker.log")
        prefix = "" if settings.topic_prefix == "tidegate" else f"TIDEGATE_TOPIC_PREFIX={settings.topic_prefix} "
        ordered_in = f"--operations {out / 'operations.ndjson'} " if operations else ""
        self._say(
            f"again by hand: {prefix}tidegate replay --manifest {out / 'manifest.yml'} --events {telemetry} "
            f"{ordered_in}--out {out / 'again.ndjson'} --compare {out / 'decisions.ndjson'}",
            style="dim",
        )
        return self._as_expected() and difference is None

    def _as_expected(self) -> bool:
        """Tell whether every region had the scenario's verdicts; print those that had not."""
        expected = True
        for site in self.simulation.sites.values():
            verdicts = tuple(decision.verdict for decision in self._of(site.unit))
            if verdicts != self.scenario.verdicts:
                expected = False
                self._say(
                    f"{site.region}: expected {', '.join(self.scenario.verdicts)}, "
                    f"but got {', '.join(verdicts) or 'no decision'}",
                    style="bold red",
                )
        return expected

    async def _delete_topics(self) -> None:
        names = [topic.name for topic in topics(self.settings)]
        try:
            admin = await connect(self.settings)
            try:
                await admin.delete_topics(names)
            finally:
                await admin.close()
        except (KafkaError, TidegateError) as error:
            self._say(f"topics left behind: {', '.join(names)} ({error})", style="yellow")


def _many(records: list[bytes], name: str) -> str:
    return f"{len(records)} {name}{'s' if len(records) != 1 else ''}"


async def _units(settings: Settings, topic: str) -> list[bytes]:
    """Return the records of a topic, unit by unit in their order, repeats dropped."""
    async with tail(settings, topic) as records:
        units = by_unit([record.value for record in await records.history()])
    return [record for _, unit in sorted(units.items()) for record in unit]


def _write(path: Path, records: Iterable[bytes]) -> None:
    path.write_bytes(b"".join(record + b"\n" for record in records))


async def _dump(settings: Settings, path: Path) -> int:
    """Write the whole telemetry topic; the number of records."""
    async with tail(settings, settings.telemetry_topic) as records:
        history = await records.history()
    with path.open("wb") as file, gzip.GzipFile(fileobj=file, mode="wb", filename="", mtime=0) as lines:
        for record in history:
            head = b'{"partition":%d,"offset":%d,"timestamp":%d,' % (record.partition, record.offset, record.timestamp)
            lines.write(head + b'"value":' + record.value + b"}\n")
    return len(history)
