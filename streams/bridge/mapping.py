"""The mapping file: which attributes of a span become which field of telemetry, and what tokens cost."""

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import yaml
from msgspec import Meta

from tidegate.schemas.document import Document, dotted
from tidegate.schemas.errors import InputError
from tidegate.streams.client.checking import unknown_fields

Names = list[str]
Price = Annotated[float, Meta(ge=0)]


class Prices(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Prices of a million tokens."""

    input: Price
    output: Price


class SpanMapping(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The contents of a mapping file; see ``otel.yml`` beside this file."""

    fields: dict[str, Names]
    variant: Names
    arms: dict[Literal["baseline", "canary"], Names]
    pins: dict[str, Names]
    scores: dict[str, Literal["delta_s", "coverage", "solved", "lambda_state"]]
    prices: dict[str, Prices]

    def arm(self, variant: object) -> str | None:
        """Return the arm that a variant names; None: none."""
        text = str(variant).lower()
        return next((arm for arm, names in self.arms.items() if text in (name.lower() for name in names)), None)

    def price(self, model: str) -> Prices | None:
        """Return what a model's tokens cost; None: the table does not have it."""
        known = [name for name in self.prices if model.startswith(name)]
        return self.prices[max(known, key=len)] if known else None


def load_mapping(path: Path | None = None) -> SpanMapping:
    """Read the mapping; keys of ``path`` replace those of the default. Raises InputError, naming file and place."""
    values = _read((files("tidegate.streams.bridge") / "otel.yml").read_text("utf-8"), "otel.yml")
    name = "otel.yml" if path is None else str(path)
    if path is not None:
        try:
            own = _read(path.read_text("utf-8-sig"), name)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise InputError(f"{path}: not UTF-8 text") from None
        for key, value in own.items():
            both = isinstance(value, dict) and isinstance(values.get(key), dict)
            values[key] = values[key] | value if both else value
    try:
        mapping = msgspec.convert(values, SpanMapping)
    except msgspec.ValidationError as error:
        raise InputError(f"{name}: {error}; docs/opentelemetry.md shows the default") from None
    for line in unknown_fields(mapping.fields):
        raise InputError(f"{name}: fields: {line}")
    return mapping


def _read(text: str, name: str) -> dict[str, Any]:
    try:
        document = Document(text)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise InputError(f"{name}: not YAML: {' '.join(str(error).split())}") from None
    for fault in document.faults:
        raise InputError(f"{name}: {dotted(fault.at)}: {fault.problem}; {fault.fix}")
    if not isinstance(document.value, dict):
        raise InputError(f"{name}: not a mapping: write keys such as arms:")
    return document.value
