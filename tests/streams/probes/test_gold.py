"""A gold set that could be misread is refused with its place."""

from pathlib import Path

import pytest

from tidegate.probes import load_gold, read_gold
from tidegate.schemas.errors import InputError

GOLD = """
flag: f
questions:
  - id: q1
    paraphrases: [a, b, c]
    anchor: [1, 0]
"""


def test_what_is_left_out_has_a_default() -> None:
    gold = load_gold(GOLD)
    assert (gold.region, gold.versions, gold.agree, gold.scope) == ("", {}, 0.15, {})
    assert (gold.questions[0].anchor, gold.questions[0].target) == ([1.0, 0.0], [])


SECOND = "{id: q2, paraphrases: [d, e, g], anchor: y, target: [s]}"


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ("flag: f\n", "", "flag"),
        ("[a, b, c]", "[a, b]", "questions[0].paraphrases"),
        ("[a, b, c]", "[a, b, b]", "questions[0].paraphrases"),
        ("[1, 0]", "[]", "questions[0].anchor"),
        ("anchor:", "anker:", "questions[0]"),
        ("flag: f", "flag: f\nflag: g", "flag"),
        ("flag: f", "flag: f\nagree: 3", "agree"),
        ("    anchor: [1, 0]\n", "    anchor: x\n  - {id: q1, paraphrases: [d, e, g], anchor: y}\n", "questions[1].id"),
        (
            "    anchor: [1, 0]\n",
            f"    anchor: x\n  - {SECOND}\n",
            "[1].target",
        ),
        ("flag: f", "{", "YAML"),
    ],
)
def test_a_wrong_gold_set_is_one_line_that_names_the_place(old: str, new: str, place: str, tmp_path: Path) -> None:
    assert old in GOLD
    (tmp_path / "gold.yml").write_text(GOLD.replace(old, new))
    with pytest.raises(InputError) as caught:
        read_gold(tmp_path / "gold.yml")
    assert str(caught.value).startswith(f"{tmp_path / 'gold.yml'}: ")
    assert place in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gold\.yml: No such file"):
        read_gold(tmp_path / "gold.yml")


def test_the_gold_set_of_the_docs_is_one() -> None:
    page = (Path(__file__).parents[3] / "docs" / "probes.md").read_text()
    gold = load_gold(page.split("```yaml\n")[1].split("```")[0])
    assert (gold.flag, gold.questions[0].id, gold.has_texts) == ("prompt_pack", "refund-window", True)
