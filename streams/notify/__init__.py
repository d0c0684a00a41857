"""Decisions that match a filter, to webhooks: at least once, in order per unit.

May import: kafka, report and what is below them.
Read first: courier.py: one receiver's consumer group, and what becomes of a record that is not taken.
"""
