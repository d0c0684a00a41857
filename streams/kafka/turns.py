"""Turns of a worker's event loop: heartbeats and answers must not wait, however much work there is."""

import asyncio
import gc
import hashlib
import math
import time
from collections.abc import AsyncIterator
from typing import Any

from tidegate.streams.engine.slices import Slices, T

TURN_SECONDS = 0.05
"""Time that all work together may hold the event loop between two of its turns, but for a slice each."""
COLLECTION_SECONDS = 0.02
"""A full garbage collection that takes longer is not repeated on what has survived it."""
COLLECT_SECONDS = 0.5
"""Work after which the collector is called: where as much is let go of as made, it does not come by itself."""
HASHED_BYTES = 8 << 20
YOUNG, MIDDLE, OLD = 2_500, 4, 1
"""When the collector looks at new objects, at those that survived once, and at all: few enough each time, as nobody has
a turn before it is through, and each object takes it a microsecond."""


class _Turns:
    """Work in this process: how many are at it, and the times of the last turn for the others and collection, never
    where no ``Collector`` is at work."""

    at_work = 0
    since = 0.0
    collected = math.inf


async def paced(slices: Slices[T]) -> AsyncIterator[T]:
    """Yield the results of the slices; everybody else has a turn when a slice ends and the time is up."""
    _Turns.at_work += 1
    try:
        for found in slices:
            if found is not None:
                yield found
            if (time.monotonic() - _Turns.since) * _Turns.at_work >= TURN_SECONDS:
                # In the first one timers and sockets are looked at, in the second whoever waits for them goes on.
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                _Turns.since = time.monotonic()
                if _Turns.since - _Turns.collected >= COLLECT_SECONDS:
                    gc.collect()
                    _Turns.collected = time.monotonic()
    finally:
        _Turns.at_work -= 1


async def result_of(slices: Slices[T]) -> T:
    """Return the one thing that the slices give, with turns for everybody else."""
    (found,) = [found async for found in paced(slices)]
    return found


async def state_sha256(state: bytes) -> bytes:
    """SHA-256 of a state, with turns for everybody else."""
    digest = hashlib.sha256()

    def slices() -> Slices[bytes]:
        view = memoryview(state)
        for at in range(0, len(view), HASHED_BYTES):
            digest.update(view[at : at + HASHED_BYTES])
            yield None
        yield digest.digest()

    return await result_of(slices())


class Collector:
    """A guard that keeps the garbage collector from going through all units again and again.

    It stops everything for as long as it takes to visit every object, a second with 5,000 units. States have no cycles:
    what they let go of is freed without it. So whatever has survived a collection that took long is set aside; the
    next one looks at what came after.
    """

    def __init__(self) -> None:
        self._began = 0.0

    def install(self) -> None:
        """Begin, with all that there is set aside."""
        gc.collect()
        gc.freeze()
        # Python puts a full collection off until a quarter of what the last one left has been added: now nothing is.
        gc.collect()
        gc.set_threshold(YOUNG, MIDDLE, OLD)
        gc.callbacks.append(self.watch)
        _Turns.collected = time.monotonic()

    def watch(self, phase: str, info: dict[str, Any]) -> None:
        """Look at the time that a collection takes; called by it."""
        if phase == "start":
            self._began = time.monotonic()
        elif info["generation"] == 2 and time.monotonic() - self._began > COLLECTION_SECONDS:
            gc.freeze()
