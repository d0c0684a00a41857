"""The same bytes under crashes, zombies, rebalances and a forgetful broker, and proof that bugs would be found."""

import inspect
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest

from tests.faults.sweep import Table, sweep
from tests.faults.world import Failure, run
from tidegate.streams.audit import topic_replay as again
from tidegate.streams.engine import gate_partition as windows
from tidegate.streams.kafka import checkpoints, retained
from tidegate.streams.worker import app
from tidegate.streams.worker.checkpointer import Checkpointer

SEEDS = range(300)


def test_whatever_the_seed_the_bytes_are_those_of_the_undisturbed_run() -> None:
    """Nothing is lost, counted twice or contradicted, and memory stays bounded."""
    counts: Counter[str] = Counter()
    for result in sweep(SEEDS):
        assert result.failure is None, result.failure
        counts += result.counts
    for fault in (*Table.FAULTS, "orders", "failed reads", "refused sends", "taken up"):
        assert counts[fault] >= 20, fault


def test_a_seed_gives_the_same_run_again() -> None:
    """Record by record in every log, so that a failure can be replayed."""
    for seed in range(4):
        assert run(seed).trace == run(seed).trace


@contextmanager
def planted(owner: Any, name: str, *edits: tuple[str, str]) -> Iterator[None]:
    """A function of the code under test with a bug: its source with some text replaced."""
    source = textwrap.dedent(inspect.getsource(getattr(owner, name)))
    for old, new in edits:
        assert source.count(old) == 1, f"{name} has changed: plant the bug anew at {old!r}"
        source = source.replace(old, new)
    module = owner if inspect.ismodule(owner) else sys.modules[owner.__module__]
    made: dict[str, Any] = {}
    exec(source, vars(module), made)  # noqa: S102
    with patch.object(owner, name, made[name]):
        yield


STEP_1 = "mark, sent = self.state.mark, self._taken()"
BUGS: dict[str, tuple[Any, ...]] = {
    "1: in the middle of a step": (
        Checkpointer,
        "_save",
        ("async with self.lock:", "if True:"),
        (" or not self.whole", ""),
    ),
    "1: after a step that was cut short": (Checkpointer, "_save", (" or not self.whole", "")),
    "1: list of what was sent taken before the lock": (
        Checkpointer,
        "_save",
        ("async with self.lock:", "early = self._taken()\n        async with self.lock:"),
        (STEP_1, "mark, sent = self.state.mark, early"),
    ),
    "1: state taken after the list": (
        Checkpointer,
        "_save",
        ("await self.confirm(sent)", "await self.confirm(sent)\n        state = self.state.dump()"),
    ),
    "1: position taken after the state": (
        Checkpointer,
        "_save",
        ("await self.confirm(sent)", "await self.confirm(sent)\n        mark = self.state.mark"),
    ),
    "2: nothing confirmed first": (Checkpointer, "_save", ("await self.confirm(sent)", "pass")),
    "2: late events not on the list": (
        app.Worker,
        "_forward",
        ("await keeper.send(topic, key", "await self.send(topic, key"),
    ),
    "2: partials sent after the step that forgot them": (
        app.Worker,
        "_window",
        ("await keeper.send(self.settings.partials", "later = asyncio.create_task(keeper.send(self.settings.partials"),
        ("piece, gate)", "piece, gate))"),
    ),
    "3: chunks of the last whole one overwritten": (Checkpointer, "_save", ("self.turn += 1", "pass")),
    "3: chunks of another writer overwritten": (checkpoints, "write_checkpoint", ("generation % WRITERS", "0")),
    "3: half-written chunks read": (checkpoints, "_newest", ('if key.startswith(b"state/")', "if True")),
    "4: counted before it is confirmed": (Checkpointer, "_save", ("await confirmed\n", "pass\n")),
    "5: a copy that is further than its entry": (Checkpointer, "_save", ("entry, state)", "entry, self.state.dump())")),
    "5: an entry that is further than its copy": (
        Checkpointer,
        "_save",
        ("shape, mark)", "shape, self.state.mark)"),
    ),
    "6: position published before the state is saved": (
        Checkpointer,
        "_save",
        ("await self.confirm(sent)", "await self.worker.publish_position(self.tp, mark.next)"),
    ),
    "6: position read back from the group": (
        app.Worker,
        "restore",
        (
            "positions[tp] = state.next",
            "positions[tp] = state._state.next = self.app.process.world.committed.get(tp, state.next)",
        ),
    ),
    "gate: a repeated partial counted again": (
        windows.GatePartition,
        "step_slices",
        ("if partial.pane < closed:", "if False:"),
        ("if partial.previous != closed and", "if partial.previous > closed and"),
    ),
    "gate: a repeated order carried out again": (
        windows.GatePartition,
        "operate_slices",
        ("if order.offset < state.operations_next:", "if False:"),
    ),
    "audit: a partition taken up after the gates": (
        retained.Retained,
        "latest",
        ("entry.mark.closed[0] <= known and", ""),
    ),
    "audit: an order carried out again": (again.ReplayRequest, "had", ("order.offset < gate.operations_next", "False")),
    "audit: an order forgotten": (again.ReplayRequest, "had", ("order.offset < gate.operations_next", "True")),
    "audit: begun after what was asked for": (again.ReplayRequest, "reached", ("min(mark.closed) * pane_ms", "0")),
}


def failures(seeds: Iterable[int]) -> Iterator[tuple[int, str]]:
    """The seeds that fail, with the message."""
    for seed in seeds:
        try:
            run(seed)
        except Failure as failure:
            yield seed, str(failure)


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_planted_in_a_step_is_found(bug: str) -> None:
    """Within the seeds above; the message says how to run the one that found it again."""
    with planted(*BUGS[bug]):
        found = next(failures(SEEDS), None)
    assert found is not None
    seed, message = found
    assert message.endswith(f"make simulate-faults SEEDS=1 FIRST={seed}")
