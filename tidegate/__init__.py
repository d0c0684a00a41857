"""Tidegate's public API: both ends of the wire, and the records that cross it.

Each name is loaded when it is first asked for, so that who uses one pays for no other.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tidegate.schemas.assignment import arm, bucket
    from tidegate.schemas.correction import Correction, correction_from_bytes
    from tidegate.schemas.decision import Command, Decision, command_from_bytes, decision_from_bytes
    from tidegate.schemas.errors import TidegateError
    from tidegate.schemas.event import TelemetryEvent
    from tidegate.schemas.load import load_manifest, read_manifest
    from tidegate.streams.client.control import ControlConsumer
    from tidegate.streams.client.publisher import TelemetryPublisher
    from tidegate.streams.client.threaded import SyncTelemetryPublisher
    from tidegate.streams.kafka.manifests import load_trusted
    from tidegate.streams.settings import Settings, load_settings

__all__ = [
    "Command",
    "ControlConsumer",
    "Correction",
    "Decision",
    "Settings",
    "SyncTelemetryPublisher",
    "TelemetryEvent",
    "TelemetryPublisher",
    "TidegateError",
    "arm",
    "bucket",
    "command_from_bytes",
    "correction_from_bytes",
    "decision_from_bytes",
    "load_manifest",
    "load_settings",
    "load_trusted",
    "read_manifest",
]

_MODULES = {
    "schemas.assignment": ("arm", "bucket"),
    "schemas.correction": ("Correction", "correction_from_bytes"),
    "schemas.decision": ("Command", "Decision", "command_from_bytes", "decision_from_bytes"),
    "schemas.errors": ("TidegateError",),
    "schemas.event": ("TelemetryEvent",),
    "schemas.load": ("load_manifest", "read_manifest"),
    "streams.client.control": ("ControlConsumer",),
    "streams.client.publisher": ("TelemetryPublisher",),
    "streams.client.threaded": ("SyncTelemetryPublisher",),
    "streams.kafka.manifests": ("load_trusted",),
    "streams.settings": ("Settings", "load_settings"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"tidegate.{module}"), name)
    raise AttributeError(f"module 'tidegate' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
