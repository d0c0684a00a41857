"""A publisher's counters for Prometheus."""

from tidegate.streams.client.prometheus import PublisherCollector

__all__ = ["PublisherCollector"]
