"""Throughput of the worker on a real Kafka, beside a bare loop and an idiomatic Faust agent."""
