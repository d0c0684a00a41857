"""``python -m tidegate.streams.commands``: the same as ``tidegate``."""

from tidegate.streams.commands import main

main()
