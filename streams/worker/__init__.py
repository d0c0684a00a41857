"""The Faust worker: deliveries into the state machines, results and states back to Kafka.

May import: kafka, dumps and what is below them; the only room that imports Faust.
Read first: app.py: the worker and its two agents.
"""
