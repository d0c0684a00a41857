"""``python -m streams.commands``: the same as ``tidegate``."""

from streams.commands import main

main()
