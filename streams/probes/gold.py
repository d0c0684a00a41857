"""The gold set: questions whose good answers are known, in a YAML file."""

from pathlib import Path
from typing import Annotated, Any

import msgspec
import yaml
from msgspec import Meta

from tidegate.schemas.document import Document, dotted
from tidegate.schemas.errors import InputError
from tidegate.schemas.event import PARAPHRASES, Name


class Question(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One question, said in three ways.

    ``id``: names its λ group. ``anchor``: the good answer, as text or as its embedding. ``target``: ids of the parts
    that retrieval should bring; all questions have one, or coverage is not measured.
    """

    id: Name
    paraphrases: Annotated[list[Name], Meta(min_length=PARAPHRASES, max_length=PARAPHRASES)]
    anchor: Name | Annotated[list[float], Meta(min_length=1)]
    target: list[Name] = msgspec.field(default_factory=list)


class GoldSet(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Questions, and where their probes count.

    ``versions``: pins of both arms, or of each by its name. ``agree``: ΔS up to which two answers say the same.
    """

    flag: Name
    questions: Annotated[list[Question], Meta(min_length=1)]
    region: str = ""
    tenant: Name | None = None
    endpoint: Name | None = None
    cohort: Name | None = None
    surface: Name | None = None
    versions: dict[str, str | dict[str, str]] = msgspec.field(default_factory=dict)
    agree: Annotated[float, Meta(ge=0, le=2)] = 0.15

    @property
    def scope(self) -> dict[str, str]:
        """Fields of every probe by which a manifest's scope is met."""
        names = ("tenant", "endpoint", "cohort", "surface")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    @property
    def has_texts(self) -> bool:
        """Tells that an anchor is text, which has to be embedded."""
        return any(isinstance(question.anchor, str) for question in self.questions)


def read_gold(path: Path) -> GoldSet:
    """Read a gold set's file. Raises InputError, which names the file, the YAML path and the way out."""
    try:
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text") from None
    return load_gold(text, str(path))


def load_gold(text: str, name: str = "gold set") -> GoldSet:
    """Read a gold set. Raises InputError, which names ``name``, the YAML path and the way out."""
    try:
        document = Document(text)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise InputError(f"{name}: not YAML: {' '.join(str(error).split())}") from None
    for fault in document.faults:
        raise InputError(f"{name}: {dotted(fault.at)}: {fault.problem}; {fault.fix}")
    try:
        gold: GoldSet = msgspec.convert(document.value, GoldSet)
    except msgspec.ValidationError as error:
        raise InputError(f"{name}: {_said(error)}; docs/probes.md shows a gold set") from None
    _check(gold, name)
    return gold


def _said(error: Exception) -> str:
    problem, _, place = str(error).partition(" - at `$.")
    return f"{place.rstrip('`')}: {problem}" if place else problem


def _check(gold: GoldSet, name: str) -> None:
    seen: dict[str, Any] = {}
    for i, question in enumerate(gold.questions):
        at = f"{name}: questions[{i}]"
        if question.id in seen:
            raise InputError(f"{at}.id: {question.id} is there twice; each id names one λ group")
        if len(set(question.paraphrases)) < PARAPHRASES:
            raise InputError(f"{at}.paraphrases: two are the same; say the question in {PARAPHRASES} ways")
        if bool(question.target) != bool(gold.questions[0].target):
            raise InputError(
                f"{at}.target: some questions have a target and some have none; coverage is unknown where more than "
                "5 % of the probes lack it, so give all of them one, or none"
            )
        seen[question.id] = True
