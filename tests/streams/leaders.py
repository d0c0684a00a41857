"""Partitions that have no leader for a while, and how often a client asks for one."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from aiokafka.cluster import ClusterMetadata
from aiokafka.conn import AIOKafkaConnection
from aiokafka.protocol.metadata import MetadataRequest


@contextmanager
def without_leaders() -> Iterator[list[Any]]:
    """No partition has a leader within the block; gives the requests for metadata."""
    asked: list[Any] = []
    send = AIOKafkaConnection.send

    def counted(self: Any, request: Any, **options: Any) -> Any:
        if isinstance(request, MetadataRequest):
            asked.append(request)
        return send(self, request, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClusterMetadata, "leader_for_partition", lambda *_: -1)
        patch.setattr(AIOKafkaConnection, "send", counted)
        yield asked
