"""The ``tidegate`` command, as a script and as ``python -m tidegate``."""

import sys
from importlib.util import find_spec

NEEDED = (
    "aiohttp",
    "click",
    "confluent_kafka",
    "fastdigest",
    "faust",
    "jinja2",
    "numpy",
    "orjson",
    "prometheus_client",
    "rich",
    "xxhash",
)
"""Modules of the extra ``worker``, which a service does without."""


def main() -> None:
    """Run the command line; one line and exit code 2 where only what a service needs is installed."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        sys.exit(_say(f"this is the client alone, without {', '.join(missing)}: pip install 'tidegate[worker]'"))
    from tidegate.streams.commands import main as run

    run()


def _say(line: str) -> int:
    print(f"tidegate: {line}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
