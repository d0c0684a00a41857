"""Decisions at a real HTTP server that fails, hangs and comes back, through a consumer group on an embedded broker."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import msgspec
import pytest
from aiohttp import web
from aiokafka import AIOKafkaProducer
from cloudevents.core.bindings.http import HTTPMessage, from_structured_event
from standardwebhooks.webhooks import Webhook

from tests.streams.play import play
from tidegate.schemas.decision import Decision
from tidegate.streams.notify import courier
from tidegate.streams.notify.courier import Courier, NotifyMetrics, wait_after
from tidegate.streams.notify.receivers import Receiver
from tidegate.streams.settings import Settings, load_settings
from tidegate.streams.simulation.embedded_broker import embedded_broker

SECRET = "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
GATES = 2
SECONDS = 60
"""How long whatever has to come may take on a busy machine."""


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    monkeypatch.setattr(courier, "FIRST_SECONDS", 0.02)
    monkeypatch.setattr(courier, "LONGEST_SECONDS", 0.1)
    monkeypatch.setattr(courier, "MORE_MS", 50)
    with embedded_broker({"tidegate.decisions": GATES}) as servers:
        yield load_settings(broker=servers, fetch_wait=50)


def units(count: int) -> list[Decision]:
    """Decisions of so many units, one after the other, as their gates interleave them."""
    told = play("errors").decisions
    chains = [
        [
            msgspec.structs.replace(one, region=f"r{n}", decision_id=f"sha256:{n:02}{i:02}" + one.decision_id[11:])
            for i, one in enumerate(told)
        ]
        for n in range(count)
    ]
    return [chain[i] for i in range(len(told)) for chain in chains]


async def write(settings: Settings, decisions: Sequence[Decision]) -> None:
    """What workers write: a unit's decisions to its gate's partition."""
    async with AIOKafkaProducer(**settings.kafka) as producer:
        for one in decisions:
            await producer.send_and_wait(
                settings.decisions_topic, one.to_bytes(), key=one.key.encode(), partition=int(one.region[1:]) % GATES
            )


class Server:
    """A receiver on loopback. ``got``: what it took, by its signature and as an event; ``asked``: all attempts."""

    def __init__(self) -> None:
        self.got: list[tuple[str, str]] = []
        self.asked = 0
        self.address = ""
        self.behave: Callable[[], Awaitable[int]] = self.well

    async def well(self) -> int:
        """Take it."""
        return 200

    async def hook(self, request: web.Request) -> web.Response:
        self.asked += 1
        status = await self.behave()
        if status == 200:
            body = await request.read()
            Webhook(SECRET).verify(body, dict(request.headers))
            event = from_structured_event(HTTPMessage(dict(request.headers), body))
            data = event.get_data()
            assert isinstance(data, dict)
            assert request.headers["webhook-id"] == event.get_id() == data["decision_id"]
            assert event.get_attributes()["subject"] == f"{data['flag']}|{data['region']}"
            self.got.append((data["region"], data["decision_id"]))
        return web.Response(status=status, headers={"Location": f"{self.address}/elsewhere"})

    def of(self, region: str) -> list[str]:
        """The ids that came of a unit, each at its first coming."""
        return list(dict.fromkeys(id_ for unit, id_ in self.got if unit == region))


@asynccontextmanager
async def serving() -> AsyncIterator[Server]:
    server, app = Server(), web.Application(client_max_size=1 << 24)
    app.router.add_post("/hook", server.hook)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.address = "http://{}:{}".format(*runner.addresses[0][:2])
    yield server
    await runner.cleanup()


def receiver(server: Server, secret: Path, **more: object) -> Receiver:
    known = {"name": "oncall", "url": f"{server.address}/hook", "secret_file": str(secret), "timeout": 300}
    return Receiver.model_validate(known | {"verdicts": ["promote", "hold", "abort"]} | more)


@asynccontextmanager
async def delivering(
    settings: Settings, to: Receiver, metrics: NotifyMetrics | None = None
) -> AsyncIterator[asyncio.Task[None]]:
    """A courier that has joined its group, ended in the middle of whatever it does."""
    async with aiohttp.ClientSession() as session:
        one = Courier(settings, to, session, metrics or NotifyMetrics())
        running = asyncio.create_task(one.run())
        joining = asyncio.create_task(_until(lambda: len(one._begun) == GATES))
        await asyncio.wait([running, joining], return_when=asyncio.FIRST_COMPLETED)
        joining.cancel()
        yield running
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():  # noqa: ASYNC110 - what is waited for is in another task, or on the wire
            await asyncio.sleep(0.01)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text(SECRET + "\n")
    return path


def test_every_decision_arrives_in_order_although_the_receiver_fails_hangs_and_goes_away_and_the_courier_is_restarted(
    settings: Settings, secret: Path
) -> None:
    """What it has told as done is not told again; the rest goes on where it was."""
    decisions = units(4)
    wanted = {one.region: [two.decision_id for two in decisions if two.region == one.region] for one in decisions}

    async def run() -> None:
        async with serving() as server:
            to = receiver(server, secret)
            troubles = 0

            async def trouble() -> int:
                nonlocal troubles
                troubles += 1
                match troubles % 6:
                    case 0 | 3:
                        return 200
                    case 1:
                        return 503
                    case 2:
                        await asyncio.sleep(SECONDS)
                    case 4:
                        return 302
                    case _:
                        raise ConnectionResetError
                return 500

            server.behave = trouble
            async with delivering(settings, to):
                await write(settings, decisions)
                await _until(lambda: len(server.got) >= 3)
            # Killed in the middle, and started again while nobody answers.
            server.behave = Server.well.__get__(server)
            before = list(server.got)

            async def away() -> int:
                return 503

            server.behave = away
            async with delivering(settings, to):
                asked = server.asked
                await _until(lambda: server.asked >= asked + 4)
                assert server.got == before
            server.behave = trouble
            async with delivering(settings, to):
                await _until(lambda: {unit: server.of(unit) for unit in wanted} == wanted)
                await asyncio.sleep(0.2)
            told = len(server.got)
            server.behave = server.well
            async with delivering(settings, to):
                more = msgspec.structs.replace(decisions[0], decision_id="sha256:" + "f" * 64)
                await write(settings, [more])
                await _until(lambda: server.got[-1][1] == more.decision_id)
            # Committed: nothing of before came once more.
            assert len(server.got) == told + 1

    asyncio.run(run())


def test_a_receiver_that_is_new_is_told_what_is_decided_from_then_on(settings: Settings, secret: Path) -> None:
    old, new = units(2)[:4], units(2)[4:]

    async def run() -> None:
        await write(settings, old)
        async with serving() as server:
            async with delivering(settings, receiver(server, secret)):
                await write(settings, new)
                await _until(lambda: len(server.got) == len(new))
            assert {id_ for _, id_ in server.got} == {one.decision_id for one in new}

    asyncio.run(run())


def test_what_the_filter_leaves_out_is_not_sent_and_not_looked_at_again(settings: Settings, secret: Path) -> None:
    decisions = units(3)

    async def run() -> None:
        async with serving() as server:
            to = receiver(server, secret, verdicts=["abort"], regions=["r1", "r2"])
            async with delivering(settings, to):
                await write(settings, decisions)
                await _until(lambda: len(server.got) == 2)
            assert {unit for unit, _ in server.got} == {"r1", "r2"}
            told = {one.decision_id: one.verdict for one in decisions}
            assert {told[id_] for _, id_ in server.got} == {"abort"}

    asyncio.run(run())


def test_a_unit_whose_gate_is_another_does_not_wait_for_one_that_is_not_taken(settings: Settings, secret: Path) -> None:
    decisions = units(2)

    async def run() -> None:
        async with serving() as server:
            answers: list[int] = []

            async def hook(request: web.Request) -> web.Response:
                if b'"r0"' in await request.read():
                    answers.append(503)
                    return web.Response(status=503)
                return await Server.hook(server, request)

            async with aiohttp.ClientSession():
                app = web.Application(client_max_size=1 << 24)
                app.router.add_post("/hook", hook)
                runner = web.AppRunner(app)
                await runner.setup()
                await web.TCPSite(runner, "127.0.0.1", 0).start()
                server.address = "http://{}:{}".format(*runner.addresses[0][:2])
                metrics = NotifyMetrics()
                async with delivering(settings, receiver(server, secret), metrics):
                    await write(settings, decisions)
                    await _until(lambda: len(server.of("r1")) == len(decisions) // 2)
                    waiting = metrics.registry.get_sample_value(
                        "tidegate_notification_waiting_seconds", {"receiver": "oncall"}
                    )
                    assert waiting is not None
                    assert waiting > 0
                await runner.cleanup()
            assert server.of("r0") == []
            assert answers
            taken = metrics.registry.get_sample_value("tidegate_notifications_total", {"receiver": "oncall"})
            assert taken == len(decisions) // 2

    asyncio.run(run())


def test_what_a_worker_writes_twice_is_sent_once(settings: Settings, secret: Path) -> None:
    """After a crash it writes its last decisions again."""
    decisions = units(1)

    async def run() -> None:
        async with serving() as server:
            async with delivering(settings, receiver(server, secret)):
                await write(settings, [*decisions, *decisions])
                last = msgspec.structs.replace(decisions[0], decision_id="sha256:" + "f" * 64)
                await write(settings, [last])
                await _until(lambda: bool(server.got) and server.got[-1][1] == last.decision_id)
            assert len(server.got) == len(decisions) + 1

    asyncio.run(run())


def test_the_wait_doubles_up_to_five_minutes_and_a_receiver_may_ask_for_an_hour() -> None:
    waits = [wait_after(failures) for failures in range(1, 12)]
    assert waits[:5] == [1, 2, 4, 8, 16]
    assert waits[-1] == 300
    assert wait_after(10_000) == 300
    assert wait_after(1, 60) == 60
    assert wait_after(9, 1) == 256
    assert wait_after(1, 1e9) == 3600
