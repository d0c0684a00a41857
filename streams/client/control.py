"""The reading end of the wire for a router or flag server: commands, each once, in order."""

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from types import MappingProxyType, TracebackType
from typing import Self

from aiokafka import ConsumerRecord
from aiokafka.errors import KafkaConnectionError

from tidegate.schemas.decision import Command, Weights, command_from_bytes
from tidegate.schemas.document import quoted
from tidegate.schemas.errors import EventError, SignatureError, TopicError
from tidegate.schemas.seal import verify_record
from tidegate.schemas.signed import TrustedKeys
from tidegate.streams.kafka.connect import why
from tidegate.streams.kafka.patience import RETRY_SECONDS, STALL_SECONDS, Outage
from tidegate.streams.kafka.tail import tail
from tidegate.streams.settings import Settings, load_settings

log = logging.getLogger("tidegate.control")


class ControlConsumer:
    """Commands of the control topic, for as long as one iterates::

        async with ControlConsumer() as commands:
            async for command in commands:
                serve(command.flag, command.region, command.weights, command.effective_from)

    First comes the last command of each (flag, region), then each new one once, in the order of its ``seq``. Every
    consumer reads all partitions and no group is used, so any number of routers hear everything. While Kafka is
    away no command comes, which is said once a minute, and reading goes on when it is back. ``settings`` None: from
    the environment.
    ``trusted_keys``: the workers' public keys by key id, see ``load_trusted``; a command that none of them signed is
    logged and passed over, unread. None: signatures are not asked for.
    """

    def __init__(self, settings: Settings | None = None, trusted_keys: TrustedKeys | None = None) -> None:
        self._settings = settings or load_settings()
        self._trusted = trusted_keys
        self._commands: asyncio.Queue[Command | Exception | None] = asyncio.Queue()
        self._last: dict[str, Command] = {}
        self._weights: dict[str, Weights] = {}
        self._caught_up = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None
        self._outage = Outage()
        # An idle broker answers this late.
        self._patience = STALL_SECONDS + self._settings.fetch_wait / 1000

    @property
    def weights(self) -> Mapping[str, Weights]:
        """The weights of the last command by ``flag|region``; units without a command are not in it."""
        return MappingProxyType(self._weights)

    @property
    def last(self) -> Mapping[str, Command]:
        """The last command by ``flag|region``."""
        return MappingProxyType(self._last)

    @property
    def away_seconds(self) -> float:
        """Seconds since Kafka was last heard of; 0 while it is there."""
        return 0.0 if self._outage.since is None else max(0.0, time.time() - self._outage.since)

    async def caught_up(self) -> None:
        """Wait until the topic has been read to the end it had at the start."""
        await self._caught_up.wait()

    async def __aenter__(self) -> Self:
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._reading is not None:
            self._reading.cancel()
            with suppress(asyncio.CancelledError):
                await self._reading
        self._commands.put_nowait(None)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Command:
        following = await self._commands.get()
        if isinstance(following, Command):
            return following
        self._commands.put_nowait(following)
        if following is None:
            raise StopAsyncIteration
        raise following

    async def _read(self) -> None:
        try:
            while True:
                try:
                    await self._follow()
                except TopicError as error:
                    await self._tell(error)
                    await asyncio.sleep(RETRY_SECONDS)
        except Exception as error:
            self._commands.put_nowait(error)
            self._caught_up.set()

    async def _follow(self) -> None:
        async with tail(self._settings, self._settings.control_topic) as topic:
            latest = {command.key: command for command in self._new(await topic.history())}
            self._give(latest.values())
            self._caught_up.set()
            while True:
                silent = topic.silent()
                if silent > self._patience:
                    await self._tell(KafkaConnectionError("the broker is there, and says nothing of the topic"), silent)
                elif self._outage.over():
                    log.warning("commands are read again")
                self._give(self._new(await topic.more()))

    async def _tell(self, error: Exception, silent: float = 0.0) -> None:
        if self._outage.due("unread", silent):
            settings = self._settings
            where = f"topic {settings.control_topic} at {settings.broker} (TIDEGATE_BROKER)"
            reason = str(error) if isinstance(error, TopicError) else f"{where} is silent: {await why(settings, error)}"
            log.warning("no commands for now, %s: %s", self._outage.shown, reason)

    def _give(self, commands: Iterable[Command]) -> None:
        for command in commands:
            self._commands.put_nowait(command)

    def _new(self, records: Iterable[ConsumerRecord]) -> list[Command]:
        """Return the commands that lie after what their unit has had."""
        fresh = []
        for record in records:
            if record.value is None:
                continue
            where = f"{record.topic}-{record.partition} offset {record.offset}"
            try:
                if self._trusted is not None:
                    verify_record(record.value, record.headers, "command", self._trusted)
                command = command_from_bytes(record.value)
            except SignatureError as error:
                log.warning("%s is refused: %s", where, error)
                continue
            except EventError as error:
                log.warning("%s is passed over: %s", where, error)
                continue
            before = self._last.get(command.key)
            if before is None or command.seq > before.seq:
                self._last[command.key] = command
                self._weights[command.key] = command.weights
                fresh.append(command)
            elif command.effective_from > before.effective_from:
                log.warning(
                    "%s is passed over: seq %d of %s after seq %d, yet later in time; was the worker's state reset?",
                    where,
                    command.seq,
                    quoted(command.key),
                    before.seq,
                )
        return fresh
