"""A worker's health and numbers: /livez, /readyz and Prometheus /metrics."""

import asyncio
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Info, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from tidegate.schemas.catalogue import VERDICTS
from tidegate.schemas.errors import SettingsError
from tidegate.streams.engine.gate_partition import GatePartition
from tidegate.streams.engine.source_partition import Step
from tidegate.streams.engine.stamped import VERSION
from tidegate.streams.kafka.retained import Agent
from tidegate.streams.worker.units import UnitGauges

FLAGS_MAX = 100
"""Flags that no manifest names and that have a label of their own."""


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
    _unknown: set[str] = field(default_factory=set)

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
        self.lag = Gauge("tidegate_lag_records", "records that are not read yet", ["agent", "partition"], registry=r)
        self.lag_seconds = Gauge(
            "tidegate_lag_seconds",
            "age of the last record that was read, by its own timestamp; 0 where all are read",
            ["agent", "partition"],
            registry=r,
        )
        self.broker_silent = Gauge("tidegate_broker_silent_seconds", "since a broker last answered", registry=r)
        self.units = UnitGauges()
        r.register(self.units)
        Info("tidegate_build", "what runs here", registry=r).info(
            {"version": VERSION, "python": platform.python_version()}
        )
        ProcessCollector(registry=r)
        # From 0 on: what comes up with its first 1 has never risen, for whoever asks how much it did.
        for counter, names in (
            (self.decisions, VERDICTS),
            (self.labels, ("counted", "foreign", "not_followed")),
            (self.refused, ("manifest", "operation")),
        ):
            for name in names:
                counter.labels(name)

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
        for gauge in (self.position, self.watermark, self.lag, self.lag_seconds):
            gauge.remove(agent, partition)
        if all(other != agent for other, _ in self._owned):
            self.checkpoint_bytes.remove(agent)
        if agent == "gate":
            self.units.forget(partition)

    def reached(self, agent: Agent, partition: int, position: int, watermark: int | None) -> None:
        """Show how far a partition has come."""
        if (agent, partition) in self._owned:
            self.position.labels(agent, partition).set(position)
            if watermark is not None:
                self.watermark.labels(agent, partition).set(watermark)

    def behind(self, agent: Agent, partition: int, records: int, seconds: float | None) -> None:
        """Show how much of a partition waits, and how old it is; None: not known."""
        if (agent, partition) in self._owned:
            self.lag.labels(agent, partition).set(records)
            if seconds is not None:
                self.lag_seconds.labels(agent, partition).set(seconds)

    def saved(self, agent: Agent, partition: int, size: int) -> None:
        """Count a checkpoint."""
        self.checkpoints.inc()
        if (agent, partition) in self._owned:
            self.checkpoint_bytes.labels(agent).set(size)

    def see(self, partition: int, gate: GatePartition) -> None:
        """Show the units of a gate as they are now."""
        if ("gate", partition) in self._owned:
            self.units.see(partition, gate)


class HasRegistry(Protocol):
    """Whoever counts something."""

    registry: CollectorRegistry


async def serve(
    host: str,
    port: int,
    metrics: HasRegistry,
    ready: Callable[[], Mapping[str, Check]],
    refresh: Callable[[], None] = lambda: None,
) -> web.AppRunner:
    """Start the HTTP server; its address is in the runner's ``addresses``.

    ``ready``: what has to be well. ``refresh``: called before metrics are shown, to bring them up to date.

    Raises SettingsError if the address is taken or not this machine's.
    """

    async def livez(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        checks = ready()
        lines = "".join(f"{name}: {check.said}\n" for name, check in checks.items())
        return web.Response(text=lines, status=200 if all(check.well for check in checks.values()) else 503)

    async def show(_: web.Request) -> web.Response:
        refresh()
        # In a thread: with a thousand units it takes a while, and heartbeats must not wait for it.
        text = await asyncio.to_thread(generate_latest, metrics.registry)
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_LATEST})

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
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise SettingsError(
            f"TIDEGATE_HTTP_HOST, TIDEGATE_HTTP_PORT: cannot listen on {host}:{port}: {reason}; a second "
            "worker on one machine needs a port of its own, or 0 to pick a free port"
        ) from None
    return runner
