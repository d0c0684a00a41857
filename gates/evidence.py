"""Evidence problems: what makes a window's numbers unfit to promote on.

One detector a problem, listed in ``DETECTORS``. A detector looks at the window and says what it saw; a problem
blocks a promote and never suppresses an abort.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from heapq import nsmallest
from typing import Any

import msgspec

from tidegate.gates.metrics import ArmMetrics, Pair
from tidegate.gates.regions import Regions
from tidegate.gates.rules import rounded
from tidegate.gates.sums import PinSet
from tidegate.gates.unit import Unit
from tidegate.gates.window import CLIENT, DEAD_LETTERS_MAX, EXAMPLES, REQUEST_SOURCES, Arm, Finds
from tidegate.schemas.decision import Problem
from tidegate.schemas.event import PINS
from tidegate.schemas.manifest import SLACK, Flag

STORM_SHARE, STORM_EVENTS = 0.05, 5
"""429s of the canary: points over the baseline and the stage before, and how many at least."""
ORPHANS_MAX = 0.01
"""Share of a window's sticky ids that may be without an exposure: exposures may be late or lost like any event."""

_Pins = dict[str, str]


@dataclass(frozen=True)
class Evidence:
    """The evidence that the detectors look at.

    ``baseline_is_pinned``: the baseline of an earlier window stands in, as no traffic is left for it.
    ``regions``: the manifest hashes that the events of the flag's regions came from. ``weight``: the canary's.
    ``stage``: canary and baseline of all that is judged together; more than the window with sequential evidence.
    """

    flag: Flag
    unit: Unit
    canary: ArmMetrics
    baseline: ArmMetrics
    baseline_is_pinned: bool
    regions: Regions
    weight: float
    stage: Pair

    @property
    def arms(self) -> tuple[tuple[str, Arm], tuple[str, Arm]]:
        """Both arms of the window by name."""
        return ("baseline", self.unit.window.baseline), ("canary", self.unit.window.canary)


def insufficient_data(seen: Evidence) -> Iterator[dict[str, Any]]:
    """Find too few requests in an arm; where the canary serves, too few of its users' and of the baseline's."""
    least = seen.flag.window.min_requests
    # A safety guard reads the canary alone.
    canary, baseline = seen.stage
    arms = [canary] if seen.flag.kind == "safety_guard" else [canary, baseline]
    rows = {"canary": canary.rows, "baseline": baseline.rows}
    if any(arm.rows < least for arm in arms):
        yield {**rows, "min_requests": least}
    elif seen.weight > 0 and any(arm.traffic < least for arm in arms):
        # Gold rows say nothing of what is served.
        traffic = {"canary": canary.traffic, "baseline": baseline.traffic}
        yield {**rows, "min_requests": least, "traffic": traffic}


def served_at_weight_zero(seen: Evidence) -> Iterator[dict[str, Any]]:
    """Find users whom the canary served in a stage of weight 0, in which it should serve nobody."""
    if seen.unit.window.unexpected:
        yield {"requests": seen.unit.window.unexpected}


def no_pinned_baseline(seen: Evidence) -> Iterator[dict[str, Any]]:
    """Find no baseline at all, or two values of one pin in it."""
    if seen.flag.kind == "safety_guard":
        return
    if seen.stage[1].rows == 0:
        yield {"requests": 0}
    elif not seen.baseline_is_pinned:
        values: dict[str, set[str]] = {}
        for pins, _ in pin_sets(seen.unit.window.baseline):
            for pin in judged(seen.flag, pins):
                values.setdefault(pin, set()).add(pins[pin])
        mixed = {pin: sorted(found) for pin, found in sorted(values.items()) if len(found) > 1}
        if mixed:
            yield {"pins": mixed}


def pins_missing(seen: Evidence) -> Iterator[dict[str, Any]]:
    """Find requests without one of the six pins."""
    for name, arm in seen.arms:
        missing: dict[str, int] = {}
        for pins, found in pin_sets(arm):
            for pin in PINS:
                if pin not in pins:
                    missing[pin] = missing.get(pin, 0) + found.count
        if missing:
            yield {"arm": name, "requests": missing}


def pins_drifted(seen: Evidence) -> Iterator[dict[str, Any]]:
    """Find each pin that is not what it was locked to, or not the manifest's; one finding a pin and value."""
    for name, arm in seen.arms:
        drifts: dict[tuple[str, str], dict[str, Any]] = {}
        for pins, found in pin_sets(arm):
            for pin in judged(seen.flag, pins):
                old, new = seen.unit.locked[name].get(pin), pins[pin]
                if old is not None and old != new:
                    _, partition, offset = found.first
                    drift = drifts.setdefault(
                        (pin, new),
                        {
                            "arm": name,
                            "pin": pin,
                            "old": old,
                            "new": new,
                            "kind": _drift_kind(seen.flag, name, pin),
                            "requests": 0,
                            "first": {"partition": partition, "offset": offset},
                        },
                    )
                    drift["requests"] += found.count
        yield from drifts.values()


def sticky_violation(seen: Evidence) -> Iterator[dict[str, Any]]:
    """Find sticky ids that were served in both arms, more of them than the policy allows by number and by share."""
    policy, level = seen.flag.policy, seen.unit.assignments.level
    ids, share = seen.unit.assignments.bounces()
    if len(ids) << level > policy.sticky_violations_max and share > policy.sticky_violation_share_max + SLACK:
        yield {
            "ids": len(ids),
            "share": rounded(share),
            "limit": policy.sticky_violation_share_max,
            "xxh3": [f"{i:016x}" for i in ids[:EXAMPLES].tolist()],
            "followed": f"1 id in {1 << level}",
        }


def window_unstable(seen: Evidence) -> Iterator[dict[str, Any]]:
    """Find too many late events or dead letters for the numbers to be whole, or records that nobody read."""
    window = seen.unit.window
    accepted = window.accepted
    for what, count, limit in (
        ("late", window.late, seen.flag.window.late_max),
        ("dead_letters", window.dead, DEAD_LETTERS_MAX),
    ):
        if count and count / (count + accepted) > limit + SLACK:
            yield {what: count, "share": rounded(count / (count + accepted)), "limit": limit}
    for lost in window.lost:
        yield {
            "lost": lost.log,
            "partition": lost.partition,
            "offsets": {"first": lost.first, "last": lost.next - 1},
            "count": lost.next - lost.first,
        }


def _drift_kind(flag: Flag, arm: str, pin: str) -> str:
    """Name a drift: from the manifest, within an arm, or of an index alias that moved while the manifest stayed."""
    named = flag.versions if arm == "canary" else flag.baseline_versions
    if pin in named:
        return "against_manifest"
    return "alias_flip" if pin == "INDEX_HASH" else "within_arm"


def cache_namespace_shared(seen: Evidence) -> Iterator[dict[str, Any]]:
    """Find caches used under two sets of pins: one arm may have been served the other's answers."""
    detail = seen.unit.window.detail
    found = {name: pins for name, pins in detail.namespaces.items() if len(pins) > 1}
    if found:
        decode = msgspec.json.decode
        first = [{"namespace": name, "pins": list(map(decode, pins))} for name, pins in list(found.items())[:EXAMPLES]]
        yield {"namespaces": len(found), "first": first, "not_followed": detail.namespaces_dropped}


def rate_limit_storm(seen: Evidence) -> Iterator[dict[str, Any]]:
    """Find 429s of the canary that neither the baseline nor the stage before met."""
    events, share, other = seen.canary.served["rate_limited"], rate_limited(seen.canary), rate_limited(seen.baseline)
    before = seen.unit.rate_limited
    if events >= STORM_EVENTS and share - max(other, before or 0.0) >= STORM_SHARE - SLACK:
        yield {"events": events, "share": rounded(share), "baseline": rounded(other), "stage_before": rounded(before)}


def tool_loop(seen: Evidence) -> Iterator[dict[str, Any]]:
    """Find requests that called one tool again and again with the same arguments."""
    yield from _told(seen.unit.window.detail.tool_loops, "tool")


def unfenced_side_effect(seen: Evidence) -> Iterator[dict[str, Any]]:
    """Find writes without an idempotency key, or keys with two effects."""
    detail = seen.unit.window.detail
    for found in _told(detail.unfenced, "tool"):
        yield {"what": "write_without_key", **found}
    if detail.effects.conflicts:
        keys = detail.effects.conflicts
        first = [f"{key:016x}" for key in nsmallest(EXAMPLES, keys)]
        followed = f"1 key in {1 << detail.effects.level}"
        yield {"what": "key_with_two_effects", "keys": len(keys), "xxh3": first, "followed": followed}


def client_evaluated(seen: Evidence) -> Iterator[dict[str, Any]]:
    """Find events whose arm a client chose: they are kept out of the evidence."""
    counts = {name: arm.sources[CLIENT]["exposures"] for name, arm in seen.arms if CLIENT in arm.sources}
    if counts:
        yield {"events": counts}


def assignment_mismatch(seen: Evidence) -> Iterator[dict[str, Any]]:
    """Find traffic that the hash of its sticky id would have sent to the other arm."""
    misplaced, stage = seen.unit.window.detail.misplaced, seen.unit.stage
    closed = seen.flag.kind == "quality_gated" and not seen.unit.engaged
    if seen.unit.latched or closed or not misplaced:
        return
    # While a stage settles either weight is right: the canary's may be the next, the baseline's still the old.
    ahead = min(stage + 1, len(seen.flag.ramp_stages) - 1) if seen.unit.settling else stage
    counts = {arm: misplaced[arm][ahead if arm == "canary" else stage] for arm in sorted(misplaced)}
    if any(counts.values()):
        yield {"rows": {arm: count for arm, count in counts.items() if count}}


def sample_ratio_mismatch(seen: Evidence) -> Iterator[dict[str, Any]]:
    """Find shares of sticky ids that are not the stage's weights, or were not and too little was seen since."""
    found = seen.unit.assignments
    if found.ratio is not None:
        yield dict(found.ratio)
    elif found.unsound is not None:
        yield found.unsound | {"ids_since": found.seen, "ids_needed": found.needed}


def region_divergence(seen: Evidence) -> Iterator[dict[str, Any]]:
    """Find regions of the flag that assign under different manifests."""
    told = seen.regions.diverging(seen.unit.region, seen.unit.window.detail.hashes)
    if told is not None:
        more = {"of": told.count} if told.count > len(told.shown) else {}
        yield {"regions": told.shown, **more}


def orphan_telemetry(seen: Evidence) -> Iterator[dict[str, Any]]:
    """Find requests of sticky ids that no exposure was ever reported for, where exposures are."""
    window = seen.unit.window
    if window.orphans and window.orphans / window.ids > ORPHANS_MAX + SLACK:
        yield {"ids": window.orphans, "of": window.ids, "limit": ORPHANS_MAX}


def _told(found: Finds, what: str) -> Iterator[dict[str, Any]]:
    if found.count:
        first = [{what: name, "partition": partition, "offset": offset} for partition, offset, name in found.first]
        yield {"requests": found.count, "first": first}


def rate_limited(arm: ArmMetrics) -> float:
    """Return the share of an arm's requests that met a 429."""
    return arm.served["rate_limited"] / arm.rows if arm.rows else 0.0


Detector = Callable[[Evidence], Iterator[dict[str, Any]]]
DETECTORS: tuple[Detector, ...] = (
    insufficient_data,
    served_at_weight_zero,
    no_pinned_baseline,
    pins_missing,
    pins_drifted,
    sticky_violation,
    cache_namespace_shared,
    rate_limit_storm,
    tool_loop,
    unfenced_side_effect,
    client_evaluated,
    assignment_mismatch,
    sample_ratio_mismatch,
    region_divergence,
    window_unstable,
    orphan_telemetry,
)


REREAD: tuple[Detector, ...] = (
    insufficient_data,
    no_pinned_baseline,
    pins_missing,
    pins_drifted,
    cache_namespace_shared,
    tool_loop,
    unfenced_side_effect,
    client_evaluated,
)
"""Detectors that look at nothing but the window's own events, and so can be asked again once it has more of them."""


def reread(seen: Evidence, before: list[Problem]) -> list[Problem]:
    """Return the problems of a window that was judged before: those that can be found again, the rest as it was."""
    anew = {detector.__name__: detector for detector in REREAD}
    found: list[Problem] = []
    for detector in DETECTORS:
        name = detector.__name__
        if name in anew:
            found += [Problem(problem=name, detail=detail) for detail in detector(seen)]
        else:
            found += [problem for problem in before if problem.problem == name]
    return found


def problems(seen: Evidence) -> list[Problem]:
    """Return every evidence problem of the window, in the order of ``DETECTORS``."""
    return [Problem(problem=detector.__name__, detail=detail) for detector in DETECTORS for detail in detector(seen)]


def pin_sets(arm: Arm) -> list[tuple[_Pins, PinSet]]:
    """Return the sets of pins an arm showed, in the order they were first seen."""
    sets = [
        (pins, found)
        for source in REQUEST_SOURCES
        if source in arm.sources
        for pins, found in arm.sources[source].pins.items()
    ]
    decode = msgspec.json.decode
    return [(decode(pins), found) for pins, found in sorted(sets, key=lambda item: (item[1].first, item[0]))]


def judged(flag: Flag, pins: _Pins) -> list[str]:
    """Return the pins of a set that drift is judged on: the six and those the manifest names."""
    return [pin for pin in pins if pin in PINS or pin in flag.versions or pin in flag.baseline_versions]
