"""Work cut into slices: a generator gives what it has done, and None where a slice of bounded size ends.

Whoever drives it may do other things between two slices, as an event loop must; what it gives does not depend on that.
"""

from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")
Slices = Iterator[T | None]


def whole(slices: Slices[T]) -> Iterator[T]:
    """Yield the results of all slices, without a stop."""
    return (found for found in slices if found is not None)


def only(slices: Slices[T]) -> T:
    """Return the one thing that the slices give, done without a stop."""
    (found,) = whole(slices)
    return found
