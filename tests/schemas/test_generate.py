import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.schemas.test_decision import command, decision
from tests.schemas.test_manifest import PAGE_YAML, bodies, nest
from tidegate.schemas import event, generate
from tidegate.schemas.decision import command_from_bytes, decision_from_bytes, seal_decision
from tidegate.schemas.errors import EventError
from tidegate.schemas.load import load_manifest
from tidegate.schemas.signed import DocumentKind, PrivateKey, sign


def validator(name: str) -> Any:
    """The validator of one committed schema file."""
    schema = json.loads((generate.FOLDER / "json" / f"{name}.schema.json").read_text("utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


EVENT, MANIFEST = validator("telemetry-event"), validator("manifest")


class TestDrift:
    def test_the_committed_files_are_what_the_definitions_give(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert generate.write_or_check(["--check"]) == 0, capsys.readouterr().err

    def test_a_stale_and_a_missing_file_are_named_and_mended(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert generate.write_or_check([], tmp_path) == 0
        assert generate.write_or_check(["--check"], tmp_path) == 0
        (tmp_path / "asyncapi.yaml").write_text("asyncapi: 2.0.0\n")
        (tmp_path / "json" / "command.schema.json").unlink()
        assert generate.write_or_check(["--check"], tmp_path) == 1
        named = re.findall(r"(\S+) is stale", capsys.readouterr().err)
        assert [Path(path).name for path in named] == ["command.schema.json", "asyncapi.yaml"]
        assert generate.write_or_check([], tmp_path) == 0
        assert generate.write_or_check(["--check"], tmp_path) == 0

    def test_no_other_file_is_in_the_folder(self) -> None:
        found = {path.name for path in (generate.FOLDER / "json").iterdir()}
        assert found == set(generate.json_schemas())


class TestManifestSchema:
    def test_takes_the_page_s_manifest(self) -> None:
        MANIFEST.validate(yaml.safe_load(PAGE_YAML.read_text()))

    def test_refuses_misspelt_keys_and_rule_kinds(self) -> None:
        for path, value in (("gates.coverage_mim", "0.7"), ("abort_rules.hard", "[{kind: x}]")):
            assert not MANIFEST.is_valid(yaml.safe_load(nest(path, value)))

    @pytest.mark.parametrize(
        "body",
        [
            "{gates: {delta_s: null, coverage_min: null, lambda_convergent: null}}",
            "{policy: {quality_gain: off}}",
            '{policy: {quality_gain: "off"}}',
            "{window: {length: 1h, settle: 0s}, traffic: {stages: [0.1, 1], shadow: true}}",
            "{abort_rules: {hard: [], soft: [{kind: latency_p95_over_budget, value: 0.2}]}}",
        ],
    )
    def test_takes_what_the_loader_takes(self, body: str) -> None:
        text = f"flags: {{x: {body}}}"
        load_manifest(text)
        MANIFEST.validate(yaml.safe_load(text))

    @given(bodies)
    def test_refuses_no_manifest_that_the_loader_takes(self, body: dict[str, Any]) -> None:
        """It may miss a fault that lies between keys, never find one that is none."""
        manifest = {"flags": {"x": body}}
        load_manifest(yaml.safe_dump(manifest))
        assert MANIFEST.is_valid(manifest)


VALID = {"ts": 1, "event_id": "e", "flag": "f", "arm": "canary", "sticky_id": "s"}
ODD: dict[str, list[Any]] = {
    "ts": [0, -1, 1.5, None],
    "kind": ["request", "exposure", "tick", "tock"],
    "event_id": [None, ""],
    "flag": [None, "g"],
    "arm": ["baseline", "both"],
    "sticky_id": [None, "s" * 1025],
    "latency_ms": [0, 1.5, None, -1],
    "error": [False, None, 0],
    "status": [200, None, "200"],
    "delta_s": [0, 2, 2.5],
    "seed": [1, 2, 3],
    "versions": [{"MODEL_VER": "m"}, {"MODEL_VER": 1}],
    "unknown": [[]],
}


@given(
    st.sampled_from([{}, {"latency_ms": 1, "status": 200}, {"latency_ms": 1, "error": True}]),
    st.lists(st.sampled_from([(key, v) for key, values in ODD.items() for v in values]), max_size=3),
    st.none() | st.sampled_from([*VALID, "latency_ms"]),
)
def test_the_event_schema_takes_exactly_the_events_that_the_worker_accepts(
    outcome: dict[str, Any], odd: list[tuple[str, Any]], absent: str | None
) -> None:
    fields = VALID | outcome | dict(odd)
    fields.pop(absent or "", None)
    try:
        event.parse(json.dumps(fields).encode())
        accepted = True
    except EventError:
        accepted = False
    assert EVENT.is_valid(fields) == accepted


class TestRecords:
    def test_a_decision_and_its_command_validate(self) -> None:
        sealed = seal_decision(decision(), None)
        validator("decision").validate(json.loads(sealed.to_bytes()))
        validator("command").validate(json.loads(command(sealed).to_bytes()))

    def test_what_the_reader_refuses_is_no_decision_for_the_schema_either(self) -> None:
        record = json.loads(seal_decision(decision(), None).to_bytes())
        changes: list[dict[str, Any]] = [{"verdict": "maybe"}, {"late": "0"}, {"gates": [{}]}]
        for change in changes:
            with pytest.raises(EventError):
                decision_from_bytes(json.dumps(record | change).encode())
            assert not validator("decision").is_valid(record | change)

    def test_a_command_with_sequence_zero_is_refused_by_both(self) -> None:
        record = json.loads(command(seal_decision(decision(), None)).to_bytes()) | {"seq": 0}
        with pytest.raises(EventError):
            command_from_bytes(json.dumps(record).encode())
        assert not validator("command").is_valid(record)


class TestAsyncApi:
    document = yaml.safe_load((generate.FOLDER / "asyncapi.yaml").read_text("utf-8"))

    def test_names_the_topics_with_their_keys(self) -> None:
        addresses = {channel["address"] for channel in self.document["channels"].values()}
        assert addresses == {
            "tidegate.telemetry",
            "tidegate.late",
            "tidegate.dead-letter",
            "tidegate.decisions",
            "tidegate.corrections",
            "tidegate.manifests",
            "tidegate.operations",
            "tidegate.control",
        }
        for message in self.document["components"]["messages"].values():
            assert message["bindings"]["kafka"]["key"]["type"] == "string"

    def test_every_reference_leads_somewhere(self) -> None:
        def references(value: object) -> list[str]:
            if isinstance(value, dict):
                own = [value["$ref"]] if "$ref" in value else []
                return own + [one for inner in value.values() for one in references(inner)]
            inner_lists = value if isinstance(value, list) else []
            return [one for inner in inner_lists for one in references(inner)]

        found = references(self.document)
        assert len(found) > len(self.document["operations"]) * 2
        for reference in found:
            if reference.startswith("./"):
                assert (generate.FOLDER / reference).is_file()
                continue
            target = self.document
            for key in reference.removeprefix("#/").split("/"):
                target = target[key]
            assert target

    def test_a_signed_document_has_the_form_that_is_described(self) -> None:
        key = PrivateKey.generate()
        kinds: dict[DocumentKind, str] = {"manifest": "manifests", "operation": "operations"}
        for kind, name in kinds.items():
            pattern = self.document["components"]["messages"][name]["payload"]["pattern"]
            assert re.match(pattern, sign(kind, "acme.prod/gates", b"{}", key).decode())

    def test_services_send_telemetry_and_operators_what_they_sign(self) -> None:
        sends = {
            operation["channel"]["$ref"]
            for operation in self.document["operations"].values()
            if operation["action"] == "send"
        }
        assert sends == {f"#/channels/{name}" for name in ("telemetry", "manifests", "operations")}
