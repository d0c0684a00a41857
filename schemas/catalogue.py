"""One row for each verdict: what it leaves behind. Gates, commands, screens and audits all read this table."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from schemas.decision import Verdict
from schemas.manifest import FlagKind


class Leaves(NamedTuple):
    """What a verdict leaves behind.

    ``engaged``: whether a quality gate is open, or a guard has stepped in; None: as it was. ``canary``: the weight
    that the unit has then. ``ended``: whether the rollout is over until an operator or a revision begins another;
    None: as it was.
    """

    engaged: bool | None
    canary: Literal["next", "first", "same", "none"]
    ended: bool | None = None


VERDICTS: Mapping[Verdict, Leaves] = {
    "promote": Leaves(None, "next"),
    "pass": Leaves(False, "same"),
    "hold": Leaves(None, "same"),
    "freeze": Leaves(None, "same"),
    "rollback": Leaves(None, "none", ended=True),
    "abort": Leaves(None, "none", ended=True),
    "kill": Leaves(False, "none", ended=True),
    "rearm": Leaves(False, "first", ended=False),
    "open": Leaves(True, "first"),
    "close": Leaves(False, "none"),
    "degrade": Leaves(True, "same"),
    "fallback": Leaves(True, "same"),
    "restore": Leaves(False, "same"),
    "retire": Leaves(False, "none", ended=True),
}
GUARDS = frozenset({"cost_guard", "safety_guard"})
"""Kinds that step in and out without changing weights, and that a revision does not make step out."""
MANIFEST_REVISION = "manifest_revision"
"""The reason of a revision's first word to a unit, which takes no guard out."""


def engaged_after(before: bool | None, verdict: Verdict, kind: str, *, reasons: list[str], closed: bool) -> bool | None:
    """Whether a flag of ``kind`` is engaged after a decision, ``before`` it being so or not; None: not known.

    ``closed``: whether the decision's window ran to its end. A kill switch counts as engaged while it is off.
    """
    if kind == "kill_switch":
        ended = VERDICTS[verdict].ended
        return before if ended is None else ended
    if kind in GUARDS and verdict == "rearm" and reasons == [MANIFEST_REVISION]:
        return before
    if kind not in GUARDS and verdict == "hold" and not closed:
        # A rearm or a revision cut the window: the unit begins again.
        return False
    left = VERDICTS[verdict].engaged
    return before if left is None else left


def retired_after(before: bool, verdict: Verdict) -> bool:
    """Whether a unit's flag has left the manifest, after a decision; it can still be killed."""
    return verdict == "retire" or (before and verdict == "kill")


def engaged_under(before: bool | None, old_kind: str, kind: FlagKind | str, *, same_manifest: bool) -> bool | None:
    """Whether a flag is still engaged where a manifest with another ``manifest_hash``, or kind, has taken over.

    A guard that has stepped in stays in while it is a guard of the same kind; everything else begins at rest.
    """
    return before if same_manifest or (kind == old_kind and kind in GUARDS) else False
