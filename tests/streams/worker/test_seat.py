"""A worker's place in the group under its instance id."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import NodeNotReadyError

from tidegate.streams.worker.seat import (
    FENCED_INSTANCE_ID,
    HEARTBEAT,
    JOIN_GROUP,
    OFFSET_COMMIT,
    SYNC_GROUP,
    UNKNOWN_MEMBER_ID,
    Seat,
    watched,
)

SESSION = 10.0
LOADING = 14


def test_a_member_that_was_unknown_within_its_session_was_replaced() -> None:
    seat = Seat(SESSION)
    assert not seat.taken(True, {0}, sent=100.0, now=100.1)
    assert seat.taken(True, {UNKNOWN_MEMBER_ID}, sent=109.8, now=109.9)


def test_a_member_whose_session_ran_out_was_not() -> None:
    """It stood still. How long counts from when its last sign of life was sent: it may have stood still after that."""
    seat = Seat(SESSION)
    assert not seat.taken(True, {0}, sent=100.0, now=125.0)
    assert not seat.taken(True, {UNKNOWN_MEMBER_ID}, sent=125.1, now=125.2)


def test_a_fenced_member_was_replaced_at_any_time() -> None:
    assert Seat(SESSION).taken(False, {FENCED_INSTANCE_ID}, sent=0.0, now=0.1)


def test_what_renews_nothing_does_not_count_as_a_sign_of_life() -> None:
    seat = Seat(SESSION)
    seat.taken(True, {0}, sent=100.0, now=100.1)
    seat.taken(False, {0}, sent=109.0, now=109.1)
    seat.taken(True, {LOADING}, sent=109.5, now=109.6)
    assert not seat.taken(False, {UNKNOWN_MEMBER_ID}, sent=110.0, now=110.1)


def test_who_joins_for_the_first_time_has_nothing_to_lose() -> None:
    assert not Seat(SESSION).taken(True, {UNKNOWN_MEMBER_ID}, sent=0.0, now=0.1)


def told(*exchanges: tuple[int, Any]) -> int:
    """How often a client whose requests get these answers is told that its place is taken."""
    times, waiting = list[None](), [answer for _, answer in exchanges]

    async def send(node: int, request: Any, *, group: str) -> Any:
        return waiting.pop(0)

    async def talk() -> None:
        sending = watched(send, Seat(SESSION), lambda: times.append(None))
        for (key, _), answer in zip(exchanges, list(waiting), strict=True):
            assert await sending(1, SimpleNamespace(API_KEY=key), group="group") is answer

    asyncio.run(talk())
    return len(times)


def test_each_request_of_a_member_tells() -> None:
    well, unknown = SimpleNamespace(error_code=0), SimpleNamespace(error_code=UNKNOWN_MEMBER_ID)
    fenced = SimpleNamespace(error_code=FENCED_INSTANCE_ID)
    refused = SimpleNamespace(topics=[("t", [(0, 0), (1, UNKNOWN_MEMBER_ID)])])
    assert told((JOIN_GROUP, well), (HEARTBEAT, unknown)) == 1
    assert told((JOIN_GROUP, well), (OFFSET_COMMIT, refused), (HEARTBEAT, unknown)) == 1
    assert told((SYNC_GROUP, fenced)) == told((JOIN_GROUP, fenced)) == 1
    assert told((JOIN_GROUP, well), (SYNC_GROUP, well), (HEARTBEAT, well)) == 0


def test_who_lost_its_place_does_not_take_it_back() -> None:
    """The client joins anew at once. While the process ended, that would end the other worker too."""
    well, unknown = SimpleNamespace(error_code=0), SimpleNamespace(error_code=UNKNOWN_MEMBER_ID)
    with pytest.raises(NodeNotReadyError):
        told((JOIN_GROUP, well), (HEARTBEAT, unknown), (JOIN_GROUP, well))


def test_other_requests_pass() -> None:
    assert told((1, object())) == 0
