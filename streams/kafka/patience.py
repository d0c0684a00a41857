"""Kafka's client library within somebody else's service: an outage costs it no processor, no log and no events."""

import asyncio
import logging
import math
import time
from collections import deque
from datetime import UTC, datetime

from aiokafka import AIOKafkaProducer
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaConnectionError, TopicAuthorizationFailedError

from tidegate.streams.settings import Settings

RETRY_SECONDS = 1.0
"""Time that a client waits before it tries the same again; the library's own 0.1 s writes sixty lines a second."""
RETRY_MS = int(RETRY_SECONDS * 1000)
SAY_SECONDS = 60.0
"""Time between two messages that an outage goes on."""
REQUEST_MS = 30_000
"""Time that the library tries one batch, and waits for an answer."""
BURST = 3
ANSWER_SECONDS = 10.0
STALL_SECONDS = 5.0
"""Nothing is heard for this long although something is due: that is an outage, and is said."""
BATCH_BYTES = 128 << 10


QUIET_SECONDS = 10.0
"""Time before a library may say the same again."""


class Once(logging.Filter):
    """Passes what a library says over and over every ``QUIET_SECONDS``; aiokafka does so a thousand times a second."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether to show the record."""
        if record.name == "tidegate":
            return True
        key, now = (record.name, str(record.msg)), time.monotonic()
        if now - self._said.get(key, -QUIET_SECONDS) < QUIET_SECONDS:
            return False
        self._said[key] = now
        return True


_once = Once()


def hold_back() -> None:
    """Let aiokafka say the same once in ``QUIET_SECONDS``, whatever handlers the service has."""
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] == "aiokafka":
            logging.getLogger(name).addFilter(_once)


class Outage:
    """When to speak of an outage: at once, then once a minute, and when it is over."""

    def __init__(self) -> None:
        self.since: float | None = None
        """When it began, in seconds of the epoch; None: there is none."""
        self.told = False
        """True once it has been reported."""
        self._said = -math.inf
        self._kind = ""

    def due(self, kind: str, seconds_ago: float = 0.0) -> bool:
        """Tell whether to report now that it lasts; ``kind``: of what is wrong; another kind need not wait a minute."""
        now = time.monotonic()
        if self.since is None:
            self.since = time.time() - seconds_ago
        if now - self._said < (SAY_SECONDS if kind == self._kind else QUIET_SECONDS):
            return False
        self._said, self._kind, self.told = now, kind, True
        return True

    @property
    def shown(self) -> str:
        """When it began, for people."""
        return f"since {datetime.fromtimestamp(self.since or time.time(), UTC):%Y-%m-%d %H:%M:%S} UTC"

    def over(self) -> bool:
        """End it, if there was one; whether that is to be said, as its begin was."""
        told, self.told, self.since = self.told, False, None
        return told


def pace(client: AIOKafkaClient) -> None:
    """Let a client ask where partitions are once in ``RETRY_SECONDS``, but for its first ``BURST`` questions.

    It asks as fast as it is answered, or refused, for as long as one of them has no leader; a broker that is stopped
    says so of all of its partitions before it goes.
    """
    ask, loop = client.force_metadata_update, asyncio.get_running_loop()
    asked_at: deque[float] = deque([-math.inf] * BURST, BURST)
    following: list[asyncio.Future[bool]] = []

    def now() -> "asyncio.Future[bool]":
        asked_at.append(time.monotonic())
        answer: asyncio.Future[bool] = ask()
        return answer

    def later() -> None:
        asked = following.pop()
        now().add_done_callback(lambda answer: _hand_on(answer, asked))

    def in_time() -> "asyncio.Future[bool]":
        if not following:
            wait = asked_at[0] + BURST * RETRY_SECONDS - time.monotonic()
            if wait <= 0:
                return now()
            following.append(loop.create_future())
            loop.call_later(wait, later)
        return asyncio.shield(following[0])

    client.force_metadata_update = in_time


def _hand_on(answer: "asyncio.Future[bool]", to: "asyncio.Future[bool]") -> None:
    if not to.done():
        to.set_result(not answer.cancelled() and answer.result())


class PatientProducer(AIOKafkaProducer):  # type: ignore[misc]  # aiokafka is not typed
    """A producer of batches that can wait."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(
            **settings.kafka,
            acks="all",
            max_batch_size=BATCH_BYTES,
            request_timeout_ms=REQUEST_MS,
            retry_backoff_ms=RETRY_MS,
        )
        pace(self.client)
        self._added = False

    def known(self, topic: str) -> set[int]:
        """Return the topic's partitions when the broker was last asked; none if it was not there."""
        return set(self.client.cluster.partitions_for_topic(topic) or ())

    async def find(self, topic: str) -> set[int]:
        """Return the topic's partitions. Raises KafkaError if no broker says so, or this user may not know."""
        if not self.known(topic):
            # A topic is asked for as it is added.
            asking = self.client.force_metadata_update() if self._added else self.client.add_topic(topic)
            self._added = True
            try:
                answered = await asyncio.wait_for(asking, ANSWER_SECONDS)
            except TimeoutError:
                answered = False
            if not answered:
                raise KafkaConnectionError("no broker answers")
        if topic in self.client.cluster.unauthorized_topics:
            raise TopicAuthorizationFailedError(topic)
        return self.known(topic)
