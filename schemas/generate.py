"""``python -m tidegate.schemas.generate [--check]``: the JSON Schemas and the AsyncAPI document.

They are made from the definitions in this package and committed, so that other languages need no
Python. ``--check`` writes nothing and exits 1, naming each file that is not what it would write.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import yaml

from tidegate.schemas.correction import Correction
from tidegate.schemas.decision import Command, Decision
from tidegate.schemas.event import TelemetryEvent
from tidegate.schemas.manifest import Manifest
from tidegate.schemas.operation import Operation

FOLDER = Path(__file__).parent
DIALECT = "https://json-schema.org/draft/2020-12/schema"
BASE = "https://tidegate.dev/schemas"
KAFKA = "0.5.0"
"""Version of the AsyncAPI bindings for Kafka."""


def _present(*fields: str) -> dict[str, Any]:
    """Return a schema in which the fields are there and not null."""
    some = {field: {"not": {"type": "null"}} for field in fields}
    return {"required": list(fields), "properties": some}


def _event_rules() -> dict[str, Any]:
    """Return the rules that depend on ``kind``: types cannot express them, ``schemas.event.parse`` checks them."""
    is_tick = {"properties": {"kind": {"const": "tick"}}, "required": ["kind"]}
    is_request = {"properties": {"kind": {"const": "request"}}}
    outcome = {"anyOf": [_present("error"), _present("status")]}
    return {
        "allOf": [
            {"if": is_tick, "else": _present("event_id", "flag", "arm", "sticky_id")},
            {"if": is_request, "then": {"allOf": [_present("latency_ms"), outcome]}},
        ]
    }


def json_schemas() -> dict[str, dict[str, Any]]:
    """Return the JSON Schema of each record, draft 2020-12, by file name."""
    made = {
        "telemetry-event": msgspec.json.schema(TelemetryEvent) | _event_rules(),
        "manifest": Manifest.model_json_schema(),
        "decision": msgspec.json.schema(Decision),
        "command": msgspec.json.schema(Command),
        "correction": msgspec.json.schema(Correction),
        "operation": msgspec.json.schema(Operation),
    }
    return {
        f"{name}.schema.json": {
            "$schema": DIALECT,
            "$id": f"{BASE}/{name}.schema.json",
            "title": f"Tidegate {name.replace('-', ' ')}",
        }
        | schema
        for name, schema in made.items()
    }


def _message(title: str, key: str, payload: object, **more: object) -> dict[str, Any]:
    kafka = {"key": {"type": "string", "description": key}, "bindingVersion": KAFKA}
    return {"title": title, "payload": payload, **more, "bindings": {"kafka": kafka}}


def _headers(properties: dict[str, Any]) -> dict[str, Any]:
    said = "where the record stood, as UTF-8 text, after the record's own headers"
    return {"type": "object", "description": said, "properties": properties}


def _record(name: str) -> dict[str, str]:
    return {"$ref": f"./json/{name}.schema.json"}


def _signed(kind: str) -> dict[str, Any]:
    inside = {
        "manifest": "JSON: `manifest`, the YAML; `revision`; `effective_from`, ms",
        "operation": "JSON, see json/operation.schema.json",
    }
    return {
        "type": "string",
        "pattern": f"^tidegate-signed/2 {kind} [A-Za-z0-9._-]+/[A-Za-z0-9._-]+ [0-9a-f]{{16}} ",
        "description": f"The line `tidegate-signed/2 {kind} DEPLOYMENT KEY_ID SIGNATURE`, and under it {inside[kind]}. "
        "DEPLOYMENT is the topic prefix, `/` and the application id of the workers that it is for. "
        f"The Ed25519 signature is over `tidegate-signed/2 {kind} DEPLOYMENT` and what is under the line.",
    }


def asyncapi() -> dict[str, Any]:
    """Return the topics as an AsyncAPI 3.0 document, seen from the services around the worker."""
    event = _record("telemetry-event")
    unit = "`flag|region`"
    stood: dict[str, Any] = {
        "tidegate.topic": {"type": "string"},
        "tidegate.partition": {"type": "string", "pattern": "^[0-9]+$"},
        "tidegate.offset": {"type": "string", "pattern": "^[0-9]+$"},
        "tidegate.cut": {
            "type": "string",
            "pattern": "^[0-9]+$",
            "description": "of a large record, whose value is cut and whose key and headers are left out: its length",
        },
    }
    error = {"tidegate.error": {"type": "string", "description": "the field and what is wrong"}}
    untouched = {"description": "the record's value, whatever it was; the beginning of a large one"}
    topics = {
        "telemetry": ("send", "Say what happened to each request; ticks move the time.", "delete"),
        "late": ("receive", "Events whose pane was closed already; counted, never added.", "delete"),
        "dead-letter": ("receive", "Records that are no valid event; large ones are cut.", "delete"),
        "decisions": ("receive", "Every decision with every number it rests on.", "delete"),
        "corrections": ("receive", "Look at what late events would have changed.", "delete"),
        "manifests": ("send", "Publish revisions of the manifest, signed.", "compact"),
        "operations": ("send", "Order a kill, a rearm, a pause, a resume or a promote, signed.", "delete"),
        "control": ("receive", "Apply the weights; drop repeats by `command_id`.", "compact"),
    }
    text = {"contentType": "text/plain"}
    messages = {
        "telemetry": _message("Telemetry event", "the event's `sticky_id`", event),
        "late": _message("Late event", "the event's `sticky_id`", event, headers=_headers(stood)),
        "dead-letter": _message(
            "Dead letter",
            "the record's own key",
            untouched,
            headers=_headers(stood | error),
            contentType="application/octet-stream",
        ),
        "decisions": _message("Decision", unit, _record("decision")),
        "corrections": _message("Correction", unit, _record("correction")),
        "manifests": _message("Manifest revision", "`revision-` and its number", _signed("manifest"), **text),
        "operations": _message("Operation", "the flag", _signed("operation"), **text),
        "control": _message("Command", unit, _record("command")),
    }
    channels = {
        name: {
            "address": f"tidegate.{name}",
            "description": what,
            "messages": {name: {"$ref": f"#/components/messages/{name}"}},
            "bindings": {
                "kafka": {
                    "topicConfiguration": {"cleanup.policy": [cleanup]},
                    "bindingVersion": KAFKA,
                }
            },
        }
        for name, (_, what, cleanup) in topics.items()
    }
    operations = {
        operation: {
            "action": topics[name][0],
            "summary": summary,
            "channel": {"$ref": f"#/channels/{name}"},
            "messages": [{"$ref": f"#/channels/{name}/messages/{name}"}],
        }
        for operation, name, summary in (
            ("publishTelemetry", "telemetry", "A service publishes what happened."),
            ("publishManifest", "manifests", "Whoever may change gates publishes a revision."),
            ("orderOperation", "operations", "An operator kills, rearms, pauses, resumes or promotes a flag."),
            ("inspectCorrections", "corrections", "An operator looks at what late events would have changed."),
            ("applyCommands", "control", "A router or flag server applies commands."),
            ("auditDecisions", "decisions", "An auditor reads decisions and checks the chain."),
            ("inspectLate", "late", "An operator looks at what came too late."),
            ("inspectDeadLetters", "dead-letter", "An operator looks at what could not be read."),
        )
    }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Tidegate",
            "version": "1.0.0",
            "description": "Telemetry in; decisions, and promote and abort commands, out.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages},
    }


class _Plain(yaml.SafeDumper):
    """A dumper that writes repeated values out instead of naming them with anchors."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def files() -> dict[Path, str]:
    """Return the text of every generated file by its path under ``schemas/``."""
    texts = {
        Path("json") / name: json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
        for name, schema in json_schemas().items()
    }
    document = yaml.dump(asyncapi(), Dumper=_Plain, sort_keys=False, allow_unicode=True, width=100)
    header = "# Written by `python -m tidegate.schemas.generate`; do not edit.\n"
    return texts | {Path("asyncapi.yaml"): header + document}


def stale(folder: Path, texts: Mapping[Path, str]) -> list[Path]:
    """Return the files under ``folder`` that are missing or not what ``texts`` says."""
    return [
        path
        for path, text in texts.items()
        if not (folder / path).is_file() or (folder / path).read_text(encoding="utf-8") != text
    ]


def write_or_check(arguments: list[str] | None = None, folder: Path = FOLDER) -> int:
    """Write or check the files; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tidegate.schemas.generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 on drift")
    check = parser.parse_args(arguments).check
    texts = files()
    old = stale(folder, texts)
    for path in old:
        if check:
            print(f"{folder / path} is stale: run python -m tidegate.schemas.generate", file=sys.stderr)
        else:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(texts[path], encoding="utf-8")
    return 1 if check and old else 0


if __name__ == "__main__":
    sys.exit(write_or_check())
