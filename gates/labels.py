"""Labels: an evaluator's words on earlier requests, kept one by one until it is known whether the stage saw those.

A label comes later than its request, and maybe through another partition. So what a partition saw of a pane lists its
labels, and the unit, which holds the ids of its stage's requests, says which of them count.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from tidegate.gates.arrays import Ids
from tidegate.gates.samples import RequestSample, kept_below
from tidegate.gates.sums import CONVERGED, COUNTERS, COVERAGE_BITS, FLIPPED, PIN_SETS_CAP, Sums, Worst, worst_rows
from tidegate.schemas.event import PINS

LABELS_CAP = 1 << 12
"""Labels of one arm and source that one pane brings through one partition; beyond it those of every second, fourth, …
request by hash."""

SPOKEN = ("solved", "solved_rows", "lambda_rows", "lambda_bad_rows", "lambda_misspelt")
"""Facts that a label states by a bit each, the first the lowest."""
LABEL_FATES = ("labels", "labels_foreign", "labels_not_followed")
"""Fates of a label: it counts, is of no request of the stage, or of one that is not followed."""
NO_PINS = -1
ROW = np.dtype(
    [
        ("request", "<u8"),
        ("offset", "<i8"),
        ("delta_s", "<f8"),
        ("coverage", "<f8"),
        ("query", "<u8"),
        ("spoken", "u1"),
        ("run", "i1"),
        ("pins", "i1"),
    ]
)
"""One label. ``request`` and ``query``: 64-bit hashes. ``delta_s``, ``coverage``: NaN where absent. ``run``: of a λ
group, -1 for none. ``pins``: index of the set that it carries, or ``NO_PINS``."""

LabelRows = NDArray[Any]
Chosen = NDArray[np.bool_]


class Labels(msgspec.Struct, array_like=True):
    """Labels of one arm and source that one partition brought in one pane, in offset order.

    ``rows``: of dtype ``ROW``. ``names``: for the canary, what each one labels. ``pins``: the sets of pins that labels
    carried. ``count``: how many came, also of those that are not kept: of one request in 2^level they are.
    """

    rows: bytes = b""
    names: list[str] = msgspec.field(default_factory=list)
    pins: list[str] = msgspec.field(default_factory=list)
    level: int = 0
    count: int = 0

    def set_of(self, pins: str) -> int:
        """Return the index of a set of pins; those of one set too many count as none."""
        if pins not in self.pins:
            if len(self.pins) == PIN_SETS_CAP:
                return NO_PINS
            self.pins.append(pins)
        return self.pins.index(pins)

    def add(self, rows: LabelRows, names: Sequence[str]) -> None:
        """Append labels; ``names`` is empty where nobody will ask for them."""
        self.count += len(rows)
        self._keep(np.concatenate([self.table, rows]), [*self.names, *names])

    def _keep(self, rows: LabelRows, names: list[str]) -> None:
        """Thin what is too much. Levels only grow with the rows, so it is the same however these were cut."""
        kept = np.ones(len(rows), np.bool_)
        while True:
            if self.level:
                kept = rows["request"] <= kept_below(self.level)
            if int(kept.sum()) <= LABELS_CAP or self.level == 64:
                break
            self.level += 1
        self.rows = rows[kept].tobytes()
        self.names = names if kept.all() else [name for name, keep in zip(names, kept.tolist(), strict=False) if keep]

    @property
    def table(self) -> LabelRows:
        """The labels as an array."""
        return np.frombuffer(self.rows, ROW)

    @property
    def unbounded_bytes(self) -> int:
        """Bytes that grow with the telemetry's own names."""
        return sum(len(name.encode()) for name in (*self.names, *self.pins))

    def counted(self, requests: "Known", locked: dict[str, str], place: tuple[str, str, int]) -> Sums:
        """Add up the labels that count, and count those that do not.

        ``locked``: the pins that the arm is held to. ``place``: arm, source and partition.
        """
        arm, source, partition = place
        rows = self.table
        known, told = requests.tell(arm, source, rows["request"])
        own = [index for index, pins in enumerate(self.pins) if _are(pins, locked)]
        counts = known | np.isin(rows["pins"], own)
        sums = _sums(rows[counts])
        if self.names:
            names = [name for name, count in zip(self.names, counts.tolist(), strict=True) if count]
            _note_worst(sums, rows[counts], names, partition)
        foreign = int((told & ~counts).sum())
        left = self.count - int(counts.sum()) - foreign
        at = COUNTERS.index("labels_foreign"), COUNTERS.index("labels_not_followed")
        sums.counters[at[0]], sums.counters[at[1]] = foreign, left
        return sums


def _are(pins: str, locked: dict[str, str]) -> bool:
    """Tell whether a label's pins are exactly those that its arm is held to, the six among them."""
    return msgspec.json.decode(pins) == locked and all(pin in locked for pin in PINS)


def _spoken(rows: LabelRows) -> dict[str, Chosen]:
    return {name: (rows["spoken"] >> bit & 1).astype(np.bool_) for bit, name in enumerate(SPOKEN)}


def _sums(rows: LabelRows) -> Sums:
    said, sums = _spoken(rows), Sums()
    delta_s, coverage = rows["delta_s"], rows["coverage"]
    has_coverage = ~np.isnan(coverage)
    untagged = rows["run"] < 0
    counters = {name: int(flags.sum()) for name, flags in said.items()} | {
        "labels": len(rows),
        "lambda_events": int((said["lambda_rows"] & untagged).sum()),
        "lambda_flips": int((said["lambda_bad_rows"] & untagged).sum()),
        "coverage_rows": int(has_coverage.sum()),
        "coverage_sum": int(np.rint(coverage[has_coverage] * float(1 << COVERAGE_BITS)).astype(np.int64).sum()),
    }
    sums.count([counters.get(name, 0) for name in COUNTERS])
    sums.delta_s.add(delta_s[~np.isnan(delta_s)])
    for at in np.flatnonzero(said["lambda_rows"] & ~untagged).tolist():
        state = FLIPPED if said["lambda_bad_rows"][at] else CONVERGED
        sums.probe(int(rows["query"][at]), int(rows["run"][at]), state)
    return sums


def _note_worst(sums: Sums, rows: LabelRows, names: list[str], partition: int) -> None:
    flips = np.where(_spoken(rows)["lambda_bad_rows"], 1.0, np.nan)
    for metric, badness, sign in (
        ("delta_s", rows["delta_s"], 1.0),
        ("coverage", -rows["coverage"], -1.0),
        ("lambda", flips, 1.0),
    ):
        found = [
            Worst(float(badness[i]), float(badness[i]) * sign, partition, int(rows["offset"][i]), names[i])
            for i in worst_rows(badness)
        ]
        if found:
            sums.note_worst(metric, found)


class RequestIds(msgspec.Struct, array_like=True):
    """Ids of the requests of a span of time from ``since``, ms, by arm and source."""

    since: int = 0
    arms: dict[str, dict[str, RequestSample]] = msgspec.field(default_factory=dict)

    def see(self, arm: str, source: str, ids: RequestSample) -> None:
        """Add ids."""
        if len(ids.ids):
            self.arms.setdefault(arm, {}).setdefault(source, RequestSample()).merge(ids)

    def of(self, arm: str, source: str) -> RequestSample:
        """Return the ids of one arm and source."""
        return self.arms.get(arm, {}).get(source) or RequestSample()


class Known:
    """The spans whose requests labels may be of; ``followed``: no request of them was passed over."""

    def __init__(self, spans: Sequence[RequestIds], *, followed: bool) -> None:
        self._spans, self._followed = spans, followed

    def tell(self, arm: str, source: str, ids: Ids) -> tuple[Chosen, Chosen]:
        """Of some hashes, which are of a known request, and of which ones it can be told whether they are.

        Of two samples the coarser level holds, so that the same requests are followed in both.
        """
        samples = [span.of(arm, source) for span in self._spans]
        level = max((sample.level for sample in samples), default=0)
        known = np.zeros(len(ids), np.bool_)
        for sample in samples:
            known |= sample.knows(ids, level)
        return known, (ids <= kept_below(level)) & np.bool_(self._followed)
