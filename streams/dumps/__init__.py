"""Record files: topics dumped as NDJSON or Parquet, and logs of bare events.

May import: the engine, the settings and what is below them.
Read first: log.py: from files to runs.
"""
