"""The tutorial works as it stands there: its commands run, and end in the promote and the abort that it names."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = (Path(__file__).parents[1] / "docs" / "tutorial.md").read_text()


def test_the_tutorial_promotes_the_healthy_canary_and_aborts_the_broken_one(tmp_path: Path) -> None:
    steps = re.findall(r"```bash\n(.*?)```", PAGE, re.S)
    command = tmp_path / "tidegate"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m tidegate "$@"\n')
    command.chmod(0o755)
    (tmp_path / "python").symlink_to(sys.executable)
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    here = {"PATH": path, "PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONUTF8": "1"}
    work = tmp_path / "work"
    work.mkdir()
    said = []
    for step in steps:
        done = subprocess.run(["bash", "-ec", step], cwd=work, env=os.environ | here, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        said.append(done.stdout)

    def verdicts(name: str) -> list[str]:
        return [json.loads(line)["verdict"] for line in (work / name).read_text().splitlines()]

    assert verdicts("healthy-decisions.ndjson")[0] == "hold"
    assert "promote" in verdicts("healthy-decisions.ndjson")
    assert verdicts("broken-decisions.ndjson")[0] == "abort"
    assert "promote" in said[2]
    assert "error_rate_over" in said[3]
    assert "<html" in (work / "report.html").read_text()
