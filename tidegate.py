"""Tidegate's public API: both ends of the wire, and the records that cross it."""

from schemas.decision import Command, Decision, command_from_bytes, decision_from_bytes
from schemas.errors import TidegateError
from schemas.event import TelemetryEvent
from schemas.load import load_manifest, read_manifest
from streams.control import ControlConsumer
from streams.manifests import load_trusted
from streams.publisher import TelemetryPublisher
from streams.settings import Settings, load_settings

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
