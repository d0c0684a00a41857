"""A simulation closed in memory with the core that decides."""

from dataclasses import replace
from functools import cache
from pathlib import Path

from tidegate.schemas.clockwork import Clockwork
from tidegate.schemas.decision import Command, Decision
from tidegate.schemas.event import TelemetryEvent, encode
from tidegate.schemas.load import load_manifest
from tidegate.schemas.manifest import Flag
from tidegate.schemas.timeline import Timeline
from tidegate.streams.dumps.log import partition_of
from tidegate.streams.engine.pipeline import Pipeline
from tidegate.streams.engine.runs import Run
from tidegate.streams.simulation.scenarios import SCENARIOS, SHORT, waits
from tidegate.streams.simulation.service import Arrival, Simulation, read_trace

EXAMPLES = Path(__file__).parents[2] / "examples"
TRACE = EXAMPLES / "data" / "azure_llm_conv_2023.csv.gz"
MANIFEST = (EXAMPLES / "manifest.yml").read_text()
CLOCKWORK = Clockwork(10_000, 10_000, "tidegate.telemetry")
START = 1_700_000_000_000
PARTITIONS = 4


STEP_MS = 10_000


class Play:
    """A simulation whose telemetry goes straight into the core, and whose commands come straight back."""

    def __init__(self, name: str, seed: int = 1) -> None:
        scenario = SCENARIOS[name]
        if not scenario.eases:
            # Told in half the time of the demo.
            scenario = replace(scenario, eases=SHORT)
        flags = load_manifest(scenario.manifest(MANIFEST)).flags
        flag: Flag = next(iter(flags.values()))
        self.verdicts = scenario.verdicts
        self.simulation = Simulation(trace(), scenario, flag, CLOCKWORK, start=START, seed=seed)
        operation = scenario.operation(flag, START)
        self.pipeline = Pipeline(Timeline.of(flags), PARTITIONS, CLOCKWORK, [operation] if operation else [])
        self.next = [0] * PARTITIONS
        self.events: list[TelemetryEvent] = []
        self.decisions: list[Decision] = []
        self.commands: list[Command] = []
        while self.simulation.now < self.simulation.end and not self.ended:
            due = self.simulation.due
            self.feed(self.simulation.advance(min(self.simulation.now + STEP_MS, due)))
            if self.simulation.now == due:
                self.feed([self.simulation.tick()])
                assert self.simulation.due > due or self.ended

    @property
    def ended(self) -> bool:
        """Whether every region has had the verdicts it was to have."""
        return all(len(self.of(unit)) >= len(self.verdicts) for unit in self.simulation.sites)

    def of(self, unit: str) -> list[Decision]:
        """The decisions on one region, without those that only wait for more evidence."""
        return [decision for decision in self.decisions if decision.key == unit and not waits(decision)]

    @property
    def told(self) -> list[Decision]:
        """The decisions on the first region, without those that only wait for more evidence."""
        return self.of(self.simulation.unit)

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
                assert self.simulation.decided(decision) == (command is not None)
                if command is not None:
                    self.commands.append(command)
                    self.simulation.apply(command)
            self.next[partition] += len(run)


@cache
def trace() -> list[Arrival]:
    return read_trace(TRACE)


@cache
def play(name: str) -> Play:
    return Play(name)
