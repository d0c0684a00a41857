"""Fixtures that any test may ask for, and one that every test has."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import settings

from tidegate.streams.engine import native

pytest_plugins = ["tests.integration.broker"]

# How long an example takes says how busy the machine is, and of the code nothing.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

native.choose(os.environ.get("TIDEGATE_NATIVE"))


@contextmanager
def _running(wanted: str) -> Iterator[str]:
    """One of the two decoders; where the native one is not built the test is skipped, and fails under CI."""
    if wanted == "native" and not native.available():
        reason = "no native decoder here: `make venv` builds it where cargo is there"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    before = native.running()
    native.choose("off" if wanted == "python" else "require")
    yield wanted
    native.choose("off" if before == "python" else None)


@pytest.fixture(scope="module", params=["python", "native"])
def decoder(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each of the two decoders in turn."""
    with _running(request.param) as running:
        yield running


@pytest.fixture(scope="module")
def native_decoder() -> Iterator[str]:
    """The native decoder alone."""
    with _running("native") as running:
        yield running


_LOGGERS = [logging.getLogger(name) for name in (None, "tidegate", "aiokafka", "faust")]


@pytest.fixture(autouse=True)
def logging_restored() -> Iterator[None]:
    """Logging is the process's own: what a command sets for itself ends with its test."""
    before = [(logger.level, logger.propagate, logger.handlers[:], logger.filters[:]) for logger in _LOGGERS]
    yield
    for logger, (level, propagate, handlers, filters) in zip(_LOGGERS, before, strict=True):
        logger.setLevel(level)
        logger.propagate = propagate
        logger.handlers[:], logger.filters[:] = handlers, filters
