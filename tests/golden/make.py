"""Stored logs and what has to be decided from them: ``python -m tests.golden.make`` renews the decisions.

The telemetry of a case stays as it is stored, unless ``--telemetry`` asks for it to be drawn again.
"""

import argparse
import gzip
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from tidegate.streams.commands import main
from tidegate.streams.dumps.log import partition_of

HERE = Path(__file__).parent
RENEW = "python -m tests.golden.make"
PACKED_ABOVE = 50_000
"""Bytes of telemetry above which it is stored as ``.gz``."""
SECOND = 1_000
NOON = 1_750_000_000_000
"""A moment at which a pane begins."""
PINS = {
    "MODEL_VER": "m-1",
    "PROMPT_VER": "p-1",
    "INDEX_HASH": "i-1",
    "RERANK_CONF": "r-1",
    "TOK_VER": "t-1",
    "ANALYZER_CONF": "a-1",
}
CANARY_PINS = PINS | {"MODEL_VER": "m-2"}
MANIFEST = """flags:
  answer:
    scope: {regions: [eu]}
    versions: {MODEL_VER: m-2, PROMPT_VER: p-1, INDEX_HASH: i-1, RERANK_CONF: r-1, TOK_VER: t-1, ANALYZER_CONF: a-1}
    traffic: {canary_weight: 0.25, baseline_weight: 0.75, stages: [0.25, 0.5, 1.0]}
    window: {length: 60s}
    policy: {evidence: point}
"""
PARTITIONED = """flags:
  answer: &rollout
    scope: {regions: [eu, "süd|1"]}
    versions: {MODEL_VER: m-2}
    traffic: {canary_weight: 0.25, baseline_weight: 0.75, stages: [0.25, 1.0]}
    window: {length: 60s, late_max: 0.05}
    policy: {evidence: point, quality_source: traffic, lambda_source: traffic}
  rerank:
    <<: *rollout
    scope: {regions: [eu]}
    window: {length: 90s, late_max: 0.0}
"""


@dataclass(frozen=True)
class Change:
    """How the canary differs from the moment ``after`` (ms since noon) on."""

    after: int
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """A log, and the verdicts that it has to end in by unit, whatever else may change.

    ``weights``: the canary's share of traffic from a moment (ms since noon) on, as a router that obeys has it.
    ``errors``: share of failed canary requests. ``windows``: their starts (ms since noon).
    """

    what: str
    verdicts: Mapping[str, Sequence[str]]
    seconds: int
    weights: Mapping[int, float] = field(default_factory=lambda: {0: 0.25})
    change: Change = field(default_factory=lambda: Change(0, {}))
    errors: float = 0.0
    windows: Sequence[int] = (0, 60_000, 120_000)
    partitions: int = 1
    manifest: str = MANIFEST

    def weight(self, at: int) -> float:
        return next(weight for since, weight in sorted(self.weights.items(), reverse=True) if since <= at)


CASES = {
    "healthy": Case(
        "every gate passes: 25, 50, 100 %, and a pass on the pinned baseline",
        {"answer|eu": ("promote", "promote", "pass")},
        seconds=240,
        weights={0: 0.25, 80_000: 0.5, 160_000: 1.0},
        windows=(0, 80_000, 160_000),
    ),
    "abort": Case(
        "a third of the canary's requests fails from half a minute on: abort, long before the window ends",
        {"answer|eu": ("abort", "hold", "hold")},
        seconds=130,
        weights={0: 0.25, 50_000: 0.0},
        change=Change(25_000, {}),
        errors=0.35,
    ),
    "rollback": Case(
        "a slow canary: freeze at the first window's end, rollback at the second's",
        {"answer|eu": ("freeze", "rollback", "hold")},
        seconds=190,
        weights={0: 0.25, 120_000: 0.0},
        change=Change(0, {"latency_ms": 1.4}),
    ),
    "pins": Case(
        "the canary's index is swapped in the middle of the first window: hold, although all gates pass",
        {"answer|eu": ("hold", "hold")},
        seconds=130,
        change=Change(35_000, {"versions": CANARY_PINS | {"INDEX_HASH": "i-2"}}),
    ),
    "partitions": Case(
        "three partitions of a dump with late events, repeats, dead letters and clocks ahead; two flags, two regions",
        {"answer|eu": ("promote",), "answer|süd|1": ("promote",), "rerank|eu": ("hold",)},
        seconds=100,
        partitions=3,
        manifest=PARTITIONED,
    ),
}


def telemetry(case: Case, seed: int) -> list[bytes]:
    """The lines of a case's log."""
    rng = Random(seed)
    if case.partitions > 1:
        return list(_dump(case, rng))
    events = [*_requests(case, rng), *_probes(case, rng)]
    lines = [_line(event) for event in sorted(events, key=lambda event: int(event["ts"]))]
    return [*lines, _tick(NOON + case.seconds * SECOND)]


def _line(event: Mapping[str, Any]) -> bytes:
    return json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()


def _tick(ts: int) -> bytes:
    return _line({"kind": "tick", "ts": ts})


def _requests(case: Case, rng: Random) -> Iterator[dict[str, Any]]:
    """Four requests a second of users that stay in their arm."""
    for number in range((case.seconds - 20) * 4):
        at = number * 250 + rng.randrange(250)
        user = f"user-{rng.randrange(3_000)}"
        yield _served(case, rng, at, f"r{number}", _arm(user, case.weight(at)), user)


def _probes(case: Case, rng: Random) -> Iterator[dict[str, Any]]:
    """Four gold questions a window to each arm that serves anyone, three paraphrases and two seeds each."""
    for start in case.windows:
        for number in range(24):
            at = start + 12 * SECOND + number * 1_900
            if at > case.seconds * SECOND:
                return
            question, paraphrase, seed = number % 4, number // 8 + 1, number // 4 % 2 + 1
            for arm in ("baseline", "canary"):
                if 0 < case.weight(at) < 1 or (arm == "canary") == (case.weight(at) == 1):
                    event = _served(case, rng, at, f"g{start}-{arm}-{number}", arm, f"gold-{arm}-{question}")
                    probe = {"query_id": f"q{question}", "paraphrase": paraphrase, "seed": seed}
                    yield event | {"source": "gold", **probe}


def _arm(user: str, weight: float, flag: str = "answer") -> str:
    bucket = int.from_bytes(sha256(f"{flag}:{user}".encode()).digest()[:8], "big") / 2**64
    return "canary" if bucket < weight else "baseline"


def _served(case: Case, rng: Random, at: int, name: str, arm: str, user: str) -> dict[str, Any]:
    changed = arm == "canary" and at >= case.change.after
    changes = dict(case.change.fields) if changed else {}
    calls = rng.choice([0, 0, 1, 2])
    latency = rng.uniform(300, 420) * changes.pop("latency_ms", 1.0)
    failed = changed and rng.random() < case.errors
    return {
        "event_id": name,
        "ts": NOON + at,
        "flag": "answer",
        "arm": arm,
        "sticky_id": user,
        "region": "eu",
        "versions": CANARY_PINS if arm == "canary" else PINS,
        "delta_s": round(rng.uniform(0.05, 0.15), 3),
        "coverage": round(rng.uniform(0.8, 0.9), 3),
        "lambda_state": "→",
        "latency_ms": round(latency, 1),
        "status": 500 if failed else 200,
        "tool_calls": calls,
        "tool_ok": calls,
        "cost": round(rng.uniform(0.01, 0.0101), 6),
        "solved": not failed,
    } | changes


def _dump(case: Case, rng: Random) -> Iterator[bytes]:
    """Records as a dump of the topic has them, with all that goes wrong on the way there."""
    offsets = [0] * case.partitions

    def record(partition: int, value: bytes, stamp: int) -> bytes:
        offsets[partition] += 1
        head = b'{"partition":%d,"offset":%d,"timestamp":%d,' % (partition, offsets[partition] - 1, stamp)
        return head + b'"value":' + value + b"}"

    for number in range((case.seconds - 20) * 24):
        written = number * 1_000 // 24
        flag = rng.choice(["answer", "answer", "rerank", "nobody's"])
        user = f"usér-{rng.randrange(3_000)}"
        event = _served(case, rng, written + rng.randrange(2_000), f"r{number}", _arm(user, 0.25, flag), user)
        event |= {"flag": flag, "region": rng.choice(["eu", "süd|1"]) if flag == "answer" else "eu"}
        partition, stamp = partition_of(user.encode(), case.partitions), NOON + written
        value = _line(event | {"ts": int(event["ts"]) - 25 * SECOND} if rng.random() < 0.02 else event)
        yield record(partition, value, stamp)
        if rng.random() < 0.015:
            yield record(partition, value, stamp)
        if number % 400 == 399:
            wrong = {"latency_ms": -1}, {"ts": NOON + written + 70 * SECOND}, {"arm": "third"}
            values = [_line(event | {"event_id": f"w{number}"} | one) for one in wrong] + [b'"no event"']
            yield record(partition, values[number // 400 % len(values)], stamp)
    for partition in range(case.partitions):
        end = NOON + case.seconds * SECOND
        yield record(partition, _tick(end + partition * SECOND), end + partition * SECOND)


def folder(name: str) -> Path:
    return HERE / name


def log_of(name: str) -> Path:
    """The stored telemetry of a case."""
    (path,) = folder(name).glob("telemetry.ndjson*")
    return path


def decide(name: str, out: Path) -> tuple[bytes, bytes]:
    """Decisions and commands that follow from a stored log, as the command line gives them."""
    case = CASES[name]
    decisions, commands = out / "decisions.ndjson", out / "commands.ndjson"
    files = ["--manifest", folder(name) / "manifest.yml", "--events", log_of(name)]
    given = [*files, "--out", decisions, "--commands", commands, "--partitions", case.partitions]
    try:
        main(["replay", *map(str, given)])
    except SystemExit as ended:
        if ended.code:
            raise
    return decisions.read_bytes(), commands.read_bytes()


def _store(path: Path, content: bytes) -> bool:
    """Write a file; whether that changed it."""
    if path.is_file() and path.read_bytes() == content:
        return False
    path.write_bytes(content)
    return True


def _store_log(name: str, lines: Iterable[bytes]) -> None:
    content = b"".join(line + b"\n" for line in lines)
    for path in folder(name).glob("telemetry.ndjson*"):
        path.unlink()
    if len(content) > PACKED_ABOVE:
        (folder(name) / "telemetry.ndjson.gz").write_bytes(gzip.compress(content, mtime=0))
    else:
        (folder(name) / "telemetry.ndjson").write_bytes(content)


def renew(name: str, *, draw: bool) -> bool:
    """Write what a case's files have to be; whether decisions or commands changed. ``draw``: the telemetry too."""
    case = CASES[name]
    folder(name).mkdir(exist_ok=True)
    _store(folder(name) / "manifest.yml", f"# {case.what}\n{case.manifest}".encode())
    if draw or not list(folder(name).glob("telemetry.ndjson*")):
        _store_log(name, telemetry(case, list(CASES).index(name)))
    with TemporaryDirectory() as out:
        decisions, commands = decide(name, Path(out))
    changed = _store(folder(name) / "decisions.ndjson", decisions)
    return _store(folder(name) / "commands.ndjson", commands) or changed


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--telemetry", action="store_true", help="draw the telemetry again")
    given = arguments.parse_args()
    for one in CASES:
        print(f"{one}: {'renewed' if renew(one, draw=given.telemetry) else 'the same bytes'}")
