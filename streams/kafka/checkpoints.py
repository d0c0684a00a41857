"""A state on a compacted topic: one record, or several with a closing one where it is large.

A checkpoint holds state and position at once, so the two cannot disagree; whatever else is lost, the newest closing
record is a valid prefix of the work.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum
from typing import Any, NamedTuple

import msgspec
import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.structs import RecordMetadata

from tidegate.schemas.errors import StateError
from tidegate.streams.engine.gate_partition import gate_codec
from tidegate.streams.engine.source_partition import state_codec
from tidegate.streams.engine.stamped import StampedCodec
from tidegate.streams.kafka.reader import reader
from tidegate.streams.kafka.turns import state_sha256
from tidegate.streams.settings import Settings

log = structlog.get_logger("tidegate")

CHUNK_BYTES = 512 * 1024
WRITERS = 32
"""Generations of the group in a row whose records have keys of their own: an owner that was thought dead may go on."""
READ_SECONDS = 60
FETCH_WAIT_MS = 20
"""Of a fetch of what is there; one that waits longer holds up the next, from another place."""

SendCheckpoint = Callable[[bytes, bytes], Awaitable[Awaitable[RecordMetadata]]]
"""Send (key, value) to the checkpoint partition; awaiting the result's result confirms it."""


class Closing(msgspec.Struct, array_like=True):
    """The record that makes a checkpoint valid: the state itself, or the offsets of its chunks.

    ``turn`` goes on counting over restarts, so that a new writer does not begin on the chunks of the last whole state.
    """

    state: bytes
    chunks: list[int]
    sha256: bytes
    turn: int = 0


class Saved(NamedTuple):
    """A state read back, and the turn in which it was written."""

    state: bytes
    turn: int


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Closing)


async def write_checkpoint(send: SendCheckpoint, state: bytes, turn: int, generation: int) -> Awaitable[RecordMetadata]:
    """Write a checkpoint; awaiting the result confirms it.

    ``turn`` counts checkpoints and ``generation`` is the group's, in which the writer was given the partition: chunks
    of two in a row, and of two writers, have different keys, so compaction keeps the last whole one while the next is
    being written, by whomever.
    """
    digest, writer = await state_sha256(state), generation % WRITERS
    chunks = []
    if len(state) > CHUNK_BYTES:
        starts = range(0, len(state), CHUNK_BYTES)
        for key, at in zip(_chunk_keys(b"%d" % writer, turn, len(starts)), starts, strict=True):
            chunks.append(await send(key, state[at : at + CHUNK_BYTES]))
    offsets = [(await chunk).offset for chunk in chunks]
    return await send(b"state/%d" % writer, _encoder.encode(Closing(b"" if chunks else state, offsets, digest, turn)))


async def read_checkpoints(settings: Settings, topic: str, partitions: Sequence[int]) -> dict[int, Saved]:
    """Read the newest whole state of each partition that has one; an older one is as valid, a shorter prefix.

    Raises StateError if a state is there but cannot be read whole: going on without it would count events twice.
    """
    if not partitions:
        return {}
    consumer = reader(settings, fetch_max_wait_ms=FETCH_WAIT_MS)
    await consumer.start()
    try:
        tps = [TopicPartition(topic, partition) for partition in partitions]
        consumer.assign(tps)
        ends, begins = await consumer.end_offsets(tps), await consumer.beginning_offsets(tps)
        found = {}
        for tp in tps:
            state = await _newest(consumer, tp, begins[tp], ends[tp])
            if state is not None:
                found[tp.partition] = state
        return found
    finally:
        await consumer.stop()


async def check_layout(settings: Settings) -> None:
    """Raises StateError, which says what to do, if the checkpoints are of a version with another layout of states.

    Asked before a worker joins the group, so that one of the wrong version disturbs nobody; of one partition of each
    kind, as the others are looked at when they are assigned.
    """
    codecs: dict[str, StampedCodec[Any]] = {
        settings.window_checkpoints_topic: state_codec,
        settings.gate_checkpoints_topic: gate_codec,
    }
    for topic, codec in codecs.items():
        try:
            found = await read_checkpoints(settings, topic, [0])
        except KafkaError as error:
            # Whoever is assigned a partition reads it again, and says what is wrong.
            log.debug("layout not checked", topic=topic, error=str(error))
            continue
        for partition, saved in found.items():
            try:
                codec.begins(saved.state)
            except StateError as error:
                raise StateError(f"{topic}-{partition}: {error}") from None


async def _newest(consumer: AIOKafkaConsumer, tp: TopicPartition, begin: int, end: int) -> Saved | None:
    back = 1
    while begin < end:
        start = max(begin, end - back)
        records = await _records(consumer, tp, start, end)
        closing = [(offset, key, value) for offset, (key, value) in records.items() if key.startswith(b"state/")]
        lost = False
        for offset, key, value in reversed(closing):
            found = await _whole(consumer, tp, offset, key, value)
            if isinstance(found, Saved):
                return found
            lost |= found is Missing.LOST
        if begin == 0 and start == begin and not lost:
            # Compaction keeps the last record of a key: there was never a closing one here, only chunks of the first.
            return None
        if start == begin:
            raise StateError(f"{tp.topic}-{tp.partition}: records, but no whole checkpoint among them")
        back *= 4
    return None


class Missing(Enum):
    """Why a closing record has no chunks.

    LOST: later ones with the same keys have taken their place. FOREIGN: they never were in this topic: it was deleted
    and made again while the checkpoint was being written.
    """

    LOST = "lost"
    FOREIGN = "foreign"


async def _whole(
    consumer: AIOKafkaConsumer, tp: TopicPartition, offset: int, key: bytes, value: bytes
) -> Saved | Missing:
    """Return the state of a closing record. Raises StateError if it is damaged."""
    where = f"{tp.topic}-{tp.partition} offset {offset}"
    try:
        closing = _decoder.decode(value)
    except msgspec.MsgspecError as error:
        raise StateError(f"{where}: not a checkpoint of this version of Tidegate: {error}") from None
    state = closing.state
    if closing.chunks:
        if max(closing.chunks) >= offset:
            return Missing.FOREIGN
        records = await _records(consumer, tp, closing.chunks[0], closing.chunks[-1] + 1)
        keys = _chunk_keys(key.removeprefix(b"state/"), closing.turn, len(closing.chunks))
        its = dict(zip(closing.chunks, keys, strict=True))
        if any(records[chunk][0] != its[chunk] for chunk in its.keys() & records.keys()):
            return Missing.FOREIGN
        if its.keys() - records.keys():
            return Missing.LOST
        state = b"".join(records[chunk][1] for chunk in closing.chunks)
    if await state_sha256(state) != closing.sha256:
        raise StateError(f"{where}: the checkpoint is not whole")
    return Saved(state, closing.turn)


def _chunk_keys(writer: bytes, turn: int, count: int) -> list[bytes]:
    return [b"chunk/%s/%d/%d" % (writer, turn % 2, index) for index in range(count)]


async def _records(
    consumer: AIOKafkaConsumer, tp: TopicPartition, start: int, end: int
) -> dict[int, tuple[bytes, bytes]]:
    """Key and value of the records in [start, end) by offset; compaction may have left gaps."""
    consumer.seek(tp, start)
    found: dict[int, tuple[bytes, bytes]] = {}
    give_up = time.monotonic() + READ_SECONDS
    while await consumer.position(tp) < end:
        for records in (await consumer.getmany(tp, timeout_ms=200)).values():
            found |= {r.offset: (r.key, r.value or b"") for r in records if r.offset < end}
        if time.monotonic() > give_up:
            raise StateError(f"{tp.topic}-{tp.partition}: offsets {start} to {end} were not read in {READ_SECONDS} s")
    return found
