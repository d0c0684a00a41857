"""The client that a service installs: publish telemetry, follow commands.

May import: kafka, the settings and the schemas; no numpy, nothing that decides.
Read first: publisher.py and control.py.
"""
