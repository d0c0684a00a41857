"""The decision core: evidence in, a verdict out.

May import: ``tidegate.schemas`` alone; no Kafka, no clock, no chance.
Read first: machine.py: a unit's windows; then rules.py, what a window is judged by.
"""
