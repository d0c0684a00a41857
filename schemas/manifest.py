"""The flag manifest: its keys, their bounds and defaults, and the flags that they resolve to.

Every default is the page's ("Feature Flags and Safe Launch").
"""

import json
import math
import unicodedata
from collections.abc import Mapping
from datetime import datetime
from functools import cached_property
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    Strict,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)

from tidegate.schemas.canonical import sha256_of
from tidegate.schemas.document import kind_of, quoted
from tidegate.schemas.duration import UNIT_MS, fault, parse_duration
from tidegate.schemas.event import PINS

FlagKind = Literal["kill_switch", "progressive_rollout", "quality_gated", "safety_guard", "cost_guard"]
HardKind = Literal["delta_s_p95_over", "coverage_under", "lambda_flip_rate_over", "error_rate_over"]
SoftKind = Literal["latency_p95_over_budget", "cost_per_solved_over_budget"]

DEFAULT_STAGES = (0.05, 0.25, 0.50, 1.0)
KINDS = {"hard": get_args(HardKind), "soft": get_args(SoftKind)}
SLACK = 1e-9
"""Weights may be this far from summing to 1, for floating point."""


LESS_IS_LOOSER = frozenset(("coverage_min", "tool_success_min", "coverage_under"))
GATE_OF_RULE = {
    "delta_s_p95_over": "delta_s.p95_max",
    "coverage_under": "coverage_min",
    "error_rate_over": "error_rate_max",
    "latency_p95_over_budget": "latency_p95_uplift_max",
    "cost_per_solved_over_budget": "cost_uplift_max",
}
"""The gate that a rule's value is measured against; the flip rate has none."""


def parse_instant(text: object) -> int:
    """Milliseconds since the epoch of an ISO 8601 time with its offset from UTC. Raises ValueError with the way out."""
    try:
        when = datetime.fromisoformat(text) if isinstance(text, str) else text
    except ValueError:
        when = None
    if not isinstance(when, datetime) or when.tzinfo is None:
        raise fault(f"{kind_of(text)} is not a time with its offset from UTC", "write it like 2026-12-24T00:00:00Z")
    return round(when.timestamp() * 1000)


def _flag_name(name: str) -> str:
    bad = [c for c in name if c == "|" or unicodedata.category(c) in ("Cc", "Zl", "Zp")]
    if bad or not name.strip():
        what = f"has {json.dumps(bad[0])} in it" if bad else "is blank"
        raise fault(f"this flag name {what}", "rename the flag: text without `|` and control characters")
    return name


def _delta_s_off(value: object) -> object:
    return {"median_max": None, "p95_max": None} if value is None else value


def _null_is_false(value: object) -> object:
    return False if value is None else value


def _off_is_none(value: object) -> object:
    return None if value is False or value == "off" else value


def _looser(name: str, value: float, than: float) -> bool:
    return value < than if name in LESS_IS_LOOSER else value > than


def _no_duplicates(ids: tuple[str, ...]) -> tuple[str, ...]:
    for i, one in enumerate(ids):
        if one in ids[:i]:
            raise fault(f"{quoted(one)} is listed twice", "remove one", i)
    if "all" in ids and len(ids) > 1:
        raise fault('"all" stands beside other ids', 'keep either ["all"] or the ids')
    return ids


Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Share = Annotated[Number, Field(ge=0, le=1)]
Drift = Annotated[Number, Field(ge=0, le=2)]
Uplift = Annotated[Number, Field(ge=0)]
Chance = Annotated[Number, Field(gt=0, le=0.5)]
PositiveCount = Annotated[int, Strict(), Field(ge=1, le=1_000_000_000)]
Bool = Annotated[bool, Strict()]
FilledText = Annotated[str, Strict(), Field(min_length=1)]
DistinctTexts = Annotated[tuple[FilledText, ...], Field(min_length=1), AfterValidator(_no_duplicates)]
Duration = Annotated[
    int,
    BeforeValidator(parse_duration),
    WithJsonSchema({"type": "string", "pattern": "^[0-9]+(ms|s|m|h|d)$"}),
]


Instant = Annotated[
    int,
    BeforeValidator(parse_instant),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Scope(Part):
    """The traffic that the flag covers; ``("all",)`` is everything."""

    tenants: DistinctTexts = ("all",)
    regions: DistinctTexts = ("all",)
    """Each region is a unit of its own, staged on its own."""
    endpoints: DistinctTexts = ("all",)
    cohorts: DistinctTexts = ("all",)
    surfaces: DistinctTexts = ("all",)


class Traffic(Part):
    """The ramp: the canary's weight, stage by stage."""

    baseline_weight: Share = Field(0.95, exclude=True)
    """1 - canary_weight."""
    canary_weight: Share = Field(0.05, exclude=True)
    """The first stage."""
    stages: tuple[Share, ...] = Field((), min_length=1)
    """Rising from canary_weight; left out: canary_weight, then the larger of 0.05, 0.25, 0.5, 1."""
    shadow: Bool = False
    """A stage of canary weight 0 comes first, judged on shadow rows."""

    @model_validator(mode="after")
    def _one_ramp(self) -> "Traffic":
        given = self.model_fields_set
        canary, baseline = self.canary_weight, self.baseline_weight
        if "canary_weight" not in given:
            # 12 digits, so that 1 - 0.95 is the 0.05 that its author meant.
            rest = round(1 - baseline, 12)
            canary = rest if "baseline_weight" in given else (*self.stages, canary)[0]
        elif "baseline_weight" in given and abs(canary + baseline - 1) > SLACK:
            raise fault(
                f"the weights {baseline:.10g} and {canary:.10g} sum to {canary + baseline:.10g}, not 1",
                f"write canary_weight: {1 - baseline:.10g}, or leave one of the two out",
                "canary_weight",
            )
        stages = self.stages or (canary, *(stage for stage in DEFAULT_STAGES if stage > canary))
        if abs(stages[0] - canary) > SLACK:
            raise fault(
                f"the first stage is {stages[0]:.10g}, but canary_weight is {canary:.10g}",
                f"start the stages at {canary:.10g} or change the weights",
                "stages",
                0,
            )
        for i in range(1, len(stages)):
            if stages[i] <= stages[i - 1]:
                raise fault(
                    f"stage {stages[i]:.10g} is not above the one before it, {stages[i - 1]:.10g}",
                    "list the stages in rising order",
                    "stages",
                    i,
                )
        baseline = round(1 - stages[0], 12)
        return self.model_copy(update={"canary_weight": stages[0], "baseline_weight": baseline, "stages": stages})


class Window(Part):
    """The evaluation window."""

    length_ms: Duration = Field(900_000, alias="length", json_schema_extra={"default": "15m"})
    """A whole number of panes."""
    settle_ms: Duration = Field(10_000, alias="settle", json_schema_extra={"default": "10s"})
    """Time that a new stage settles before its first window."""
    hold_windows: PositiveCount = 1
    """Green windows in a row that a stage needs before the next."""
    min_requests: PositiveCount = 20
    """Rows in either arm below which a gate is unknown."""
    min_lambda_groups: PositiveCount = 1
    """Complete probe groups (events, with lambda_source traffic) below which λ is unknown."""
    late_max: Share = 0.01
    """Share of late events above which the window is unstable."""

    @model_validator(mode="after")
    def _whole_panes(self, info: ValidationInfo) -> "Window":
        pane_ms = (info.context or {}).get("pane_ms", 1)
        if self.length_ms < pane_ms or self.length_ms % pane_ms:
            panes = max(1, -(-self.length_ms // pane_ms))
            problem = f"the window is not a multiple of the pane, {_duration(pane_ms)}"
            raise fault(problem, f"write length: {_duration(panes * pane_ms)}", "length")
        return self


class DeltaS(Part):
    """ΔS drift of the canary against the baseline."""

    median_max: Drift | None = 0.03
    p95_max: Drift | None = 0.10


class Gates(Part):
    """Limits that must hold to graduate; a gate left out has the page's limit, null turns it off."""

    delta_s: Annotated[DeltaS, BeforeValidator(_delta_s_off, json_schema_input_type=DeltaS | None)] = DeltaS()
    coverage_min: Share | None = 0.70
    lambda_convergent: Annotated[Bool, BeforeValidator(_null_is_false, json_schema_input_type=bool | None)] = True
    latency_p95_uplift_max: Uplift | None = 0.15
    error_rate_max: Share | None = 0.005
    tool_success_min: Share | None = 0.99
    cost_uplift_max: Uplift | None = 0.10

    def limits(self) -> dict[str, float | bool | None]:
        """Limits by gate id, the YAML path under ``gates``, in the page's order.

        None or False is off.
        """
        return {
            "delta_s.median_max": self.delta_s.median_max,
            "delta_s.p95_max": self.delta_s.p95_max,
            **{name: value for name, value in self if name != "delta_s"},
        }


class HardRule(Part):
    """Aborts as soon as it fires."""

    kind: HardKind
    value: Number

    @model_validator(mode="after")
    def _in_range(self) -> "HardRule":
        top = 2 if self.kind == "delta_s_p95_over" else 1
        if not 0 <= self.value <= top:
            raise fault(f"{self.value:.10g} is out of range", f"write a value from 0 to {top}", "value")
        return self


class SoftRule(Part):
    """Freezes the ramp; a second strike rolls back."""

    kind: SoftKind
    value: Uplift | None = None
    """Left out: the gate's limit; None once resolved if that gate is off."""


Rule = HardRule | SoftRule


class AbortRules(Part):
    """When the ramp stops; a list left out is the page's, an empty one is none."""

    hard: tuple[HardRule, ...] = (
        HardRule(kind="delta_s_p95_over", value=0.15),
        HardRule(kind="coverage_under", value=0.60),
        HardRule(kind="lambda_flip_rate_over", value=0.20),
        HardRule(kind="error_rate_over", value=0.01),
    )
    soft: tuple[SoftRule, ...] = tuple(SoftRule(kind=kind) for kind in get_args(SoftKind))

    @model_validator(mode="after")
    def _no_repeats(self) -> "AbortRules":
        for severity, rules in self:
            kinds = [rule.kind for rule in rules]
            for i, kind in enumerate(kinds):
                if kind in kinds[:i]:
                    raise fault(f"a second rule {kind}", "keep one rule of a kind", severity, i, "kind")
        return self


class QualityGain(Part):
    """When a failed cost gate is waived: how dear it may be, and what quality must have gained."""

    max_cost_uplift: Uplift = 0.30
    delta_s_median_gain: Drift = 0.03
    coverage_gain: Share = 0.05


def _not_null(value: object) -> object:
    if value is None:
        raise fault("nothing stands here", "write a number, or leave it out")
    return value


# Numbers that have their default from elsewhere in the manifest: left out, not null.
WorseShare = Annotated[Share | None, BeforeValidator(_not_null, json_schema_input_type=Share)]
WorseDrift = Annotated[Drift | None, BeforeValidator(_not_null, json_schema_input_type=Drift)]
WorseUplift = Annotated[Uplift | None, BeforeValidator(_not_null, json_schema_input_type=Uplift)]


class RuleOut(Part):
    """From which value on a canary is intolerable: to pass a gate, its bound has to exclude that value.

    Left out: the value of the gate's hard rule, or where there is none twice the limit's distance from the ideal.
    """

    error_rate: WorseShare = None
    delta_s_p95: WorseDrift = None
    coverage: WorseShare = None
    lambda_flip_rate: WorseShare = None
    delta_s_median: WorseDrift = None
    latency_p95_uplift: WorseUplift = None
    cost_uplift: WorseUplift = None
    tool_success: WorseShare = None


class Intolerable(NamedTuple):
    """The scale of a value to rule out: its gate, that gate's hard rule, and the worst value there is."""

    gate: str
    hard: HardKind | None
    worst: float


RULED_OUT: Mapping[str, Intolerable] = {
    "error_rate": Intolerable("error_rate_max", "error_rate_over", 1),
    "delta_s_p95": Intolerable("delta_s.p95_max", "delta_s_p95_over", 2),
    "coverage": Intolerable("coverage_min", "coverage_under", 0),
    "lambda_flip_rate": Intolerable("lambda_convergent", "lambda_flip_rate_over", 1),
    "delta_s_median": Intolerable("delta_s.median_max", None, 2),
    "latency_p95_uplift": Intolerable("latency_p95_uplift_max", None, math.inf),
    "cost_uplift": Intolerable("cost_uplift_max", None, math.inf),
    "tool_success": Intolerable("tool_success_min", None, 0),
}
"""By key of ``policy.rule_out``."""


class Policy(Part):
    """Choices of judgement that the page leaves open."""

    on_gate_fail: Literal["rollback", "hold"] = "rollback"
    on_pin_drift: Literal["hold", "abort"] = "hold"
    quality_gain: Annotated[
        QualityGain | None,
        BeforeValidator(_off_is_none, json_schema_input_type=QualityGain | Literal[False, "off"] | None),
    ] = QualityGain()
    quality_source: Literal["gold_if_present", "gold", "traffic"] = "gold_if_present"
    lambda_source: Literal["probes", "traffic"] = "probes"
    sticky_violations_max: Annotated[int, Strict(), Field(ge=0, le=1_000_000_000)] = 0
    sticky_violation_share_max: Share = 0.001
    evidence: Literal["sequential", "point"] = "sequential"
    """sequential: a stage goes on until its evidence settles every gate; point: each window is judged by itself."""
    false_stop: Chance = 0.05
    """Chance that a canary at or within all limits is ever stopped, in the whole rollout (point: within a window)."""
    wrong_promote: Chance = 0.05
    """Chance that a canary at a value to rule out passes that gate in a stage."""
    design_effect: Annotated[Number, Field(ge=1, le=1_000_000)] = 1.0
    """Number of requests that are worth one independent request, where those of one user resemble each other."""
    rule_out: RuleOut = RuleOut()
    patience_ms: Duration = Field(604_800_000, alias="patience", json_schema_extra={"default": "7d"})
    """After how long in one stage its holds say so."""
    early_abort_alpha: Annotated[Chance, Field(exclude=True, deprecated=True)] = 0.05
    """The old name of false_stop."""
    assignment: Literal["reported", "sha256"] = "reported"
    """sha256: the arm must follow from the sticky id."""

    @model_validator(mode="after")
    def _one_name(self) -> "Policy":
        if "early_abort_alpha" not in self.model_fields_set:
            return self
        if "false_stop" in self.model_fields_set:
            raise fault("this is the old name of false_stop, which is written too", "keep one", "early_abort_alpha")
        return self.model_copy(update={"false_stop": self.__dict__["early_abort_alpha"]})


class Flag(Part):
    """One flag; what is left out has the page's value, or ours where the page is silent."""

    kind: FlagKind = "progressive_rollout"
    scope: Scope = Scope()
    versions: dict[FilledText, FilledText] = {}
    """The canary's pins."""
    baseline_versions: dict[FilledText, FilledText] = {}
    """The baseline's pins; left out: locked from the unit's first baseline event."""
    traffic: Traffic = Field(default={}, validate_default=True)
    window: Window = Field(default={}, validate_default=True)
    gates: Gates = Gates()
    abort_rules: AbortRules = AbortRules()
    policy: Policy = Field(default={}, validate_default=True)

    _name: str = PrivateAttr("")
    _freeze_windows: "tuple[FreezeWindow, ...]" = PrivateAttr(())

    @model_validator(mode="before")
    @classmethod
    def _without_a_ramp(cls, written: Any) -> Any:
        """Check that a kill switch is on or off: one weight, 1 if none is written, and no stages after it."""
        traffic = written.get("traffic", {}) if isinstance(written, Mapping) else None
        if not isinstance(traffic, Mapping) or written.get("kind") != "kill_switch" or "stages" in traffic:
            return written
        weight, rest = traffic.get("canary_weight", 1.0), traffic.get("baseline_weight")
        if "canary_weight" not in traffic and isinstance(rest, int | float):
            weight = round(1 - rest, 12)
        return {**written, "traffic": {**traffic, "stages": [weight]}}

    @model_validator(mode="after")
    def _consistent(self) -> "Flag":
        if self.traffic.stages[0] == 0 and self.kind != "kill_switch":
            raise fault(
                "a canary weight of 0 shows nothing",
                "start above 0; traffic.shadow: true adds a stage at 0 before it",
                "traffic",
                "canary_weight",
            )
        if self.traffic.stages[0] >= 1 and self.kind == "quality_gated":
            raise fault(
                "a quality gate at weight 1 leaves no traffic for a baseline, so it would open and close forever",
                "write less than 1",
                "traffic",
                "canary_weight",
            )
        self._check_hard_rules()
        policy = self.policy.model_copy(update={"rule_out": self._resolved_rule_out()})
        return self.model_copy(update={"abort_rules": self._resolved_rules(), "policy": policy})

    def _resolved_rule_out(self) -> RuleOut:
        """Return the values to rule out, defaults filled in; None where nothing is worse than the limit."""
        limits, rules = self.gates.limits(), {rule.kind: rule.value for rule in self.abort_rules.hard}
        found: dict[str, float | None] = {}
        for key, about in RULED_OUT.items():
            limit, given = _numeric(limits[about.gate]), getattr(self.policy.rule_out, key)
            if given is not None and limit is not None and not _looser(about.gate, given, limit):
                worse, than = ("below" if about.gate in LESS_IS_LOOSER else "above"), f"{about.gate} {limit:.10g}"
                problem = f"{given:.10g} is not worse than its gate's limit, {than}"
                raise fault(problem, f"write a number {worse} {limit:.10g}", "policy", "rule_out", key)
            found[key] = given if given is not None else _default_rule_out(about, limit, rules)
        return self.policy.rule_out.model_copy(update=found)

    def _check_hard_rules(self) -> None:
        limits = self.gates.limits()
        for i, rule in enumerate(self.abort_rules.hard):
            gate = GATE_OF_RULE.get(rule.kind)
            limit = limits[gate] if gate else None
            if gate is None or limit is None or not _looser(gate, limit, rule.value):
                continue
            way = "at most" if gate in LESS_IS_LOOSER else "at least"
            fix = f"set {rule.kind} to {way} {limit:.10g} in abort_rules.hard, or change the gate"
            if "hard" in self.abort_rules.model_fields_set:
                problem = f"the hard limit {rule.value:.10g} is stricter than its gate, {gate} {limit:.10g}"
                raise fault(problem, fix, "abort_rules", "hard", i, "value")
            problem = f"the gate's {limit:.10g} is looser than the page's {rule.kind} {rule.value:.10g}"
            raise fault(problem, fix, "gates", *gate.split("."))

    def _resolved_rules(self) -> AbortRules:
        """Return the abort rules with each soft rule's value filled in from its gate."""
        limits = self.gates.limits()
        soft = []
        for i, rule in enumerate(self.abort_rules.soft):
            limit = limits[GATE_OF_RULE[rule.kind]]
            if rule.value is None:
                rule = rule.model_copy(update={"value": limit})
            elif limit is not None and rule.value < limit:
                problem = f"{rule.value:.10g} is below its gate's limit, {limit:.10g}"
                fix = f"write at least {limit:.10g}, or leave value out"
                raise fault(problem, fix, "abort_rules", "soft", i, "value")
            soft.append(rule)
        return self.abort_rules.model_copy(update={"soft": tuple(soft)})

    @property
    def name(self) -> str:
        """The flag's key in the manifest."""
        return self._name

    def resolved(self) -> dict[str, Any]:
        """Return the flag as JSON builtins: defaults spelled out, durations in ms, without the manifest's freezes."""
        resolved = {"name": self._name, **self.model_dump(mode="json")}
        rule_out = resolved["policy"]["rule_out"]
        resolved["policy"]["rule_out"] = {key: value for key, value in rule_out.items() if value is not None}
        return resolved

    @classmethod
    def from_resolved(cls, resolved: Mapping[str, Any]) -> "Flag":
        """Return the flag that ``resolved()`` gave. Raises ValueError if it is none."""
        flag = cls.model_validate(_unresolved({key: value for key, value in resolved.items() if key != "name"}))
        flag._name = resolved["name"]
        return flag

    @property
    def ramp_stages(self) -> tuple[float, ...]:
        """The canary's weight by stage, the shadow stage at 0 included."""
        shadow = self.traffic.shadow and self.kind == "progressive_rollout"
        return (0.0, *self.traffic.stages) if shadow else self.traffic.stages

    def frozen_at(self, ts: int) -> "FreezeWindow | None":
        """Return the freeze window that ``ts`` ms lies in."""
        return next((window for window in self._freeze_windows if window.start <= ts < window.end), None)

    @cached_property
    def manifest_hash(self) -> str:
        """SHA-256 over the canonical JSON of ``resolved()``: a new change freeze starts no rollout over."""
        return sha256_of(self.resolved())

    @cached_property
    def relaxed(self) -> tuple[str, ...]:
        """Ids, sorted, of gates and abort rules that are off, missing or looser than the page's."""
        mine, page = _strictness(self), _strictness(PAGE)
        looser = (name for name, limit in page.items() if name not in mine or _looser(name, mine[name], limit))
        return tuple(sorted(looser))

    @cached_property
    def unpinned(self) -> tuple[str, ...]:
        """The pins, of the six, that ``versions`` does not name."""
        return tuple(pin for pin in PINS if pin not in self.versions)


def _unresolved(value: Any) -> Any:
    """Return a resolved flag as a manifest writes it: under its keys there, durations with their unit."""
    if not isinstance(value, Mapping):
        return value
    return {
        key.removesuffix("_ms"): f"{one}ms" if key.endswith("_ms") else _unresolved(one) for key, one in value.items()
    }


def _numeric(limit: float | bool | None) -> float | None:
    """Return a gate's limit; of λ, which has no number, the flip rate 0; None: the gate is off."""
    if isinstance(limit, bool):
        return 0.0 if limit else None
    return limit


def _default_rule_out(about: Intolerable, limit: float | None, rules: Mapping[HardKind, float]) -> float | None:
    """Return the first that is worse than the limit: the hard rule's value, twice the distance, the page's value."""
    if limit is None:
        return None
    page = _numeric(Gates().limits()[about.gate])
    page_rules = {rule.kind: rule.value for rule in AbortRules().hard}
    values = [rules.get(about.hard), _doubled(about, limit)] if about.hard else [_doubled(about, limit)]
    values.append(page_rules[about.hard] if about.hard else _doubled(about, page or 0.0))
    return next((value for value in values if value is not None and _looser(about.gate, value, limit)), None)


def _doubled(about: Intolerable, limit: float) -> float:
    if about.gate in LESS_IS_LOOSER:
        return max(round(2 * limit - 1, 12), about.worst)
    return min(round(2 * limit, 12), about.worst)


def _strictness(flag: Flag) -> dict[str, float]:
    """Return the limit of every gate and rule that is on."""
    rules: tuple[Rule, ...] = (*flag.abort_rules.hard, *flag.abort_rules.soft)
    limits = flag.gates.limits() | {rule.kind: rule.value for rule in rules}
    return {name: limit for name, limit in limits.items() if limit is not None and limit is not False}


PAGE = Flag.model_validate({})
"""A flag with nothing written: the page's targets and rules."""


class FreezeWindow(Part):
    """A time in which nothing is promoted: aborts, rollbacks and kills go on."""

    start: Annotated[Instant, Field(alias="from")]
    """ISO 8601 with its offset from UTC, such as 2026-12-24T00:00:00Z."""
    end: Annotated[Instant, Field(alias="to")]
    """Exclusive."""
    reason: FilledText
    by: FilledText | None = None
    """The person or team that decided it."""

    @model_validator(mode="after")
    def _forward(self) -> "FreezeWindow":
        if self.end <= self.start:
            raise fault("it ends before it starts", "write a later time", "to")
        return self


class Manifest(Part):
    """A manifest file: flags by name, in file order."""

    freeze_windows: tuple[FreezeWindow, ...] = ()
    """When nothing is promoted, for all flags."""
    flags: Annotated[Mapping[Annotated[str, AfterValidator(_flag_name)], Flag], Field(min_length=1)]

    @model_validator(mode="after")
    def _named(self) -> "Manifest":
        for name, flag in self.flags.items():
            flag._name, flag._freeze_windows = name, self.freeze_windows
        return self


def _duration(ms: int) -> str:
    """Return the shortest way to write a duration in the manifest."""
    units = reversed(UNIT_MS.items())
    return next(f"{ms // size}{unit}" for unit, size in units if ms % size == 0)
