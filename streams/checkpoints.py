"""A state on a compacted topic: one record, or several with a closing one where it is large.

A checkpoint holds state and position at once, so the two cannot disagree; whatever else is lost, the newest closing
record is a valid prefix of the work. So is an older one: copies of some are retained, and a replay takes the work
up there.
"""

import hashlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

import aiokafka
import msgspec
from aiokafka import TopicPartition
from aiokafka.structs import RecordMetadata

from schemas.errors import StateError
from streams.panes import Mark
from streams.settings import Settings

CHUNK_BYTES = 512 * 1024
WRITERS = 32
"""Generations of the group in a row whose records have keys of their own: an owner that was thought dead may go on."""
RETAINED = 1024
"""Spans of event time whose retained checkpoints have keys of their own; the next is written over the first."""
RETAINED_KEY, RETAINED_CHUNK_KEY = b"retained/", b"copied/"
"""How the keys of retained checkpoints begin."""
READ_SECONDS = 60
FETCH_WAIT_MS = 20
"""Of a fetch of what is there; one that waits longer holds up the next, from another place."""

Send = Callable[[bytes, bytes], Awaitable[Awaitable[RecordMetadata]]]
"""Send (key, value) to the checkpoint partition; awaiting the result's result confirms it."""


class Closing(msgspec.Struct, array_like=True):
    """The record that makes a checkpoint valid: the state itself, or the offsets of its chunks.

    ``turn`` goes on counting over restarts, so that a new writer does not begin on the chunks of the last whole state.
    """

    state: bytes
    chunks: list[int]
    sha256: bytes
    turn: int
    mark: Mark

    def whole(self, records: Mapping[int, bytes]) -> bytes | None:
        """The state, with the values of its chunks by offset; None if chunks are missing. StateError if it differs."""
        if not all(chunk in records for chunk in self.chunks):
            return None
        state = b"".join(records[chunk] for chunk in self.chunks) if self.chunks else self.state
        if hashlib.sha256(state).digest() != self.sha256:
            raise StateError("the checkpoint is not whole")
        return state


class Saved(NamedTuple):
    """A state read back, and the turn in which it was written."""

    state: bytes
    turn: int


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Closing)


async def write(send: Send, state: bytes, mark: Mark, turn: int, generation: int) -> Awaitable[RecordMetadata]:
    """Write a checkpoint; awaiting the result confirms it.

    ``turn`` counts checkpoints and ``generation`` is the group's, in which the writer was given the partition: chunks
    of two in a row, and of two writers, have different keys, so compaction keeps the last whole one while the next is
    being written, by whomever.
    """
    writer = generation % WRITERS
    chunk, closing = b"chunk/%d/%d" % (writer, turn % 2), b"state/%d" % writer
    return await _write(send, state, mark, turn, chunk, closing)


async def retain(send: Send, state: bytes, mark: Mark, turn: int, slot: int) -> Awaitable[RecordMetadata]:
    """Write a copy that stays until that of ``slot`` + RETAINED, or of a later one in its place, is written.

    ``slot``: the span of event time, see ``Keeper``. Workers do not read it back. Chunks beyond those of the next copy
    stay, so a place takes as much as the largest copy that was ever in it.
    """
    place = slot % RETAINED
    return await _write(send, state, mark, turn, b"%s%d" % (RETAINED_CHUNK_KEY, place), b"%s%d" % (RETAINED_KEY, place))


async def _write(
    send: Send, state: bytes, mark: Mark, turn: int, chunk: bytes, closing: bytes
) -> Awaitable[RecordMetadata]:
    digest, chunks = hashlib.sha256(state).digest(), []
    if len(state) > CHUNK_BYTES:
        for index, at in enumerate(range(0, len(state), CHUNK_BYTES)):
            chunks.append(await send(b"%s/%d" % (chunk, index), state[at : at + CHUNK_BYTES]))
    offsets = [(await chunk).offset for chunk in chunks]
    return await send(closing, _encoder.encode(Closing(b"" if chunks else state, offsets, digest, turn, mark)))


def closing_of(value: bytes) -> Closing:
    """What a closing record holds. Raises StateError if it is none."""
    try:
        return _decoder.decode(value)
    except msgspec.MsgspecError as error:
        raise StateError(f"not a checkpoint: {error}") from None


async def read(settings: Settings, topic: str, partitions: Sequence[int]) -> dict[int, Saved]:
    """The newest whole state of each partition that has one; an older one is as valid, a shorter prefix of the work.

    Raises StateError if a state is there but cannot be read whole: going on without it would count events twice.
    """
    if not partitions:
        return {}
    reader = aiokafka.AIOKafkaConsumer(
        **settings.kafka, group_id=None, auto_offset_reset="earliest", fetch_max_wait_ms=FETCH_WAIT_MS
    )
    await reader.start()
    try:
        tps = [TopicPartition(topic, partition) for partition in partitions]
        reader.assign(tps)
        ends, begins = await reader.end_offsets(tps), await reader.beginning_offsets(tps)
        found = {}
        for tp in tps:
            state = await _newest(reader, tp, begins[tp], ends[tp])
            if state is not None:
                found[tp.partition] = state
        return found
    finally:
        await reader.stop()


async def _newest(reader: aiokafka.AIOKafkaConsumer, tp: TopicPartition, begin: int, end: int) -> Saved | None:
    back = 1
    while begin < end:
        start = max(begin, end - back)
        records = await _records(reader, tp, start, end)
        closing = [(offset, value) for offset, (key, value) in records.items() if key.startswith(b"state/")]
        for offset, value in reversed(closing):
            if (saved := await _whole(reader, tp, offset, value)) is not None:
                return saved
        if begin == 0 and start == begin and not closing:
            # Compaction keeps the last record of a key: there was never a closing one, only chunks of the first.
            return None
        if start == begin:
            raise StateError(f"{tp.topic}-{tp.partition}: records, but no whole checkpoint among them")
        back *= 4
    return None


async def _whole(reader: aiokafka.AIOKafkaConsumer, tp: TopicPartition, offset: int, value: bytes) -> Saved | None:
    """The state of a closing record; None if later chunks with the same keys have taken the place of its own."""
    try:
        closing = closing_of(value)
        chunks = closing.chunks
        records = await _records(reader, tp, chunks[0], chunks[-1] + 1) if chunks else {}
        state = closing.whole({at: content for at, (_, content) in records.items()})
    except StateError as error:
        raise StateError(f"{tp.topic}-{tp.partition} offset {offset}: {error}") from None
    return None if state is None else Saved(state, closing.turn)


async def _records(
    reader: aiokafka.AIOKafkaConsumer, tp: TopicPartition, start: int, end: int
) -> dict[int, tuple[bytes, bytes]]:
    """Key and value of the records in [start, end) by offset; compaction may have left gaps."""
    reader.seek(tp, start)
    found: dict[int, tuple[bytes, bytes]] = {}
    give_up = time.monotonic() + READ_SECONDS
    while await reader.position(tp) < end:
        for records in (await reader.getmany(tp, timeout_ms=200)).values():
            found |= {r.offset: (r.key, r.value or b"") for r in records if r.offset < end}
        if time.monotonic() > give_up:
            raise StateError(f"{tp.topic}-{tp.partition}: offsets {start} to {end} were not read in {READ_SECONDS} s")
    return found
