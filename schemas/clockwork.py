"""The log's time, cut into panes; the first moment at which a stage may begin."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Clockwork:
    """Settings that all units share: length of a pane and lateness, ms, and the name of the source topic."""

    pane_ms: int
    lateness_ms: int
    topic: str

    def stage_start(self, window_end: int, settle_ms: int) -> int:
        """When a stage promoted at ``window_end`` takes effect: after lateness and settling, on a pane."""
        return -(-(window_end + self.lateness_ms + settle_ms) // self.pane_ms) * self.pane_ms
