"""What the simulated deployment reads: a small service's telemetry, its manifests and its operators' orders."""

import json
import random
from dataclasses import dataclass
from functools import cache
from typing import Any

from tidegate.schemas.clockwork import Clockwork
from tidegate.schemas.load import load_manifest
from tidegate.schemas.timeline import Revision, Timeline

PANE, LATENESS = 10_000, 5_000
CLOCKWORK = Clockwork(PANE, LATENESS, "tidegate.telemetry")
START = 1_700_000_000_000
PANES = 4
REVISED_AT = START + 2 * PANE
JITTER = 3_000
"""How far behind the newest event of its partition an event in time may come, ms."""
KINDS = 6
"""Number of different logs; a seed takes one of them, so that the undisturbed run of each is computed once."""
FIRST = """
flags:
  ramp:
    versions: {MODEL_VER: m1}
    traffic: {canary_weight: 0.1, baseline_weight: 0.9, stages: [0.1, 0.5, 1.0]}
    window: {length: 20s, settle: 0s, min_requests: 2, late_max: 1.0}
    gates: &gates {lambda_convergent: false, tool_success_min: null}
  other: &other
    traffic: {canary_weight: 0.5, baseline_weight: 0.5, stages: [0.5, 1.0]}
    window: {length: 20s, settle: 0s, min_requests: 2, late_max: 1.0}
    gates: *gates
"""
SECOND = FIRST + "    policy: {quality_source: traffic}\n"
PINS = dict.fromkeys(("PROMPT_VER", "INDEX_HASH", "RERANK_CONF", "TOK_VER", "ANALYZER_CONF"), "1") | {"MODEL_VER": "m1"}
UNITS = (("ramp", "a"), ("ramp", "b"), ("other", "a"))


@cache
def timeline() -> Timeline:
    """Two revisions; the second changes one of the flags half way."""
    first, second = (dict(load_manifest(text).flags) for text in (FIRST, SECOND))
    return Timeline([Revision(1, 0, first), Revision(2, REVISED_AT, second)])


@dataclass(frozen=True)
class Entry:
    """A record to be written to a telemetry partition when the service's clock shows ``ts``, ms."""

    ts: int
    value: bytes


def _request(rng: random.Random, number: int, ts: int, flag: str, region: str, arm: str, bad: bool) -> dict[str, Any]:
    failed = bad and arm == "canary" and ts > START + PANE
    return {
        "event_id": f"{number}",
        "ts": ts,
        "flag": flag,
        "region": region,
        "arm": arm,
        "sticky_id": f"{arm}{rng.randrange(4)}",
        "latency_ms": rng.lognormvariate(4, 0.02),
        "status": 500 if failed and rng.random() < 0.7 else 200,
        "versions": PINS,
        "delta_s": 0.1 + rng.random() * 0.01,
        "coverage": 0.9,
        "cost": 0.01,
        "solved": True,
    }


@cache
def logs(kind: int, partitions: int) -> tuple[tuple[Entry, ...], ...]:
    """Telemetry by partition: healthy and failing units, late, repeated and broken records, and a last tick."""
    rng = random.Random(kind)
    written: list[list[Entry]] = [[] for _ in range(partitions)]
    number = 0
    for pane in range(PANES):
        events = []
        for unit, (flag, region) in enumerate(UNITS):
            for arm in ("baseline", "canary"):
                for _ in range(rng.randrange(2, 5)):
                    number += 1
                    ts = START + pane * PANE + rng.randrange(PANE)
                    events.append(_request(rng, number, ts, flag, region, arm, unit == kind % 4))
        events.sort(key=lambda event: event["ts"] + rng.randrange(JITTER))
        for event in events:
            partition, now = rng.randrange(partitions), event["ts"]
            if rng.random() < 0.08:
                event["ts"] = max(START, now - 2 * PANE)
            value = json.dumps(event).encode()
            written[partition] += [Entry(now, value)] * rng.choice([1, 1, 1, 1, 1, 1, 1, 2])
            # Any broken record makes a window this small unstable.
            if pane == kind % PANES and rng.random() < 0.1:
                written[partition].append(Entry(now, b"no event"))
    # What closes every pane.
    end = START + (PANES + 2) * PANE + LATENESS
    tick = Entry(end, b'{"kind":"tick","ts":%d}' % end)
    return tuple((*entries, tick) for entries in written)


def order(rng: random.Random, now: int) -> bytes:
    """An operator kills a flag, lets it begin anew, holds its promotes or gives one."""
    kind, flag = rng.choice(("kill", "rearm", "rearm", "pause", "resume", "promote")), rng.choice(UNITS)[0]
    return json.dumps({"actor": "op", "flag": flag, "kind": kind, "reason": f"{now}", "ts": now}).encode()
