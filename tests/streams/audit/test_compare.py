"""What an auditor is told of two records that should be the same."""

import json
from copy import deepcopy
from typing import Any

import pytest

from tests.commands.test_explain import PROMOTE
from tidegate.streams.audit.compare import describe_differences

RECORD: dict[str, Any] = json.loads(PROMOTE.to_bytes())


def changed(*path: Any, to: Any) -> bytes:
    record = deepcopy(RECORD)
    inner = record
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = to
    record["hash"] = "sha256:" + "0" * 64
    return json.dumps(record).encode()


@pytest.mark.parametrize(
    ("path", "to", "said"),
    [
        (("verdict",), "hold", 'verdict "hold" here, "promote" there'),
        (("gates", 4, "observed"), 0.5, "gates {gates[4][gate]} observed 0.5 here, {gates[4][observed]} there"),
        (("gates", 7, "status"), "off", 'gates {gates[7][gate]} status "off" here, "{gates[7][status]}" there'),
        (("arms", "canary", "errors"), 7, "arms canary errors 7 here, {arms[canary][errors]} there"),
        (("late",), None, "late nothing here, {late} there"),
        (("evidence_problems",), [{"problem": "x", "detail": {}}], "evidence_problems x {{"),
    ],
)
def test_the_field_the_entry_and_both_values_are_named(path: tuple[Any, ...], to: Any, said: str) -> None:
    found = describe_differences(changed(*path, to=to), PROMOTE.to_bytes())
    assert found.startswith(" in " + said.format(**RECORD)), found
    assert "hash" not in found, "that follows from the rest"


def test_offsets_are_told_by_partition() -> None:
    ranges = [{"topic": "t", "partition": p, "first": 0, "last": 10 * p} for p in (0, 1, 2)]
    one, other = ({"source": [*ranges[:2], ranges[2] | {"last": last}]} for last in (20, 21))
    found = describe_differences(json.dumps(one).encode(), json.dumps(other).encode())
    assert found == " in source partition 2 last 20 here, 21 there"


def test_the_cause_comes_before_what_follows_from_it() -> None:
    record = deepcopy(RECORD) | {"late": 9, "duplicates": 9, "dead_letters": 9, "verdict": "hold", "reasons": ["x"]}
    found = describe_differences(json.dumps(record).encode(), PROMOTE.to_bytes())
    assert found.startswith(' in verdict "hold" here')
    assert found.endswith("; and 1 more")


def test_a_chain_that_broke_earlier_is_told_from_a_record_that_differs() -> None:
    record = deepcopy(RECORD) | {"previous_hash": "sha256:" + "1" * 64, "hash": "sha256:" + "2" * 64}
    found = describe_differences(json.dumps(record).encode(), PROMOTE.to_bytes())
    assert found == " in hash, previous_hash alone: an earlier record differs"


def test_records_that_are_only_spelled_differently_differ_in_nothing() -> None:
    assert describe_differences(json.dumps(RECORD, indent=1).encode(), PROMOTE.to_bytes()) == ""
