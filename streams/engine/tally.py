"""A tally of the records that were read: counted, or left out and why."""

from collections import Counter
from dataclasses import dataclass, field

from tidegate.schemas.document import quoted
from tidegate.schemas.times import iso
from tidegate.streams.engine.event_classes import LeftOut
from tidegate.streams.engine.gate_log import Partial
from tidegate.streams.engine.source_partition import Step

FLAGS_SHOWN = 8
"""Flags that a line for people names."""


def unknown_flags(left: LeftOut) -> str:
    """Flags that no manifest names, those of the most events first, in words."""
    named = sorted(left.unknown.items(), key=lambda item: (-item[1], item[0]))
    if len(named) == 1 and not left.unnamed:
        return f"a flag that the manifest does not name ({quoted(named[0][0])})"
    shown = [f"{quoted(name)} {count:,}" for name, count in named[:FLAGS_SHOWN]]
    others = left.unknown_flag - sum(count for _, count in named[:FLAGS_SHOWN])
    shown += [f"others {others:,}"] if others else []
    return f"flags that the manifest does not name ({', '.join(shown)})"


@dataclass
class Tally:
    """Records that were read, by what became of them; each is in one of the counts, which are in ``step``.

    ``labels``: what became of those labels in it whose pane was closed. ``unclosed``: why there is no decision, if
    there is none.
    """

    step: Step = field(default_factory=Step)
    late: int = 0
    refused: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    unclosed: str = ""

    def add(self, step: Step) -> None:
        """Count what a run gave; its rows and panes are not kept."""
        self.late += len(step.late)
        self.refused += len(step.dead)
        self.step.add(
            Step(
                accepted=step.accepted,
                duplicates=step.duplicates,
                ticks=step.ticks,
                probes=step.probes,
                left=step.left,
                span=step.span,
            )
        )

    def closed(self, partial: Partial, pane_ms: int, *, shared: bool) -> None:
        """Count what one partition saw of a pane that it has closed.

        ``shared``: also what is in the partials of all gates, or of the first alone; of the other gates' their units.
        """
        for seen in partial.units.values():
            self.step.accepted += seen.accepted
            self.step.duplicates += seen.duplicates
            self.late += seen.late
            self.refused += seen.dead_letters
        if shared:
            self.refused += partial.dead_letters
        if partial.left is not None:
            self.step.left.add(partial.left)
        if partial.units or partial.left is not None or partial.dead_letters:
            self.step.widen(partial.pane * pane_ms, (partial.pane + 1) * pane_ms)

    @property
    def foreign(self) -> int:
        """Labels that count for nothing."""
        return self.labels["labels_foreign"] + self.labels["labels_not_followed"]

    @property
    def left_out(self) -> list[tuple[int, str]]:
        """Return how many did not count, by reason, in words."""
        left = self.step.left
        found = [
            *((count, f"out of scope by {fields}") for fields, count in sorted(left.outside.items())),
            (left.early, "of a time before the first manifest"),
            (left.unknown_flag, f"of {unknown_flags(left)}" if left.unknown_flag else ""),
            (left.warmup, "warm-up"),
            (self.late, "late"),
            (self.step.duplicates, "repeated"),
            (self.refused, "refused"),
            (self.foreign, "labels of no request that their stage saw"),
        ]
        return [(count, why) for count, why in found if count]

    @property
    def reasons(self) -> frozenset[str]:
        """Why something did not count, without how much: the fields, the flags, and the rest."""
        left = self.step.left
        rest = {
            "early": left.early,
            "warm-up": left.warmup,
            "late": self.late,
            "repeated": self.step.duplicates,
            "refused": self.refused,
        }
        fields, flags = {f"by {fields}" for fields in left.outside}, {f"of {flag}" for flag in left.unknown}
        return frozenset({why for why, count in rest.items() if count} | fields | flags)

    def told(self) -> str:
        """Return one line: how many counted, and how many did not, and why."""
        step = self.step
        counted = step.accepted - self.foreign
        told = ", ".join(f"{count:,} {why}" for count, why in self.left_out)
        span = "" if step.span is None else f", of {iso(step.span[0])} to {iso(step.span[1])}"
        return f"{counted:,} event{'' if counted == 1 else 's'} counted; left out: {told or 'none'}{span}"
