"""A simulation closed in memory with the core that decides."""

from functools import cache
from pathlib import Path

from gates.ramp import Clockwork
from schemas.decision import Command, Decision
from schemas.event import TelemetryEvent, encode
from schemas.manifest import Flag, read_manifest
from streams.panes import Run
from streams.replay import Pipeline, partition_of
from streams.simulate import SCENARIOS, Arrival, Simulation, read_trace

EXAMPLES = Path(__file__).parents[2] / "examples"
TRACE = EXAMPLES / "data" / "azure_llm_conv_2023.csv.gz"
FLAGS = read_manifest(EXAMPLES / "manifest.yml").flags
FLAG: Flag = next(iter(FLAGS.values()))
CLOCKWORK = Clockwork(10_000, 10_000, "tidegate.telemetry")
START = 1_700_000_000_000
PARTITIONS = 4


class Play:
    """A simulation whose telemetry goes straight into the core, and whose commands come straight back."""

    def __init__(self, scenario: str, seed: int = 1) -> None:
        self.simulation = Simulation(trace(), SCENARIOS[scenario], FLAG, CLOCKWORK, start=START, seed=seed)
        self.pipeline = Pipeline(FLAGS, PARTITIONS, CLOCKWORK)
        self.next = [0] * PARTITIONS
        self.events: list[TelemetryEvent] = []
        self.decisions: list[Decision] = []
        self.commands: list[Command] = []
        while self.simulation.now < self.simulation.end and len(self.decisions) < len(SCENARIOS[scenario].verdicts):
            due = self.simulation.due
            self.feed(self.simulation.advance(min(self.simulation.now + 1_000, due)))
            if self.simulation.now == due:
                self.feed([self.simulation.tick()])
                assert self.simulation.due > due or len(self.decisions) == len(SCENARIOS[scenario].verdicts)

    def feed(self, events: list[TelemetryEvent]) -> None:
        self.events += events
        runs: list[list[bytes]] = [[] for _ in range(PARTITIONS)]
        for event in events:
            everywhere = event.sticky_id is None
            for p in range(PARTITIONS) if everywhere else [partition_of(str(event.sticky_id).encode(), PARTITIONS)]:
                runs[p].append(encode(event))
        for partition, run in enumerate(runs):
            for decision, command in self.pipeline.step(partition, Run(self.next[partition], run)):
                self.decisions.append(decision)
                self.simulation.decided(decision)
                if command is not None:
                    self.commands.append(command)
                    self.simulation.apply(command)
            self.next[partition] += len(run)


@cache
def trace() -> list[Arrival]:
    return read_trace(TRACE)


@cache
def play(scenario: str) -> Play:
    return Play(scenario)
