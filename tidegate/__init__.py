"""Tidegate's public API: both ends of the wire, and the records that cross it."""

from tidegate.schemas.decision import Command, Decision, command_from_bytes, decision_from_bytes
from tidegate.schemas.errors import TidegateError
from tidegate.schemas.event import TelemetryEvent
from tidegate.schemas.load import load_manifest, read_manifest
from tidegate.streams.client.control import ControlConsumer
from tidegate.streams.client.publisher import TelemetryPublisher
from tidegate.streams.kafka.manifests import load_trusted
from tidegate.streams.settings import Settings, load_settings

__all__ = [
    "Command",
    "ControlConsumer",
    "Decision",
    "Settings",
    "TelemetryEvent",
    "TelemetryPublisher",
    "TidegateError",
    "command_from_bytes",
    "decision_from_bytes",
    "load_manifest",
    "load_settings",
    "load_trusted",
    "read_manifest",
]
