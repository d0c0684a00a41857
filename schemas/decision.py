"""Decisions and commands: what the gates write, and what an auditor and a router read.

Records are RFC 8785 canonical JSON. Every id and hash is SHA-256 over that form; a unit's decisions
are chained through ``previous_hash``. Null is "unknown"; no record ever holds NaN or an infinity.
"""

from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from tidegate.schemas.canonical import canonical, sha256_of
from tidegate.schemas.errors import EventError

Sha256 = Annotated[str, Meta(pattern="^sha256:[0-9a-f]{64}$")]
Status = Literal["pass", "fail", "undecided", "unknown", "waived", "not_applicable", "off"]
Action = Literal[
    "promote",
    "freeze",
    "rollback",
    "abort",
    "kill",
    "rearm",
    "pause",
    "resume",
    "open",
    "close",
    "degrade",
    "restore",
    "fallback",
    "retire",
]
Verdict = Literal[Action, "pass", "hold"]
Severity = Literal["hard", "soft"]


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """The window decided on."""

    start: Annotated[int, Meta(description="ms, a pane's start")]
    end: Annotated[int, Meta(description="ms, the nominal end, exclusive")]
    closed: Annotated[bool, Meta(description="false where a stop, a freeze or a kill came before the end")]


class EvidenceSpan(msgspec.Struct, frozen=True, kw_only=True):
    """The windows of a stage that its gates are judged by."""

    windows: Annotated[int, Meta(description="whose evidence counts, the present one included")]
    left_out: Annotated[int, Meta(description="with an evidence problem; hard rules alone read them")]
    since: Annotated[int, Meta(description="start of the first, ms")]


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """The stage that the evidence belongs to."""

    index: Annotated[int, Meta(description="from 0; with traffic.shadow, 0 is the shadow stage")]
    canary_weight: Annotated[float, Meta(description="share of traffic; 0 after the latch")]
    next_canary_weight: Annotated[float | None, Meta(description="null where no stage follows")]


class GateForecast(msgspec.Struct, frozen=True, kw_only=True):
    """The evidence that an undecided gate still needs, at its present values and rate."""

    outcome: Annotated[
        Literal["pass", "fail"] | None,
        Meta(description="how it ends then; null: not soon, as its value is too near to limit or rule_out"),
    ]
    canary: Annotated[int | None, Meta(description="more canary requests until then")]
    baseline: Annotated[int | None, Meta(description="more baseline requests until then; 0 where it is not compared")]
    minutes: float | None


class GateResult(msgspec.Struct, frozen=True, kw_only=True):
    """One gate; all are evaluated and listed, even after one failed."""

    gate: Annotated[str, Meta(description="YAML path under `gates`")]
    status: Status
    observed: Annotated[float | None, Meta(description="the value held against `threshold`")]
    threshold: Annotated[float | bool | None, Meta(description="the manifest's limit; null is off")]
    canary: Annotated[float | None, Meta(description="the canary's part of `observed`")]
    baseline: Annotated[float | None, Meta(description="the baseline's part of `observed`")]
    n_canary: Annotated[int, Meta(description="rows, or λ groups, that `canary` rests on")]
    n_baseline: Annotated[int, Meta(description="rows that `baseline` rests on")]
    lower: Annotated[
        float | None,
        Meta(description="lower end of an anytime interval: 95 %, or each end at the level at which it decides"),
    ]
    upper: Annotated[float | None, Meta(description="upper end; null where the data set none")]
    rule_out: Annotated[
        float | None, Meta(description="to pass, the interval has to exclude it; null with point evidence")
    ] = None
    forecast: Annotated[GateForecast | None, Meta(description="of an undecided gate")] = None


class RuleResult(msgspec.Struct, frozen=True, kw_only=True):
    """One abort rule."""

    kind: Annotated[str, Meta(description="the manifest's rule kind, or `pins_drifted`")]
    severity: Annotated[Severity, Meta(description="hard aborts; soft freezes")]
    value: Annotated[float | None, Meta(description="the limit; null where its gate is off")]
    observed: Annotated[float | None, Meta(description="the value held against the limit")]
    n: Annotated[int, Meta(description="what `min_requests` is held against")]
    fired: bool


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """One evidence problem; any of them blocks a promote."""

    problem: Annotated[str, Meta(description="its name, such as `pins_drifted`")]
    detail: Annotated[dict[str, Any], Meta(description="what was seen")]


class PinnedFrom(msgspec.Struct, frozen=True, kw_only=True):
    """The decision whose window's baseline stands in, once no traffic is left for the baseline."""

    start: Annotated[int, Meta(description="ms")]
    end: Annotated[int, Meta(description="ms")]
    hash: Annotated[str, Meta(description="of the decision that promoted on it")]


class ArmSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Counts, sums and quantiles of one arm in what the gates are judged by: the window, or the stage's evidence."""

    requests: Annotated[int, Meta(description="traffic and gold")]
    traffic: Annotated[int, Meta(description="requests of real users")]
    gold: Annotated[int, Meta(description="requests of the gold set")]
    shadow: Annotated[int, Meta(description="mirrored requests, not served")]
    exposures: Annotated[int, Meta(description="assignments made")]
    labels: Annotated[int, Meta(description="an evaluator's words on earlier requests, as far as they count")] = 0
    labels_foreign: Annotated[
        int, Meta(description="labels of no request of the stage and without the arm's pins; they count for nothing")
    ] = 0
    labels_not_followed: Annotated[
        int, Meta(description="labels of which that cannot be told, as ids are sampled; they count for nothing")
    ] = 0
    errors: Annotated[int, Meta(description="failed requests, final 429s included")]
    rate_limited: Annotated[int, Meta(description="requests that met a 429")]
    tool_calls: int
    tool_ok: Annotated[int, Meta(description="calls that succeeded")]
    reason_rows: Annotated[int, Meta(description="requests that tell of a reason step")] = 0
    reason_failed: Annotated[int, Meta(description="of those, failed")] = 0
    reason_in_full: Annotated[int, Meta(description="of those, not served cite-only")] = 0
    cost: Annotated[float, Meta(description="sum, in the telemetry's own unit")]
    cost_rows: Annotated[int, Meta(description="requests with a cost")]
    solved: Annotated[int, Meta(description="solved requests")]
    quality_source: Annotated[str, Meta(description="where ΔS, coverage and λ come from")]
    coverage_rows: Annotated[int, Meta(description="requests with a coverage")]
    coverage_mean: float | None
    delta_s_rows: Annotated[int, Meta(description="requests with a ΔS")]
    delta_s_p50: float | None
    delta_s_p95: float | None
    latency_p50: Annotated[float | None, Meta(description="ms")]
    latency_p95: Annotated[float | None, Meta(description="ms")]
    lambda_groups: Annotated[int, Meta(description="probe groups seen")]
    lambda_complete: Annotated[int, Meta(description="groups with all six runs")]
    lambda_convergent: Annotated[int, Meta(description="complete groups convergent in all six")]
    lambda_events: Annotated[int, Meta(description="untagged events with a λ state")]
    lambda_flips: Annotated[int, Meta(description="groups and untagged events that flipped")]
    pinned_from: Annotated[PinnedFrom | None, Meta(description="set where an earlier baseline stands in")] = None


class Warning(msgspec.Struct, frozen=True, kw_only=True):
    """Something to look at that blocks nothing."""

    code: Annotated[str, Meta(description="such as `unpinned`")]
    count: int


class Need(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that a hold waits for."""

    reason: Annotated[str, Meta(description="gate id, problem name or `reason_status`")]
    arm: Annotated[Literal["canary", "baseline"], Meta(description="whose events are too few")]
    what: Annotated[str, Meta(description="what is counted, such as `requests` or `lambda groups`")]
    have: Annotated[int, Meta(description="in this window")]
    need: int


class Forecast(msgspec.Struct, frozen=True, kw_only=True):
    """The evidence that a hold still needs before it can be decided, at the window's own rate."""

    needs: list[Need]
    requests: Annotated[int | None, Meta(description="of both arms, until the last need is met; null: no rate")]
    minutes: Annotated[float | None, Meta(description="null where none of a kind came, or too many rows lack a metric")]


class Exemplar(msgspec.Struct, frozen=True, kw_only=True):
    """One of the worst events of a metric in the canary."""

    event_id: str
    value: float
    partition: int
    offset: int


class OperationBy(msgspec.Struct, frozen=True, kw_only=True):
    """The action that a decision carries out: an operator's, or what a revision of the manifest says of its flag."""

    kind: Literal["kill", "rearm", "pause", "resume", "promote", "retire"]
    ts: Annotated[int, Meta(description="when it was ordered, ms; of a revision: when it takes effect")]
    actor: Annotated[str, Meta(description="who; of a revision: the key that signed it")]
    reason: Annotated[str, Meta(description="why")]


class ChangeFreeze(msgspec.Struct, frozen=True, kw_only=True):
    """The freeze window that holds a promote back."""

    start: Annotated[int, Meta(description="ms")]
    end: Annotated[int, Meta(description="ms, exclusive")]
    reason: Annotated[str, Meta(description="why")]
    by: Annotated[str | None, Meta(description="who")] = None


class SourceRange(msgspec.Struct, frozen=True, kw_only=True):
    """First and last offset of the unit's events in the window."""

    topic: str
    partition: int
    first: Annotated[int, Meta(description="offset")]
    last: Annotated[int, Meta(description="offset, inclusive")]


class Engine(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of the engine that the numbers depend on."""

    pane_ms: int
    lateness_ms: int
    sketch: Annotated[str, Meta(description="the quantile sketch and its version")]


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """A decision for one (flag, region) and every number it rests on.

    Topic ``tidegate.decisions``, keyed ``flag|region``.
    """

    schema: Literal["tidegate.decision/1"] = "tidegate.decision/1"
    decision_id: Annotated[
        str,
        Meta(description="over {flag, region, manifest_hash, stage, start, end, decided_at, verdict}"),
    ] = ""
    flag: str
    region: Annotated[str, Meta(description="empty where the telemetry names none")]
    kind: Annotated[str, Meta(description="the flag's kind")]
    verdict: Verdict
    reasons: Annotated[
        list[str],
        Meta(
            description="gate ids, rule kinds, problem names, all_gates_pass, hold_windows, latched, change_freeze, "
            "patience, paused, kill, rearm, pause, resume, promote, retire, manifest_revision; of guards hysteresis, "
            "reason_status, reason_steps_pass"
        ),
    ]
    window: Span
    decided_at: Annotated[int, Meta(description="event time, ms")]
    stage: Stage
    evidence: Annotated[EvidenceSpan | None, Meta(description="of sequential evidence; null: the window alone")] = None
    gates: list[GateResult]
    abort_rules: Annotated[list[RuleResult], Meta(description="fired or not")]
    evidence_problems: list[Problem]
    arms: Annotated[dict[str, ArmSummary], Meta(description="canary and baseline")]
    late: Annotated[int, Meta(description="late events of this unit")]
    duplicates: Annotated[int, Meta(description="events dropped as repeats")]
    dead_letters: Annotated[int, Meta(description="records that were no events")]
    warnings: list[Warning]
    relaxed: Annotated[list[str], Meta(description="gates and rules looser than the page's")]
    forecast: Annotated[Forecast | None, Meta(description="for a hold that waits for evidence")] = None
    exemplars: Annotated[
        dict[str, list[Exemplar]], Meta(description="the three worst events by failed gate and fired rule")
    ] = msgspec.field(default_factory=dict)
    change_freeze: Annotated[ChangeFreeze | None, Meta(description="set where it alone blocks a promote")] = None
    operation: Annotated[
        OperationBy | None, Meta(description="the action behind it, of a promote only where an operator gave it")
    ] = None
    source: list[SourceRange]
    manifest_hash: str
    versions: Annotated[dict[str, dict[str, str]], Meta(description="the pins that each arm is held to")]
    engine: Engine
    previous_hash: Annotated[
        str | None, Meta(description="`hash` of the unit's decision before; null for the first")
    ] = None
    hash: Annotated[str, Meta(description="over the record without this field")] = ""

    @property
    def key(self) -> str:
        """The record key: ``flag|region``."""
        return f"{self.flag}|{self.region}"

    def to_bytes(self) -> bytes:
        """Return the record's value."""
        return canonical(msgspec.to_builtins(self))


class Weights(msgspec.Struct, frozen=True, kw_only=True):
    """Shares of traffic; they sum to 1."""

    baseline: float
    canary: float


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """A change that a router or flag server has to apply; drop repeats by ``command_id``.

    Topic ``tidegate.control``, keyed ``flag|region``, compacted.
    """

    schema: Literal["tidegate.command/1"] = "tidegate.command/1"
    command_id: Annotated[Sha256, Meta(description="over {decision_id, action}")]
    seq: Annotated[int, Meta(ge=1, description="counts per flag and region")]
    flag: str
    region: Annotated[str, Meta(description="empty where the telemetry names none")]
    action: Action
    severity: Annotated[
        Severity | None,
        Meta(description="hard: abort, kill; soft: freeze, a second strike; else null"),
    ]
    weights: Annotated[Weights, Meta(description="to serve from `effective_from` on")]
    previous_weights: Weights
    effective_from: Annotated[int, Meta(description="event time, ms")]
    reasons: Annotated[list[str], Meta(description="the decision's")]
    rule: Annotated[str | None, Meta(description="kind of the first fired rule")]
    decision_id: Sha256
    manifest_hash: Sha256

    @property
    def key(self) -> str:
        """The record key: ``flag|region``."""
        return f"{self.flag}|{self.region}"

    def to_bytes(self) -> bytes:
        """Return the record's value."""
        return canonical(msgspec.to_builtins(self))


def decision_id_of(decision: Decision) -> str:
    """Return the id that a decision has by what it says."""
    return sha256_of(
        {
            "flag": decision.flag,
            "region": decision.region,
            "manifest_hash": decision.manifest_hash,
            "stage": decision.stage.index,
            "start": decision.window.start,
            "end": decision.window.end,
            "decided_at": decision.decided_at,
            "verdict": decision.verdict,
        }
    )


def seal_decision(decision: Decision, previous_hash: str | None) -> Decision:
    """Return the decision with its id, its place in the chain and its hash filled in.

    Raises ValueError for a number that is not finite.
    """
    fields = msgspec.to_builtins(decision) | {
        "decision_id": decision_id_of(decision),
        "previous_hash": previous_hash,
    }
    del fields["hash"]
    return msgspec.structs.replace(
        decision,
        decision_id=fields["decision_id"],
        previous_hash=previous_hash,
        hash=sha256_of(fields),
    )


def command_for(
    decision: Decision,
    *,
    seq: int,
    action: Action,
    severity: Severity | None,
    weights: Weights,
    previous_weights: Weights,
    effective_from: int,
    rule: str | None,
) -> Command:
    """Return the command that carries out a sealed decision."""
    return Command(
        command_id=sha256_of({"decision_id": decision.decision_id, "action": action}),
        seq=seq,
        flag=decision.flag,
        region=decision.region,
        action=action,
        severity=severity,
        weights=weights,
        previous_weights=previous_weights,
        effective_from=effective_from,
        reasons=decision.reasons,
        rule=rule,
        decision_id=decision.decision_id,
        manifest_hash=decision.manifest_hash,
    )


R = TypeVar("R", bound=msgspec.Struct)


def record_from_bytes(value: bytes, kind: type[R]) -> R:
    """Read a record; unknown fields are passed over. Raises EventError if it is none."""
    try:
        return msgspec.json.decode(value, type=kind)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise EventError(f"not a {kind.__name__.lower()}: {error}") from None
    except RecursionError:
        raise EventError(f"not a {kind.__name__.lower()}: nested too deeply") from None


def decision_from_bytes(value: bytes) -> Decision:
    """Read a decision record; unknown fields are passed over. Raises EventError if it is none."""
    return record_from_bytes(value, Decision)


def command_from_bytes(value: bytes) -> Command:
    """Read a command record; unknown fields are passed over. Raises EventError if it is none."""
    return record_from_bytes(value, Command)
