"""What the tests on a real Kafka start from."""

import asyncio
import uuid
from pathlib import Path

import pytest

from tidegate.schemas.signed import PrivateKey, private_pem, public_line
from tidegate.streams.kafka.topics import create_topics
from tidegate.streams.settings import Settings, load_settings


@pytest.fixture
def settings(kafka_broker: str) -> Settings:
    """Topics of their own on the shared broker."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    settings = load_settings(broker=kafka_broker, topic_prefix=name, application_id=name, gate_partitions=2)
    asyncio.run(create_topics(settings))
    return settings


@pytest.fixture
def manifest(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The manifest of the test's module, in a file."""
    path = tmp_path / "flags.yml"
    path.write_text(request.module.MANIFEST)
    return path


@pytest.fixture
def key(tmp_path: Path) -> PrivateKey:
    """A private key; its public line is in the file ``trusted``."""
    key = PrivateKey.generate()
    (tmp_path / "key.pem").write_bytes(private_pem(key))
    (tmp_path / "trusted").write_text(public_line(key.public_key(), "tests") + "\n")
    return key
