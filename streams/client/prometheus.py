"""A publisher's counters for Prometheus; needs ``prometheus-client``, which a service that has metrics has."""

from collections.abc import Iterator
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class PublisherCounters(Protocol):
    """Has a publisher's counters; see ``TelemetryPublisher``."""

    @property
    def sent(self) -> int:
        """Events that the broker confirmed."""

    @property
    def failed(self) -> int:
        """Events that the broker refused, or that closing gave up."""

    @property
    def dropped(self) -> int:
        """Events that found no room."""

    @property
    def rejected(self) -> int:
        """Events that broke the schema."""

    @property
    def pending(self) -> int:
        """Events that wait."""


class PublisherCollector(Collector):
    """Shows a publisher's counters when Prometheus asks::

    REGISTRY.register(PublisherCollector(telemetry))
    """

    def __init__(self, publisher: PublisherCounters) -> None:
        self._publisher = publisher

    def collect(self) -> Iterator[Metric]:
        """Give ``tidegate_publisher_events_total`` by ``outcome``, and ``tidegate_publisher_pending``."""
        events = CounterMetricFamily(
            "tidegate_publisher_events", "telemetry events by what became of them", labels=["outcome"]
        )
        for outcome in ("sent", "failed", "dropped", "rejected"):
            events.add_metric([outcome], getattr(self._publisher, outcome))
        yield events
        yield GaugeMetricFamily(
            "tidegate_publisher_pending", "telemetry events that wait or are under way", value=self._publisher.pending
        )
