"""Fixtures that any test may ask for, and one that every test has."""

import logging
from collections.abc import Iterator

import pytest
from hypothesis import settings

pytest_plugins = ["tests.integration.broker"]

# How long an example takes says how busy the machine is, and of the code nothing.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

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
