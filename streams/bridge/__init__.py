"""Telemetry out of what others write to Kafka: spans of OpenTelemetry.

May import: the client, kafka, the settings and the schemas; nothing that decides.
Read first: otel.py.
"""
