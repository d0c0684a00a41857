"""Rows of recorded telemetry, split into buckets of sticky ids by pane."""

import zlib
from dataclasses import dataclass, field
from typing import Self

import msgspec
import numpy as np
import xxhash

from tidegate.gates.arrays import Floats, Ids, Ints
from tidegate.gates.sums import CARRIES, COUNTERS, LOW_BITS

BUCKETS = 64
"""Sticky ids are put into this many buckets; a sham canary is some of them."""
SPLIT, SHARED = ("traffic", "label"), ("gold", "gold_label")
"""Sources that the sham arms divide between them, and those that both are given whole: the gold set is asked of
both arms, so half of it would be no rehearsal."""
BUCKETED_SOURCES = (*SPLIT, *SHARED)
BLOCK_ROWS = 1 << 16
"""Rows that are added up together."""
CACHED = 6
"""Blocks, and spans of time, held in memory."""

AT = {name: i for i, name in enumerate(COUNTERS)}


def mixed(values: Ids) -> Ids:
    """64 bits that look drawn by chance, the same for the same input (splitmix64)."""
    z = values + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def drawn(*what: object) -> int:
    """Return a 64-bit number for a purpose."""
    return xxhash.xxh3_64_intdigest(repr(what).encode())


def bucket_of(sticky: Ids, seed: int) -> Ints:
    """Return the bucket of sticky ids, which are given as 64-bit hashes."""
    return (mixed(sticky ^ np.uint64(drawn("bucket", seed))) >> np.uint64(58)).astype(np.int64)


@dataclass(frozen=True)
class Block:
    """Rows added up by (pane, source, bucket), one group each, in that order.

    ``key``: index in ``BUCKETED_SOURCES`` × ``BUCKETS`` + bucket. ``delta_s``, ``latency``: the values, group by group,
    as many as the counts beside them say. ``probes``: pane, key, query, runs of λ groups.
    """

    pane: Ints
    key: Ints
    counters: Ints
    delta_s_count: Ints
    delta_s: Floats
    latency_count: Ints
    latency: Floats
    probe_pane: Ints
    probe_key: Ints
    probe_query: Ids
    probe_runs: Ints

    def dump(self) -> bytes:
        """Compressed bytes."""
        arrays = [(a.dtype.str, a.shape, a.tobytes()) for a in vars(self).values()]
        return zlib.compress(msgspec.msgpack.encode(arrays), 1)

    @classmethod
    def load(cls, blob: bytes) -> Self:
        """Read back the bytes of ``dump``."""
        arrays = msgspec.msgpack.decode(zlib.decompress(blob))
        return cls(*(np.frombuffer(data, dtype).reshape(shape) for dtype, shape, data in arrays))


@dataclass
class UnitRows:
    """Accepted rows of one unit that are not added up yet: one list entry a run."""

    pane: list[Ints] = field(default_factory=list)
    key: list[Ints] = field(default_factory=list)
    counters: list[Ints] = field(default_factory=list)
    delta_s: list[Floats] = field(default_factory=list)
    latency: list[Floats] = field(default_factory=list)
    probes: list[tuple[int, int, int, int]] = field(default_factory=list)
    count: int = 0

    def block(self) -> Block:
        """Return the rows, added up."""
        pane, key, counters = np.concatenate(self.pane), np.concatenate(self.key), np.concatenate(self.counters)
        order = np.lexsort((key, pane))
        pane, key = pane[order], key[order]
        new = np.ones(len(pane), np.bool_)
        new[1:] = (np.diff(pane) != 0) | (np.diff(key) != 0)
        starts, group = np.flatnonzero(new), np.cumsum(new) - 1
        totals = np.add.reduceat(counters[order], starts, axis=0)
        carry(totals)
        probes = np.array(self.probes, object).reshape(-1, 4)
        return Block(
            pane[starts],
            key[starts],
            totals,
            *_present(np.concatenate(self.delta_s)[order], group, len(starts)),
            *_present(np.concatenate(self.latency)[order], group, len(starts)),
            probes[:, 0].astype(np.int64),
            probes[:, 1].astype(np.int64),
            probes[:, 2].astype(np.uint64),
            probes[:, 3].astype(np.int64),
        )


def _present(values: Floats, group: Ints, groups: int) -> tuple[Ints, Floats]:
    """Return the number of values in each group, and the values."""
    here = ~np.isnan(values)
    return np.bincount(group[here], minlength=groups), values[here]


def carry(counters: Ints) -> None:
    """Move what the low parts of costs have too much into the high parts, so that sums stay inside 64 bits."""
    for low, high in CARRIES:
        counters[..., AT[high]] += counters[..., AT[low]] >> LOW_BITS
        counters[..., AT[low]] &= (1 << LOW_BITS) - 1
