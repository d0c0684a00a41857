"""The two pure state machines: records of a source partition become partials, partials become decisions.

May import: ``tidegate.gates`` and ``tidegate.schemas``.
Read first: source_partition.py, then gate_partition.py; pipeline.py has both in one process.
"""
