"""A simulation and a live worker, closed through Kafka: telemetry out, decisions and commands in."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tidegate.schemas.decision import Command, Decision, decision_from_bytes
from tidegate.schemas.errors import EventError, InputError, TopicError
from tidegate.schemas.event import FUTURE_MS, parse
from tidegate.schemas.times import iso
from tidegate.streams.client.control import ControlConsumer
from tidegate.streams.client.publisher import TelemetryPublisher
from tidegate.streams.kafka.tail import Tail, tail
from tidegate.streams.settings import Settings
from tidegate.streams.simulation.service import Simulation

STEP_MS = 1_000
"""Event time that is sent at once."""
FLUSH_SECONDS = 30.0
PENDING_MAX = 10_000


@dataclass
class ClosedLoop:
    """Runs a simulation at ``speed`` times real time, which stands still while a due decision is awaited.

    ``patience``: seconds to wait for it before the run goes on without. ``until``: ends the run before the trace
    does. ``told``: called with each decision of the simulated flag, then its command, and with complaints.
    ``moved``: called with the event time, ms, that each step reached.
    """

    simulation: Simulation
    settings: Settings
    speed: float
    patience: float = 20.0
    until: Callable[[], bool] = lambda: False
    told: Callable[[Decision | Command | str], None] = lambda _: None
    moved: Callable[[int], None] = lambda _: None
    events: int = 0
    _heard: asyncio.Event = field(default_factory=asyncio.Event)
    _ordered: dict[str, str | None] = field(default_factory=dict)
    _seen: set[str] = field(default_factory=set)
    _obeyed: set[str] = field(default_factory=set)
    _untold: dict[str, Command] = field(default_factory=dict)

    async def run(self) -> None:
        """Send everything. Raises TopicError if Kafka cannot be reached, InputError if the start is too early."""
        settings = self.settings
        async with (
            tail(settings, settings.decisions_topic) as decisions,
            ControlConsumer(settings) as commands,
            TelemetryPublisher(settings) as telemetry,
        ):
            await self._check_start()
            await commands.caught_up()
            for record in await decisions.history():
                self._follow(record.value)
            listening = (
                asyncio.create_task(self._hear_decisions(decisions)),
                asyncio.create_task(self._hear_commands(commands)),
            )
            sending = asyncio.create_task(self._send(telemetry))
            try:
                done, _ = await asyncio.wait((sending, *listening), return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                for task in (sending, *listening):
                    task.cancel()
                await asyncio.gather(sending, *listening, return_exceptions=True)

    async def _check_start(self) -> None:
        """Events behind what the topic has seen would all be late."""
        async with tail(self.settings, self.settings.telemetry_topic) as telemetry:
            seen = []
            for record in await telemetry.last():
                try:
                    seen.append(parse(record.value).ts)
                except EventError:
                    continue
        if seen and max(seen) > self.simulation.start:
            raise InputError(
                f"{self.settings.telemetry_topic} already has events up to {iso(max(seen))}, after the simulation's "
                f"start at {iso(self.simulation.start)}: they would count as late; "
                "give a later --start with --speed 1, or another TIDEGATE_TOPIC_PREFIX and TIDEGATE_APPLICATION_ID"
            )

    async def _send(self, telemetry: TelemetryPublisher) -> None:
        simulation = self.simulation
        began, origin = time.monotonic(), simulation.now
        while simulation.now < simulation.end and not self.until():
            due = simulation.due
            for event in simulation.advance(min(simulation.now + STEP_MS, max(due, simulation.now + 1))):
                self.events += telemetry.publish(event)
            if simulation.now >= due:
                telemetry.publish(simulation.tick())
                await self._flush(telemetry)
                await self._await_decision(due)
                began, origin = time.monotonic(), simulation.now
            elif telemetry.pending > PENDING_MAX:
                await self._flush(telemetry)
            self.moved(simulation.now)
            await asyncio.sleep((simulation.now - origin) / 1000 / self.speed - (time.monotonic() - began))
        await self._flush(telemetry)

    async def _flush(self, telemetry: TelemetryPublisher) -> None:
        if not await telemetry.flush(FLUSH_SECONDS) or telemetry.failed or telemetry.dropped or telemetry.rejected:
            raise TopicError(
                f"telemetry does not get through to {self.settings.telemetry_topic}: {telemetry.pending} records "
                f"waiting, {telemetry.failed} failed, {telemetry.rejected} rejected"
            )

    async def _await_decision(self, due: int) -> None:
        try:
            async with asyncio.timeout(self.patience):
                while self.simulation.due == due or {*self._ordered.values()} - {None, *self._obeyed}:
                    self._heard.clear()
                    await self._heard.wait()
        except TimeoutError:
            end = iso(due - self.settings.lateness)
            self.told(f"no decision on the window that ended at {end} after {self.patience:g} s; going on without")
            if self.simulation.due == due:
                self.simulation.undecided()

    async def _hear_decisions(self, decisions: Tail) -> None:
        while True:
            for record in await decisions.more():
                decision = self._follow(record.value)
                if decision is not None:
                    self.told(decision)
                    if decision.decision_id in self._untold:
                        self.told(self._untold.pop(decision.decision_id))
            self._heard.set()

    def _follow(self, value: bytes) -> Decision | None:
        """Go with a decision on a simulated region that was not seen before."""
        decision = decision_from_bytes(value)
        if decision.key not in self.simulation.sites or decision.decision_id in self._seen:
            return None
        self._seen.add(decision.decision_id)
        # Its command travels in another topic and may come a little later.
        self._ordered[decision.key] = decision.decision_id if self.simulation.decided(decision) else None
        return decision

    async def _hear_commands(self, commands: ControlConsumer) -> None:
        async for command in commands:
            self.simulation.apply(command)
            if command.key in self.simulation.sites:
                self._obeyed.add(command.decision_id)
                if command.decision_id in self._seen:
                    self.told(command)
                else:
                    self._untold[command.decision_id] = command
            self._heard.set()


def latest_start(length: int, speed: float, now: int) -> int:
    """Return the last start at which a run of ``length`` ms has no event too far ahead of the clock; ms."""
    return now + FUTURE_MS // 2 - max(0, int(length * (1 - 1 / speed)))
