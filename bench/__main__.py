"""``make bench``: the worker on a real Kafka, one core each for worker and broker, and its rivals in the same run.

A shared machine gives ratios, not absolute numbers: read the ratios.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import steps
from bench.load import EVENTS_PER_SECOND, MANIFEST, TOPIC_PARTITIONS, fill
from tests.integration.broker import LocalBroker
from tests.integration.workers import WorkerProcess, running
from tidegate.streams.kafka.topics import create_topics
from tidegate.streams.settings import Settings, load_settings

WORKER_CPU, BROKER_CPU = 0, 1
TICKS = os.sysconf("SC_CLK_TCK")


def rival(name: str, broker: str, topic: str, count: int) -> dict[str, float]:
    """Run one rival pinned to the worker's core."""
    command = ["taskset", "-c", str(WORKER_CPU), sys.executable, "-m", "bench.rivals", name, broker, topic, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
    result: dict[str, float] = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    return result


def gauge(address: str, name: str) -> float:
    """One unlabelled metric of the worker."""
    with urllib.request.urlopen(f"{address}/metrics", timeout=10) as page:  # noqa: S310 - our own http address
        for line in page.read().decode().splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
    raise SystemExit(f"no metric {name}")


def cpu_seconds(pid: int) -> float:
    """User and system time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def worker(settings: Settings, count: int, folder: Path) -> dict[str, float]:
    """Let a worker read the backlog; its rate over all events and over the second half, and its CPU."""
    manifest = folder / "manifest.yml"
    manifest.write_text(MANIFEST)
    process = WorkerProcess(settings, manifest, f"bench-{time.monotonic_ns()}", folder, cpu=WORKER_CPU)
    with running(process):
        address = str(process.logged("serving")[0]["address"])
        samples: list[tuple[float, float, float]] = []
        while not samples or samples[-1][1] < count:
            samples.append((time.perf_counter(), gauge(address, "tidegate_records_total"), cpu_seconds(process.pid)))
            time.sleep(0.1)
        begun = max((s for s in samples if s[1] == 0), default=samples[0])
        half = next(s for s in samples if s[1] >= count / 2)
        last = samples[-1]
        checkpoints = gauge(address, "tidegate_checkpoints_total")
    return {
        "events": count,
        "seconds": last[0] - begun[0],
        "warm": (last[1] - half[1]) / (last[0] - half[0]),
        "cpu_us": (last[2] - half[2]) / (last[1] - half[1]) * 1e6,
        "checkpoints": checkpoints,
    }


def main() -> None:
    """Run everything once and print three tables."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--faust-events", type=int, default=15_000)
    parser.add_argument("--rounds", type=int, default=2, help="bare loop and worker take turns this often")
    options = parser.parse_args()
    console = Console()
    rates: dict[str, list[float]] = {"fetch": [], "bare": [], "worker": []}
    with tempfile.TemporaryDirectory() as name, LocalBroker(Path(name) / "kafka", cpu=BROKER_CPU, heap="1g") as broker:
        folder = Path(name)
        settings = load_settings(broker=broker.bootstrap, partitions=TOPIC_PARTITIONS)
        asyncio.run(create_topics(settings))
        with console.status("filling the topic"):
            size = fill(broker.bootstrap, settings.telemetry_topic, options.events)
        console.print(
            f"{options.events:,} events of {size} bytes, {TOPIC_PARTITIONS} partitions, "
            f"{EVENTS_PER_SECOND:,} events a second of event time; worker on core {WORKER_CPU}, Kafka on {BROKER_CPU}"
        )
        last: dict[str, float] = {}
        for turn in range(options.rounds):
            for rival_name in ("fetch", "bare"):
                with console.status(rival_name):
                    found = rival(rival_name, broker.bootstrap, settings.telemetry_topic, options.events)
                rates[rival_name].append(found["warm"])
            with console.status("worker"):
                own = settings.model_copy(update={"application_id": f"bench-{turn}"})
                asyncio.run(create_topics(own))
                last = worker(own, options.events, folder)
                rates["worker"].append(last["warm"])
        with console.status("Faust, a table write an event"):
            idiomatic = rival("faust-table", broker.bootstrap, settings.telemetry_topic, options.faust_events)
    best = {key: max(values) for key, values in rates.items()}
    table = Table("system", "events/s, second half, each round", "best", "worker is")
    rows = {
        "fetch runs only": (rates["fetch"], best["fetch"]),
        "bare loop: aiokafka, 9 fields, columns, digest": (rates["bare"], best["bare"]),
        "idiomatic Faust agent, table write an event": ([idiomatic["warm"]], idiomatic["warm"]),
        "tidegate worker, everything on": (rates["worker"], best["worker"]),
    }
    for label, (each, top) in rows.items():
        table.add_row(label, ", ".join(f"{r:,.0f}" for r in each), f"{top:,.0f}", f"{best['worker'] / top:,.2f} ×")
    console.print(table)
    console.print(
        f"worker: {last['cpu_us']:.2f} µs of CPU an event in the second half, {last['checkpoints']:.0f} checkpoints"
    )
    console.print(steps.table())


if __name__ == "__main__":
    main()
