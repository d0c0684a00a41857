"""``python -m bench.units``: CPU that an event costs the window path, by the number of units, from memory, in turns."""

import argparse
import random
import statistics
import time
from collections import defaultdict

from rich.console import Console
from rich.table import Table

from tidegate.schemas.clockwork import Clockwork
from tidegate.schemas.load import load_manifest
from tidegate.schemas.timeline import Timeline
from tidegate.streams.engine.event_classes import EventClasses
from tidegate.streams.engine.gate_log import piece_slices, split
from tidegate.streams.engine.runs import Run
from tidegate.streams.engine.slices import whole
from tidegate.streams.engine.source_partition import SourcePartition

REGIONS, START, PANE, RUN, GATES = 1_000, 1_700_000_000_000, 10_000, 2_600, 4
UNITS = (1, 100, 1_000, 5_000)
_PINS = '"PROMPT_VER":"p1","INDEX_HASH":"b7f3a1c2","RERANK_CONF":"bge@top32","TOK_VER":"t1","ANALYZER_CONF":"a1"'


def events(units: int, count: int, panes: int) -> list[bytes]:
    """Requests of both arms of units drawn at random, in order of time over so many panes, and a tick that closes."""
    rnd = random.Random(1)
    log = []
    for number in range(count):
        flag, region = divmod(rnd.randrange(units), REGIONS)
        arm = rnd.choice(("baseline", "canary"))
        ts = START + number * panes * PANE // count
        log.append(
            f'{{"event_id":"e-{number:012d}","ts":{ts},"flag":"f{flag}","arm":"{arm}",'
            f'"sticky_id":"user-{number % 997}",'
            f'"region":"r{region}","versions":{{"MODEL_VER":"m-{arm}",{_PINS}}},"delta_s":{rnd.random() / 10:.5f},'
            f'"coverage":{0.75 + rnd.random() / 5:.5f},"lambda_state":"→",'
            f'"latency_ms":{rnd.lognormvariate(6, 0.3):.2f},'
            f'"status":{500 if rnd.random() < 0.001 else 200},"tool_calls":1,"tool_ok":1,'
            f'"cost":{0.001 + rnd.random() / 1e4:.6f},"solved":true}}'.encode()
        )
    log.append(b'{"kind":"tick","ts":%d}' % (START + (panes + 3) * PANE))
    return log


def measured(units: int, log: list[bytes]) -> dict[str, float]:
    """Microseconds of CPU an event: to take it in, and to close panes and write their partials."""
    flags = -(-units // REGIONS)
    manifest = "flags:\n" + "".join(f"  f{n}: {{policy: {{lambda_source: traffic}}}}\n" for n in range(flags))
    table = EventClasses(Timeline.of(load_manifest(manifest).flags))
    state = SourcePartition.fresh(0, Clockwork(PANE, PANE, "bench"), table)
    spent: dict[str, float] = defaultdict(float)
    for at in range(0, len(log), RUN):
        start = time.thread_time()
        partials = state.step(Run(at, log[at : at + RUN])).partials
        taken = time.thread_time()
        for partial in partials:
            for part in split(partial, GATES):
                for _ in whole(piece_slices(part)):
                    pass
        done = time.thread_time()
        spent["close panes" if partials else "take in"] += taken - start
        spent["write partials"] += done - taken
    return {name: seconds / len(log) * 1e6 for name, seconds in spent.items()}


def main() -> None:
    """Print medians of some rounds."""
    parser = argparse.ArgumentParser(prog="python -m bench.units", description=__doc__)
    parser.add_argument("--events", type=int, default=300_000)
    parser.add_argument("--panes", type=int, default=2, help="of event time that they fill")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    logs = {units: events(units, options.events, options.panes) for units in UNITS}
    rounds: dict[int, list[dict[str, float]]] = defaultdict(list)
    for _ in range(options.rounds):
        for units, log in logs.items():
            rounds[units].append(measured(units, log))
    steps = ("take in", "close panes", "write partials")
    shown_steps = (f"{step}, µs an event" for step in steps)
    table = Table("units", "events a unit and pane", *shown_steps, "together", "times one unit")
    one = 0.0
    for units, found in rounds.items():
        medians = [statistics.median(each.get(step, 0.0) for each in found) for step in steps]
        one = one or sum(medians)
        each = options.events / options.panes / units
        shown = (*medians, sum(medians))
        table.add_row(f"{units:,}", f"{each:,.0f}", *(f"{us:.2f}" for us in shown), f"{sum(medians) / one:.1f}")
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
