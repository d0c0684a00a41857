"""From a manifest's text to its flags, or to the one sentence that says what is wrong with it and the way out.

A manifest that could be misread is refused with the YAML path of the first fault in file order: a misspelt rule that is
silently ignored would be the worst failure of all.
"""

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from tidegate.schemas.document import Document, Fault, Loc, dotted, kind_of, quoted
from tidegate.schemas.errors import ManifestError
from tidegate.schemas.manifest import KINDS, PAGE, Manifest, Part


def _models(annotation: Any) -> Iterator[type[Part]]:
    if isinstance(annotation, type) and issubclass(annotation, Part):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


def _known(at: Loc) -> list[str]:
    """Return the keys that the mapping at a path may have."""
    model: type[Part] = Manifest
    for i, part in enumerate(at):
        # The part after `flags` is a name of the user's.
        if isinstance(part, str) and i != 1:
            fields = {field.alias or name: field for name, field in model.model_fields.items()}
            model = next(_models(fields[part].annotation))
    return [field.alias or name for name, field in model.model_fields.items()]


def _nearest(word: object, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, 1) if isinstance(word, str) else ()
    return f"did you mean {close[0]}?" if close else f"use one of {', '.join(known)}"


_BOUNDS = {
    "greater_than_equal": ("ge", "at least"),
    "less_than_equal": ("le", "at most"),
    "greater_than": ("gt", "above"),
}
_NO_FLAGS = ("there are no flags", "write flags: and below it a flag's name and its keys")


def _explain(error: ErrorDetails, document: Document) -> Fault:
    """Path, problem and way out of one of pydantic's errors."""
    at, value, context = error["loc"], error["input"], error.get("ctx", {})
    if at and at[-1] == "[key]":
        at = at[:-1]
    key = at[-1] if at else ""
    section = at[2] if len(at) > 2 else ""
    said = kind_of(value)
    match error["type"]:
        case "manifest":
            return Fault((*at, *context["at"]), context["problem"], context["fix"])
        case _ if at == ("flags",) and not value:
            return Fault(at, *_NO_FLAGS)
        case "missing" if at == ("flags",):
            return Fault(at, *_NO_FLAGS)
        case "missing" if key == "value":
            page = [rule.value for rule in PAGE.abort_rules.hard if rule.kind == value.get("kind")]
            fix = f"write value: {page[0]:.10g}, the page's, or another" if page else "write value: N"
            return Fault(at, "a hard rule needs a value", fix)
        case "missing" if at[0] == "freeze_windows":
            return Fault(at, "missing", f"write {key}: beside the others")
        case "missing":
            return Fault(at, "missing", f"write {key}: and one of {', '.join(KINDS[str(at[3])])}")
        case "extra_forbidden":
            what = "gate" if section == "gates" else "key"
            return Fault(at, f"unknown {what}", _nearest(key, _known(at[:-1])))
        case "literal_error":
            for severity, kinds in KINDS.items():
                if section == "abort_rules" and value in kinds:
                    return Fault(at, f"{value} is a {severity} rule", f"move it to {severity}")
            what = "rule kind" if section == "abort_rules" else str(key)
            known = re.findall(r"'([^']*)'", context["expected"])
            return Fault(at, f"unknown {what}, {said}", _nearest(value, known))
        case "greater_than_equal" | "less_than_equal" | "greater_than" as kind:
            bound, words = _BOUNDS[kind]
            fix = f"write a number that is {words} {context[bound]:.10g}"
            return Fault(at, f"{said} is out of range", fix)
        case "too_short":
            return Fault(at, "an empty list", "list at least one, or leave the key out")
        case "string_too_short":
            return Fault(at, "an empty text", "write something, or leave it out")
        case "string_type":
            written = document.text(at)
            fix = f"quote it: {quoted(written)}" if written else "write text in quotes"
            return Fault(at, f"expected text, got {said}", fix)
        case "bool_type":
            return Fault(at, f"expected true or false, got {said}", "write true or false")
        case "int_type":
            return Fault(at, f"expected a whole number, got {said}", "write digits without quotes")
        case "finite_number":
            return Fault(at, f"{said} is not finite", "write a finite number")
        case "float_type":
            off = ", or null to turn the gate off" if section == "gates" else ""
            return Fault(at, f"expected a number, got {said}", f"write digits without quotes{off}")
        case "tuple_type":
            one = quoted(value) if isinstance(value, str) else "..."
            return Fault(at, f"expected a list, got {said}", f"write [{one}]")
        case "model_type" | "mapping_type" | "dict_type":
            fix = "write keys below it, or {} for the defaults"
            return Fault(at, f"expected a mapping, got {said}", fix)
        case other:
            return Fault(at, f"{error['msg']} ({other})", "see docs/manifest.md")


def load_manifest(text: str | bytes, *, pane_ms: int = 10_000, name: str = "manifest") -> Manifest:
    """Read a manifest; ``pane_ms`` is the worker's pane, of which windows are multiples.

    ``name`` stands in messages where no YAML path can: for text that is not YAML, or empty. Raises
    ManifestError for the first fault in file order, and nothing else, whatever the text.
    """
    try:
        document = Document(text.decode("utf-8-sig") if isinstance(text, bytes) else text)
    except UnicodeDecodeError as error:
        problem, fix = f"not UTF-8 at byte {error.start}", "save the file as UTF-8"
        raise ManifestError(name, problem, fix) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "this file"
        said = ", ".join(" ".join(part.split()) for part in (error.context, error.problem) if part)
        raise ManifestError(name, f"not valid YAML: {said}", f"mend {where}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        problem = f"not valid YAML: {' '.join(str(error).split())}"
        raise ManifestError(name, problem, "remove what does not belong in a text file") from None
    except RecursionError:
        problem, fix = "nested too deeply", "a manifest is at most six levels deep"
        raise ManifestError(name, problem, fix) from None
    faults = document.faults
    if document.value is None and not faults:
        raise ManifestError(name, "the manifest is empty", _NO_FLAGS[1])
    try:
        manifest = Manifest.model_validate(document.value, context={"pane_ms": pane_ms})
        if not faults:
            return manifest
    except ValidationError as error:
        details = error.errors(include_url=False)
        # A list whose only item was refused counts as too short, too.
        real = (one for one in details if one["type"] != "too_short" or not one["input"])
        faults = faults + [_explain(one, document) for one in real]
    first = min(faults, key=lambda fault: document.rank(fault.at))
    raise ManifestError(dotted(first.at) or name, first.problem, first.fix)


def read_manifest(path: str | Path, *, pane_ms: int = 10_000) -> Manifest:
    """``load_manifest`` of a file; a file that cannot be read is a ManifestError too."""
    try:
        text = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ManifestError(str(path), f"cannot be read: {reason}", "name a readable file") from None
    return load_manifest(text, pane_ms=pane_ms, name=str(path))
