"""One receiver's consumer group: what is delivered is committed, what is not is tried again, over restarts too."""

import asyncio
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

import aiohttp
import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    IllegalStateError,
    KafkaError,
    TopicAuthorizationFailedError,
)
from prometheus_client import CollectorRegistry, Counter, Gauge

from tidegate.schemas.decision import decision_from_bytes
from tidegate.schemas.errors import AccessError, EventError
from tidegate.streams.kafka.connect import why
from tidegate.streams.kafka.follow import MORE_MS, stop
from tidegate.streams.kafka.patience import RETRY_MS, RETRY_SECONDS, Outage
from tidegate.streams.kafka.reader import reader
from tidegate.streams.notify.messages import Message, cloud_event, signed, slack
from tidegate.streams.notify.receivers import Receiver
from tidegate.streams.settings import Settings

log = structlog.get_logger("tidegate")

FIRST_SECONDS = 1.0
"""The wait after a first attempt that failed; each further one waits twice as long."""
LONGEST_SECONDS = 300.0
ASKED_SECONDS = 3600.0
"""The longest wait that a receiver may ask for with Retry-After."""
AT_ONCE = 100
"""Records fetched in one go."""
REMEMBERED = 10_000
"""Ids of the last that were delivered: what a worker wrote twice, after a crash, is not sent twice."""


@dataclass
class NotifyMetrics:
    """The receivers on /metrics, by their names in the file."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        by = ["receiver"]
        self.delivered = Counter("tidegate_notifications", "decisions that it took", by, registry=self.registry)
        self.failed = Counter(
            "tidegate_notification_failures", "attempts that it did not take", by, registry=self.registry
        )
        self.waiting = Gauge(
            "tidegate_notification_waiting_seconds",
            "for how long a decision has been tried; 0: none waits",
            by,
            registry=self.registry,
        )


def wait_after(failures: int, asked: float | None = None) -> float:
    """Seconds until the next attempt after so many that failed; ``asked``: the receiver's Retry-After, s."""
    wait: float = min(FIRST_SECONDS * 2 ** min(failures - 1, 32), LONGEST_SECONDS)
    return wait if asked is None else max(wait, min(asked, ASKED_SECONDS))


class Refused(Exception):
    """An attempt that was not taken; ``asked``: seconds that the receiver wants to be left alone."""

    def __init__(self, reason: str, asked: float | None = None) -> None:
        super().__init__(reason)
        self.asked = asked


class Courier(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka is not typed
    """Brings one receiver its decisions.

    The records of a partition go one after the other, so a unit's are in order; a record is committed when the receiver
    has answered with 2xx, or does not want it. Partitions do not wait for each other.
    """

    def __init__(
        self, settings: Settings, receiver: Receiver, session: aiohttp.ClientSession, metrics: NotifyMetrics
    ) -> None:
        self._settings, self._receiver, self._session = settings, receiver, session
        self._address, self._signers = receiver.address(), receiver.signers()
        name = receiver.name
        self._delivered, self._failed = metrics.delivered.labels(name), metrics.failed.labels(name)
        metrics.waiting.labels(name).set_function(self._waiting)
        self.group = f"{settings.application_id}.notify.{name}"
        self.joined = asyncio.Event()
        self._consumer: AIOKafkaConsumer
        self._tasks: dict[TopicPartition, asyncio.Task[None]] = {}
        self._begun: set[TopicPartition] = set()
        self._since: dict[TopicPartition, float] = {}
        self._sent: dict[str, None] = {}
        self._broker_outage, self._outage = Outage(), Outage()

    def _waiting(self) -> float:
        return max((time.time() - since for since in list(self._since.values())), default=0.0)

    async def run(self) -> None:
        """Deliver for ever. Raises AccessError if this user may not read; whatever else is wrong is tried again."""
        while True:
            try:
                await self._follow()
            except (TopicAuthorizationFailedError, GroupAuthorizationFailedError) as error:
                raise AccessError(
                    f"topic {self._settings.decisions_topic} and group {self.group}: not allowed for this user, see "
                    f"docs/security.md for the rights of a notifier: {error}"
                ) from None
            except (KafkaError, OSError) as error:
                if self._broker_outage.due("away"):
                    reason = await why(self._settings, error)
                    log.warning("decisions not read", receiver=self._receiver.name, reason=reason)
                await asyncio.sleep(RETRY_SECONDS)

    async def _follow(self) -> None:
        self._consumer = reader(
            self._settings, group_id=self.group, enable_auto_commit=False, retry_backoff_ms=RETRY_MS
        )
        try:
            await self._consumer.start()
            self._consumer.subscribe([self._settings.decisions_topic], listener=self)
            while True:
                fetched = await self._consumer.getmany(timeout_ms=MORE_MS, max_records=AT_ONCE)
                fresh = await self._begin()
                if self._broker_outage.over():
                    log.info("decisions read again", receiver=self._receiver.name)
                for tp, records in fetched.items():
                    if tp in self._begun and tp not in fresh:
                        self._consumer.pause(tp)
                        self._tasks[tp] = asyncio.create_task(self._deliver_all(tp, records))
                for task in [task for task in self._tasks.values() if task.done()]:
                    task.result()
        finally:
            await self.on_partitions_revoked(list(self._tasks))
            await stop(self._consumer)

    async def _begin(self) -> set[TopicPartition]:
        """Note where the group stands in each partition; those in which it has never been, and begins at the end."""
        fresh, before = set(), len(self._begun)
        for tp in self._consumer.assignment() - self._begun:
            with suppress(IllegalStateError):  # It has moved meanwhile.
                if await self._consumer.committed(tp) is None:
                    # From before this receiver there is nothing that it waits for.
                    end = (await self._consumer.end_offsets([tp]))[tp]
                    self._consumer.seek(tp, end)
                    await self._consumer.commit({tp: end})
                    fresh.add(tp)
                self._begun.add(tp)
        if len(self._begun) > before:
            partitions = sorted(tp.partition for tp in self._begun)
            log.info("receiving", receiver=self._receiver.name, group=self.group, partitions=partitions)
        return fresh

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Stop what is under way: whoever has the partition next tries it again."""
        tasks = [self._tasks.pop(tp) for tp in revoked if tp in self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._begun.clear()
        self._since.clear()

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Be a member, with partitions or without; where to begin in them is looked up when all have been told."""
        self.joined.set()

    async def _deliver_all(self, tp: TopicPartition, records: list[ConsumerRecord]) -> None:
        committed = True
        for record in records:
            message = self._message(record)
            committed = message is not None
            if message is not None:
                await self._deliver(tp, message)
                await self._commit(tp, record.offset + 1)
        if not committed:
            await self._commit(tp, records[-1].offset + 1)
        with suppress(IllegalStateError):
            self._consumer.resume(tp)

    def _message(self, record: ConsumerRecord) -> Message | None:
        """Return the message to the receiver about a record; None if there is none."""
        value: bytes = record.value or b""
        try:
            decision = decision_from_bytes(value)
        except EventError as error:
            log.warning("passed over", topic=record.topic, offset=record.offset, reason=str(error))
            return None
        if not self._receiver.wants(decision) or decision.decision_id in self._sent:
            return None
        if self._receiver.format == "slack":
            return slack(decision)
        settings = self._settings
        return cloud_event(decision, value, f"{settings.topic_prefix}:{settings.application_id}")

    async def _deliver(self, tp: TopicPartition, message: Message) -> None:
        failures = 0
        while True:
            try:
                await self._attempt(message)
                break
            except Refused as refused:
                failures += 1
                self._failed.inc()
                self._since.setdefault(tp, time.time())
                wait = wait_after(failures, refused.asked)
                if self._outage.due("refused"):
                    log.warning(
                        "not delivered",
                        receiver=self._receiver.name,
                        decision=message.id,
                        reason=str(refused),
                        again_in_seconds=wait,
                    )
                await asyncio.sleep(wait)
        self._since.pop(tp, None)
        self._sent[message.id] = None
        if len(self._sent) > REMEMBERED:
            del self._sent[next(iter(self._sent))]
        self._delivered.inc()
        if not self._since and self._outage.over():
            log.info("delivered again", receiver=self._receiver.name)

    async def _attempt(self, message: Message) -> None:
        """Send it once. Raises Refused."""
        headers = signed(message, self._signers, datetime.now(UTC))
        timeout = aiohttp.ClientTimeout(total=self._receiver.timeout / 1000)
        try:
            # A redirect would hand a signed message to somebody else.
            async with self._session.post(
                self._address, data=message.body, headers=headers, timeout=timeout, allow_redirects=False
            ) as answer:
                if 200 <= answer.status < 300:
                    return
                raise Refused(f"it answers {answer.status}", _seconds(answer.headers.get("Retry-After")))
        except TimeoutError:
            raise Refused(f"no answer in {self._receiver.timeout / 1000:g} s") from None
        except aiohttp.InvalidURL:
            raise Refused("its URL cannot be used") from None
        except (aiohttp.ClientError, OSError) as error:
            raise Refused(str(error) or type(error).__name__) from None

    async def _commit(self, tp: TopicPartition, offset: int) -> None:
        try:
            await self._consumer.commit({tp: offset})
        except (KafkaError, IllegalStateError) as error:
            # Said again by the next one, or sent again after a restart: the receiver drops it by its id.
            log.debug("not committed", receiver=self._receiver.name, reason=str(error))


def _seconds(said: str | None) -> float | None:
    return float(said) if said is not None and said.isdecimal() else None
