"""The formula that routers of any language follow: docs/assignment.md has it, with vectors."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tidegate

PAGE = (Path(__file__).parents[2] / "docs" / "assignment.md").read_text()
VECTORS = [
    (flag, sticky, float(found)) for flag, sticky, found in re.findall(r"\| `(.*?)` \| `(.*?)` \| (0\.\d+) \|", PAGE)
]


def shown(language: str) -> str:
    """The page's code in a language."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)
    return str(found)


def test_the_pages_vectors_hold() -> None:
    assert len(VECTORS) == 3
    assert [tidegate.bucket(flag, sticky) for flag, sticky, _ in VECTORS] == [found for _, _, found in VECTORS]


def test_the_pages_first_lines_say_what_comes_out() -> None:
    lines = re.findall(r"^(tidegate\..*?)\s+# (.*)$", shown("python"), re.M)
    assert len(lines) == 3
    for call, result in lines:
        assert str(eval(call, {"tidegate": tidegate})) == result  # noqa: S307 - our own page


@pytest.mark.parametrize("language", ["js", "java", "go"])
def test_every_language_gives_the_same(language: str, tmp_path: Path) -> None:
    pairs = [(flag, sticky) for flag, sticky, _ in VECTORS]
    quoted = [[json.dumps(text, ensure_ascii=False) for text in pair] for pair in pairs]
    code = shown(language)
    if language == "js":
        tool, name = "node", "bucket.js"
        code += "".join(f"console.log(bucket({flag}, {sticky}));\n" for flag, sticky in quoted)
    elif language == "java":
        tool, name = "java", "Bucket.java"
        calls = "".join(f"System.out.println(bucket({flag}, {sticky}));" for flag, sticky in quoted)
        code = f"class Bucket {{ {code} public static void main(String[] a) throws Exception {{ {calls} }} }}"
    else:
        tool, name = "go", "bucket.go"
        calls = "".join(f"fmt.Println(bucket({flag}, {sticky}))\n" for flag, sticky in quoted)
        code = f'package main\nimport ("crypto/sha256"; "encoding/binary"; "fmt")\n{code}\nfunc main() {{\n{calls}}}\n'
    if shutil.which(tool) is None:
        pytest.skip(f"no {tool} here")
    (tmp_path / name).write_text(code)
    command = (
        [tool, "run", name]
        if tool == "go"
        else [tool, "-Dfile.encoding=UTF-8", name]
        if tool == "java"
        else [tool, name]
    )
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [float(line) for line in done.stdout.split()] == [found for _, _, found in VECTORS]


@given(st.text(), st.floats(0, 1), st.floats(0, 1))
def test_a_rising_weight_takes_no_id_out_of_the_canary(sticky: str, one: float, other: float) -> None:
    low, high = sorted((one, other))
    try:
        sticky.encode()
    except UnicodeEncodeError:
        return
    assert tidegate.arm("f", sticky, low) == "baseline" or tidegate.arm("f", sticky, high) == "canary"


def test_nobody_is_in_a_canary_of_weight_0_and_all_in_one_of_weight_1() -> None:
    ids = [f"user-{n}" for n in range(10_000)]
    assert {tidegate.arm("f", sticky, 0.0) for sticky in ids} == {"baseline"}
    assert {tidegate.arm("f", sticky, 1.0) for sticky in ids} == {"canary"}
    assert 400 < [tidegate.arm("f", sticky, 0.05) for sticky in ids].count("canary") < 600
