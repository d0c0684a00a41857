"""Scenarios of the modelled service: one for each kind of flag, and one for each evidence problem.

A scenario's time counts windows: 0 is the start of the window after the first one that was green, or open.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml
from msgspec.structs import replace

from tidegate.schemas.decision import Decision, Verdict
from tidegate.schemas.errors import InputError
from tidegate.schemas.event import ArmName, TelemetryEvent, ToolCall
from tidegate.schemas.manifest import Flag
from tidegate.schemas.operation import Operation

ERROR_RATE = 0.0002
WITHIN = 0.003
"""An error rate that is within the page's limit of 0.005."""
LABEL_DELAY = 0.2
"""Time from a request to its label, in windows."""
HELD_UP_MS = 30_000
"""Delay of a delayed event: well beyond the lateness and a pane."""
LOOP_CALLS = 12
"""Calls of a tool by an agent that goes round in circles."""
OLD_MANIFEST = "sha256:" + "0" * 64


@dataclass(frozen=True)
class Canary:
    """Differences of the modelled canary from the baseline; the defaults are a healthy one, a bit dearer and slower.

    ``coverage``: added to the baseline's. ``reason_failures``: share of requests whose reason step fails.
    """

    delta_s: float = 0.004
    coverage: float = 0.0
    latency: float = 1.03
    cost: float = 1.02
    error_rate: float = ERROR_RATE
    reason_failures: float = 0.0
    pins: Mapping[str, str] = field(default_factory=dict)


Events = Iterator[TelemetryEvent]


@dataclass(frozen=True)
class Change:
    """A change to a share of the events of an arm (None: both) from ``first`` to ``last``, in windows.

    ``apply`` gives what is sent in an event's place. What is dated later is sent later; what is dated earlier is
    sent now, late.
    """

    apply: Callable[[TelemetryEvent, Flag], Events]
    share: float = 1.0
    arm: ArmName | None = None
    first: float = 0.0
    last: float = 1.0


@dataclass(frozen=True)
class Scenario:
    """A story, and how it ends.

    ``verdicts``: what to expect in each region, in order, after which it has shown its point; holds that only wait for
    more evidence come between them, however many it takes. ``problem``: the evidence
    problem that its holds name. ``canary``: the model by windows. ``killed``: when an operator kills the flag,
    in windows since the start. ``regions``: how many it plays in. ``needs``: keys of the flag without which the story
    cannot happen. ``eases``: keys of the demo's flag with which it is told sooner.
    """

    text: str
    verdicts: tuple[Verdict, ...]
    problem: str | None = None
    canary: Callable[[float], Canary] = lambda window: Canary()
    changes: tuple[Change, ...] = ()
    killed: float | None = None
    kind: str = "progressive_rollout"
    regions: int = 1
    needs: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    eases: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

    def manifest(self, text: str) -> str:
        """Return a manifest, YAML, with its first flag made one that the scenario can happen to."""
        if self.kind == "progressive_rollout" and self.regions == 1 and not (self.needs or self.eases):
            return text
        document = yaml.safe_load(text)
        flag: dict[str, Any] = next(iter(document["flags"].values()))
        flag["kind"] = self.kind
        if self.regions > 1:
            flag["scope"]["regions"] = list(REGIONS[: self.regions])
        for keys in (self.needs, self.eases):
            for part, values in keys.items():
                flag[part] = flag.get(part, {}) | values
        return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)

    def check(self, flag: Flag) -> None:
        """Raise InputError for a flag that this cannot happen to, naming the key and the value it needs."""
        resolved = flag.resolved()
        wanted = {("kind",): self.kind} | {(p, k): v for p, keys in self.needs.items() for k, v in keys.items()}
        for path, value in wanted.items():
            found = resolved
            for key in path:
                found = found[key]
            if found != value:
                said = yaml.safe_dump({path[-1]: value}).strip()
                raise InputError(f"--scenario: it needs a flag with {said} in {'.'.join((flag.name, *path[:-1]))}")
        if "all" not in flag.scope.regions and len(flag.scope.regions) < self.regions:
            raise InputError(f"--scenario: it needs a flag with {self.regions} regions in {flag.name}.scope.regions")

    def operation(self, flag: Flag, start: int) -> Operation | None:
        """Return the operator's order in a run from ``start`` ms on; None if there is none."""
        if self.killed is None:
            return None
        ts = start + int(self.killed * flag.window.length_ms)
        return Operation(actor="demo", flag=flag.name, kind="kill", reason="answers cite a withdrawn source", ts=ts)


BASELINE_PINS = {
    "MODEL_VER": "gpt-4o-2025-05-13",
    "PROMPT_VER": "p-2025.07.02-h4",
    "INDEX_HASH": "91ac...",
    "RERANK_CONF": "bge-rerank-v2@top32",
    "TOK_VER": "o200k-1",
    "ANALYZER_CONF": "icu-74",
}
"""Pins of the baseline where the manifest has none."""
REGIONS = ("us-east-1", "eu-west-1")


# What may become of an event. Gold probes are sent by a harness: users' accidents do not befall them.


def lost(event: TelemetryEvent, flag: Flag) -> Events:
    """Lose the event."""
    yield from ()


def exposed(event: TelemetryEvent, flag: Flag) -> Events:
    """Report the assignment before each request."""
    if event.source is None:
        yield TelemetryEvent(
            ts=event.ts,
            kind="exposure",
            event_id=f"exposure-{event.event_id}",
            flag=event.flag,
            arm=event.arm,
            sticky_id=event.sticky_id,
            region=event.region,
            tenant=event.tenant,
            endpoint=event.endpoint,
            cohort=event.cohort,
            surface=event.surface,
            evaluated_by="server",
        )
    yield event


def assigned(event: TelemetryEvent, flag: Flag) -> Events:
    """Name the manifest that the assignment came from."""
    yield replace(event, manifest_hash=flag.manifest_hash)


def requests_lost(event: TelemetryEvent, flag: Flag) -> Events:
    """Report the assignment alone, without its request."""
    if event.kind == "exposure":
        yield event


def exposures_lost(event: TelemetryEvent, flag: Flag) -> Events:
    """Leave out every third user's assignment."""
    if event.kind != "exposure" or int(str(event.sticky_id)[-4:]) % 3:
        yield event


def unpinned(event: TelemetryEvent, flag: Flag) -> Events:
    """Leave out one pin."""
    yield replace(event, versions={name: pin for name, pin in (event.versions or {}).items() if name != "TOK_VER"})


def proxied(event: TelemetryEvent, flag: Flag) -> Events:
    """Take the users of one proxy for one user, whichever arm they are in."""
    yield event if event.source else replace(event, sticky_id=f"proxy-{str(event.sticky_id)[-1]}")


def by_device(event: TelemetryEvent, flag: Flag) -> Events:
    """Report the device's id, where the router hashes the user's."""
    yield event if event.source else replace(event, sticky_id=f"device-{event.sticky_id}")


def users_lost(event: TelemetryEvent, flag: Flag) -> Events:
    """Give two users in five no answer, and report nothing of it."""
    if event.source or int(str(event.sticky_id)[-4:]) % 5 > 1:
        yield event


def leaked(event: TelemetryEvent, flag: Flag) -> Events:
    """Serve somebody by the canary who should not be."""
    yield replace(event, source=None, sticky_id=f"leaked-{event.sticky_id}") if event.source == "shadow" else event


def one_cache(event: TelemetryEvent, flag: Flag) -> Events:
    """Let both arms fill the same cache."""
    yield replace(event, cache_namespace="answers", cache_hit=False)


def meets_rate_limits(event: TelemetryEvent, flag: Flag) -> Events:
    """Let the provider answer 429 at first."""
    yield replace(event, rate_limited=True, attempts=2)


def looping(event: TelemetryEvent, flag: Flag) -> Events:
    """Call one tool with the same arguments again and again."""
    call = ToolCall(name="search", args_hash="9f2c")
    yield replace(event, tools=[call] * LOOP_CALLS, tool_calls=LOOP_CALLS, tool_ok=LOOP_CALLS)


def unfenced(event: TelemetryEvent, flag: Flag) -> Events:
    """Write a ticket without an idempotency key."""
    yield replace(event, tools=[ToolCall(name="create_ticket", write=True)], tool_calls=1, tool_ok=1)


def by_client(event: TelemetryEvent, flag: Flag) -> Events:
    """Say that the client chose the arm by itself."""
    yield event if event.source else replace(event, evaluated_by="client")


def under_old_manifest(event: TelemetryEvent, flag: Flag) -> Events:
    """Assign by the manifest before in the second region."""
    yield event if event.region == regions_of(flag)[0] else replace(event, manifest_hash=OLD_MANIFEST)


def held_up(event: TelemetryEvent, flag: Flag) -> Events:
    """Date the event half a minute back."""
    yield replace(event, ts=event.ts - HELD_UP_MS)


def labelled(event: TelemetryEvent, flag: Flag) -> Events:
    """Let ΔS, coverage, λ and solved come from an evaluator, some time later."""
    yield replace(event, delta_s=None, coverage=None, lambda_state=None, solved=None)
    yield replace(
        event,
        ts=event.ts + int(LABEL_DELAY * flag.window.length_ms),
        kind="label",
        event_id=None,
        labels_event_id=event.event_id,
        versions=None,
        latency_ms=None,
        status=None,
        tool_calls=None,
        tool_ok=None,
        cost=None,
    )


def waits(decision: Decision) -> bool:
    """Tell whether a stage merely goes on: its evidence is sound, but does not settle every gate yet."""
    open_ = any(gate.status in ("undecided", "unknown") for gate in decision.gates)
    going_on = decision.evidence is not None and decision.verdict == "hold" and "latched" not in decision.reasons
    return going_on and open_ and not decision.evidence_problems


def regions_of(flag: Flag) -> tuple[str, ...]:
    """Return the regions that a flag may be simulated in, the first one first."""
    return REGIONS if "all" in flag.scope.regions else flag.scope.regions


def always(apply: Callable[[TelemetryEvent, Flag], Events]) -> Change:
    """Return a change of every event, from the first."""
    return Change(apply, first=-math.inf, last=math.inf)


SHORT: dict[str, Mapping[str, object]] = {"window": {"length": "5m"}}
QUARTER = SHORT | {"traffic": {"baseline_weight": 0.75, "canary_weight": 0.25}}
PINNED = {
    "versions": {name: BASELINE_PINS[name] for name in ("TOK_VER", "ANALYZER_CONF")},
    "baseline_versions": BASELINE_PINS,
}
"""Nothing is left to lock from telemetry, so a record does not tell how much of that was read."""
HELD_ONCE: tuple[Verdict, ...] = ("promote", "hold", "promote")
HELD: tuple[Verdict, ...] = ("promote", "hold", "hold")
"""Once seen, it stays for the whole stage."""


def _problem(name: str, text: str, *changes: Change, verdicts: tuple[Verdict, ...] = HELD_ONCE) -> Scenario:
    """Return a scenario of a ramp that an evidence problem holds up at 25 %."""
    return Scenario(text, verdicts, name, changes=changes, eases=SHORT)


SCENARIOS: dict[str, Scenario] = {
    "healthy": Scenario(
        "all gates stay green: the canary ramps to 100 %",
        ("promote", "promote", "promote", "pass"),
    ),
    "drift": Scenario(
        "answers drift away from the gold set after the first promote: rollback",
        ("promote", "rollback", "hold"),
        canary=lambda window: Canary(delta_s=0.004 + 0.4 * min(max(window - 0.1, 0.0), 0.8)),
    ),
    "slow": Scenario(
        "the canary turns slow after the first promote: freeze, then rollback",
        ("promote", "freeze", "rollback", "hold"),
        canary=lambda window: Canary(latency=1.03 if window < 0.1 else 1.32),
    ),
    "errors": Scenario(
        "a burst of errors after the first promote: abort, long before the window ends",
        ("promote", "abort", "hold"),
        canary=lambda window: Canary(error_rate=0.60 if 0.2 <= window < 0.5 else ERROR_RATE),
    ),
    "few-errors": Scenario(
        "3 in 1,000 canary requests fail, within the limit of 5: the canary ramps on",
        ("promote", "promote"),
        canary=lambda window: Canary(error_rate=WITHIN),
    ),
    "few-errors-by-point": Scenario(
        "the same canary, each window judged by itself (evidence: point): stopped by chance",
        ("promote", "rollback"),
        canary=lambda window: Canary(error_rate=WITHIN),
        needs={"policy": {"evidence": "point"}},
    ),
    "shadow": Scenario(
        "mirrored requests are judged before a user is served, then the canary ramps to 100 %",
        ("promote", "promote", "promote", "promote", "pass"),
        needs={"traffic": {"shadow": True}},
        eases=SHORT,
    ),
    "shadow-leak": Scenario(
        "a router sends some users to the canary in the shadow stage: no promote while it does",
        ("hold", "hold"),
        "served_at_weight_zero",
        changes=(Change(leaked, share=0.02, arm="canary", first=-math.inf),),
        needs={"traffic": {"shadow": True}},
        eases=SHORT,
    ),
    "labels": Scenario(
        "quality comes from an evaluator, more than a minute later: the canary ramps to 100 % on its labels",
        ("promote", "promote", "promote", "pass"),
        changes=(always(labelled),),
        eases={"window": {"length": "6m"}},
    ),
    "quality-gate": Scenario(
        "gold probes open a closed gate; coverage falls and closes it, until it is back",
        ("open", "open", "close", "close", "open"),
        kind="quality_gated",
        canary=lambda window: Canary(coverage=-0.18 if 1 <= window < 3 else 0.0),
        eases=QUARTER,
    ),
    "cost-guard": Scenario(
        "cost per solved request goes over budget: fallback to the light chain, and restore when it is back",
        ("pass", "fallback", "fallback", "restore", "pass"),
        kind="cost_guard",
        canary=lambda window: Canary(cost=1.40 if 0 <= window < 2 else 1.02),
        eases=QUARTER,
    ),
    "safety-guard": Scenario(
        "failed reason steps are served in full: degrade to cite-only, and restore after a clean window",
        ("pass", "degrade", "degrade", "restore", "pass"),
        kind="safety_guard",
        canary=lambda window: Canary(reason_failures=0.05 if 0 <= window < 2 else 0.0),
        eases=QUARTER,
    ),
    "kill-switch": Scenario(
        "an operator kills the flag: the canary is off in every region at once",
        ("kill",),
        kind="kill_switch",
        killed=0.8,
        regions=2,
        eases=QUARTER | PINNED,
    ),
    "insufficient-data": _problem(
        "insufficient_data",
        "nearly all telemetry is lost on its way for a window",
        Change(lost, share=0.985),
    ),
    "no-baseline": _problem(
        "no_pinned_baseline",
        "the baseline serves, but reports no request for a window",
        always(exposed),
        Change(requests_lost, arm="baseline"),
    ),
    "pins-missing": _problem(
        "pins_missing",
        "a replica of the canary starts without one of its pins",
        Change(unpinned, share=0.1, arm="canary"),
    ),
    "pins": Scenario(
        "the canary's index is swapped in mid-window: hold, whatever the gates say (pins_drifted)",
        ("promote", "hold", "hold"),
        "pins_drifted",
        canary=lambda window: Canary(pins={} if window < 0.4 else {"INDEX_HASH": "5e1d..."}),
    ),
    "sticky-violation": _problem(
        "sticky_violation",
        "users behind a proxy share an id and are served in both arms for a window",
        Change(proxied, share=0.03),
    ),
    "cache-namespace-shared": _problem(
        "cache_namespace_shared",
        "both arms fill one cache: an answer may be the other arm's",
        Change(one_cache, share=0.3),
    ),
    "rate-limit-storm": _problem(
        "rate_limit_storm",
        "the step to 25 % is too much for the canary's quota: 429s, until the quota is raised",
        Change(meets_rate_limits, share=0.2, arm="canary"),
    ),
    "tool-loop": _problem(
        "tool_loop",
        "the canary's agent goes round in circles: one tool, the same arguments, again and again",
        Change(looping, share=0.02, arm="canary"),
    ),
    "unfenced-side-effect": _problem(
        "unfenced_side_effect",
        "the canary writes without an idempotency key: a retry would write twice",
        Change(unfenced, share=0.02, arm="canary"),
    ),
    "client-evaluated": _problem(
        "client_evaluated",
        "some clients choose their arm themselves: what they send is not evidence",
        Change(by_client, share=0.1),
    ),
    "assignment-mismatch": Scenario(
        "services report the device's id where the router hashed the user's",
        HELD_ONCE,
        "assignment_mismatch",
        changes=(Change(by_device),),
        needs={"policy": {"assignment": "sha256"}},
        eases=SHORT,
    ),
    "sample-ratio-mismatch": _problem(
        "sample_ratio_mismatch",
        "two in five of the canary's users vanish without an error: no promote while they do",
        Change(users_lost, arm="canary", last=math.inf),
        verdicts=HELD,
    ),
    "region-divergence": Scenario(
        "one region's flag servers still assign by the manifest before: no region goes on",
        HELD_ONCE,
        "region_divergence",
        changes=(always(assigned), Change(under_old_manifest)),
        regions=2,
        eases=SHORT,
    ),
    "window-unstable": _problem(
        "window_unstable",
        "a collector holds events back until their window is past",
        Change(held_up, share=0.05),
    ),
    "orphan-telemetry": _problem(
        "orphan_telemetry",
        "requests come from users whose assignment nobody reported",
        always(exposed),
        Change(exposures_lost),
    ),
}


def told_scenarios() -> str:
    """Return all of them with their stories, as a command's help shows them."""
    return "\b\nScenarios:\n" + "\n".join(f"  {name:22} {scenario.text}" for name, scenario in SCENARIOS.items())
