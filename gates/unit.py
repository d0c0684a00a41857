"""One unit's state: a (flag, region), staged on its own, window by window."""

import msgspec

from tidegate.gates.assignments import Assignments
from tidegate.gates.labels import RequestIds
from tidegate.gates.samples import IdSample
from tidegate.gates.stage import StageEvidence
from tidegate.gates.window import Arm, UnitWindow
from tidegate.schemas.catalogue import engaged_under
from tidegate.schemas.clockwork import Clockwork
from tidegate.schemas.decision import Problem, Verdict
from tidegate.schemas.manifest import Flag

ASLEEP_AFTER = 1000
"""Windows in a row without an event after which a unit is decided no more until one comes."""


class Pinned(msgspec.Struct, array_like=True):
    """The baseline of the last window, or all evidence, before 100 %, with the decision that promoted on it."""

    arm: Arm
    start: int
    end: int
    hash: str


class Closed(msgspec.Struct, array_like=True):
    """The last window that was decided, with what its verdict rested on, to judge it again with its late events.

    ``told``: the verdict as it was last said, ``seen``: the late events it has been judged with.
    """

    window: UnitWindow
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
    locked: dict[str, dict[str, str]]
    graduated: bool
    evidence: StageEvidence
    told: Verdict
    seen: int = 0


class Unit(msgspec.Struct, array_like=True):
    """Everything that a unit remembers from pane to pane.

    ``kind``: the flag's. ``weight``: the canary's, as last commanded. ``locked``: by arm, the pins that its requests
    must have; those that the manifest does not name are the first that were seen. ``number``: windows since the
    rollout began, from 1, for the shares of alpha. ``green``: windows in a row that were fit to promote. ``strike``:
    a first freeze counts until the next green window. ``settling``: ``window`` is the span before the next stage or
    the new rollout, judged by the abort rules alone; ``coming`` is the stage that begins after it. ``cut``: the
    window was ended early by an abort. ``graduated``: it has passed at 100 %, and what is compared with the pinned
    baseline only warns from then on. ``engaged``: a quality gate is open, a guard has stepped in. ``idle``: windows
    in a row without an event. ``assignments``: what the span has shown of sticky ids. ``earlier_canary``: ids of the
    canary in stages before. ``exposed``: ids that an assignment was ever reported for. ``rate_limited``: the canary's
    share of 429s when the last stage ended. ``last_window``: the last one decided. ``moving_until``: ids may move
    between the arms in panes that end by then, ms: weights have changed, or services may not have applied the first
    ones yet. ``fresh_from``: an operator or a revision ended all evidence from before then, ms. ``hashes``: rows of
    the window before by manifest hash. ``closed``: the last window, while late events may correct it: until the next
    one is decided. ``retired``: the flag has left the manifest, and that was said. ``evidence``: of the stage's
    windows before this one, where they are judged together. ``requests``: ids of the stage's requests, or of the
    window's where there are no stages; ``earlier``: of the stage before, until late events correct it no more, or of
    the window before. ``paused``: an operator holds promotes, until one lets them go on; nothing else ends that.
    """

    region: str
    kind: str
    manifest_hash: str
    window: UnitWindow
    weight: float
    locked: dict[str, dict[str, str]]
    stage: int = 0
    number: int = 1
    settling: bool = False
    coming: int = 0
    green: int = 0
    strike: bool = False
    latched: bool = False
    cut: bool = False
    graduated: bool = False
    engaged: bool = False
    idle: int = 0
    seq: int = 0
    previous_hash: str | None = None
    assignments: Assignments = msgspec.field(default_factory=Assignments)
    earlier_canary: IdSample = msgspec.field(default_factory=IdSample)
    exposed: IdSample = msgspec.field(default_factory=IdSample)
    rate_limited: float | None = None
    last_window: tuple[int, int] | None = None
    pinned: Pinned | None = None
    moving_until: int = 0
    fresh_from: int = 0
    hashes: dict[str, int] = msgspec.field(default_factory=dict)
    closed: Closed | None = None
    retired: bool = False
    evidence: StageEvidence = msgspec.field(default_factory=StageEvidence)
    requests: RequestIds = msgspec.field(default_factory=RequestIds)
    earlier: RequestIds | None = None
    paused: bool = False

    @property
    def asleep(self) -> bool:
        """True while the unit waits for an event: its windows stand still."""
        return self.idle >= ASLEEP_AFTER

    def restart(self, flag: Flag, at: int, fresh_from: int) -> None:
        """Begin a new rollout of ``flag`` at its first stage, on the same chain of records.

        What was seen up to ``at``, ms, is forgotten, and nothing before ``fresh_from`` is evidence.
        """
        self.stage, self.number, self.green = 0, 1, 0
        self.strike = self.latched = self.engaged = self.cut = self.graduated = False
        self.rate_limited = self.pinned = self.closed = None
        self.evidence = StageEvidence()
        self.earlier_canary = IdSample()
        self.lock(flag)
        self.fresh_from = fresh_from
        if not self.asleep:
            self.start_at(at, flag)

    def lock(self, flag: Flag) -> None:
        """Hold the arms to the manifest's pins, and the others to what is seen first from now on."""
        self.locked = {"baseline": dict(flag.baseline_versions), "canary": dict(flag.versions)}

    def start_at(self, start: int, flag: Flag) -> None:
        """Begin a window at ``start``, ms; or a settling span, where there can be no evidence yet."""
        self.settling = start < self.fresh_from
        self.coming = self.stage
        self.turn(start, self.fresh_from if self.settling else start + flag.window.length_ms)
        self.assignments = Assignments()
        self.requests, self.earlier = RequestIds(start), None

    def follow_anew(self, start: int) -> None:
        """Follow the ids of the requests from ``start``, ms, on by themselves."""
        self.requests, self.earlier = RequestIds(start), self.requests

    def turn(self, start: int, end: int) -> None:
        """Go over to a new window."""
        assert self.window.start <= start <= end, "windows follow each other"
        self.hashes = self.window.detail.hashes
        self.window = UnitWindow(start, end)


def begin(flag: Flag, region: str, start: int, clockwork: Clockwork, before: Unit | None = None) -> Unit:
    """Return a unit at its first stage, its first window starting at ``start``, ms.

    ``before`` is the unit under an earlier revision of the manifest: its chain of records goes on, what ended its
    evidence still does, and a guard that had stepped in stays in until it has seen a clean window.
    """
    unit = Unit(
        region=region,
        kind=flag.kind,
        manifest_hash=flag.manifest_hash,
        window=UnitWindow(start, start),
        weight=before.weight if before else first_weight(flag),
        engaged=bool(before and engaged_under(before.engaged, before.kind, flag.kind, same_manifest=False)),
        locked={},
        seq=before.seq if before else 0,
        previous_hash=before.previous_hash if before else None,
        last_window=before.last_window if before else None,
        exposed=before.exposed if before else IdSample(),
        fresh_from=before.fresh_from if before else 0,
        paused=bool(before and before.paused),
    )
    unit.lock(flag)
    unit.start_at(start, flag)
    # Services may take as long to apply the first weights as any later ones.
    unit.moving_until = clockwork.stage_start(start, flag.window.settle_ms)
    return unit


def dormant(flag: Flag, region: str, clockwork: Clockwork, before: Unit | None = None) -> Unit:
    """Return a unit that no event has reached yet: it sleeps until its first one."""
    unit = begin(flag, region, 0, clockwork, before)
    unit.idle = ASLEEP_AFTER
    return unit


def first_weight(flag: Flag) -> float:
    """Return the canary's weight before any command: a quality gate starts closed."""
    return 0.0 if flag.kind == "quality_gated" else flag.ramp_stages[0]
