"""A modelled service under a real trace: what a canary and its baseline would send, moment by moment.

Real are the arrivals and sizes of the requests, from the trace. Modelled are users, latencies, costs, errors, tool
calls and every quality figure; the noise is small, so that a healthy canary of 5 % passes the page's gates on the
numbers of one window. The model closes the loop as a router does: it applies commands to its own traffic. What it
sends follows from trace, scenario, seed and the commands applied alone.
"""

import csv
import io
import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from itertools import product
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from msgspec.structs import replace

from tidegate.gates.unit import first_weight
from tidegate.schemas.assignment import bucket
from tidegate.schemas.catalogue import VERDICTS
from tidegate.schemas.clockwork import Clockwork
from tidegate.schemas.decision import Command, Decision
from tidegate.schemas.errors import InputError
from tidegate.schemas.event import PARAPHRASES, SEEDS, ArmName, TelemetryEvent
from tidegate.schemas.manifest import Flag
from tidegate.streams.files import open_log
from tidegate.streams.simulation.scenarios import BASELINE_PINS, Canary, Scenario, regions_of

USERS = 4_000
QUESTIONS = 20
RUNS = [
    (question, run) for run in product(range(1, PARAPHRASES + 1), range(1, SEEDS + 1)) for question in range(QUESTIONS)
]
"""The gold set in the order it is asked: every question once before any is asked again."""
PROBED_SHARE = 0.75
"""Part of a window in which it is asked, so that labels of all of it come before the end."""
FAR_FUTURE = 2**62

LATENCY_MS, LATENCY_MS_PER_TOKEN, LATENCY_CV = 240.0, 0.01, 0.08
"""Time to first token: a fixed part, a little for the prompt, and noise of 8 %."""
COST, COST_PER_TOKEN = 0.012, 1e-6
SOLVED_RATE = 0.95
TOOL_SHARE, TOOL_SUCCESS = 0.4, 0.9997
DELTA_S, DELTA_S_SD = 0.12, 0.03
COVERAGE, COVERAGE_SD = 0.86, 0.04
LIGHT_CHAIN_COST = 0.85
"""Cost of a request once a cost guard has fallen back, in full chains."""
BASELINE = Canary(delta_s=0.0, latency=1.0, cost=1.0)


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
        with open_log(path) as packed, io.TextIOWrapper(packed, "utf-8-sig", newline="") as lines:
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


class Router:
    """A service's router, which follows commands: sticky arms by hash, weights that change at a moment of event time.

    A sticky id's bucket is the first 8 bytes of SHA-256("flag:sticky_id") ÷ 2⁶⁴; it is in the canary where the
    bucket is below the canary's weight, so a growing weight moves ids into the canary and none out of it.
    """

    def __init__(self, canary_weight: float) -> None:
        self._canary_weight = canary_weight
        self._commands: dict[str, list[Command]] = {}

    def apply(self, command: Command) -> None:
        """Take in a command of any unit, in the order of ``seq``."""
        self._commands.setdefault(command.key, []).append(command)

    def weight(self, unit: str, ts: int) -> float:
        """Return the canary's weight at ``ts``: the last command's that is in effect, else the weight at the start."""
        command = next(self._in_effect(unit, ts), None)
        return self._canary_weight if command is None else command.weights.canary

    def guarded(self, unit: str, ts: int) -> bool:
        """Tell whether a guard has stepped in at ``ts``."""
        left = (VERDICTS[command.action].engaged for command in self._in_effect(unit, ts))
        return next((engaged for engaged in left if engaged is not None), False)

    def ended(self, unit: str) -> bool:
        """Tell whether the last command took the canary away for good."""
        left = (VERDICTS[command.action].ended for command in reversed(self._commands.get(unit, ())))
        # A pause says nothing of it.
        return next((ended for ended in left if ended is not None), False)

    def arm(self, flag: str, region: str, sticky_id: str, ts: int) -> ArmName:
        """Return the arm that serves the id at ``ts``, ms."""
        return "canary" if _bucket(flag, sticky_id) < self.weight(f"{flag}|{region}", ts) else "baseline"

    def _in_effect(self, unit: str, ts: int) -> Iterator[Command]:
        """Yield the commands that have taken effect by ``ts``, the last first."""
        return (command for command in reversed(self._commands.get(unit, [])) if command.effective_from <= ts)


_bucket = cache(bucket)


@dataclass
class Site:
    """One region of the modelled service, and how far the decisions on it are known.

    ``window``: the one that is filled now, ms. ``green_at``: start of the window after the first green one; none yet:
    infinite. ``engaged``: a quality gate is open, or a guard has stepped in.
    """

    number: int
    unit: str
    common: TelemetryEvent
    window: tuple[int, int]
    green_at: float = math.inf
    engaged: bool = False

    @property
    def region(self) -> str:
        """Its name."""
        return str(self.common.region)


class Simulation:
    """One flag in the scenario's regions, from ``start`` (ms) on; ``now`` is how far its events have been given out.

    ``due`` is the moment before which the decision of the current window has to be known, so that its command is in
    time for the first event that it concerns.
    """

    def __init__(
        self, trace: Sequence[Arrival], scenario: Scenario, flag: Flag, clockwork: Clockwork, *, start: int, seed: int
    ) -> None:
        self.flag, self.scenario, self._clockwork, self._trace = flag, scenario, clockwork, trace
        self.router = Router(first_weight(flag))
        self.start = self.now = start
        self.end = start + trace[-1].at + 1
        self._seed, self._next = seed, 0
        self._waiting: list[TelemetryEvent] = []
        scope = {
            "tenant": flag.scope.tenants,
            "endpoint": flag.scope.endpoints,
            "cohort": flag.scope.cohorts,
            "surface": flag.scope.surfaces,
        }
        named = {name: ids[0] for name, ids in scope.items() if "all" not in ids}
        common = msgspec.convert({"ts": start, "flag": flag.name, "lambda_state": "→"} | named, TelemetryEvent)
        window = self._pane(start), self._pane(start) + flag.window.length_ms
        self.sites = {
            f"{flag.name}|{region}": Site(number, f"{flag.name}|{region}", replace(common, region=region), window)
            for number, region in enumerate(regions_of(flag)[: scenario.regions])
        }
        self._by_number = list(self.sites.values())
        self._noise = _Noise.draw(len(trace), [seed])
        self._users = np.random.default_rng([seed, 1]).integers(0, USERS, len(trace)).tolist()

    def _pane(self, ts: int) -> int:
        return ts // self._clockwork.pane_ms * self._clockwork.pane_ms

    @property
    def unit(self) -> str:
        """The first region's ``flag|region``."""
        return self._by_number[0].unit

    @property
    def due(self) -> int:
        """When the next decision on a window is needed, ms; a kill switch has no windows."""
        if self.flag.kind == "kill_switch":
            return FAR_FUTURE
        return min(site.window[1] for site in self._by_number) + self._clockwork.lateness_ms

    def weight(self, site: Site) -> float:
        """Return the canary's weight in a region now."""
        return self.router.weight(site.unit, self.now)

    def apply(self, command: Command) -> None:
        """Follow a command of the control topic."""
        self.router.apply(command)

    def decided(self, decision: Decision) -> bool:
        """Follow a decision to the window after it; whether a command comes with it. An early abort ends no window."""
        site, verdict = self.sites[decision.key], decision.verdict
        commanded = verdict not in ("pass", "hold")
        left = VERDICTS[verdict].engaged
        if left is not None and commanded:
            before, site.engaged = site.engaged, left
            commanded = decision.operation is not None or before != left
        if decision.window.closed and decision.operation is None:
            start = decision.window.end
            if verdict == "promote":
                start = self._clockwork.stage_start(start, self.flag.window.settle_ms)
            site.window = start, start + self.flag.window.length_ms
            if verdict in ("promote", "open", "pass"):
                site.green_at = min(site.green_at, max(start, self.start))
        return commanded

    def undecided(self) -> None:
        """Go on to the next window where no decision on the due one came."""
        due = self.due
        for site in self._by_number:
            if site.window[1] + self._clockwork.lateness_ms == due:
                site.window = site.window[1], site.window[1] + self.flag.window.length_ms

    def tick(self) -> TelemetryEvent:
        """Return the tick that moves the watermark to ``now`` − lateness."""
        return TelemetryEvent(ts=self.now, kind="tick")

    def advance(self, until: int) -> list[TelemetryEvent]:
        """Return the events sent in [now, until), in order, with a tick at each pane's end, and move ``now`` on."""
        modelled = [*self._requests(until)]
        for site in self._by_number:
            modelled += self._probes(site, until)
        sent = [(changed.ts, changed) for changed in self._waiting]
        for site, event, noise in modelled:
            sent += [(max(event.ts, changed.ts), changed) for changed in self._changed(site, event, noise)]
        self._waiting = [event for ts, event in sent if ts >= until]
        pane = self._clockwork.pane_ms
        ticks = range(self._pane(self.now) + pane, until + 1, pane)
        sent = [(ts, event) for ts, event in sent if ts < until]
        sent += [(ts, TelemetryEvent(ts=ts, kind="tick")) for ts in ticks]
        self.now = until
        return [event for _, event in sorted(sent, key=itemgetter(0))]

    def _changed(self, site: Site, event: TelemetryEvent, noise: "_Noise") -> Iterable[TelemetryEvent]:
        """Return what the scenario makes of an event."""
        window = (event.ts - site.green_at) / self.flag.window.length_ms
        events: list[TelemetryEvent] = [event]
        for change in self.scenario.changes:
            if change.first <= window < change.last and noise.change < change.share:
                events = [
                    changed
                    for one in events
                    for changed in (change.apply(one, self.flag) if change.arm in (None, one.arm) else (one,))
                ]
        return events

    def _requests(self, until: int) -> Iterator["Modelled"]:
        following = bisect_left(self._trace, until - self.start, key=lambda arrival: arrival.at)
        for i in range(self._next, following):
            arrival, noise = self._trace[i], self._noise[i]
            site = self._by_number[self._users[i] % len(self._by_number)]
            ts, user = self.start + arrival.at, f"user-{self._users[i]:04d}"
            arm = self.router.arm(self.flag.name, site.region, user, ts)
            event_id = f"{self.start:x}-{i}"
            yield site, self._served(site, ts, arm, user, event_id, arrival, noise), noise
            if self._in_shadow(site, ts):
                mirrored = self._served(site, ts, "canary", user, f"{event_id}-mirrored", arrival, noise)
                yield site, replace(mirrored, source="shadow"), noise
        self._next = following

    def _in_shadow(self, site: Site, ts: int) -> bool:
        """Tell whether the canary is sent a copy of every request, as it serves none."""
        serves = self.router.weight(site.unit, ts) > 0 or self.router.ended(site.unit)
        return self.flag.traffic.shadow and not serves

    def _probes(self, site: Site, until: int) -> Iterator["Modelled"]:
        """Yield the gold set, asked of the baseline while it serves anyone, and of the canary until that has ended.

        Not before the decision on the window before is due: only then is it known that this one begins.
        """
        start, end = site.window
        first = start + self._clockwork.lateness_ms
        times = [first + int((end - first) * PROBED_SHARE) * i // len(RUNS) for i in range(len(RUNS))]
        now, following = bisect_left(times, self.now), bisect_left(times, until)
        if now == following:
            return
        asked: dict[ArmName, bool] = {"baseline": self.weight(site) < 1, "canary": not self.router.ended(site.unit)}
        for number, (arm, serves) in enumerate(asked.items()):
            if not serves:
                continue
            noise = _Noise.draw(len(RUNS), [self._seed, 2, start - self.start, 2 * site.number + number])
            for i in range(now, following):
                question, (paraphrase, seed) = RUNS[i]
                name, size = f"{question:02d}", self._trace[question % len(self._trace)]
                event_id = f"{start:x}-{arm}-{site.number}-{i}"
                probe = self._served(site, times[i], arm, f"gold-{arm}-{name}", event_id, size, noise[i])
                tags = {"query_id": f"gold-{name}", "paraphrase": paraphrase, "seed": seed}
                yield site, replace(probe, source="gold", **tags), noise[i]

    def _served(
        self, site: Site, ts: int, arm: ArmName, sticky_id: str, event_id: str, size: Arrival, noise: "_Noise"
    ) -> TelemetryEvent:
        canary = BASELINE
        pins = BASELINE_PINS | self.flag.baseline_versions
        if arm == "canary":
            canary = self.scenario.canary((ts - site.green_at) / self.flag.window.length_ms)
            pins = BASELINE_PINS | self.flag.versions | dict(canary.pins)
        latency = (LATENCY_MS + LATENCY_MS_PER_TOKEN * size.prompt) * (1 + LATENCY_CV * noise.latency)
        cost = (COST + COST_PER_TOKEN * (size.prompt + size.answer)) * canary.cost
        failed = noise.error < canary.error_rate
        calls = int(noise.tools < TOOL_SHARE)
        event = replace(
            site.common,
            ts=ts,
            event_id=event_id,
            arm=arm,
            sticky_id=sticky_id,
            versions=pins,
            delta_s=round(min(max(DELTA_S + DELTA_S_SD * noise.delta_s + canary.delta_s, 0.0), 2.0), 4),
            coverage=round(min(max(COVERAGE + COVERAGE_SD * noise.coverage + canary.coverage, 0.0), 1.0), 4),
            latency_ms=round(max(latency * canary.latency, 1.0), 1),
            status=503 if failed else 200,
            tool_calls=calls,
            tool_ok=calls * int(noise.tool_ok < TOOL_SUCCESS),
            cost=round(cost, 6),
            solved=not failed and noise.solved < SOLVED_RATE,
        )
        return self._guarded(site, event, canary, noise)

    def _guarded(self, site: Site, event: TelemetryEvent, canary: Canary, noise: "_Noise") -> TelemetryEvent:
        """Return the answer as a service gives it that obeys its guard: from the light chain, or by citations alone."""
        stepped_in = event.arm == "canary" and self.router.guarded(site.unit, event.ts)
        if self.flag.kind == "cost_guard" and stepped_in and event.cost is not None:
            return replace(event, cost=round(event.cost * LIGHT_CHAIN_COST, 6))
        if self.flag.kind == "safety_guard":
            return replace(
                event,
                reason_status="failed" if noise.reason < canary.reason_failures else "ok",
                output_mode="cite_only" if stepped_in else "full",
            )
        return event


class _Noise(NamedTuple):
    """Chance of one request, drawn before it is known where it goes: normal for the first three, then uniform."""

    latency: float
    delta_s: float
    coverage: float
    error: float
    tools: float
    tool_ok: float
    solved: float
    reason: float
    change: float

    @classmethod
    def draw(cls, n: int, seed: list[int]) -> list["_Noise"]:
        random = np.random.default_rng(seed)
        columns = [random.standard_normal(n).tolist() for _ in range(3)]
        columns += [random.random(n).tolist() for _ in range(len(cls._fields) - 3)]
        return [cls(*row) for row in zip(*columns, strict=True)]


Modelled = tuple[Site, TelemetryEvent, _Noise]
"""An event as the service would send it, where it comes from, and its chance."""
