"""The past, decided again and held against what was recorded.

May import: kafka, dumps and what is below them.
Read first: replay.py: from files; conductor.py: from topics.
"""
