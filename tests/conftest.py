"""Fixtures that any test may ask for."""

from hypothesis import settings

pytest_plugins = ["tests.integration.broker"]

# How long an example takes says how busy the machine is, and of the code nothing.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
