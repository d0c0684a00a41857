"""The ``tidegate`` command, as a script and as ``python -m tidegate``."""

import sys
from importlib.metadata import PackageNotFoundError, distribution, requires

from packaging.requirements import Requirement


def missing() -> list[str]:
    """Return the packages of the extra ``worker``, which a service does without, that are not installed."""
    try:
        wanted = [Requirement(line) for line in requires("tidegate") or ()]
    except PackageNotFoundError:  # From a checkout that is not installed.
        return []
    return [one.name for one in wanted if one.marker and _asked(one) and not _installed(one.name)]


def main() -> None:
    """Run the command line; one line and exit code 2 where only what a service needs is installed."""
    lacking = missing()
    if lacking:
        line = f"this is the client alone, without {', '.join(lacking)}: pip install 'tidegate[worker]'"
        print(f"tidegate: {line}", file=sys.stderr)
        sys.exit(2)
    from tidegate.streams.commands import main as run

    run()


def _asked(requirement: Requirement) -> bool:
    marker = requirement.marker
    return marker is not None and marker.evaluate({"extra": "worker"}) and not marker.evaluate({"extra": ""})


def _installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    main()
