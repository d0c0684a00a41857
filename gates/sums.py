"""What is kept of the events of one arm: counters, digests, λ groups, pins and sticky ids, all mergeable.

Everything but the digests is the same in whatever order it is added up (integers, sets, maxima), and the digests
are merged in a fixed order, so the sums of a window depend on its events alone.
"""

from collections.abc import Generator, Hashable, Iterable, Mapping
from fractions import Fraction
from typing import Any, Generic, Self, TypeVar, get_type_hints

import msgspec
import numpy as np
from numpy.typing import NDArray

from gates.digest import Digest

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
Ids = NDArray[np.uint64]
Ints = NDArray[np.int64]

COUNTERS = (
    "requests",
    "exposures",
    "errors",
    "rate_limited",
    "tool_calls",
    "tool_ok",
    "tool_rows",
    "tool_missing",
    "cost_rows",
    "cost_high",
    "cost_low",
    "solved",
    "coverage_rows",
    "coverage_sum",
    "lambda_rows",
    "lambda_bad_rows",
    "lambda_events",
    "lambda_flips",
    "lambda_misspelt",
    "labels",
    "solved_rows",
    "cost_known",
    "square_high",
    "square_mid",
    "square_low",
    "solved_cost_high",
    "solved_cost_low",
    "reason_rows",
    "reason_failed",
    "reason_in_full",
    "labels_foreign",
    "labels_not_followed",
)
"""``tool_rows``: requests with calls, ``tool_missing``: those of them without ``tool_ok``.
``cost_rows``: requests with both cost and solved. ``square_…``: Σ cost². ``solved_cost_…``: Σ cost of solved requests.
``lambda_rows``: rows with a λ state; ``lambda_events``: those of them without probe tags. ``labels``: rows that are
labels and no requests, ``labels_foreign`` and ``labels_not_followed`` those that count for nothing: of no request of
the stage, and of requests of which it is not known. ``reason_in_full``: failed reason steps that were not served
cite-only."""

HIGH_BITS, LOW_BITS = 12, 45
"""Cost is summed exactly: the high part in units of 2^-12, the low part in units of 2^-57."""
SQUARE_BITS = 20
"""Squares of costs are summed in three parts: in units of 2^20, 2^-25 and 2^-70."""
CARRIES = (
    ("cost_low", "cost_high"),
    ("solved_cost_low", "solved_cost_high"),
    ("square_low", "square_mid"),
    ("square_mid", "square_high"),
)
"""Parts of a sum that keep ``LOW_BITS`` bits, and where the rest goes; in this order."""
COVERAGE_BITS = 40
"""Coverage is summed in units of 2^-40."""

SAMPLE_CAP = 1 << 17
"""Sticky ids held for one arm of one stage; beyond it every second, fourth, … id by hash is followed."""
REQUESTS_CAP = 1 << 15
"""Ids of requests held for one arm and source of one stage, thinned the same way."""
PANE_REQUESTS_CAP = 1 << 14
"""Those that one partition sends on of one pane: of all a unit shows they have to fit into a record."""
PIN_SETS_CAP = 32
"""Distinct sets of pins listed for one arm; beyond it only their count grows."""

KEYS_CAP = 1 << 14
"""Idempotency keys held for one unit and window; beyond it every second, fourth, … key by hash is followed."""
WORST = 3
"""Exemplars kept of each metric."""

_PLACE = {counter: at for at, counter in enumerate(COUNTERS)}
_CARRIES = tuple((COUNTERS.index(low), COUNTERS.index(high)) for low, high in CARRIES)

CONVERGED, FLIPPED = 1, 2
RUNS_PER_GROUP = 6
_MAX = 2**63 - 1


def cost_parts(cost: NDArray[np.float64]) -> tuple[Ints, Ints]:
    """Split finite costs in [0, 1e9] into integers whose sums do not depend on the order of addition."""
    scaled = cost * float(1 << HIGH_BITS)
    high = np.floor(scaled)
    low = np.rint((scaled - high) * float(1 << LOW_BITS))
    return high.astype(np.int64), low.astype(np.int64)


def square_parts(cost: NDArray[np.float64]) -> tuple[Ints, Ints, Ints]:
    """Split the squares of finite costs in [0, 1e9], each rounded once, into integers as ``cost_parts`` does."""
    scaled = cost * cost / float(1 << SQUARE_BITS)
    high = np.floor(scaled)
    rest = (scaled - high) * float(1 << LOW_BITS)
    mid = np.floor(rest)
    low = np.rint((rest - mid) * float(1 << LOW_BITS))
    return high.astype(np.int64), mid.astype(np.int64), low.astype(np.int64)


class IdSample:
    """A set of 64-bit hashes of ids, thinned by hash value once it outgrows ``cap``.

    Level k keeps the hashes below 2^(64-k), the same ones whatever the order of arrival, so questions about the
    set are answered exactly for one id in 2^k.
    """

    __slots__ = ("_ids", "_level", "_new", "_waiting")

    def __init__(self, level: int = 0, ids: Ids | None = None) -> None:
        self._level = level
        self._ids: Ids = np.empty(0, np.uint64) if ids is None else ids
        self._new: list[Ids] = []
        self._waiting = 0

    def add(self, ids: Ids) -> None:
        """Add hashes, repeats allowed."""
        if len(ids):
            self._new.append(ids)
            self._waiting += len(ids)
            if self._waiting > max(4096, len(self._ids)):
                self._settle()

    def merge(self, other: "IdSample") -> None:
        """Add another sample's ids; the coarser of the two levels holds."""
        # Not self.level: what waits here need not be sorted yet, and can only make the level higher.
        if other.level > self._level:
            self._level = other.level
            self._ids = self._thin(self._ids)
        self.add(other.ids)

    def drop(self, ids: Ids) -> None:
        """Forget some hashes, ascending."""
        known = self.ids
        self._ids = known[~np.isin(known, ids, assume_unique=True)]

    @property
    def cap(self) -> int:
        """Most hashes that are kept."""
        return SAMPLE_CAP

    @property
    def level(self) -> int:
        """One hash in 2^level is kept."""
        self._settle()
        return self._level

    @property
    def ids(self) -> Ids:
        """The distinct hashes, ascending."""
        self._settle()
        return self._ids

    def within(self, level: int) -> Ids:
        """The distinct hashes that a sample of that (coarser or equal) level keeps."""
        ids = self.ids
        return ids[: np.searchsorted(ids, kept_below(level), side="right")]

    def _settle(self) -> None:
        if not self._new:
            return
        # Levels only grow with the set, so thinning late or early ends at the same level.
        fresh = np.unique(self._thin(np.concatenate(self._new)))
        if len(self._ids):
            merged = np.concatenate([self._ids, fresh])
            # Two ascending runs: a stable sort merges them.
            merged.sort(kind="stable")
            fresh = merged[np.diff(merged, prepend=~merged[:1]) != 0]
        self._ids = fresh
        self._new, self._waiting = [], 0
        self.shrink(self.cap)

    def shrink(self, most: int) -> None:
        """Thin until at most so many hashes are left."""
        self._settle()
        while len(self._ids) > most:
            self._level += 1
            self._ids = self._thin(self._ids)

    def _thin(self, ids: Ids) -> Ids:
        return ids[ids <= kept_below(self._level)] if self._level else ids

    def dump(self) -> tuple[int, bytes]:
        """Level and ascending little-endian hashes."""
        return self.level, self.ids.astype("<u8").tobytes()

    @classmethod
    def load(cls, state: Any) -> Self:
        """Read back what ``dump`` gave."""
        level, ids = state
        return cls(level, np.frombuffer(ids, "<u8"))


def kept_below(level: int) -> np.uint64:
    """The largest hash that is kept at a level."""
    return np.uint64((1 << (64 - level)) - 1)


class RequestSample(IdSample):
    """A set of hashes of request ids."""

    __slots__ = ()

    @property
    def cap(self) -> int:
        """Most hashes that are kept."""
        return REQUESTS_CAP

    def knows(self, ids: Ids, level: int) -> NDArray[np.bool_]:
        """Which of some hashes are in the set as it is at a level."""
        found = self.within(level)
        if not len(found):
            return np.zeros(len(ids), np.bool_)
        at = np.minimum(np.searchsorted(found, ids), len(found) - 1)
        known: NDArray[np.bool_] = found[at] == ids
        return known


def shared(one: IdSample, other: IdSample) -> tuple[Ids, int]:
    """The hashes in both samples, and the level at which they were looked at."""
    level = max(one.level, other.level)
    return np.intersect1d(one.within(level), other.within(level), assume_unique=True), level


class Effects(msgspec.Struct, array_like=True):
    """The effect of each idempotency key, both as 64-bit hashes, thinned by the key's hash like ``IdSample``.

    ``conflicts``: keys that showed a second effect, as a set that keeps its order in a checkpoint.
    """

    level: int = 0
    effects: dict[int, int] = msgspec.field(default_factory=dict)
    conflicts: dict[int, None] = msgspec.field(default_factory=dict)

    def add(self, key: int, effect: int) -> None:
        """Note that a key had an effect."""
        if key < 1 << (64 - self.level):
            if self.effects.setdefault(key, effect) != effect:
                self.conflicts[key] = None
                # Which effect is held must not depend on which came first.
                self.effects[key] = min(self.effects[key], effect)
            self._thin()

    def merge(self, other: "Effects") -> None:
        """Add another span's keys."""
        if other.level > self.level:
            self.level = other.level
            self._drop()
        self.conflicts |= {key: None for key in other.conflicts if key < 1 << (64 - self.level)}
        for key, effect in other.effects.items():
            self.add(key, effect)

    def _thin(self) -> None:
        while len(self.effects) > KEYS_CAP:
            self.level += 1
            self._drop()

    def _drop(self) -> None:
        bound = 1 << (64 - self.level)
        self.effects = {key: effect for key, effect in self.effects.items() if key < bound}
        self.conflicts = {key: None for key in self.conflicts if key < bound}


class Worst(msgspec.Struct, array_like=True):
    """One of the worst events of a metric. ``badness`` orders them; ``value`` is what a reader sees."""

    badness: float
    value: float
    partition: int
    offset: int
    event_id: str

    @property
    def rank(self) -> tuple[float, int, int]:
        """Worst first; then by place."""
        return -self.badness, self.partition, self.offset


class PinSet(msgspec.Struct, array_like=True):
    """How often one set of pins was seen, and where first: (pane, partition, offset)."""

    count: int
    first: tuple[int, int, int]


PAST = ("groups", "complete", "convergent", "flipped")
"""What is kept of the λ groups of windows that are over: how many there were, as each window saw them."""


class Sums(msgspec.Struct, array_like=True):
    """The events of one arm and source in one span of time.

    ``past``: the λ groups of earlier windows, counted as ``PAST`` says; ``groups`` are those of the window that runs.
    ``sticky``, ``exposed``, ``requests``: ids that a pane brings, sticky ones of requests and of exposures, and the
    requests' own.
    """

    counters: list[int] = msgspec.field(default_factory=lambda: [0] * len(COUNTERS))
    delta_s: Digest = msgspec.field(default_factory=Digest)
    latency: Digest = msgspec.field(default_factory=Digest)
    groups: dict[int, int] = msgspec.field(default_factory=dict)
    pins: dict[str, PinSet] = msgspec.field(default_factory=dict)
    sticky: IdSample = msgspec.field(default_factory=IdSample)
    exposed: IdSample = msgspec.field(default_factory=IdSample)
    worst: dict[str, list[Worst]] = msgspec.field(default_factory=dict)
    past: list[int] = msgspec.field(default_factory=lambda: [0] * len(PAST))
    requests: RequestSample = msgspec.field(default_factory=RequestSample)

    def __getitem__(self, counter: str) -> int:
        return self.counters[_PLACE[counter]]

    def count(self, row: Iterable[int]) -> None:
        """Add a row of counters in the order of ``COUNTERS``."""
        self.counters = [a + b for a, b in zip(self.counters, row, strict=True)]
        self._carry()

    def _carry(self) -> None:
        for low, high in _CARRIES:
            self.counters[high] = min(self.counters[high] + (self.counters[low] >> LOW_BITS), _MAX)
            self.counters[low] &= (1 << LOW_BITS) - 1

    def probe(self, group: int, run: int, state: int) -> None:
        """Note one run (0..5) of a λ group; a repeated run keeps its worse state."""
        self.groups[group] = _worse(self.groups.get(group, 0), state << 2 * run)

    def see_pins(self, pins: str, count: int, first: tuple[int, int, int]) -> None:
        """Note ``count`` requests with a set of pins, the first of them at (pane, partition, offset)."""
        known = self.pins.get(pins)
        if known is not None:
            known.count += count
            known.first = min(known.first, first)
        elif len(self.pins) < PIN_SETS_CAP:
            self.pins[pins] = PinSet(count, first)

    def merge(self, other: "Sums") -> None:
        """Add the sums of another span, all but its ids, which are followed per stage."""
        self.count(other.counters)
        self.delta_s.merge(other.delta_s)
        self.latency.merge(other.latency)
        for group, runs in other.groups.items():
            self.groups[group] = _worse(self.groups.get(group, 0), runs)
        for pins, seen in other.pins.items():
            self.see_pins(pins, seen.count, seen.first)
        self.past = [a + b for a, b in zip(self.past, other.past, strict=True)]
        for metric, found in other.worst.items():
            self.note_worst(metric, found)

    def gather(self, other: "Sums") -> None:
        """Add another window's sums: its λ groups are over, and its pins stay with it."""
        self.count(other.counters)
        self.delta_s.merge(other.delta_s)
        self.latency.merge(other.latency)
        self.past = [a + b for a, b in zip(self.past, other.lambda_groups, strict=True)]
        for metric, found in other.worst.items():
            self.note_worst(metric, found)

    @property
    def lambda_groups(self) -> tuple[int, int, int, int]:
        """All λ groups, counted as ``PAST`` says."""
        full = [runs for runs in self.groups.values() if complete(runs)]
        convergent = sum(not flipped(runs) for runs in full)
        here = len(self.groups), len(full), convergent, sum(map(flipped, self.groups.values()))
        groups, whole, good, bad = (a + b for a, b in zip(self.past, here, strict=True))
        return groups, whole, good, bad

    def note_worst(self, metric: str, found: list[Worst]) -> None:
        """Keep the worst of these and of those known."""
        self.worst[metric] = sorted([*self.worst.get(metric, ()), *found], key=lambda w: w.rank)[:WORST]

    @property
    def cost(self) -> float:
        """Σ cost, rounded once."""
        return float(self.exact_cost)

    @property
    def exact_cost(self) -> Fraction:
        """Σ cost."""
        return Fraction((self["cost_high"] << LOW_BITS) + self["cost_low"], 1 << (HIGH_BITS + LOW_BITS))

    @property
    def exact_solved_cost(self) -> Fraction:
        """Σ cost of the solved requests."""
        total = (self["solved_cost_high"] << LOW_BITS) + self["solved_cost_low"]
        return Fraction(total, 1 << (HIGH_BITS + LOW_BITS))

    @property
    def exact_square(self) -> Fraction:
        """Σ cost², each square rounded to a double."""
        total = (((self["square_high"] << LOW_BITS) + self["square_mid"]) << LOW_BITS) + self["square_low"]
        return Fraction(total, 1 << (2 * LOW_BITS - SQUARE_BITS))

    @property
    def coverage(self) -> float | None:
        """Mean coverage; None without values."""
        rows = self["coverage_rows"]
        return self["coverage_sum"] / (rows << COVERAGE_BITS) if rows else None


def worst_rows(badness: NDArray[np.float64]) -> list[int]:
    """Indices of the ``WORST`` largest values, NaN apart; of equal ones the first."""
    known = np.flatnonzero(~np.isnan(badness))
    if len(known) <= WORST:
        return known.tolist()
    values = badness[known]
    third = np.partition(values, len(values) - WORST)[len(values) - WORST]
    above = known[values > third]
    return [*above.tolist(), *known[values == third][: WORST - len(above)].tolist()]


def _worse(one: int, other: int) -> int:
    """Slot-wise maximum of two packed λ groups: 2 bits a run, 0 missing, 1 convergent, 2 not."""
    flipped = (one | other) & 0xAAA
    return flipped | ((one | other) & 0x555 & ~(flipped >> 1))


def complete(runs: int) -> bool:
    """Whether all six runs of a λ group were seen."""
    return (runs | runs >> 1) & 0x555 == 0x555


def flipped(runs: int) -> bool:
    """Whether any run of a λ group was anything but convergent."""
    return bool(runs & 0xAAA)


def _encode(value: Any) -> Any:
    if isinstance(value, Digest | IdSample):
        return value.dump()
    raise NotImplementedError(type(value))


def _decode(kind: type, value: Any) -> Any:
    if issubclass(kind, Digest | IdSample):
        return kind.load(value)
    raise NotImplementedError(kind)


class StateCodec(Generic[T]):
    """MessagePack of a state struct, digests and samples included.

    A large state is written and read in parts, each as ``msgspec.Raw`` in the place of what it stands for; the bytes
    are the same.
    """

    def __init__(self, kind: type[T]) -> None:
        self._encoder = msgspec.msgpack.Encoder(enc_hook=_encode)
        self._decoder = msgspec.msgpack.Decoder(kind, dec_hook=_decode)

    def dump(self, state: T) -> bytes:
        """The state's bytes."""
        return self._encoder.encode(state)

    def load(self, blob: bytes | msgspec.Raw) -> T:
        """The state back; msgspec.MsgspecError if the bytes are no such state."""
        return self._decoder.decode(blob)

    def dump_parts(self, parts: Mapping[K, T]) -> Generator[None, None, dict[K, Any]]:
        """The bytes of each part, for an encoder to take in; stops after each one."""
        dumped: dict[K, Any] = {}
        for name, part in parts.items():
            dumped[name] = msgspec.Raw(self.dump(part))
            yield
        return dumped

    def load_parts(self, parts: Mapping[K, Any]) -> Generator[None, None, dict[K, T]]:
        """The parts back from what ``in_parts`` reads; stops after each one."""
        loaded: dict[K, T] = {}
        for name, part in parts.items():
            loaded[name] = self.load(part)
            yield
        return loaded


def in_parts(kind: type[T], **parts: Any) -> type[T]:
    """A state struct as its bytes are read first: fields that have parts are given other types, made of bytes."""
    hints = get_type_hints(kind)
    fields: list[Any] = []
    for field in msgspec.structs.fields(kind):  # type: ignore[arg-type]  # a struct
        default = field.default
        if field.default_factory is not msgspec.NODEFAULT:
            default = msgspec.field(default_factory=field.default_factory)
        shape = (field.name, parts.get(field.name, hints[field.name]))
        fields.append(shape if field.required else (*shape, default))
    return msgspec.defstruct(kind.__name__, fields, array_like=True)  # type: ignore[return-value]  # the same fields
