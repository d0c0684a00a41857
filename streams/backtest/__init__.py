"""What another manifest would have decided, and what chance alone would.

May import: kafka, dumps and what is below them.
Read first: comparison.py, then rollouts.py.
"""
