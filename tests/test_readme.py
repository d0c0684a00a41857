"""What README shows works: its manifest and its telemetry, as they stand there, promote a healthy canary."""

import json
import re
from pathlib import Path

import pytest

from tests.commands.invoke import tidegate
from tests.streams.events import NOON, PINS, tick

README = (Path(__file__).parents[1] / "README.md").read_text()
PINNED = PINS | {"MODEL_VER": "gpt-4o-2025-07-15", "PROMPT_VER": "p-2025.08.31-h1"}


def sample() -> str:
    """The manifest that README shows."""
    (found,) = re.findall(r"```yaml\n(flags:.*?)```", README, re.S)
    return str(found)


def keys() -> set[str]:
    """The fields that README's service publishes."""
    (published,) = re.findall(r"telemetry\.publish\(\s*\{(.*?)\}\s*\)", README, re.S)
    return set(re.findall(r'"(\w+)":', published))


def replayed(folder: Path, manifest: str) -> tuple[str, list[str]]:
    """What a replay of healthy three quarters of an hour says, and its verdicts."""
    values = {"region": "us-east-1", "endpoint": "/rag/reason", "latency_ms": 400, "status": 200}
    values |= {"flag": "prompt_pack_vNplus1", "delta_s": 0.05, "coverage": 0.9, "cost": 0.01, "solved": True}
    lines = []
    start = NOON - NOON % 900_000 + 900_000
    for n in range(9000):
        canary = n % 20 == 0
        pins = PINNED if canary else PINNED | {"MODEL_VER": "older"}
        given = {"event_id": f"e{n}", "ts": start + n * 300, "sticky_id": f"u{n}", "versions": pins}
        event = values | given | {"arm": "canary" if canary else "baseline"}
        assert event.keys() == keys()
        lines.append(json.dumps(event).encode())
    lines.append(tick(start + 9000 * 300 + 60_000))
    (folder / "log.ndjson").write_bytes(b"\n".join(lines))
    (folder / "flags.yml").write_text(manifest)
    out = folder / "out.ndjson"
    done = tidegate("replay", "--manifest", folder / "flags.yml", "--events", folder / "log.ndjson", "--out", out)
    assert (done.code, done.err) == (0, "")
    return " ".join(done.out.split()), [json.loads(line)["verdict"] for line in out.read_bytes().splitlines()]


def test_readmes_sample_promotes(tmp_path: Path) -> None:
    said, verdicts = replayed(tmp_path, sample())
    assert verdicts[:3] == ["hold", "hold", "promote"]
    assert "probes" not in said


def test_who_sends_no_probes_is_told_so(tmp_path: Path) -> None:
    """The same with λ left on: it holds, and says what to send or to switch off."""
    manifest = re.sub(r"\n *lambda_convergent: false[^\n]*", "", sample())
    said, verdicts = replayed(tmp_path, manifest)
    assert set(verdicts) == {"hold"}
    assert "prompt_pack_vNplus1: lambda_convergent stays unknown" in said
    assert "gates.lambda_convergent: false" in said


@pytest.mark.parametrize(("off", "remarked"), [(False, True), (True, False)])
def test_lint_says_that_lambda_needs_probes(off: bool, remarked: bool, tmp_path: Path) -> None:
    manifest = tmp_path / "flags.yml"
    manifest.write_text(sample() if off else "flags: {f: {}}")
    done = tidegate("lint", manifest)
    assert ("stays unknown, and holds every window, without probes" in " ".join(done.out.split())) is remarked
