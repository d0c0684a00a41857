"""Every topic: connections, readers without a group, checkpoints, manifests, operations.

May import: the engine, the settings and what is below them.
Read first: topics.py: which topics there are.
"""
