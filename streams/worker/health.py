"""What a worker tells of itself: /livez, /readyz and Prometheus /metrics."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from tidegate.schemas.errors import SettingsError
from tidegate.streams.engine.gate_partition import GatePartition
from tidegate.streams.engine.source_partition import Step
from tidegate.streams.kafka.retained import Agent

FLAGS_MAX = 100
"""Flags that no manifest names and that have a label of their own."""
UNITS_MAX = 1_000
"""Units whose weight has a label of its own: regions come from telemetry, and anybody may invent more of them."""


class Check(NamedTuple):
    """One thing that a worker needs: whether it is ready as far as this goes, and what to say of it."""

    well: bool
    said: str

    @classmethod
    def of(cls, done: bool) -> "Check":
        """Of what comes once and stays."""
        return cls(done, "ok" if done else "not yet")


@dataclass
class Metrics:
    """The worker's counters and gauges; of what telemetry says only so many flags and regions become labels.

    Gauges of partitions and of their units are shown from ``own`` to ``forget``, whatever is said of them otherwise.
    """

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    _owned: set[tuple[Agent, int]] = field(default_factory=set)
    _units: dict[int, set[str]] = field(default_factory=dict)
    _unknown: set[str] = field(default_factory=set)
    _unseen: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        r = self.registry
        self.records = Counter("tidegate_records", "telemetry records read", registry=r)
        self.accepted = Counter("tidegate_events_accepted", "events counted for a unit", registry=r)
        self.late = Counter("tidegate_events_late", "events whose pane was closed", registry=r)
        self.duplicates = Counter("tidegate_events_duplicate", "events dropped as repeats", registry=r)
        self.dead_letters = Counter("tidegate_dead_letters", "records that are no events", registry=r)
        self.unreadable = Counter("tidegate_records_unreadable", "records in unreadable batches", registry=r)
        self.lost = Counter("tidegate_records_lost", "records deleted before they were read", ["topic"], registry=r)
        self.unknown_flag = Counter(
            "tidegate_events_unknown_flag",
            f"events of flags that no manifest names, by flag; those beyond {FLAGS_MAX} flags have none",
            ["flag"],
            registry=r,
        )
        self.early = Counter("tidegate_events_early", "events of before the first manifest", registry=r)
        self.warmup = Counter("tidegate_events_warmup", "warm-up events, which count for nothing", registry=r)
        self.outside = Counter(
            "tidegate_events_out_of_scope",
            "events that count for no unit, by the fields that are not among their flag's",
            ["fields"],
            registry=r,
        )
        self.partials = Counter("tidegate_partials", "panes closed", registry=r)
        self.corrections = Counter("tidegate_corrections", "decisions that late events would have changed", registry=r)
        self.decisions = Counter("tidegate_decisions", "decisions written", ["verdict"], registry=r)
        self.labels = Counter(
            "tidegate_labels",
            "labels by what became of them: counted, foreign (of no request of their stage), not_followed",
            ["outcome"],
            registry=r,
        )
        self.checkpoints = Counter("tidegate_checkpoints", "states saved", registry=r)
        self.checkpoint_bytes = Gauge("tidegate_checkpoint_bytes", "size of the last state", ["agent"], registry=r)
        self.refused = Counter("tidegate_refused", "signed records that were not taken", ["kind"], registry=r)
        self.revision = Gauge("tidegate_manifest_revision", "the last revision that was taken", registry=r)
        self.watermark = Gauge("tidegate_watermark_ms", "event time reached, ms", ["agent", "partition"], registry=r)
        self.position = Gauge("tidegate_position", "next offset", ["agent", "partition"], registry=r)
        self.canary_weight = Gauge("tidegate_canary_weight", "share of traffic", ["flag", "region"], registry=r)
        self.retired = Gauge(
            "tidegate_unit_retired", "1 where the flag has left the manifest", ["flag", "region"], registry=r
        )
        self.unseen = Gauge("tidegate_units_without_weight", "units beyond those with a weight here", registry=r)

    def stepped(self, step: Step) -> list[str]:
        """Count what records gave; the flags that no manifest names and that were not seen before."""
        self.records.inc(step.records)
        self.accepted.inc(step.accepted)
        self.late.inc(len(step.late))
        self.duplicates.inc(step.duplicates)
        self.dead_letters.inc(len(step.dead))
        self.early.inc(step.left.early)
        self.warmup.inc(step.left.warmup)
        for fields, count in step.left.outside.items():
            self.outside.labels(fields).inc(count)
        self.partials.inc(len(step.partials))
        new = [flag for flag in step.left.unknown if flag not in self._unknown][: FLAGS_MAX - len(self._unknown)]
        self._unknown.update(new)
        for flag, count in step.left.unknown.items():
            self.unknown_flag.labels(flag if flag in self._unknown else "").inc(count)
        if step.left.unnamed:
            self.unknown_flag.labels("").inc(step.left.unnamed)
        return new

    def heard(self, labels: Mapping[str, int]) -> None:
        """Count labels, by what became of them."""
        for what, count in labels.items():
            self.labels.labels(what.removeprefix("labels").removeprefix("_") or "counted").inc(count)

    def own(self, agent: Agent, partition: int) -> None:
        """Show a partition from now on."""
        self._owned.add((agent, partition))

    def forget(self, agent: Agent, partition: int) -> None:
        """Show nothing of a partition that has moved away, nor of the units of its gate."""
        self._owned.discard((agent, partition))
        self.position.remove(agent, partition)
        self.watermark.remove(agent, partition)
        if all(other != agent for other, _ in self._owned):
            self.checkpoint_bytes.remove(agent)
        if agent == "gate":
            self._hide(self._units.pop(partition, set()))
            self._unseen.pop(partition, None)
            self.unseen.set(sum(self._unseen.values()))

    def reached(self, agent: Agent, partition: int, position: int, watermark: int | None) -> None:
        """Show how far a partition has come."""
        if (agent, partition) in self._owned:
            self.position.labels(agent, partition).set(position)
            if watermark is not None:
                self.watermark.labels(agent, partition).set(watermark)

    def saved(self, agent: Agent, partition: int, size: int) -> None:
        """Count a checkpoint."""
        self.checkpoints.inc()
        if (agent, partition) in self._owned:
            self.checkpoint_bytes.labels(agent).set(size)

    def weighed(self, partition: int, gate: GatePartition) -> None:
        """Show the weights of a gate's units, and of no others of that gate."""
        if ("gate", partition) not in self._owned:
            return
        shown = self._units.setdefault(partition, set())
        gone = shown - gate.ramps.keys() - gate.retired.keys()
        self._hide(gone)
        shown -= gone
        room, unseen = UNITS_MAX - sum(map(len, self._units.values())), 0
        running = ((name, ramp.unit) for name, ramp in gate.ramps.items())
        for name, unit in chain(running, gate.retired.items()):
            if name not in shown:
                if room <= 0:
                    unseen += 1
                    continue
                room -= 1
                shown.add(name)
            self.canary_weight.labels(*name.split("|", 1)).set(unit.weight)
            self.retired.labels(*name.split("|", 1)).set(name in gate.retired)
        self._unseen[partition] = unseen
        self.unseen.set(sum(self._unseen.values()))

    def _hide(self, units: set[str]) -> None:
        for name in units:
            self.canary_weight.remove(*name.split("|", 1))
            self.retired.remove(*name.split("|", 1))


async def serve(host: str, port: int, metrics: Metrics, ready: Callable[[], Mapping[str, Check]]) -> web.AppRunner:
    """Start the HTTP server; its address is in the runner's ``addresses``. ``ready``: what has to be well.

    Raises SettingsError if the address cannot be had.
    """

    async def livez(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        checks = ready()
        lines = "".join(f"{name}: {check.said}\n" for name, check in checks.items())
        return web.Response(text=lines, status=200 if all(check.well for check in checks.values()) else 503)

    async def show(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.router.add_get("/livez", livez)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", show)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        await runner.cleanup()
        raise SettingsError(
            f"TIDEGATE_HTTP_HOST, TIDEGATE_HTTP_PORT: {host}:{port} cannot be had: {error.strerror or error}; a second "
            "worker on one machine needs a port of its own, and 0 takes a free one"
        ) from None
    return runner
