"""A worker's place in the group under its TIDEGATE_INSTANCE_ID, and whether another worker has taken it.

The client library knows no FENCED_INSTANCE_ID and tells nobody of an UNKNOWN_MEMBER_ID: it joins anew. Two workers with
one id would take the place from each other for ever, and never say why nothing is decided.
"""

import time
from collections.abc import Awaitable, Callable
from typing import Any

from aiokafka.errors import NodeNotReadyError

UNKNOWN_MEMBER_ID = 25
FENCED_INSTANCE_ID = 82
"""Kafka's error codes."""
OFFSET_COMMIT, JOIN_GROUP, HEARTBEAT, SYNC_GROUP = 8, 11, 12, 14
"""Kafka's keys of the requests that a member makes."""
_KEEPING = {JOIN_GROUP, HEARTBEAT}

Send = Callable[..., Awaitable[Any]]


class Seat:
    """A member's place in the group. ``session``: how long the coordinator waits for a sign of life, s."""

    def __init__(self, session: float) -> None:
        self._session = session
        self._kept: float | None = None

    def taken(self, keeping: bool, codes: set[int], sent: float, now: float) -> bool:
        """Tell whether an answer says that another worker has the place.

        ``keeping``: the request, sent at ``sent``, s, renews the membership. A member that is unknown although its last
        renewal is younger than a session did not run out: another has joined with its instance id.
        """
        if FENCED_INSTANCE_ID in codes:
            return True
        if UNKNOWN_MEMBER_ID in codes:
            kept, self._kept = self._kept, None
            return kept is not None and now - kept < self._session
        if keeping and not any(codes):
            # From when it was sent: the coordinator had it later than that.
            self._kept = sent
        return False


def watched(send: Send, seat: Seat, tell: Callable[[], None]) -> Send:
    """Return a client's ``send`` whose answers about the group go past ``seat``; ``tell`` is called when it is taken.

    Who has lost its place does not join again: the client would at once, and take it back while its process ends.
    """
    lost = False

    async def sending(node: int, request: Any, **options: Any) -> Any:
        nonlocal lost
        asked, sent = request.API_KEY, time.monotonic()
        if lost and asked == JOIN_GROUP:
            raise NodeNotReadyError("another worker has the place")
        answer = await send(node, request, **options)
        if asked in (OFFSET_COMMIT, JOIN_GROUP, HEARTBEAT, SYNC_GROUP) and seat.taken(
            asked in _KEEPING, _codes(answer), sent, time.monotonic()
        ):
            lost = True
            tell()
        return answer

    return sending


def _codes(answer: Any) -> set[int]:
    """Return the error codes of an answer: its own, or those of each partition."""
    if hasattr(answer, "error_code"):
        return {answer.error_code}
    return {code for _, partitions in answer.topics for _, code in partitions}
