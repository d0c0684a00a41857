"""The machine of each kind of flag."""

from tidegate.gates.guards import CostGuard, SafetyGuard
from tidegate.gates.machine import Machine
from tidegate.gates.quality_gate import QualityGate
from tidegate.gates.ramp import Ramp
from tidegate.gates.records import Judgement
from tidegate.gates.regions import Regions
from tidegate.gates.staged import StagedRamp
from tidegate.gates.unit import Unit
from tidegate.gates.window import PaneUnit
from tidegate.schemas.clockwork import Clockwork
from tidegate.schemas.manifest import Flag


class KillSwitch(Machine):
    """On until an operator or a manifest turns it off; telemetry is only looked at for the regions it names."""

    windowed = False

    def add(self, partition: int, seen: PaneUnit) -> None:
        """Keep nothing: there is no window that would ever let go of it."""

    def judge_window(self) -> Judgement:
        """There are no windows."""
        raise AssertionError("a kill switch has no windows")


MACHINES: dict[str, type[Machine]] = {
    "progressive_rollout": Ramp,
    "quality_gated": QualityGate,
    "cost_guard": CostGuard,
    "safety_guard": SafetyGuard,
    "kill_switch": KillSwitch,
}


def machine(flag: Flag, unit: Unit, clockwork: Clockwork, regions: Regions | None = None) -> Machine:
    """Return the state machine of a flag's kind over a unit's state."""
    staged = flag.kind == "progressive_rollout" and flag.policy.evidence == "sequential"
    return (StagedRamp if staged else MACHINES[flag.kind])(flag, unit, clockwork, regions)
