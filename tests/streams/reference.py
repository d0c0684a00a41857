"""The contract's sections 2 and 3 once more: one event at a time, in plain Python, for comparison.

Written from the contract and not from the code that it checks; it shares nothing with it but the hash of ids.
"""

import json
import math
from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import xxhash
import yaml

SIX = ("MODEL_VER", "PROMPT_VER", "INDEX_HASH", "RERANK_CONF", "TOK_VER", "ANALYZER_CONF")
CHOICES = {
    "kind": ("request", "exposure", "label", "tick"),
    "arm": ("baseline", "canary"),
    "source": ("traffic", "gold", "shadow", "warmup"),
    "evaluated_by": ("server", "client"),
    "reason_status": ("ok", "failed"),
    "output_mode": ("full", "cite_only"),
}
IDS = ("event_id", "flag", "sticky_id")
TEXTS = [
    "tenant",
    "region",
    "endpoint",
    "cohort",
    "surface",
    "lambda_state",
    "query_id",
    "cache_namespace",
    "assignment_key",
    "manifest_hash",
]
INTS = {"ts": (978_307_200_000, 4_102_444_799_999), "paraphrase": (1, 3), "seed": (1, 2)} | dict.fromkeys(
    ["status", "attempts", "tool_calls", "tool_ok", "applied_seq"], (0, 2**31 - 1)
)
NUMBERS = {
    "delta_s": (-1e-6, 2 + 1e-6),
    "coverage": (-1e-6, 1 + 1e-6),
    "latency_ms": (0, 1e9),
    "cost": (0, 1e9),
    "bucket": (0, 1),
}
FLAGS = ("error", "rate_limited", "solved", "cache_hit")


class Refused(ValueError):
    """The record is no valid event."""


def check(ok: object) -> None:
    if not ok:
        raise Refused


def _no_constant(name: str) -> None:
    raise Refused(f"{name} is not JSON")


def levels(value: Any) -> int:
    """How deeply objects and arrays are nested."""
    deepest, below = 0, [value]
    while below := [inner for one in below for inner in _inside(one)]:
        deepest += 1
    return deepest + 1


def _inside(value: Any) -> list[Any]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [one for one in inner if isinstance(one, dict | list)]


def hashed(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode())


def judge(value: bytes | None, timestamp: int = -1) -> dict[str, Any]:
    """The event in a record, its absent and null fields left out; Refused if it is none."""
    try:
        check(value is not None)
        found = json.loads((value or b"").decode("utf-8"), parse_constant=_no_constant)
        json.dumps(found, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError):
        raise Refused from None
    check(isinstance(found, dict) and levels(found) <= 512)
    event = {name: given for name, given in found.items() if given is not None}
    for name, (least, most) in INTS.items():
        if name in event:
            check(type(event[name]) is int and least <= event[name] <= most)
    for name, bounds in NUMBERS.items():
        if name in event:
            check(type(event[name]) in (int, float))
            try:
                event[name] = float(event[name])
            except OverflowError:
                raise Refused from None
            check(math.isfinite(event[name]) and bounds[0] <= event[name] <= bounds[1])
            event[name] = min(max(event[name], 0.0), float(round(bounds[1])))
    for name, choices in CHOICES.items():
        check(event.get(name, choices[0]) in choices)
    check(all(type(event[name]) is bool for name in FLAGS if name in event))
    check(all(isinstance(event[name], str) for name in TEXTS if name in event))
    named = [event[name] for name in (*IDS, "labels_event_id") if name in event]
    check(all(isinstance(name, str) and 0 < len(name) <= 1024 for name in named))
    versions = event.setdefault("versions", {})
    check(isinstance(versions, dict) and all(isinstance(pin, str) for pin in versions.values()))
    tools = event.get("tools", [])
    check(isinstance(tools, list) and all(isinstance(t, dict) and isinstance(t.get("name"), str) for t in tools))
    check("ts" in event)
    kind = event.setdefault("kind", "request")
    if kind != "tick":
        own = "labels_event_id" if kind == "label" else "event_id"
        check(all(name in event for name in (own, *IDS[1:], "arm")))
        check(event.get("tool_ok", 0) <= event.get("tool_calls", 0))
    if kind == "request":
        check("latency_ms" in event and ("error" in event or "status" in event))
    check(timestamp < 0 or event["ts"] - timestamp <= 60_000)
    return event


def _owner(value: bytes | None) -> tuple[str, str] | None:
    """Flag and region of a record that is no event, if they can be read."""
    try:
        found = json.loads((value or b"").decode("utf-8"), parse_constant=_no_constant)
        check(isinstance(found, dict) and levels(found) <= 512)
        flag, region = found.get("flag"), found.get("region") or ""
        check(isinstance(flag, str) and isinstance(region, str) and max(len(flag), len(region)) <= 1024)
        f"{flag}{region}".encode()
    except (ValueError, RecursionError):
        return None
    return flag, region


@dataclass
class Cell:
    """The accepted events of one arm and source."""

    counts: Counter[str] = field(default_factory=Counter)
    delta_s: list[float] = field(default_factory=list)
    latency: list[float] = field(default_factory=list)
    coverage: list[float] = field(default_factory=list)
    cost: Fraction = Fraction(0)
    square: Fraction = Fraction(0)
    solved_cost: Fraction = Fraction(0)
    groups: dict[int, dict[int, bool]] = field(default_factory=dict)
    pins: dict[tuple[tuple[str, str], ...], list[int]] = field(default_factory=dict)
    sticky: set[int] = field(default_factory=set)
    requests: set[int] = field(default_factory=set)


@dataclass
class Seen:
    """One unit in one pane."""

    cells: dict[tuple[str, str], Cell] = field(default_factory=dict)
    late: int = 0
    duplicates: int = 0
    dead: int = 0
    offsets: list[int] = field(default_factory=list)
    labels: dict[tuple[str, str], list[dict[str, Any]]] = field(default_factory=dict)
    behind: list[dict[str, Any]] = field(default_factory=list)


class Partition:
    """One partition's records, one after the other; ``panes`` and ``dead`` are what came of them."""

    def __init__(self, manifest: str, pane_ms: int, lateness_ms: int) -> None:
        self.flags = yaml.safe_load(manifest)["flags"]
        self.pane_ms, self.lateness_ms = pane_ms, lateness_ms
        self.largest: int | None = None
        self.panes: dict[int, dict[str, Seen]] = {}
        self.dead: Counter[int] = Counter()
        self.records: Counter[int] = Counter()
        self.early_dead = 0
        self.late_offsets: list[int] = []
        self.dead_offsets: list[int] = []
        self.accepted = self.duplicates = self.warmup = 0
        self.unknown: Counter[str] = Counter()
        self.outside: Counter[str] = Counter()
        self.first_pane: dict[str, int] = {}

    @property
    def closed(self) -> int | None:
        """Panes below this one are closed; None before the first valid record."""
        return None if self.largest is None else (self.largest - self.lateness_ms) // self.pane_ms

    def take(self, offset: int, value: bytes | None, timestamp: int = -1) -> None:
        try:
            event = judge(value, timestamp)
        except Refused:
            self.dead_offsets.append(offset)
            owner = _owner(value)
            if self.largest is None:
                self.early_dead += 1
            elif owner is not None:
                self._seen(self.largest // self.pane_ms, "|".join(owner)).dead += 1
            else:
                self.dead[self.largest // self.pane_ms] += 1
            return
        if self.largest is None:
            self.dead[event["ts"] // self.pane_ms] += self.early_dead
        self.largest = max(event["ts"], -1 if self.largest is None else self.largest)
        if event["kind"] == "tick":
            return
        if event["flag"] not in self.flags:
            self.unknown[event["flag"]] += 1
        elif event.get("source") == "warmup":
            self.warmup += 1
        elif outside := self._outside(event):
            self.outside[outside] += 1
        else:
            self._counts(offset, event)

    def _outside(self, event: dict[str, Any]) -> str:
        scope = self.flags[event["flag"]].get("scope", {})
        return ", ".join(
            name
            for names, name in (
                ("regions", "region"),
                ("tenants", "tenant"),
                ("endpoints", "endpoint"),
                ("cohorts", "cohort"),
                ("surfaces", "surface"),
            )
            if "all" not in scope.get(names, ["all"]) and event.get(name, "") not in scope[names]
        )

    def _counts(self, offset: int, event: dict[str, Any]) -> None:
        assert self.largest is not None
        assert self.closed is not None
        unit, pane = f"{event['flag']}|{event.get('region', '')}", event["ts"] // self.pane_ms
        if pane < self.closed:
            self.late_offsets.append(offset)
            carrier = self._seen(self.largest // self.pane_ms, unit)
            carrier.late += 1
            carrier.behind.append(event)
            return
        seen = self._seen(pane, unit)
        name = f"{event['flag']} {event['kind']} {event.get('event_id') or ('of', event['labels_event_id'])}"
        if self.first_pane.get(name, -1) >= self.closed:
            seen.duplicates += 1
            self.duplicates += 1
            return
        self.first_pane[name] = pane
        self.accepted += 1
        self.records[self.largest // self.pane_ms] += 1
        seen.offsets.append(offset)
        source = event.get("source", "traffic")
        if event["kind"] == "label":
            seen.labels.setdefault((event["arm"], source), []).append(event | {"offset": offset})
            return
        cell = seen.cells.setdefault((event["arm"], source), Cell())
        if source == "traffic":
            cell.sticky.add(hashed(event["sticky_id"]))
        if event["kind"] == "exposure":
            cell.counts["exposures"] += 1
        else:
            self._request(offset, event, cell)

    def _seen(self, pane: int, unit: str) -> Seen:
        return self.panes.setdefault(pane, {}).setdefault(unit, Seen())

    def _request(self, offset: int, event: dict[str, Any], cell: Cell) -> None:
        status, counts = event.get("status", 0), cell.counts
        cell.requests.add(hashed(event["event_id"]))
        counts["requests"] += 1
        counts["errors"] += event.get("error", False) or status >= 500 or status == 429
        counts["rate_limited"] += event.get("rate_limited", False) or status == 429
        counts["solved"] += event.get("solved", False)
        counts["tool_rows"] += event.get("tool_calls", 0) > 0
        if "tool_ok" in event:
            counts["tool_calls"] += event.get("tool_calls", 0)
            counts["tool_ok"] += event["tool_ok"]
        else:
            counts["tool_missing"] += event.get("tool_calls", 0) > 0
        cell.latency.append(event["latency_ms"])
        if "delta_s" in event:
            cell.delta_s.append(event["delta_s"])
        if "coverage" in event:
            cell.coverage.append(event["coverage"])
        if "cost" in event:
            cell.cost += Fraction(event["cost"])
            cell.square += Fraction(event["cost"]) ** 2
            cell.solved_cost += Fraction(event["cost"]) if event.get("solved") else 0
            counts["cost_rows"] += "solved" in event
        if "lambda_state" in event:
            self.note_state(event, cell)
        cell.pins.setdefault(self.pins(event), [0, offset])[0] += 1

    def pins(self, event: dict[str, Any]) -> tuple[tuple[str, str], ...]:
        """Those of an event's versions that its flag knows."""
        flag = self.flags[event["flag"]]
        named = {*SIX, *flag.get("versions", {}), *flag.get("baseline_versions", {})}
        return tuple(sorted((name, pin) for name, pin in event["versions"].items() if name in named))

    def note_state(self, event: dict[str, Any], cell: Cell) -> None:
        state, counts = event["lambda_state"], cell.counts
        converged = state in ("→", "->", "convergent")
        spelt = converged or state in ("←", "<>", "×", "<-", "x", "divergent", "recursive", "chaotic")
        counts["lambda_misspelt"] += not spelt
        counts["lambda_rows"] += 1
        counts["lambda_bad_rows"] += not converged
        if all(name in event for name in ("query_id", "paraphrase", "seed")):
            runs = cell.groups.setdefault(hashed(event["query_id"]), {})
            run = (event["paraphrase"] - 1) * 2 + event["seed"] - 1
            runs[run] = runs.get(run, True) and converged
        else:
            counts["lambda_events"] += 1
            counts["lambda_flips"] += not converged


def quantile(values: list[float], q: float) -> float | None:
    """Type 7 of Hyndman and Fan over all values."""
    if not values:
        return None
    values = sorted(values)
    at = q * (len(values) - 1)
    low = int(at)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (at - low)
