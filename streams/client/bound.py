"""Telemetry with little to type: what is the same in every event is bound once, the rest is measured."""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol, Self, cast
from uuid import uuid4

from tidegate.schemas import assignment
from tidegate.schemas.decision import Weights
from tidegate.schemas.errors import EventError
from tidegate.schemas.event import ArmName
from tidegate.streams.client.checking import unknown_fields

Pins = Mapping[str, str]
ARMS: tuple[ArmName, ...] = ("baseline", "canary")


class Publishing(Protocol):
    """Takes events: any of the publishers."""

    def publish(self, event: Mapping[str, Any]) -> bool:
        """Queue one event; whether it was taken."""


class Bindable:
    """Adds ``bind`` to a publisher."""

    def bind(
        self: Publishing,
        flag: str,
        *,
        region: str = "",
        versions: Pins | Mapping[str, Pins] | None = None,
        weights: Mapping[str, Weights] | None = None,
        **fields: Any,
    ) -> "BoundTelemetry":
        """Return a builder of events of one flag and region.

        ``versions``: the pins of both arms, or of each: ``{"baseline": {…}, "canary": {…}}``. ``weights``:
        ``ControlConsumer.weights``, by which ``tidegate.arm`` then assigns who comes without an arm. ``fields``: any
        others that all events share, such as ``endpoint``. Raises EventError for a name that is not a field.
        """
        _check(fields)
        return BoundTelemetry(self, {"flag": flag, "region": region} | fields, _by_arm(versions or {}), weights)


class BoundTelemetry:
    """Makes and publishes the events of one flag and region; made by ``bind``.

    Nothing of it raises at a wrong value but a publisher that is ``strict``: such an event is counted as ``rejected``.
    """

    def __init__(
        self,
        publisher: Publishing,
        fields: Mapping[str, Any],
        versions: Mapping[str, Pins],
        weights: Mapping[str, Weights] | None,
    ) -> None:
        self._publisher, self._fields, self._versions, self._weights = publisher, fields, versions, weights

    def arm(self, sticky_id: str) -> ArmName:
        """Return the arm of an id by the last command's weights; the baseline where no command has come yet."""
        flag = self._fields["flag"]
        weights = (self._weights or {}).get(f"{flag}|{self._fields['region']}")
        return assignment.arm(flag, sticky_id, weights.canary) if weights else "baseline"

    def request(self, sticky_id: str, arm: ArmName | None = None, **fields: Any) -> "RequestEvent":
        """Return the event of one request, to stand around its work in ``with`` or ``async with``."""
        return RequestEvent(self, self._given(sticky_id, arm) | fields)

    def exposure(self, sticky_id: str, arm: ArmName | None = None, **fields: Any) -> bool:
        """Publish that an id was assigned to an arm; whether it was taken."""
        return self.publish({"kind": "exposure"} | self._given(sticky_id, arm) | fields)

    def label(self, event_id: str, sticky_id: str, arm: ArmName | None = None, **fields: Any) -> bool:
        """Publish an evaluator's word on an earlier request: ``delta_s``, ``coverage``, ``lambda_state``, ``solved``.

        ``event_id``: the request's, from ``event.event_id``; ``sticky_id`` and ``arm``: the request's too.
        """
        return self.publish({"kind": "label", "labels_event_id": event_id} | self._given(sticky_id, arm) | fields)

    def publish(self, fields: Mapping[str, Any]) -> bool:
        """Publish an event of these fields and of those that are bound, with an id, the time and its arm's pins."""
        event = {"event_id": str(uuid4()), "ts": int(time.time() * 1000), **self._fields}
        pins = self._versions.get(str(fields.get("arm")))
        if pins:
            event["versions"] = pins
        return self._publisher.publish(event | dict(fields))

    def _given(self, sticky_id: str, arm: ArmName | None) -> dict[str, Any]:
        if arm is None and self._weights is not None:
            arm = self.arm(sticky_id)
        return {"sticky_id": sticky_id, "arm": arm}


class RequestEvent:
    """Measures one request, and publishes it when the ``with`` ends.

    ``latency_ms`` is the time within, ``ts`` its end: an event that comes later than the worker's lateness after its
    ``ts`` counts nowhere. An exception, a cancellation too, counts as an error and goes on.
    """

    def __init__(self, bound: BoundTelemetry, fields: dict[str, Any]) -> None:
        self._bound, self._fields = bound, {"event_id": str(uuid4())} | fields
        self._began = time.perf_counter()

    @property
    def event_id(self) -> str:
        """Names the request in labels."""
        return cast("str", self._fields["event_id"])

    @property
    def arm(self) -> ArmName:
        """The arm that serves the request; None while it is not known."""
        return cast("ArmName", self._fields["arm"])

    def set(self, **fields: Any) -> None:
        """Add fields, such as ``status``, ``cost`` or ``solved``, or replace them."""
        self._fields |= fields

    def __enter__(self) -> Self:
        self._began = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        measured = {"latency_ms": (time.perf_counter() - self._began) * 1000}
        if error is not None:
            self._fields["error"] = True
        elif self._fields.keys().isdisjoint(("error", "status")):
            measured["error"] = False
        try:
            self._bound.publish(measured | self._fields)
        except EventError:
            # Of a strict publisher; what went wrong in the request comes first.
            if error is None:
                raise

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)


def _check(fields: Mapping[str, Any]) -> None:
    for line in unknown_fields(fields):
        raise EventError(f"bind: {line}")


def _by_arm(versions: Pins | Mapping[str, Pins]) -> Mapping[str, Pins]:
    if any(name in ARMS for name in versions):
        wrong = sorted(str(name) for name in versions if name not in ARMS)
        if wrong:
            raise EventError(f"bind: `versions` has pins ({', '.join(wrong)}) beside arms; write each arm's own")
        return cast("Mapping[str, Pins]", versions)
    return cast("Mapping[str, Pins]", dict.fromkeys(ARMS, versions))
