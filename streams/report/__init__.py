"""Reports for people: words, numbers, a terminal.

May import: ``tidegate.gates`` and ``tidegate.schemas``.
Read first: text.py.
"""
