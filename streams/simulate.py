"""A modelled service under a real trace: what a canary and its baseline would send, moment by moment.

Real are the arrivals and sizes of the requests, from the trace. Modelled are users, latencies, costs, errors, tool
calls and every quality figure; the noise is small, so that a healthy canary of 5 % passes the page's gates on the
numbers of one window. The model closes the loop as a router does: it applies commands to its own traffic. What it
sends follows from trace, scenario, seed and the commands applied alone.
"""

import csv
import gzip
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import numpy as np
from msgspec.structs import replace

from gates.ramp import Clockwork
from schemas.decision import Command, Decision, Verdict
from schemas.errors import InputError
from schemas.event import TelemetryEvent
from schemas.manifest import Flag

Arm = Literal["baseline", "canary"]

USERS = 4_000
QUESTIONS, PARAPHRASES, SEEDS = 20, (1, 2, 3), (1, 2)
RUNS = [(question, run) for run in product(PARAPHRASES, SEEDS) for question in range(QUESTIONS)]
"""The gold set in the order it is asked: every question once before any is asked again."""

LATENCY_MS, LATENCY_MS_PER_TOKEN, LATENCY_CV = 240.0, 0.01, 0.08
"""Time to first token: a fixed part, a little for the prompt, and noise of 8 %."""
COST, COST_PER_TOKEN = 0.012, 1e-6
ERROR_RATE, SOLVED_RATE = 0.0002, 0.95
TOOL_SHARE, TOOL_SUCCESS = 0.4, 0.9997
DELTA_S, DELTA_S_SD = 0.12, 0.03
COVERAGE, COVERAGE_SD = 0.86, 0.04

BASELINE_PINS = {
    "MODEL_VER": "gpt-4o-2025-05-13",
    "PROMPT_VER": "p-2025.07.02-h4",
    "INDEX_HASH": "91ac...",
    "RERANK_CONF": "bge-rerank-v2@top32",
    "TOK_VER": "o200k-1",
    "ANALYZER_CONF": "icu-74",
}
"""Where the manifest does not pin the baseline."""


@dataclass(frozen=True)
class Arrival:
    """One request of the trace: ms after the first, and tokens of prompt and answer."""

    at: int
    prompt: int
    answer: int


def read_trace(path: Path) -> list[Arrival]:
    """Read a trace with the columns TIMESTAMP, ContextTokens and GeneratedTokens, ``.gz`` allowed, in order of time.

    Raises InputError, naming file and line.
    """
    rows: list[tuple[datetime, int, int]] = []
    try:
        with gzip.open(path, "rt", newline="") if path.suffix == ".gz" else path.open(newline="") as lines:
            for row in csv.DictReader(lines):
                # The trace has tenths of a microsecond; Python reads whole ones.
                moment = datetime.fromisoformat(row["TIMESTAMP"][:26]).replace(tzinfo=UTC)
                rows.append((moment, int(row["ContextTokens"]), int(row["GeneratedTokens"])))
    except (OSError, EOFError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"{path}: {reason}") from None
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        wanted = "a trace has the columns TIMESTAMP, ContextTokens and GeneratedTokens"
        raise InputError(f"{path}:{len(rows) + 2}: {type(error).__name__}: {error}; {wanted}") from None
    if not rows:
        raise InputError(f"{path}: no requests in it")
    rows.sort(key=lambda row: row[0])
    first = rows[0][0]
    return [Arrival(int((moment - first).total_seconds() * 1000), *sizes) for moment, *sizes in rows]


@dataclass(frozen=True)
class Canary:
    """How the modelled canary differs from the baseline; the defaults are a healthy one, a bit dearer and slower."""

    delta_s: float = 0.004
    latency: float = 1.03
    cost: float = 1.02
    error_rate: float = ERROR_RATE
    pins: Mapping[str, str] = field(default_factory=dict)


BASELINE = Canary(delta_s=0.0, latency=1.0, cost=1.0)


@dataclass(frozen=True)
class Scenario:
    """What happens to the canary, by minutes since the first promote (negative before it), and how it ends."""

    text: str
    canary: Callable[[float], Canary]
    verdicts: tuple[Verdict, ...]
    """The verdicts to expect, in order, after which the scenario has shown its point."""


SCENARIOS: dict[str, Scenario] = {
    "healthy": Scenario(
        "all gates stay green: the canary ramps to 100 %",
        lambda minutes: Canary(),
        ("promote", "promote", "promote", "pass"),
    ),
    "drift": Scenario(
        "answers drift away from the gold set after the first promote: abort",
        lambda minutes: Canary(delta_s=0.004 + 0.04 * min(max(minutes - 1, 0.0), 8.0)),
        ("promote", "abort", "hold"),
    ),
    "slow": Scenario(
        "the canary turns slow after the first promote: freeze, then rollback",
        lambda minutes: Canary(latency=1.03 if minutes < 1 else 1.32),
        ("promote", "freeze", "rollback", "hold"),
    ),
    "errors": Scenario(
        "a burst of errors after the first promote: abort, long before the window ends",
        lambda minutes: Canary(error_rate=0.20 if 2 <= minutes < 5 else ERROR_RATE),
        ("promote", "abort", "hold"),
    ),
    "pins": Scenario(
        "the canary's index is swapped in mid-window: hold, whatever the gates say",
        lambda minutes: Canary(pins={} if minutes < 4 else {"INDEX_HASH": "5e1d..."}),
        ("promote", "hold", "hold"),
    ),
}


class Router:
    """What a service's router does with commands: sticky arms by hash, weights that change at a moment of event time.

    A sticky id's bucket is the first 8 bytes of SHA-256("flag:sticky_id") ÷ 2⁶⁴; it is in the canary where the
    bucket is below the canary's weight, so a growing weight moves ids into the canary and none out of it.
    """

    def __init__(self, canary_weight: float) -> None:
        self._canary_weight = canary_weight
        self._weights: dict[str, list[tuple[int, float]]] = {}

    def apply(self, command: Command) -> None:
        """Take in a command of any unit, in the order of ``seq``."""
        self._weights.setdefault(command.key, []).append((command.effective_from, command.weights.canary))

    def weight(self, unit: str, ts: int) -> float:
        """The canary's weight at ``ts``: the last command's that is in effect, else the weight at the start."""
        for effective_from, weight in reversed(self._weights.get(unit, [])):
            if effective_from <= ts:
                return weight
        return self._canary_weight

    def arm(self, flag: str, region: str, sticky_id: str, ts: int) -> Arm:
        """Where the id is served."""
        return "canary" if _bucket(flag, sticky_id) < self.weight(f"{flag}|{region}", ts) else "baseline"


@cache
def _bucket(flag: str, sticky_id: str) -> float:
    return int.from_bytes(sha256(f"{flag}:{sticky_id}".encode()).digest()[:8], "big") / 2**64


class Simulation:
    """One flag in one region, from ``start`` (ms) on; ``now`` is how far its events have been given out.

    ``due`` is the moment before which the decision of the current window has to be known, so that its command is in
    time for the first event that it concerns.
    """

    def __init__(
        self, trace: Sequence[Arrival], scenario: Scenario, flag: Flag, clockwork: Clockwork, *, start: int, seed: int
    ) -> None:
        self.flag, self.scenario, self._clockwork, self._trace = flag, scenario, clockwork, trace
        self.region = "us-east-1" if "all" in flag.scope.regions else flag.scope.regions[0]
        self.unit = f"{flag.name}|{self.region}"
        self.router = Router(flag.traffic.stages[0])
        self.start = self.now = start
        self.end = start + trace[-1].at + 1
        self.window = self._pane(start), self._pane(start) + flag.window.length_ms
        self._seed, self._next = seed, 0
        self._promoted = float("inf")
        scope = {
            "tenant": flag.scope.tenants,
            "endpoint": flag.scope.endpoints,
            "cohort": flag.scope.cohorts,
            "surface": flag.scope.surfaces,
        }
        named = {name: ids[0] for name, ids in scope.items() if "all" not in ids}
        self._common = msgspec.convert(
            {"ts": start, "flag": flag.name, "region": self.region, "lambda_state": "→"} | named, TelemetryEvent
        )
        self._noise = _Noise.draw(len(trace), [seed])
        self._users = np.random.default_rng([seed, 1]).integers(0, USERS, len(trace)).tolist()

    def _pane(self, ts: int) -> int:
        return ts // self._clockwork.pane_ms * self._clockwork.pane_ms

    @property
    def due(self) -> int:
        """When the decision on the current window is needed, ms."""
        return self.window[1] + self._clockwork.lateness_ms

    @property
    def weight(self) -> float:
        """The canary's weight now."""
        return self.router.weight(self.unit, self.now)

    def apply(self, command: Command) -> None:
        """Follow a command of the control topic."""
        self.router.apply(command)
        if command.key == self.unit and command.action == "promote":
            self._promoted = min(self._promoted, max(command.effective_from, self.start))

    def decided(self, decision: Decision) -> None:
        """Follow a decision to the window after it; an early abort ends no window."""
        if decision.key == self.unit and decision.window.closed:
            start = decision.window.end
            if decision.verdict == "promote":
                start = self._clockwork.stage_start(start, self.flag.window.settle_ms)
            self.window = start, start + self.flag.window.length_ms

    def undecided(self) -> None:
        """Go on to the next window although no decision on this one came."""
        self.window = self.window[1], self.window[1] + self.flag.window.length_ms

    def tick(self) -> TelemetryEvent:
        """What moves the watermark to ``now`` − lateness."""
        return TelemetryEvent(ts=self.now, kind="tick")

    def advance(self, until: int) -> list[TelemetryEvent]:
        """The events of [now, until), in order of time, with a tick at each pane's end; ``until`` is ``now`` then."""
        events = [*self._requests(until), *self._probes(until)]
        pane = self._clockwork.pane_ms
        events += [TelemetryEvent(ts=ts, kind="tick") for ts in range(self._pane(self.now) + pane, until + 1, pane)]
        self.now = until
        return sorted(events, key=lambda event: event.ts)

    def _requests(self, until: int) -> Iterator[TelemetryEvent]:
        following = bisect_left(self._trace, until - self.start, key=lambda arrival: arrival.at)
        for i in range(self._next, following):
            arrival = self._trace[i]
            ts, user = self.start + arrival.at, f"user-{self._users[i]:04d}"
            arm = self.router.arm(self.flag.name, self.region, user, ts)
            yield self._served(ts, arm, user, f"{self.start:x}-{i}", arrival, self._noise[i])
        self._next = following

    def _probes(self, until: int) -> Iterator[TelemetryEvent]:
        """The gold set, asked of every arm that serves anyone, spread over the window.

        Not before the decision on the window before is due: only then is it known that this one begins.
        """
        start, end = self.window
        first = start + self._clockwork.lateness_ms
        times = [first + (end - first) * i // len(RUNS) for i in range(len(RUNS))]
        now, following = bisect_left(times, self.now), bisect_left(times, until)
        if now == following:
            return
        shares: dict[Arm, float] = {"baseline": 1 - self.weight, "canary": self.weight}
        for number, (arm, share) in enumerate(shares.items()):
            if share <= 0:
                continue
            noise = _Noise.draw(len(RUNS), [self._seed, 2, start - self.start, number])
            for i in range(now, following):
                question, (paraphrase, seed) = RUNS[i]
                name, size = f"{question:02d}", self._trace[question % len(self._trace)]
                event_id = f"{start:x}-{arm}-{i}"
                asked = self._served(times[i], arm, f"gold-{arm}-{name}", event_id, size, noise[i])
                yield replace(asked, source="gold", query_id=f"gold-{name}", paraphrase=paraphrase, seed=seed)

    def _served(
        self, ts: int, arm: Arm, sticky_id: str, event_id: str, size: Arrival, noise: "_Noise"
    ) -> TelemetryEvent:
        if arm == "canary":
            canary = self.scenario.canary((ts - self._promoted) / 60_000)
            pins = BASELINE_PINS | self.flag.versions | dict(canary.pins)
        else:
            canary = BASELINE
            pins = BASELINE_PINS | self.flag.baseline_versions
        latency = (LATENCY_MS + LATENCY_MS_PER_TOKEN * size.prompt) * (1 + LATENCY_CV * noise.latency)
        failed = noise.error < canary.error_rate
        calls = int(noise.tools < TOOL_SHARE)
        return replace(
            self._common,
            ts=ts,
            event_id=event_id,
            arm=arm,
            sticky_id=sticky_id,
            versions=pins,
            delta_s=round(min(max(DELTA_S + DELTA_S_SD * noise.delta_s + canary.delta_s, 0.0), 2.0), 4),
            coverage=round(min(max(COVERAGE + COVERAGE_SD * noise.coverage, 0.0), 1.0), 4),
            latency_ms=round(max(latency * canary.latency, 1.0), 1),
            status=503 if failed else 200,
            tool_calls=calls,
            tool_ok=calls * int(noise.tool_ok < TOOL_SUCCESS),
            cost=round((COST + COST_PER_TOKEN * (size.prompt + size.answer)) * canary.cost, 6),
            solved=not failed and noise.solved < SOLVED_RATE,
        )


class _Noise(NamedTuple):
    """Chance of one request, drawn before it is known where it goes: normal for the first three, then uniform."""

    latency: float
    delta_s: float
    coverage: float
    error: float
    tools: float
    tool_ok: float
    solved: float

    @classmethod
    def draw(cls, n: int, seed: list[int]) -> list["_Noise"]:
        random = np.random.default_rng(seed)
        columns = [random.standard_normal(n).tolist() for _ in range(3)] + [random.random(n).tolist() for _ in range(4)]
        return [cls(*row) for row in zip(*columns, strict=True)]
