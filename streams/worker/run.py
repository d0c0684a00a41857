"""Run a worker as this process, until it ends."""

import os
import threading

import faust
import structlog

from tidegate.streams.kafka.turns import Collector
from tidegate.streams.worker.app import Worker
from tidegate.streams.worker.transport import FAUST

log = structlog.get_logger("tidegate")

STOP_SECONDS = 4.5


def _give_up() -> None:
    log.error("forced stop", reason=f"the broker acknowledged nothing for {STOP_SECONDS} s")
    os._exit(1)


class _Runner(faust.Worker):
    logger = FAUST

    def _flag_as_shutdown_by_signal(self) -> None:
        super()._flag_as_shutdown_by_signal()
        # A broker that is gone would hold the stop up; what is not saved is read again.
        deadline = threading.Timer(STOP_SECONDS, _give_up)
        deadline.daemon = True
        deadline.start()


def run(worker: Worker) -> None:
    """Run the worker, and end the process with it: exit code 1 if it failed."""
    Collector().install()
    # Logging is set up already, one form for all.
    runner = _Runner(worker.app, quiet=True, override_logging=False)
    runner.spinner = None
    try:
        runner.execute_from_commandline()
    except SystemExit as stop:
        # Threads of the consumer may still wait on the broker; everything that matters is saved by now.
        os._exit(1 if worker.failed else int(stop.code or 0))
