"""What became of the records that were read: counted, or left out and why."""

from dataclasses import dataclass, field

from schemas.times import iso
from streams.panes import Step


@dataclass
class Tally:
    """Records that were read, by what became of them; each is in one of the counts, which are in ``step``.

    ``unclosed``: why there is no decision, if there is none.
    """

    step: Step = field(default_factory=Step)
    late: int = 0
    refused: int = 0
    unclosed: str = ""

    def add(self, step: Step) -> None:
        """Count what a run gave; its rows and panes are not kept."""
        self.late += len(step.late)
        self.refused += len(step.dead)
        self.step.add(
            Step(
                accepted=step.accepted,
                duplicates=step.duplicates,
                unknown_flag=step.unknown_flag,
                warmup=step.warmup,
                ticks=step.ticks,
                probes=step.probes,
                outside=step.outside,
                span=step.span,
            )
        )

    def told(self) -> str:
        """One line: how many counted, and how many did not, and why."""
        step = self.step
        left = [
            *((count, f"out of scope by {fields}") for fields, count in sorted(step.outside.items())),
            (step.unknown_flag, "of flags that the manifest does not name"),
            (step.warmup, "warm-up"),
            (self.late, "late"),
            (step.duplicates, "repeated"),
            (self.refused, "refused"),
        ]
        told = ", ".join(f"{count:,} {why}" for count, why in left if count)
        span = "" if step.span is None else f", of {iso(step.span[0])} to {iso(step.span[1])}"
        return f"{step.accepted:,} event{'' if step.accepted == 1 else 's'} counted; left out: {told or 'none'}{span}"
