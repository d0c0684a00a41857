"""Keeps the status page's state up with the topics, through outages of the broker."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import structlog
from aiokafka.errors import KafkaError

from tidegate.schemas.errors import SignatureError, TopicError
from tidegate.schemas.seal import RecordKind, verify_record
from tidegate.schemas.signed import TrustedKeys
from tidegate.streams.kafka.patience import RETRY_SECONDS, STALL_SECONDS
from tidegate.streams.kafka.tail import tail
from tidegate.streams.settings import Settings
from tidegate.streams.status.state import StatusState

log = structlog.get_logger("tidegate")

RECORDS_A_TURN = 50
"""Records after which others have their turn."""


@asynccontextmanager
async def following(settings: Settings, state: StatusState, trusted: TrustedKeys | None = None) -> AsyncIterator[None]:
    """Feed a state from the decisions and control topics for as long as one is within.

    ``trusted``: records that none of these keys signed are passed over, and logged; None: signatures are not asked for.
    """
    topics: list[tuple[str, RecordKind]] = [
        (settings.control_topic, "command"),
        (settings.decisions_topic, "decision"),
    ]
    reading = [asyncio.create_task(_follow(settings, state, topic, kind, trusted)) for topic, kind in topics]
    try:
        yield
    finally:
        for task in reading:
            task.cancel()
        for task in reading:
            with suppress(asyncio.CancelledError):
                await task


async def _follow(
    settings: Settings, state: StatusState, topic: str, kind: RecordKind, trusted: TrustedKeys | None
) -> None:
    patience = STALL_SECONDS + settings.fetch_wait / 1000
    due: dict[int, int] = {}
    while True:
        try:
            async with tail(settings, topic) as records:
                while True:
                    # Never the whole topic at once: what is held is bounded, and readers are answered meanwhile.
                    for number, record in enumerate(await records.more()):
                        if number % RECORDS_A_TURN == 0:
                            await asyncio.sleep(0)
                        # A topic that is opened again after an outage is read from its beginning.
                        if record.offset < due.get(record.partition, 0):
                            continue
                        due[record.partition] = record.offset + 1
                        if trusted is not None:
                            try:
                                verify_record(record.value, record.headers, kind, trusted)
                            except SignatureError as error:
                                place = f"{record.topic}-{record.partition} offset {record.offset}"
                                log.warning("passed over", record=place, error=str(error))
                                continue
                        if kind == "decision":
                            state.decided(record.value, record.timestamp)
                        else:
                            state.commanded(record.value)
                    silent = records.silent()
                    state.away(topic, int((time.time() - silent) * 1000) if silent > patience else None)
        except (TopicError, KafkaError, OSError) as error:
            log.warning("not read", topic=topic, error=str(error))
            state.away(topic, int(time.time() * 1000))
            await asyncio.sleep(RETRY_SECONDS)
