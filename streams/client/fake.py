"""Publishers for a service's own tests: they check as the real ones do, and keep what was published."""

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from tidegate.schemas.errors import EventError
from tidegate.schemas.event import TelemetryEvent
from tidegate.streams.client.bound import Bindable
from tidegate.streams.client.checking import Checker, unknown_fields


class _Keeping(Bindable):
    """Keeps valid events. ``strict``: raise EventError for any other."""

    def __init__(self, *, strict: bool = True) -> None:
        self._strict, self._checker = strict, Checker()
        self.events: list[TelemetryEvent] = []
        """The published events, in order."""
        self.sent = self.failed = self.dropped = self.rejected = self.pending = 0

    def publish(self, event: TelemetryEvent | Mapping[str, Any]) -> bool:
        """Keep one event; whether it was taken."""
        try:
            for line in unknown_fields(event) if self._strict and isinstance(event, Mapping) else ():
                raise EventError(line)
            checked = self._checker.check(event)
        except Exception as error:
            self.rejected += 1
            if self._strict:
                raise
            self._checker.complain(error)
            return False
        self.events.append(checked.event)
        self.sent += 1
        return True


class FakePublisher(_Keeping):
    """Stands for ``TelemetryPublisher`` in a test, without Kafka::

        telemetry = FakePublisher()
        await handle(request, telemetry)
        assert telemetry.events[0].status == 200

    ``strict``: raise EventError for what a publisher would reject, and for a field that it would ignore; else count
    and log it as the publisher does.
    """

    async def flush(self, seconds: float | None = None) -> bool:
        """Return True: nothing is ever pending."""
        return True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class FakeSyncPublisher(_Keeping):
    """Stands for ``SyncTelemetryPublisher`` in a test, as ``FakePublisher`` does for the other."""

    def flush(self, seconds: float | None = None) -> bool:
        """Return True: nothing is ever pending."""
        return True

    def close(self) -> None:
        """Do nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass
