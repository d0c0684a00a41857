"""One unit's state: a (flag, region), staged on its own, window by window."""

from dataclasses import dataclass
from typing import Any

import msgspec

from gates.sums import IdSample
from gates.window import Arm, Window
from schemas.decision import Problem, Verdict
from schemas.manifest import Flag

GUARDS = ("cost_guard", "safety_guard")
ASLEEP_AFTER = 1000
"""Windows in a row without an event after which a unit is decided no more until one comes."""


@dataclass(frozen=True)
class Clockwork:
    """What all units share: the length of a pane and the lateness, ms, and the name of the source topic."""

    pane_ms: int
    lateness_ms: int
    topic: str

    def stage_start(self, window_end: int, settle_ms: int) -> int:
        """When a stage promoted at ``window_end`` takes effect: after lateness and settling, on a pane."""
        return -(-(window_end + self.lateness_ms + settle_ms) // self.pane_ms) * self.pane_ms


class Pinned(msgspec.Struct, array_like=True):
    """The baseline of the last window before 100 %, with the decision that promoted on it."""

    arm: Arm
    start: int
    end: int
    hash: str


class Closed(msgspec.Struct, array_like=True):
    """The last window that was decided, with what its verdict rested on, to judge it again with its late events.

    ``told``: the verdict as it was last said, ``seen``: the late events it has been judged with.
    """

    window: Window
    decision_id: str
    hash: str
    verdict: Verdict
    reasons: list[str]
    problems: list[Problem]
    stage: int
    number: int
    green: int
    strike: bool
    engaged: bool
    pinned: Pinned | None
    told: Verdict
    seen: int = 0


def _no_ids() -> dict[str, IdSample]:
    return {"baseline": IdSample(), "canary": IdSample()}


class Unit(msgspec.Struct, array_like=True):
    """Everything that a unit remembers from pane to pane.

    ``weight``: the canary's, as last commanded. ``number``: windows since the rollout began, from 1, for the shares of
    alpha. ``green``: windows in a row that were fit to promote. ``strike``: a first freeze counts until the next green
    window. ``settling``: ``window`` is the span between a promote and the new stage, judged by the abort rules alone.
    ``cut``: the window was ended early by an abort. ``engaged``: a quality gate is open, a guard has stepped in.
    ``idle``: windows in a row without an event. ``exposed``: ids that an assignment was ever reported for.
    ``odds``: of the sample-ratio test over finished stages. ``ratio``: what the test found in this stage.
    ``rate_limited``: the canary's share of 429s when the last stage ended. ``last_window``: the last one decided.
    ``moving_until``: weights changed within a window, and ids may move between the arms in panes that end by then, ms.
    ``hashes``: rows of the window before by manifest hash. ``closed``: the last window, while late events may correct
    it: until the next one is decided.
    """

    region: str
    manifest_hash: str
    window: Window
    weight: float
    locked: dict[str, dict[str, str]]
    stage: int = 0
    number: int = 1
    settling: bool = False
    green: int = 0
    strike: bool = False
    latched: bool = False
    cut: bool = False
    engaged: bool = False
    idle: int = 0
    seq: int = 0
    previous_hash: str | None = None
    stage_ids: dict[str, IdSample] = msgspec.field(default_factory=_no_ids)
    earlier_canary: IdSample = msgspec.field(default_factory=IdSample)
    exposed: IdSample = msgspec.field(default_factory=IdSample)
    odds: float = 0.0
    ratio: dict[str, Any] | None = None
    rate_limited: float | None = None
    last_window: tuple[int, int] | None = None
    pinned: Pinned | None = None
    moving_until: int = 0
    hashes: dict[str, int] = msgspec.field(default_factory=dict)
    closed: Closed | None = None

    @property
    def asleep(self) -> bool:
        """Whether the unit waits for an event: its windows stand still."""
        return self.idle >= ASLEEP_AFTER

    def restart(self) -> None:
        """Back to the first stage of a new rollout, on the same windows and the same chain of records."""
        self.stage, self.number, self.green, self.odds = 0, 1, 0, 0.0
        self.settling = self.strike = self.latched = self.engaged = False
        self.ratio = self.rate_limited = self.pinned = None
        self.earlier_canary = IdSample()
        self.forget_ids()

    def forget_ids(self) -> None:
        """Follow sticky ids from the start, as in a new stage."""
        self.stage_ids = _no_ids()

    def turn(self, start: int, end: int) -> None:
        """Go over to a new window."""
        self.hashes = self.window.detail.hashes
        self.window = Window(start, end)


def begin(flag: Flag, region: str, start: int, before: Unit | None = None) -> Unit:
    """A unit at its first stage, its first window starting at ``start``, ms.

    ``before`` is the unit under an earlier revision of the manifest: its chain of records goes on, and a guard that
    had stepped in stays in until it has seen a clean window.
    """
    return Unit(
        region=region,
        manifest_hash=flag.manifest_hash,
        window=Window(start, start + flag.window.length_ms),
        weight=before.weight if before else first_weight(flag),
        engaged=before.engaged if before else False,
        locked={"baseline": dict(flag.baseline_versions), "canary": dict(flag.versions)},
        seq=before.seq if before else 0,
        previous_hash=before.previous_hash if before else None,
        last_window=before.last_window if before else None,
    )


def dormant(flag: Flag, region: str, before: Unit | None = None) -> Unit:
    """A unit that no event has reached yet: it sleeps until its first one."""
    unit = begin(flag, region, 0, before)
    unit.idle = ASLEEP_AFTER
    return unit


def first_weight(flag: Flag) -> float:
    """The canary's weight before any command: a quality gate starts closed."""
    return 0.0 if flag.kind == "quality_gated" else flag.ramp_stages[0]
