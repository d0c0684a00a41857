"""Everything that moves bytes: topics, files, the worker, the command line.

May import: ``tidegate.gates`` and ``tidegate.schemas``; the rooms within as pyproject.toml's import rules say.
Read first: engine: from records to decisions.
"""
