"""Words for numbers, foreign texts, evidence problems, and for what a hold waits for."""

import json
import shlex
from collections.abc import Callable, Collection
from typing import Any

from tidegate.schemas.catalogue import causes, settled_by, span_of
from tidegate.schemas.decision import Decision, Problem
from tidegate.schemas.document import quoted
from tidegate.schemas.times import iso, readable


def sentence(text: str) -> str:
    """Return a clause with a capital letter and a full stop; a first λ or Δ stays as it is."""
    first = text[0].upper() if text[0].isascii() else text[0]
    return f"{first}{text[1:]}."


def plain(text: str) -> str:
    """Somebody else's text without quotes: nothing in it reaches the terminal as a control sequence."""
    return text if text.isprintable() else json.dumps(text)[1:-1]


def number(value: float | None, other: float | None = None) -> str:
    """Return a number in as few digits as tell it from ``other``."""
    if value is None:
        return "?"
    digits = next((n for n in (4, 6, 9) if other in (None, value) or f"{value:.{n}g}" != f"{other:.{n}g}"), 9)
    whole = 10 ** (digits - 1) <= abs(value) < 1e15
    return f"{value:,.0f}" if whole else f"{value:,.{digits}g}"


def percent(share: float | None, other: float | None = None) -> str:
    """Return the same for a share."""
    if share is None:
        return "?"
    return f"{number(round(100 * share, 10), None if other is None else round(100 * other, 10))} %"


def minutes_long(minutes: float) -> str:
    """Return a length of time."""
    if minutes < 0.1:
        return "a few seconds"
    return f"{number(minutes)} minute{'s' * (minutes != 1)}"


def many(count: int, one: str, several: str | None = None) -> str:
    """Return a count of things; ``several``: their plural, if it is not made with an s."""
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def place(seen: dict[str, Any]) -> str:
    """Name a record's place in the source topic."""
    return f"partition {int(seen['partition'])}, offset {int(seen['offset'])}"


def endings(decision: Decision, known: Collection[str] = ()) -> list[str]:
    """Describe what holds a unit, and when that ends: a clause for each cause; empty if nothing is held.

    ``known``: reasons of which it has been said what they are.
    """
    flag = shlex.quote(plain(decision.flag))
    named = {"flag": flag, "span": span_of(decision), "settled": settled_by(decision)}
    return [
        ("" if name.split("/")[0] in known else f"{cause.what}; ") + cause.until.format(**named)
        for name, cause in causes(decision)
    ]


def problem_words(problem: Problem) -> str:
    """Return a problem with what was seen; in its own words where the detail is as expected, else as it is."""
    try:
        said = _WORDS[problem.problem](problem.detail)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError):
        told = ", ".join(f"{plain(name)} {_shown(value)}" for name, value in readable(problem.detail).items())
        return f"evidence problem {plain(problem.problem)}{f': {told}' if told else ''}"
    return f"evidence problem {problem.problem}: {said}"


def _too_few(seen: dict[str, Any]) -> str:
    rows = seen.get("traffic", seen)
    found = many(rows["canary"], "request") + (" of users" if "traffic" in seen else "")
    return f"{found} in the canary, {rows['baseline']:,} in the baseline; it takes {seen['min_requests']:,}"


def _drift(seen: dict[str, Any]) -> str:
    old, new, first = quoted(seen["old"]), quoted(seen["new"]), seen["first"]
    pin = f"{plain(seen['pin'])} of the {plain(seen['arm'])}"
    kind = seen.get("kind")
    said = f"{pin} is {new}, the manifest says {old}" if kind == "against_manifest" else f"{pin} was {old}, now {new}"
    if kind == "alias_flip":
        said += ", with the manifest unchanged"
    return f"{said}, in {many(seen['requests'], 'request')}, first at {place(first)}"


def _no_baseline(seen: dict[str, Any]) -> str:
    if "pins" not in seen:
        return "the baseline has no requests"
    mixed = "; ".join(f"{plain(pin)} {', '.join(map(quoted, values))}" for pin, values in seen["pins"].items())
    return f"the baseline ran with more than one value of a pin: {mixed}"


def _unstable(seen: dict[str, Any]) -> str:
    if "manifest" in seen:
        return f"the manifest changed at {iso(seen['changed_at'])}, in the middle of the window"
    if "lost" in seen:
        first, last = seen["offsets"]["first"], seen["offsets"]["last"]
        return (
            f"{many(seen['count'], 'record')} of the {seen['lost']} topic, partition {seen['partition']} offsets "
            f"{first} to {last}, were deleted before they were read; some may have been the window's"
        )
    what, name = ("late", "late events") if "late" in seen else ("dead_letters", "dead letters")
    return f"{seen[what]:,} {name}, {percent(seen['share'])} of the window; at most {percent(seen['limit'])} may be"


def _unfenced(seen: dict[str, Any]) -> str:
    if seen["what"] == "key_with_two_effects":
        return f"{many(seen['keys'], 'idempotency key')} had two effects each"
    return f"{many(seen['requests'], 'write')} had no idempotency key{_first_tool(seen)}"


def _first_tool(seen: dict[str, Any]) -> str:
    first = seen["first"][0]
    return f", first of tool {quoted(first['tool'])} at {place(first)}"


def _storm(seen: dict[str, Any]) -> str:
    before = f", {percent(seen['stage_before'])} in the stage before" if seen["stage_before"] is not None else ""
    return (
        f"{seen['events']:,} requests of the canary met a 429, {percent(seen['share'])}; "
        f"the baseline has {percent(seen['baseline'])}{before}"
    )


def _ratio(seen: dict[str, Any]) -> str:
    ids = seen["ids"]
    return (
        f"{percent(seen['share'])} of the stage's sticky ids are in the canary "
        f"({ids['canary']:,} of {ids['canary'] + ids['baseline']:,}), its weight is {percent(seen['weight'])}"
        + (
            f"; {seen['ids_since']:,} of {seen['ids_needed']:,} ids have shown none since"
            if "ids_since" in seen
            else ""
        )
    )


def _caches(seen: dict[str, Any]) -> str:
    some = ", ".join(quoted(one["namespace"]) for one in seen["first"])
    return f"{many(seen['namespaces'], 'cache namespace')} used under two sets of pins: {some}"


def _by_arm(counts: dict[str, int]) -> str:
    return " and ".join(f"{count:,} of the {plain(arm)}" for arm, count in counts.items())


_WORDS: dict[str, Callable[[dict[str, Any]], str]] = {
    "insufficient_data": _too_few,
    "served_at_weight_zero": lambda seen: (
        f"the canary served {many(seen['requests'], 'request')} of users in a stage in which it should serve nobody"
    ),
    "no_pinned_baseline": _no_baseline,
    "pins_missing": lambda seen: (
        f"requests of the {plain(seen['arm'])} do not name their pins: "
        + ", ".join(f"{plain(pin)} in {count:,}" for pin, count in seen["requests"].items())
    ),
    "pins_drifted": _drift,
    "sticky_violation": lambda seen: (
        f"{many(seen['ids'], 'sticky id')} changed arms within the stage ({plain(seen['followed'])} followed)"
    ),
    "cache_namespace_shared": _caches,
    "rate_limit_storm": _storm,
    "tool_loop": lambda seen: (
        f"{many(seen['requests'], 'request')} called one tool again and again with the same arguments"
        + _first_tool(seen)
    ),
    "unfenced_side_effect": _unfenced,
    "client_evaluated": lambda seen: (
        f"clients chose the arm of events: {_by_arm(seen['events'])}; they are kept out of the evidence"
    ),
    "assignment_mismatch": lambda seen: (
        f"rows that the hash of their sticky id sends to the other arm: {_by_arm(seen['rows'])}"
    ),
    "sample_ratio_mismatch": _ratio,
    "region_divergence": lambda seen: (
        "regions run under different manifests: "
        + "; ".join(f"{quoted(region)} {', '.join(map(plain, found))}" for region, found in seen["regions"].items())
        + (f"; {seen['of']:,} regions in all" if "of" in seen else "")
    ),
    "window_unstable": _unstable,
    "orphan_telemetry": lambda seen: (
        f"{seen['ids']:,} of {seen['of']:,} sticky ids had no exposure; at most {percent(seen['limit'])} may"
    ),
}


def _shown(value: Any, depth: int = 3) -> str:
    """Return a JSON value in few words."""
    if isinstance(value, float):
        return number(value)
    if isinstance(value, dict | list) and not depth:
        return "…"
    if isinstance(value, dict):
        return "(" + ", ".join(f"{plain(name)} {_shown(one, depth - 1)}" for name, one in value.items()) + ")"
    if isinstance(value, list):
        return ", ".join(_shown(one, depth - 1) for one in value)
    return quoted(value) if isinstance(value, str) else json.dumps(value)
