"""How a worker ends."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from streams import app
from streams.app import Worker


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Any:
    """One without partitions; ``crashed``: what it died of."""
    worker: Any = Worker.__new__(Worker)
    worker.failed, worker.stopped, worker.keepers, worker._runner = None, False, {}, None
    worker.crashed = []

    async def crash(error: Exception) -> None:
        worker.crashed.append(error)

    worker.app = SimpleNamespace(crash=crash)
    still = SimpleNamespace(start=lambda: None, setLevel=lambda _: None)
    monkeypatch.setattr(app, "threading", SimpleNamespace(Timer=lambda *_: still))
    monkeypatch.setattr(app, "logging", SimpleNamespace(getLogger=lambda: still, CRITICAL=50))
    return worker


def test_a_failure_ends_the_process(worker: Any) -> None:
    asyncio.run(worker.fail(ValueError("first")))
    assert [str(error) for error in worker.crashed] == ["first"]


def test_what_cannot_be_done_after_everything_was_saved_is_no_failure(worker: Any) -> None:
    """An order that was about to be put into a gate's log finds no producer any more; the next worker puts it there."""
    asyncio.run(worker._shut_down())
    asyncio.run(worker.fail(ValueError("no producer")))
    assert worker.crashed == []
    assert worker.failed is None


def test_a_checkpoint_that_cannot_be_written_at_the_end_is_one(worker: Any) -> None:
    async def unsaved() -> None:
        await worker.fail(ValueError("not saved"))

    worker.keepers = {0: SimpleNamespace(save_now=unsaved)}
    asyncio.run(worker._shut_down())
    assert [str(error) for error in worker.crashed] == ["not saved"]
