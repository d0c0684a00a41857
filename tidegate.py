"""Tidegate's public API: both ends of the wire, and the records that cross it."""

from schemas.decision import Command, Decision, command_from_bytes, decision_from_bytes
from schemas.errors import TidegateError
from schemas.event import TelemetryEvent
from schemas.manifest import load_manifest, read_manifest

__all__ = [
    "Command",
    "Decision",
    "TelemetryEvent",
    "TidegateError",
    "command_from_bytes",
    "decision_from_bytes",
    "load_manifest",
    "read_manifest",
]
