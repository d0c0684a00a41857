"""The worker: Faust deliveries into the two state machines, their results and states back to Kafka.

Nothing is decided here. Both agents follow the same numbered steps; each comment names the crash it survives.
"""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Awaitable, Mapping
from typing import Any

import aiokafka
import faust
import structlog
from aiohttp import web
from aiokafka.errors import KafkaError, TopicAuthorizationFailedError
from aiokafka.structs import RecordMetadata
from faust.types import TP

from tidegate.schemas.correction import Correction
from tidegate.schemas.decision import Command, Decision
from tidegate.schemas.errors import (
    AccessError,
    HoleError,
    NoBrokerError,
    Refusal,
    StateError,
    TidegateError,
    TopicError,
)
from tidegate.schemas.event import Deleted, TelemetryEvent, encode
from tidegate.schemas.seal import RecordKind, sign_record
from tidegate.schemas.signed import PrivateKey, TrustedKeys
from tidegate.schemas.timeline import Timeline
from tidegate.streams.engine.event_classes import EventClasses
from tidegate.streams.engine.gate_log import (
    Order,
    gate_of,
    is_order,
    order_codec,
    order_key,
    partial_slices,
    piece_slices,
    split,
)
from tidegate.streams.engine.gate_partition import GatePartition, switches
from tidegate.streams.engine.source_partition import SourcePartition
from tidegate.streams.kafka import checkpoints
from tidegate.streams.kafka.follow import Follower
from tidegate.streams.kafka.manifests import ManifestLog, tell
from tidegate.streams.kafka.operations import OperationLog
from tidegate.streams.kafka.reader import UNREADABLE
from tidegate.streams.kafka.retained import Agent, Shape
from tidegate.streams.kafka.topics import check_topics
from tidegate.streams.kafka.turns import paced, result_of
from tidegate.streams.settings import Settings
from tidegate.streams.worker.checkpointer import Checkpointer
from tidegate.streams.worker.fetch import FetchedRun, RunScheduler, fetch_as_runs
from tidegate.streams.worker.health import Check, Metrics, serve
from tidegate.streams.worker.transport import IdempotentProducer, consumer_of, credentials

log = structlog.get_logger("tidegate")

END_SECONDS = 10.0
"""Time that a worker that has failed may take to end."""
FORWARD_BYTES = 512 << 10
"""A late record or a dead letter that is larger is cut: one that came compressed may be larger than any topic takes."""
FORWARD_CUT = 64 << 10
AWAY_SECONDS = 3.0
"""A broker that says nothing for this long is told to be away; a busy worker may ask less often than it means to."""
TOPICS_SECONDS = 5.0
"""Time between two looks at the topics."""


class Worker:
    """The Faust app and what its agents share. Raises nothing: a failure ends the process, see ``fail``.

    ``timeline``: of a manifest file; None: the manifests topic's, followed. ``trusted``: who may sign; None: operations
    are not signed. ``partitions``, ``gates``: those of the telemetry and the partials topic, as ``check_topics`` found
    them. ``signing``: the key for decisions and commands; None: they go without signatures.
    """

    def __init__(
        self,
        settings: Settings,
        timeline: Timeline | None,
        trusted: TrustedKeys | None,
        partitions: int,
        gates: int,
        signing: PrivateKey | None = None,
    ) -> None:
        self.settings, self._signing = settings, signing
        self.partitions, self.gates = partitions, gates
        self.shape = Shape(settings.telemetry_topic, partitions, gates, settings.pane, settings.lateness)
        self.timeline = timeline or Timeline()
        self.table = EventClasses(self.timeline)
        self.metrics = Metrics()
        self.operations = OperationLog(settings, trusted)
        self.ordered = Follower(settings, settings.operations_topic, self._take_operation)
        self.manifests: Follower | None = None
        if timeline is None:
            self.revisions = ManifestLog(settings, trusted or {})
            self.manifests = Follower(settings, settings.manifests_topic, self._take_manifest)
        self.keepers: dict[TP, Checkpointer] = {}
        self.failed: Exception | None = None
        self.stopped = self._alive = False
        self._began = time.monotonic()
        self.assigned = asyncio.Event()
        self.sources = {settings.telemetry_topic, settings.partials_topic}
        self._runner: web.AppRunner | None = None
        fetch_as_runs({settings.telemetry_topic})
        self.app = faust.App(
            settings.application_id,
            broker=[f"kafka://{server}" for server in settings.broker.split(",")],
            broker_credentials=credentials(settings),
            ConsumerScheduler=RunScheduler,
            consumer_max_fetch_size=settings.fetch_bytes,
            consumer_auto_offset_reset="earliest",
            consumer_group_instance_id=settings.instance_id,
            broker_session_timeout=settings.session_timeout / 1000,
            broker_heartbeat_interval=settings.heartbeat / 1000,
            stream_buffer_maxsize=16,
            stream_wait_empty=False,
            stream_recovery_delay=0.0,
            table_standby_replicas=0,
            topic_allow_declare=False,
            topic_disable_leader=True,
            value_serializer="raw",
            key_serializer="raw",
            producer_acks=-1,
            producer_linger=0.005,
            producer_max_request_size=4 << 20,
        )
        self.app.conf.web_enabled = False
        # Faust would make folders where the process stands, which may be read-only; nothing is kept on disk.
        self.app._create_directories = lambda: None  # type: ignore[method-assign]  # it has no setting for this
        self.app.transport.Consumer = consumer_of(self)  # type: ignore[misc]  # Faust's own hook
        self.app.transport.Producer = IdempotentProducer  # type: ignore[misc]
        self.app.agent(self._source(settings.telemetry_topic), concurrency=1)(self._window_agent)
        self.app.agent(self._source(settings.partials_topic), concurrency=1)(self._gate_agent)
        self.app.timer(min(1.0, settings.checkpoint_every / 1000))(self._idle)
        self.app.task(self._serve)
        self.app.task(self._follow_operations)
        self.app.task(self._follow_manifests)
        self.app.task(self._watch_topics)
        self.app.on_partitions_revoked.connect(self._let_go)
        self.app.on_before_shutdown.connect(self._shut_down)

    def _source(self, name: str) -> Any:
        # acks=False: Faust never commits; positions are in the checkpoints.
        return self.app.topic(name, key_serializer="raw", value_serializer="raw", acks=False)

    async def send(
        self, topic: str, key: bytes | None, value: bytes | None, partition: int, headers: Any = None
    ) -> Awaitable[RecordMetadata]:
        """Hand a record to the producer; awaiting the result confirms it."""
        producer = await self.app.maybe_start_producer()
        confirmation: Awaitable[RecordMetadata] = await producer.send(topic, key, value, partition, None, headers)
        return confirmation

    async def fail(self, error: Exception) -> None:
        """End the process without another checkpoint: what comes after would rest on work that was not done."""
        if self.stopped:
            # Everything is saved, and what was begun since is begun again by whoever is next.
            log.debug("not done", error=str(error))
            return
        if self.failed is None:
            if isinstance(error, TopicAuthorizationFailedError):
                error = AccessError(f"not allowed for this user, see docs/security.md for what a worker needs: {error}")
            self.failed = error
            known = isinstance(error, TidegateError)
            log.error("failed", error=str(error), kind=type(error).__name__, exc_info=None if known else error)
            # Whatever the libraries have to say while everything comes down is a consequence.
            logging.getLogger().setLevel(logging.CRITICAL)
            # A broker that is gone would hold the end up, and the partitions with it.
            deadline = threading.Timer(END_SECONDS, os._exit, (1,))
            deadline.daemon = True
            deadline.start()
            await self.app.crash(error)

    async def restore(self, tps: list[TP], begins: Mapping[TP, int]) -> dict[TP, int]:
        """Load the states of newly assigned partitions; the offsets to read on from."""
        started = time.monotonic()
        clockwork = self.settings.clockwork
        # Whoever takes in events knows every revision that they may be for.
        if self.manifests is not None:
            await self.manifests.catch_up()
        positions: dict[TP, int] = {}
        before = list(self.keepers.values())
        agents: tuple[tuple[str, str, Agent], ...] = (
            (self.settings.telemetry_topic, self.settings.window_checkpoints_topic, "window"),
            (self.settings.partials_topic, self.settings.gate_checkpoints_topic, "gate"),
        )
        for source, topic, agent in agents:
            mine = [tp for tp in tps if tp.topic == source]
            found = await checkpoints.read_checkpoints(self.settings, topic, [tp.partition for tp in mine])
            for tp in mine:
                saved = found.get(tp.partition)
                blob = saved and saved.state
                state: Any
                if agent == "window" and blob:
                    state = await result_of(SourcePartition.load_slices(blob, tp.partition, clockwork, self.table))
                elif agent == "window":
                    state = SourcePartition.fresh(tp.partition, clockwork, self.table, begins.get(tp, 0))
                elif blob:
                    shape = tp.partition, self.gates, self.partitions
                    state = await result_of(GatePartition.load_slices(blob, *shape, clockwork, self.timeline))
                    # One may have come meanwhile, and this gate was not told.
                    state.renew(self.timeline)
                    self._check_revisions(state)
                else:
                    first = begins.get(tp, 0)
                    state = GatePartition.fresh(
                        tp.partition, self.gates, self.partitions, clockwork, self.timeline, first
                    )
                self.keepers[tp] = keeper = Checkpointer(self, agent, topic, tp, state, saved.turn if saved else 0)
                if begins.get(tp, 0) > state.next:
                    await self._lose(keeper, begins[tp])
                positions[tp] = state.next
        for tp in self.keepers.keys() - set(tps):
            self.metrics.forget(self.keepers.pop(tp).agent, tp.partition)
        for keeper in self.keepers.values():
            self.metrics.own(keeper.agent, keeper.tp.partition)
        for keeper in before:
            await keeper.release()
        self.assigned.set()
        log.info(
            "assigned",
            telemetry=sorted(tp.partition for tp in positions if tp.topic == self.settings.telemetry_topic),
            gates=sorted(tp.partition for tp in positions if tp.topic == self.settings.partials_topic),
            seconds=round(time.monotonic() - started, 3),
        )
        return positions

    async def _lose(self, keeper: Checkpointer, begin: int) -> None:
        """Go on at ``begin``, where a topic now begins, if that is allowed; what is before it was never read."""
        state, tp = keeper.state, keeper.tp
        first, place = state.next, f"{tp.topic}-{tp.partition}"
        if not self.settings.accept_loss:
            raise HoleError(
                f"records {first} to {begin - 1} of {place} were deleted before they were read; start the workers with "
                "--accept-loss (TIDEGATE_ACCEPT_LOSS=true) to go on without them: the windows they touch are held"
            )
        log.error("records lost", topic=tp.topic, partition=tp.partition, offsets=f"{first} to {begin - 1}")
        if keeper.agent == "window":
            # 1. The log says so first. A crash here: whoever is next says it again.
            deleted = Deleted(first=first, next=begin)
            tick = TelemetryEvent(ts=int(time.time() * 1000), kind="tick", deleted_unread=deleted)
            await (await self.send(tp.topic, None, encode(tick), tp.partition))
        self.metrics.lost.labels(tp.topic).inc(begin - first)
        state.lose(begin)
        # 2. Nothing is given out before the loss is saved. A copy for auditors: no earlier state can be gone on from.
        keeper.span = -1
        await keeper.save_now()

    def _check_revisions(self, gate: GatePartition) -> None:
        known = [revision.number for revision in self.timeline.revisions]
        if self.manifests is not None and gate.revision > max(known, default=0):
            raise StateError(
                f"topic {self.settings.manifests_topic} has lost revision {gate.revision}, which decisions rest on; "
                "restore its record, or start a new TIDEGATE_APPLICATION_ID"
            )

    def _take_manifest(self, record: aiokafka.ConsumerRecord) -> None:
        revision = self.revisions.take(record)
        tell(record, revision)
        if isinstance(revision, Refusal):
            self.metrics.refused.labels("manifest").inc()
            return
        self.timeline = self.revisions.timeline
        self.metrics.revision.set(revision.number)
        self.table.renew(self.timeline)
        for keeper in self.keepers.values():
            if keeper.agent == "gate":
                keeper.state.renew(self.timeline)
            reached = (keeper.state.watermark or 0) + (self.settings.lateness if keeper.agent == "window" else 0)
            if reached > revision.effective_from:
                log.error(
                    "manifest late",
                    revision=revision.number,
                    reason=f"{keeper.tp.topic}-{keeper.tp.partition} is past its effective_from already, so a replay "
                    "will differ; was a producer's clock ahead?",
                )

    def _take_operation(self, record: aiokafka.ConsumerRecord) -> None:
        if self.operations.take(record) is None:
            self.metrics.refused.labels("operation").inc()

    async def _follow_manifests(self) -> None:
        try:
            if self.manifests is not None:
                await self.manifests.follow()
        except Exception as error:
            await self.fail(error)

    async def _watch_topics(self) -> None:
        """End if the topics are no longer what they were: the client libraries would wait for them for ever."""
        before: str | None = None
        while not self.failed:
            await asyncio.sleep(TOPICS_SECONDS)
            error: Exception | None = None
            try:
                found = await check_topics(self.settings)
                if found != (self.partitions, self.gates):
                    error = StateError(
                        f"the telemetry and the partials topic have {found} partitions, and had "
                        f"{(self.partitions, self.gates)}; partitions cannot be added: start a new "
                        "TIDEGATE_APPLICATION_ID"
                    )
            except NoBrokerError:
                continue  # An outage is waited out.
            except (TopicError, KafkaError) as reason:
                error = reason
            # Twice, as a broker that has just started may not know all of its topics yet.
            if error is not None and str(error) == before:
                await self.fail(error)
            before = None if error is None else str(error)

    async def _follow_operations(self) -> None:
        try:
            await self.ordered.follow(self._give_orders)
        except Exception as error:
            await self.fail(error)

    async def _give_orders(self) -> None:
        """Put the orders for the flags of this worker's gates into the gates' logs.

        The gate carries an order out where it stands in the log, so a crash repeats the same bytes. Before that, a
        crash puts it there once more; the gate drops what it has had.
        """
        if self.failed or self.stopped:
            return
        at = self.timeline.index(int(time.time() * 1000))
        switched = list(switches(self.timeline, at)) if at >= 0 else []
        for keeper in [keeper for keeper in self.keepers.values() if keeper.agent == "gate"]:
            gate = keeper.tp.partition
            for order in switched:
                if gate_of(order.flag, self.gates) == gate and (order.flag, order.revision) not in keeper.switched:
                    await self._put(order, gate)
                    keeper.switched.add((order.flag, order.revision))
            if self.manifests is None:
                for order in keeper.state.stranded(int(time.time() * 1000)):
                    if (order.flag, -1) not in keeper.switched:
                        log.warning("manifest file changed", flag=order.flag, order=order.operation.kind)
                        await self._put(order, gate)
                        keeper.switched.add((order.flag, -1))
            for order in self.operations.orders:
                if gate_of(order.flag, self.gates) == gate and order.offset >= keeper.operations_next:
                    await self._put(order, gate)
                    keeper.operations_next = order.offset + 1

    async def _put(self, order: Order, gate: int) -> None:
        # Confirmed one by one: an order must not overtake the one before it.
        await (await self.send(self.settings.partials_topic, order_key(order), order_codec.dump(order), gate))

    async def publish_position(self, tp: TP, offset: int) -> None:
        """Show consumer lag to dashboards."""
        try:
            thread = self.app.consumer._thread  # type: ignore[attr-defined]
            commit = thread._ensure_consumer().commit
            await thread.call_thread(commit, {aiokafka.TopicPartition(*tp): offset})
        except (KafkaError, ValueError) as error:
            log.debug("position not published", topic=tp.topic, partition=tp.partition, error=str(error))

    async def _window_agent(self, stream: Any) -> None:
        async for event in stream.events():
            await self._guarded(self._window, event)

    async def _gate_agent(self, stream: Any) -> None:
        async for event in stream.events():
            await self._guarded(self._gate, event)

    async def _guarded(self, step: Any, event: Any) -> None:
        """Faust would count an event as done whose agent raised; here the process ends instead."""
        keeper = self.keepers.get(event.message.tp)
        if keeper is None or self.failed:
            return
        try:
            async with keeper.lock:
                # A step that is cancelled half way leaves a state whose results were not all sent.
                whole, keeper.whole = keeper.whole, False
                await step(keeper, event)
                keeper.whole = whole
        except Exception as error:
            await self.fail(error)
        else:
            keeper.maybe_save()
        # Under a backlog the queue is never empty; timers, requests and checkpoints still need their turn.
        await asyncio.sleep(0)

    async def _window(self, keeper: Checkpointer, event: Any) -> None:
        fetched: FetchedRun = event.value
        state: SourcePartition = keeper.state
        keeper.heard_at = time.monotonic()
        if fetched.run.timestamps and fetched.run.timestamps[-1] >= 0:
            keeper.written_at = fetched.run.timestamps[-1] / 1000
        if self.manifests is not None:
            # What is taken in now might be for a revision that this process slept through: a replay would differ.
            await self.manifests.refresh()
        async for result in paced(state.step_slices(fetched.run)):
            for flag in self.metrics.stepped(result):
                log.warning("unknown flag", flag=flag, reason="no manifest names it: its events count for nothing")
            for partial in result.partials:
                key = b"%d|%d" % (partial.partition, partial.pane)
                for gate, part in enumerate(split(partial, self.gates)):
                    async for piece in paced(piece_slices(part)):
                        await keeper.send(self.settings.partials_topic, key, piece, gate)
            async for offset in paced(iter(result.late)):
                await self._forward(keeper, self.settings.late_topic, fetched, offset, None)
            async for offset, error in paced(iter(result.dead)):
                sent_with = fetched.headers.get(offset - fetched.run.first, ())
                self.metrics.unreadable.inc(any(name == UNREADABLE for name, _ in sent_with))
                await self._forward(keeper, self.settings.dead_letter_topic, fetched, offset, error)

    async def _forward(
        self, keeper: Checkpointer, topic: str, fetched: FetchedRun, offset: int, error: str | None
    ) -> None:
        index = offset - fetched.run.first
        key, value, foreign = fetched.keys[index], fetched.run.values[index], fetched.headers.get(index, ())
        size = len(key or b"") + len(value or b"") + sum(len(name) + len(content or b"") for name, content in foreign)
        if value is not None and size > FORWARD_BYTES:
            key, value, foreign = None, value[:FORWARD_CUT], [("tidegate.cut", b"%d" % len(value))]
        headers = [
            *foreign,
            ("tidegate.topic", keeper.tp.topic.encode()),
            ("tidegate.partition", b"%d" % keeper.tp.partition),
            ("tidegate.offset", b"%d" % offset),
        ]
        if error is not None:
            headers.append(("tidegate.error", error.encode(errors="replace")))
        await keeper.send(topic, key, value, keeper.tp.partition, headers)

    async def _gate(self, keeper: Checkpointer, event: Any) -> None:
        state: GatePartition = keeper.state
        offset, keeper.written_at = event.message.offset, event.message.timestamp
        try:
            if is_order(event.message.key):
                outcomes = state.operate_slices(offset, order_codec.load(event.value))
            else:
                outcomes = state.step_slices(offset, await result_of(partial_slices(event.value)))
        except StateError as error:
            raise StateError(f"{keeper.tp.topic}-{keeper.tp.partition} offset {offset}: {error}") from None
        async for decision, command in paced(outcomes):
            await self._publish(keeper, self.settings.decisions_topic, "decision", decision)
            if command is not None:
                await self._publish(keeper, self.settings.control_topic, "command", command)
            self.metrics.decisions.labels(decision.verdict).inc()
            self.metrics.units.decided(decision)
            log.info(
                "decided",
                flag=decision.flag,
                region=decision.region,
                verdict=decision.verdict,
                reasons=decision.reasons,
                decision=decision.decision_id,
                window_end=decision.window.end,
                seq=command and command.seq,
            )
        self.metrics.heard(state.take_labels())
        async for correction in paced(iter(state.take_corrections())):
            await self._publish(keeper, self.settings.corrections_topic, "correction", correction)
            self.metrics.corrections.inc()
            log.warning(
                "corrected",
                flag=correction.flag,
                region=correction.region,
                decision=correction.decision_id,
                window_end=correction.window.end,
                verdict=correction.said.verdict,
                would_have_been=correction.corrected.verdict,
                reasons=correction.corrected.reasons,
                late=correction.late,
            )

    async def _publish(
        self, keeper: Checkpointer, topic: str, kind: RecordKind, record: Decision | Command | Correction
    ) -> None:
        value = record.to_bytes()
        headers = None if self._signing is None else sign_record(value, kind, self._signing)
        await keeper.send(topic, record.key.encode(), value, keeper.tp.partition, headers)

    async def _idle(self) -> None:
        """Do what has to happen although no record comes: late checkpoints, ticks."""
        if self.failed or self.stopped:
            return
        for keeper in list(self.keepers.values()):
            keeper.maybe_save()
        try:
            await self._tick()
        except KafkaError as error:
            log.warning("no tick", error=str(error))

    async def _tick(self) -> None:
        """Move the time of silent partitions that are read to their end, once the topic has come alive."""
        after = self.settings.tick_idle_after
        if after is None:
            return
        now = time.monotonic()
        windows = [keeper for keeper in self.keepers.values() if keeper.agent == "window"]
        silent = [keeper for keeper in windows if (now - keeper.heard_at) * 1000 >= after]
        if self._alive and not silent:
            return
        everywhere = [TP(self.settings.telemetry_topic, p) for p in range(self.partitions)]
        ends = await self.app.consumer.highwaters(*everywhere)
        if not any(ends.values()):
            # Nobody is silent before the first record: what comes then may be old, and a tick would make it late.
            for keeper in windows:
                keeper.heard_at = now
            return
        self._alive = True
        tick = encode(TelemetryEvent(ts=int(time.time() * 1000), kind="tick"))
        for keeper in silent:
            if ends.get(keeper.tp) == keeper.state.next:
                keeper.heard_at = now
                await self.send(self.settings.telemetry_topic, None, tick, keeper.tp.partition)

    async def _serve(self) -> None:
        host, port = self.settings.http_host, self.settings.http_port
        self._runner = await serve(host, port, self.metrics, self._ready, self._refresh)
        log.info("serving", address="http://{}:{}".format(*self._runner.addresses[0][:2]))
        await self.assigned.wait()
        if self.timeline.starts:
            await asyncio.sleep(self.timeline.starts[0] / 1000 - time.time())
        log.info("ready", flags=sorted(self.timeline.flags(int(time.time() * 1000))))

    def _ready(self) -> dict[str, Check]:
        return {
            "manifest": Check.of(self._in_force()),
            "partitions": Check.of(self.assigned.is_set()),
            "broker": self._heard(),
        }

    def _heard(self) -> Check:
        """Check that the broker answers: the operations are read to their end twice a second."""
        silent = self.ordered.silent
        if silent is None or silent < AWAY_SECONDS:
            return Check.of(silent is not None)
        return Check(silent * 1000 < self.settings.broker_patience, f"away for {silent:.0f} s")

    def _in_force(self) -> bool:
        return self.timeline.index(int(time.time() * 1000)) >= 0

    def _refresh(self) -> None:
        """Bring the gauges up to now."""
        silent = self.ordered.silent
        self.metrics.broker_silent.set(time.monotonic() - self._began if silent is None else silent)
        for keeper in self.keepers.values():
            self._show(keeper)

    def _show(self, keeper: Checkpointer) -> None:
        state, partition = keeper.state, keeper.tp.partition
        self.metrics.reached(keeper.agent, partition, state.next, state.watermark)
        if keeper.agent == "gate":
            self.metrics.see(partition, state)
        end = self.app.consumer.known_end(keeper.tp)  # type: ignore[attr-defined]  # our own
        if end is not None:
            behind = max(0, end - state.next)
            written_at = time.time() if behind == 0 else keeper.written_at
            age = None if written_at is None else max(0.0, time.time() - written_at)
            self.metrics.behind(keeper.agent, partition, behind, age)

    async def _let_go(self, *_: Any, **__: Any) -> None:
        """Save what is about to move to other workers; Faust has every partition given back, and new ones told."""
        await self._save_all()
        for keeper in self.keepers.values():
            self.metrics.forget(keeper.agent, keeper.tp.partition)

    async def _save_all(self, *_: Any, **__: Any) -> None:
        if not self.failed:
            await asyncio.gather(*(keeper.save_now() for keeper in list(self.keepers.values())))

    async def _shut_down(self, *_: Any, **__: Any) -> None:
        await self._save_all()
        self.stopped = True
        if self._runner is not None:
            await self._runner.cleanup()
        log.info("stopped")
