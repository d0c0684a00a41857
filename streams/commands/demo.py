"""``tidegate demo``: the whole of it on one machine, and a check that a replay gives the same bytes."""

import asyncio
import gzip
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import click
import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from schemas.decision import Command, Decision
from schemas.errors import InputError, LogError, TidegateError
from schemas.manifest import Flag, read_manifest
from streams.broker import embedded_broker
from streams.commands.screen import clock, gates_table, order, outcome, plain_gates, stage_bar
from streams.loop import Loop
from streams.replay import by_unit, first_difference, replay
from streams.settings import Settings, load_settings
from streams.simulate import SCENARIOS, Scenario, Simulation, read_trace
from streams.tail import tail
from streams.topics import connect, create_topics, topics

ROOT = Path(__file__).parents[2]
TRACE = ROOT / "examples" / "data" / "azure_llm_conv_2023.csv.gz"
MANIFEST = ROOT / "examples" / "manifest.yml"
CITATION = (
    "Trace: Azure LLM inference traces 2023 (conversation), © Microsoft, CC BY 4.0; Patel et al., "
    '"Splitwise: Efficient Generative LLM Inference Using Phase Splitting", ISCA 2024. '
    "Arrivals and sizes are real; users, latency, cost, errors and quality are modelled."
)
READY_SECONDS = 60.0
STOP_SECONDS = 10.0
FRAME_SECONDS = 0.25
LOG_LINES = 15
# The worker dies with the demo, however the demo dies, where the system can be asked for that.
_LAUNCH = (
    "import ctypes, sys\n"
    "sys.platform == 'linux' and ctypes.CDLL(None).prctl(1, 15)\n"
    "from streams.commands import main\n"
    "main(['worker'])"
)
_SCENARIOS = "\b\nScenarios:\n" + "\n".join(f"  {name:8} {scenario.text}" for name, scenario in SCENARIOS.items())


@click.command(epilog=_SCENARIOS)
@click.option("--scenario", type=click.Choice(list(SCENARIOS)), default="healthy", show_default=True)
@click.option("--broker", envvar="TIDEGATE_BROKER", help="a Kafka to use in place of the embedded broker")
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo-out"), show_default=True, help="a folder")
@click.option("--speed", type=click.FloatRange(1, 200), default=45.0, show_default=True, help="times real time")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="of all that is modelled")
def command(scenario: str, broker: str | None, out: Path, speed: float, seed: int) -> None:
    """Watch a canary ramp to 100 %, or be stopped, in about a minute.

    Starts an embedded broker, a real worker as its own process, and a simulated service under a real request trace
    that obeys the worker's commands. Leaves decisions, commands and all telemetry in OUT, then decides once more
    from that telemetry alone and compares the bytes. Exits with 1 if they differ.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        log = (out / "worker.log").open("wb")
    except OSError as error:
        raise InputError(f"--out: {error.filename}: {error.strerror}") from None
    with log, ExitStack() as stack:
        settings = _settings(broker)
        if broker is None:
            given = {topic.name: topic.partitions for topic in topics(settings)}
            settings = settings.model_copy(update={"broker": stack.enter_context(embedded_broker(given))})
        demo = Demo(SCENARIOS[scenario], settings, out, speed, seed)
        try:
            same = asyncio.run(demo.run(own_topics=broker is not None))
        except KeyboardInterrupt:
            demo.console.print("stopped", highlight=False)
            same = True
    raise SystemExit(0 if same else 1)


def _settings(broker: str | None) -> Settings:
    """What the worker and the simulation share, whatever the environment says of anything but the connection."""
    own = "tidegate" if broker is None else f"tidegate-demo-{int(time.time())}"
    connection = {"broker": broker} if broker else {"security_protocol": "PLAINTEXT"}
    return load_settings(
        **connection,
        manifest=MANIFEST,
        topic_prefix=own,
        application_id=own,
        partitions=4,
        gate_partitions=4,
        pane="10s",
        lateness="10s",
        checkpoint_every="1s",
        tick_idle_after="off",
        session_timeout="3s",
        heartbeat="500ms",
        fetch_wait="50ms",
        http_host="127.0.0.1",
        http_port=0,
        log_level="INFO",
        log_format="json",
    )
