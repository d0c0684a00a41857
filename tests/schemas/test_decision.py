import hashlib
import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.schemas.canonical import sha256_of
from tidegate.schemas.decision import (
    Command,
    Decision,
    Engine,
    GateResult,
    Problem,
    RuleResult,
    SourceRange,
    Span,
    Stage,
    Warning,
    Weights,
    command_for,
    command_from_bytes,
    decision_from_bytes,
    seal_decision,
)
from tidegate.schemas.errors import EventError

SHA = "sha256:" + "0" * 64


def decision(**changes: Any) -> Decision:
    """A promote that shows one gate and one rule."""
    fields: dict[str, Any] = {
        "flag": "f",
        "region": "",
        "kind": "progressive_rollout",
        "verdict": "promote",
        "reasons": ["all_gates_pass"],
        "window": Span(start=0, end=900_000, closed=True),
        "decided_at": 900_000,
        "stage": Stage(index=0, canary_weight=0.05, next_canary_weight=1.0),
        "gates": [
            GateResult(
                gate="lambda_convergent",
                status="pass",
                observed=1.0,
                threshold=True,
                canary=1.0,
                baseline=None,
                n_canary=20,
                n_baseline=0,
                lower=None,
                upper=None,
            )
        ],
        "abort_rules": [
            RuleResult(
                kind="error_rate_over",
                severity="hard",
                value=0.01,
                observed=0.0,
                n=600,
                fired=False,
            )
        ],
        "evidence_problems": [Problem(problem="pins_drifted", detail={"pin": "INDEX_HASH"})],
        "arms": {},
        "late": 0,
        "duplicates": 0,
        "dead_letters": 0,
        "warnings": [Warning(code="unpinned", count=1)],
        "relaxed": [],
        "source": [SourceRange(topic="t", partition=0, first=0, last=9)],
        "manifest_hash": SHA,
        "versions": {"canary": {"MODEL_VER": "é"}},
        "engine": Engine(pane_ms=10_000, lateness_ms=10_000, sketch="s/1"),
    }
    return Decision(**fields | changes)


def command(sealed: Decision) -> Command:
    return command_for(
        sealed,
        seq=1,
        action="promote",
        severity=None,
        weights=Weights(baseline=0.0, canary=1.0),
        previous_weights=Weights(baseline=0.95, canary=0.05),
        effective_from=920_000,
        rule=None,
    )


WRITTEN = (
    '{"abort_rules":[{"fired":false,"kind":"error_rate_over","n":600,"observed":0,'
    '"severity":"hard","value":0.01}],"arms":{},"change_freeze":null,"dead_letters":0,"decided_at":900000,'
    '"decision_id":"%s","duplicates":0,"engine":{"lateness_ms":10000,"pane_ms":10000,'
    '"sketch":"s/1"},"evidence":null,"evidence_problems":[{"detail":{"pin":"INDEX_HASH"},'
    '"problem":"pins_drifted"}],"exemplars":{},"flag":"f","forecast":null,"gates":[{"baseline":null,"canary":1,'
    '"forecast":null,"gate":"lambda_convergent","lower":null,"n_baseline":0,"n_canary":20,"observed":1,'
    '"rule_out":null,"status":"pass","threshold":true,"upper":null}],%s"kind":"progressive_rollout","late":0,'
    '"manifest_hash":"sha256:' + "0" * 64 + '","operation":null,"previous_hash":null,'
    '"reasons":["all_gates_pass"],"region":"","relaxed":[],"schema":"tidegate.decision/1",'
    '"source":[{"first":0,"last":9,"partition":0,"topic":"t"}],'
    '"stage":{"canary_weight":0.05,"index":0,"next_canary_weight":1},"verdict":"promote",'
    '"versions":{"canary":{"MODEL_VER":"é"}},"warnings":[{"code":"unpinned","count":1}],'
    '"window":{"closed":true,"end":900000,"start":0}}'
)


def sha(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


class TestSealing:
    def test_gives_the_bytes_id_and_hash_worked_out_by_hand(self) -> None:
        """Over the JSON written out here, not over what the code makes of it."""
        identity = (
            '{"decided_at":900000,"end":900000,"flag":"f","manifest_hash":"' + SHA + '",'
            '"region":"","stage":0,"start":0,"verdict":"promote"}'
        )
        sealed = seal_decision(decision(), None)
        assert sealed.decision_id == sha(identity)
        assert sealed.hash == sha(WRITTEN % (sealed.decision_id, ""))
        whole = WRITTEN % (sealed.decision_id, f'"hash":"{sealed.hash}",')
        assert sealed.to_bytes() == whole.encode()

    def test_gives_the_hashes_that_consumers_have_stored(self) -> None:
        """sha256sum of the two texts above, taken outside Python."""
        sealed = seal_decision(decision(), None)
        assert sealed.decision_id == "sha256:afc2745ef4482fae8f0898b012bbe022c71c8434ee001753911a5560855ac69e"
        assert sealed.hash == "sha256:87c1555475bf3b6e0908599df46d2f8c4a9f8a417b133ca9fe7571fe933d8c4f"

    def test_chains_through_the_previous_hash_but_keeps_the_id(self) -> None:
        first = seal_decision(decision(), None)
        second = seal_decision(decision(), first.hash)
        assert second.previous_hash == first.hash
        assert second.hash != first.hash
        assert second.decision_id == first.decision_id

    def test_again_changes_nothing(self) -> None:
        sealed = seal_decision(decision(), SHA)
        assert seal_decision(sealed, SHA) == sealed

    @pytest.mark.parametrize(
        "change",
        [
            {"flag": "g"},
            {"region": "eu"},
            {"manifest_hash": "sha256:" + "1" * 64},
            {"stage": Stage(index=1, canary_weight=0.05, next_canary_weight=1.0)},
            {"window": Span(start=10_000, end=900_000, closed=True)},
            {"window": Span(start=0, end=910_000, closed=True)},
            {"decided_at": 910_000},
            {"verdict": "hold"},
        ],
    )
    def test_takes_each_part_of_the_identity_into_the_id(self, change: dict[str, Any]) -> None:
        changed = seal_decision(decision(**change), None)
        assert changed.decision_id != seal_decision(decision(), None).decision_id

    def test_leaves_the_numbers_out_of_the_id_and_in_the_hash(self) -> None:
        one, other = seal_decision(decision(), None), seal_decision(decision(late=1), None)
        assert other.decision_id == one.decision_id
        assert other.hash != one.hash

    @pytest.mark.parametrize("number", [math.nan, math.inf])
    def test_refuses_numbers_that_are_not_finite(self, number: float) -> None:
        stage = Stage(index=0, canary_weight=number, next_canary_weight=None)
        with pytest.raises(ValueError, match="not representable"):
            seal_decision(decision(stage=stage), None)


class TestCommands:
    def test_name_their_decision_and_have_an_id_over_it_and_the_action(self) -> None:
        sealed = seal_decision(decision(), None)
        sent = command(sealed)
        text = '{"action":"promote","decision_id":"' + sealed.decision_id + '"}'
        assert sent.command_id == sha(text)
        assert (sent.decision_id, sent.manifest_hash) == (sealed.decision_id, SHA)
        assert (sent.flag, sent.region, sent.key) == ("f", "", "f|")
        assert sent.reasons == ["all_gates_pass"]

    def test_are_written_as_canonical_json(self) -> None:
        sent = command(seal_decision(decision(), None))
        assert (
            sent.to_bytes()
            == (
                f'{{"action":"promote","command_id":"{sent.command_id}",'
                f'"decision_id":"{sent.decision_id}","effective_from":920000,"flag":"f",'
                f'"manifest_hash":"{SHA}","previous_weights":{{"baseline":0.95,"canary":0.05}},'
                '"reasons":["all_gates_pass"],"region":"","rule":null,'
                '"schema":"tidegate.command/1","seq":1,"severity":null,'
                '"weights":{"baseline":0,"canary":1}}'
            ).encode()
        )


numbers = st.none() | st.floats(allow_nan=False, allow_infinity=False)
counts = st.integers(0, 2**53 - 1)
stages = st.builds(Stage, index=counts, canary_weight=st.floats(0, 1), next_canary_weight=numbers)
rules = st.builds(RuleResult, value=numbers, observed=numbers, n=counts)


@given(
    st.builds(
        decision,
        flag=st.text(st.characters(exclude_categories=["Cs"])),
        stage=stages,
        abort_rules=st.lists(rules, max_size=3),
        late=counts,
    )
)
def test_a_record_read_back_is_the_same_record_and_writes_the_same_bytes(made: Decision) -> None:
    sealed = seal_decision(made, None)
    assert decision_from_bytes(sealed.to_bytes()) == sealed
    assert decision_from_bytes(sealed.to_bytes()).to_bytes() == sealed.to_bytes()
    sent = command(sealed)
    assert command_from_bytes(sent.to_bytes()) == sent


def test_the_hash_of_a_record_can_be_checked_from_its_bytes_alone() -> None:
    record = json.loads(seal_decision(decision(), SHA).to_bytes())
    assert record.pop("hash") == sha256_of(record)


class TestReading:
    def test_passes_over_fields_it_does_not_know(self) -> None:
        sealed = seal_decision(decision(), None)
        record = json.loads(sealed.to_bytes()) | {"later": 1}
        assert decision_from_bytes(json.dumps(record).encode()) == sealed

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"schema": "tidegate.decision/2"}, "schema"),
            ({"verdict": "maybe"}, "verdict"),
            ({"late": "0"}, "late"),
            ({"late": 0.5}, "late"),
            ({"flag": None}, "flag"),
            ({"window": {"start": 0, "end": 0}}, "closed"),
            ({"gates": [{}]}, r"gates\[0\]"),
        ],
    )
    def test_names_the_field_that_is_wrong(self, change: dict[str, Any], named: str) -> None:
        record = msgspec.to_builtins(seal_decision(decision(), None)) | change
        with pytest.raises(EventError, match=rf"^not a decision: .*{named}"):
            decision_from_bytes(json.dumps(record).encode())

    @pytest.mark.parametrize(
        "value", [b"", b"{", b"\xff", b"[]", b"null", b'{"a":' * 9000, b'{"flag": "\xff"}', b"NaN"]
    )
    def test_refuses_what_is_no_record_in_one_line(self, value: bytes) -> None:
        for read in (decision_from_bytes, command_from_bytes):
            with pytest.raises(EventError, match=r"^not a (decision|command): .+") as caught:
                read(value)
            assert len(str(caught.value).splitlines()) == 1

    @pytest.mark.parametrize("change", [{"seq": 0}, {"command_id": "sha256:1"}, {"action": "pass"}, {"weights": {}}])
    def test_refuses_a_command_that_a_router_could_misread(self, change: dict[str, Any]) -> None:
        record = msgspec.to_builtins(command(seal_decision(decision(), None))) | change
        with pytest.raises(EventError, match=r"^not a command: "):
            command_from_bytes(json.dumps(record).encode())
