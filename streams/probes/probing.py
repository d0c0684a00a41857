"""Ask each arm each gold question in three ways with two seeds, and publish what came back as probes."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import isawaitable
from itertools import product
from typing import Any, cast

from tidegate.schemas.errors import InputError
from tidegate.schemas.event import PARAPHRASES, SEEDS, ArmName
from tidegate.streams.client.bound import ARMS, Bindable, BoundTelemetry, Publishing
from tidegate.streams.probes.gold import GoldSet, Question
from tidegate.streams.probes.measures import AGREE, Vector, coverage, delta_s, lambda_states


@dataclass(frozen=True, slots=True)
class Answer:
    """An arm's answer to a probe.

    ``vector``: its embedding; or ``text``, which is then embedded. ``retrieved``: ids of the parts that retrieval
    brought. ``fields``: any others of the event, such as ``cost``, ``solved``, ``versions`` or a ``lambda_state`` of
    your own.
    """

    vector: Vector | None = None
    text: str = ""
    retrieved: Sequence[str] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)


Ask = Callable[[ArmName, str, int], Awaitable[Answer]]
"""Asks an arm a question with a seed, 1 or 2. An exception counts as an error of the arm."""
Embed = Callable[[str], Vector | Awaitable[Vector]]


@dataclass(slots=True)
class Summary:
    """A round of probes of one arm: events, errors, groups that converged, and means of what was measured."""

    events: int = 0
    errors: int = 0
    groups: int = 0
    converged: int = 0
    delta_s: list[float] = field(default_factory=list)
    coverage: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Run:
    paraphrase: int
    seed: int
    latency_ms: float
    answer: Answer | None
    vector: Vector | None


async def probe(
    gold: GoldSet, ask: Ask, publisher: Publishing, *, embed: Embed | None = None, concurrency: int = 4
) -> dict[ArmName, Summary]:
    """Probe both arms once with all questions, and publish; a summary of each arm.

    Each question is a λ group of an arm, named by its id; its six events have one ``ts``, so that no window parts them.
    ``concurrency``: questions that are asked at a time. Raises InputError where an embedding is missing or of
    another length.
    """
    if embed is None and gold.has_texts:
        raise InputError("the gold set has anchors in words: give a function that embeds them, --embed MODULE:FUNCTION")
    probes = _Probes(gold, ask, embed, publisher, concurrency)
    summaries: dict[ArmName, Summary] = {arm: Summary() for arm in ARMS}
    try:
        async with asyncio.TaskGroup() as tasks:
            for question, arm in product(gold.questions, ARMS):
                tasks.create_task(probes.group(question, arm, summaries[arm]))
    except ExceptionGroup as group:
        raise group.exceptions[0] from None
    return summaries


async def probe_every(
    seconds: float,
    gold: GoldSet,
    ask: Ask,
    publisher: Publishing,
    *,
    embed: Embed | None = None,
    concurrency: int = 4,
    done: Callable[[dict[ArmName, Summary]], None] = lambda _: None,
) -> None:
    """Probe again and again, until cancelled. A round that lasts longer than ``seconds`` is followed at once."""
    while True:
        began = time.monotonic()
        done(await probe(gold, ask, publisher, embed=embed, concurrency=concurrency))
        await asyncio.sleep(max(0.0, began + seconds - time.monotonic()))


class _Probes:
    """One round: the anchors' embeddings, and how many runs may be under way."""

    def __init__(self, gold: GoldSet, ask: Ask, embed: Embed | None, publisher: Publishing, concurrency: int) -> None:
        self._gold, self._ask, self._embed = gold, ask, embed
        self._free = asyncio.Semaphore(concurrency)
        versions = cast("Mapping[str, str]", gold.versions)
        self._bound: BoundTelemetry = Bindable.bind(
            publisher,
            gold.flag,
            region=gold.region,
            versions=versions,
            weights=None,
            **(gold.scope | {"source": "gold"}),
        )

    async def group(self, question: Question, arm: ArmName, summary: Summary) -> None:
        """Ask one arm one question six times, then publish all of it."""
        anchor = await self._vector(question.anchor)
        asked = product(range(1, PARAPHRASES + 1), range(1, SEEDS + 1))
        runs = await asyncio.gather(*(self._run(question, arm, paraphrase, seed) for paraphrase, seed in asked))
        states = lambda_states([run.vector for run in runs], self._gold.agree)
        ts = int(time.time() * 1000)
        summary.groups += 1
        summary.converged += all(state == AGREE for state in states)
        for run, state in zip(runs, states, strict=True):
            fields = self._measured(run, anchor, question) | {"lambda_state": state}
            summary.events += 1
            summary.errors += run.answer is None
            for name in ("delta_s", "coverage"):
                if name in fields:
                    getattr(summary, name).append(fields[name])
            place = {"query_id": question.id, "paraphrase": run.paraphrase, "seed": run.seed}
            given = run.answer.fields if run.answer is not None else {}
            common = {"ts": ts, "arm": arm, "sticky_id": f"probe:{question.id}"}
            self._bound.publish(common | place | fields | dict(given))

    async def _run(self, question: Question, arm: ArmName, paraphrase: int, seed: int) -> _Run:
        async with self._free:
            began = time.perf_counter()
            try:
                answer = await self._ask(arm, question.paraphrases[paraphrase - 1], seed)
            except Exception:
                return _Run(paraphrase, seed, (time.perf_counter() - began) * 1000, None, None)
            latency_ms = (time.perf_counter() - began) * 1000
        if not isinstance(answer, Answer):
            raise InputError(f"the function that asks gave a {type(answer).__name__}, not a tidegate.probes.Answer")
        vector = await self._vector(answer.text) if answer.vector is None else answer.vector
        return _Run(paraphrase, seed, latency_ms, answer, vector)

    async def _vector(self, given: str | Vector) -> Vector:
        if not isinstance(given, str):
            return given
        if self._embed is None:
            raise InputError("an answer has no vector: set it, or give a function that embeds its text")
        embedded = self._embed(given)
        return await embedded if isawaitable(embedded) else embedded

    def _measured(self, run: _Run, anchor: Vector, question: Question) -> dict[str, Any]:
        fields: dict[str, Any] = {"latency_ms": run.latency_ms, "error": run.answer is None}
        if run.answer is not None and run.vector is not None:
            fields["delta_s"] = delta_s(run.vector, anchor)
            if question.target:
                fields["coverage"] = coverage(run.answer.retrieved, question.target)
        return fields
