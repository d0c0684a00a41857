"""Evidence problems: what makes a window's numbers unfit to promote on.

One detector a problem, listed in ``DETECTORS``. A detector looks at the window and says what it saw; a problem
blocks a promote and never suppresses an abort.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from gates.metrics import ArmMetrics
from gates.rules import SLACK, rounded
from gates.sums import IdSample, PinSet, shared
from gates.window import REQUEST_SOURCES, Arm, Window
from schemas.decision import Problem
from schemas.event import PINS
from schemas.manifest import Flag

DEAD_LETTERS_MAX = 0.01
EXAMPLES = 3

Pins = dict[str, str]


@dataclass(frozen=True)
class Evidence:
    """What the detectors may look at.

    ``baseline_is_pinned``: the baseline of an earlier window stands in, as no traffic is left for it.
    ``locked``: by arm, the pins every later event is held against. ``stage_ids``: by arm, the sticky ids that
    were served since the stage began.
    """

    flag: Flag
    window: Window
    canary: ArmMetrics
    baseline: ArmMetrics
    baseline_is_pinned: bool
    locked: dict[str, Pins]
    stage_ids: dict[str, IdSample]


def insufficient_data(seen: Evidence) -> Iterator[dict[str, Any]]:
    """Too few requests in an arm."""
    least = seen.flag.window.min_requests
    if min(seen.canary.rows, seen.baseline.rows) < least:
        yield {"canary": seen.canary.rows, "baseline": seen.baseline.rows, "min_requests": least}


def no_pinned_baseline(seen: Evidence) -> Iterator[dict[str, Any]]:
    """No baseline at all, or two values of one pin in it."""
    if seen.baseline.rows == 0:
        yield {"requests": 0}
    elif not seen.baseline_is_pinned:
        values: dict[str, set[str]] = {}
        for pins, _ in pin_sets(seen.window.baseline):
            for pin in judged(seen.flag, pins):
                values.setdefault(pin, set()).add(pins[pin])
        mixed = {pin: sorted(found) for pin, found in sorted(values.items()) if len(found) > 1}
        if mixed:
            yield {"pins": mixed}


def pins_missing(seen: Evidence) -> Iterator[dict[str, Any]]:
    """Requests without one of the six pins."""
    for name, arm in (("baseline", seen.window.baseline), ("canary", seen.window.canary)):
        missing: dict[str, int] = {}
        for pins, found in pin_sets(arm):
            for pin in PINS:
                if pin not in pins:
                    missing[pin] = missing.get(pin, 0) + found.count
        if missing:
            yield {"arm": name, "requests": missing}


def pins_drifted(seen: Evidence) -> Iterator[dict[str, Any]]:
    """A pin that is not what it was locked to, or not the manifest's; one finding a pin and value."""
    for name, arm in (("baseline", seen.window.baseline), ("canary", seen.window.canary)):
        drifts: dict[tuple[str, str], dict[str, Any]] = {}
        for pins, found in pin_sets(arm):
            for pin in judged(seen.flag, pins):
                old, new = seen.locked[name].get(pin), pins[pin]
                if old is not None and old != new:
                    _, partition, offset = found.first
                    drift = drifts.setdefault(
                        (pin, new),
                        {
                            "arm": name,
                            "pin": pin,
                            "old": old,
                            "new": new,
                            "requests": 0,
                            "first": {"partition": partition, "offset": offset},
                        },
                    )
                    drift["requests"] += found.count
        yield from drifts.values()


def sticky_violation(seen: Evidence) -> Iterator[dict[str, Any]]:
    """Sticky ids that were served in both arms within the stage."""
    ids, level = shared(seen.stage_ids["canary"], seen.stage_ids["baseline"])
    if len(ids) > seen.flag.policy.sticky_violations_max:
        yield {
            "ids": len(ids),
            "xxh3": [f"{i:016x}" for i in ids[:EXAMPLES].tolist()],
            "followed": f"1 id in {1 << level}",
        }


def window_unstable(seen: Evidence) -> Iterator[dict[str, Any]]:
    """Too many late events or dead letters for the window's numbers to be whole."""
    window, accepted = seen.window, seen.window.accepted
    for what, count, limit in (
        ("late", window.late, seen.flag.window.late_max),
        ("dead_letters", window.dead_letters, DEAD_LETTERS_MAX),
    ):
        if count and count / (count + accepted) > limit + SLACK:
            yield {what: count, "share": rounded(count / (count + accepted)), "limit": limit}


Detector = Callable[[Evidence], Iterator[dict[str, Any]]]
DETECTORS: tuple[Detector, ...] = (
    insufficient_data,
    no_pinned_baseline,
    pins_missing,
    pins_drifted,
    sticky_violation,
    window_unstable,
)


def problems(seen: Evidence) -> list[Problem]:
    """Every evidence problem of the window, in the order of ``DETECTORS``."""
    return [Problem(problem=detector.__name__, detail=detail) for detector in DETECTORS for detail in detector(seen)]


def pin_sets(arm: Arm) -> list[tuple[Pins, PinSet]]:
    """The sets of pins an arm showed, in the order they were first seen."""
    sets = [
        (pins, found)
        for source in REQUEST_SOURCES
        if source in arm.sources
        for pins, found in arm.sources[source].pins.items()
    ]
    decode = msgspec.json.decode
    return [(decode(pins), found) for pins, found in sorted(sets, key=lambda item: (item[1].first, item[0]))]


def judged(flag: Flag, pins: Pins) -> list[str]:
    """The pins of a set that drift is judged on: the six and those the manifest names."""
    return [pin for pin in pins if pin in PINS or pin in flag.versions or pin in flag.baseline_versions]
