"""For the tests of a service that uses Tidegate: publishers without Kafka."""

from tidegate.streams.client.fake import FakePublisher, FakeSyncPublisher

__all__ = ["FakePublisher", "FakeSyncPublisher"]
