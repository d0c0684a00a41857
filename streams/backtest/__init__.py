"""Decisions that another manifest would have made, and those that chance alone would make.

May import: kafka, dumps and what is below them.
Read first: comparison.py, then rollouts.py.
"""
