"""A publisher's counters for Prometheus."""

try:
    from tidegate.streams.client.prometheus import PublisherCollector
except ModuleNotFoundError as error:
    raise ImportError(f"tidegate.prometheus lacks {error.name}: pip install prometheus-client") from None

__all__ = ["PublisherCollector"]
