"""The status page: every unit for people and, as JSON, for programs; it only reads.

May import: the topics, reports, the settings and what is below them.
Read first: state.py: what is remembered, and how much at most.
"""
