"""The evidence of a stage: its windows since it began, added up."""

import msgspec

from tidegate.gates.window import Arm, UnitWindow
from tidegate.schemas.decision import EvidenceSpan


class StageEvidence(msgspec.Struct, array_like=True, frozen=True):
    """The sums of a stage's windows that are over. It holds as much as one window does, however many there were.

    ``since``: start of the first, ms; None before it ended. ``ms``: length of those that count. ``left_out``: windows
    with an evidence problem, whose sums are ``rest_…``: what is wrong with them never suppresses an abort. ``cycle``:
    how many times a unit that has passed its last stage has begun to be judged anew.
    """

    since: int | None = None
    windows: int = 0
    left_out: int = 0
    ms: int = 0
    canary: Arm = msgspec.field(default_factory=Arm)
    baseline: Arm = msgspec.field(default_factory=Arm)
    rest_canary: Arm = msgspec.field(default_factory=Arm)
    rest_baseline: Arm = msgspec.field(default_factory=Arm)
    cycle: int = 1

    def with_window(self, window: UnitWindow, *, sound: bool) -> "StageEvidence":
        """Return the evidence with one more window; one that is not ``sound`` is left out."""
        since = window.start if self.since is None else self.since
        if not sound:
            return msgspec.structs.replace(
                self,
                since=since,
                left_out=self.left_out + 1,
                rest_canary=Arm.gathered(self.rest_canary, window.canary),
                rest_baseline=Arm.gathered(self.rest_baseline, window.baseline),
            )
        return msgspec.structs.replace(
            self,
            since=since,
            windows=self.windows + 1,
            ms=self.ms + window.end - window.start,
            canary=Arm.gathered(self.canary, window.canary),
            baseline=Arm.gathered(self.baseline, window.baseline),
        )

    def span(self, window: UnitWindow, *, sound: bool) -> EvidenceSpan:
        """Return the span for the records, the present window included."""
        return EvidenceSpan(
            windows=self.windows + sound,
            left_out=self.left_out + (not sound),
            since=window.start if self.since is None else self.since,
        )
