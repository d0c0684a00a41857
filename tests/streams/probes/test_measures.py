"""ΔS, coverage and λ as plain functions."""

import math

import numpy as np
import pytest

from tidegate.probes import coverage, delta_s, lambda_states
from tidegate.schemas.errors import InputError


@pytest.mark.parametrize(
    ("answer", "anchor", "expected"),
    [
        ([1, 0], [2, 0], 0.0),
        ([1, 0], [0, 3], 1.0),
        ([1, 0], [-5, 0], 2.0),
        ([1, 1], [1, 0], 1 - math.sqrt(0.5)),
        ([1e300, 1e300], [1e-300, 0], 1 - math.sqrt(0.5)),
    ],
)
def test_delta_s_is_one_minus_the_cosine(answer: list[float], anchor: list[float], expected: float) -> None:
    assert delta_s(answer, anchor) == pytest.approx(expected, abs=1e-12)
    assert delta_s(np.array(anchor, np.float32 if abs(anchor[0]) > 1e-9 else float), answer) == pytest.approx(expected)


def test_delta_s_never_leaves_its_range() -> None:
    """Rounding would dead-letter the event."""
    random = np.random.default_rng(3)
    for vector in random.normal(size=(500, 7)):
        assert 0 <= delta_s(vector, vector) <= 1e-15
        assert delta_s(vector, -vector) <= 2


@pytest.mark.parametrize("wrong", [[0.0, 0.0], [], [math.nan, 1.0], [math.inf, 1.0], [[1.0, 2.0]], [1.0, 2.0, 3.0]])
def test_an_embedding_that_is_none_is_refused(wrong: list[float]) -> None:
    with pytest.raises(InputError, match="embedding"):
        delta_s(wrong, [1.0, 2.0])


@pytest.mark.parametrize(
    ("retrieved", "target", "expected"),
    [(["a", "b"], ["a", "b"], 1), (["b", "z"], ["a", "b"], 0.5), ([], ["a"], 0), (["a", "a"], ["a", "a", "b"], 0.5)],
)
def test_coverage_is_the_share_of_the_targets_parts(retrieved: list[str], target: list[str], expected: float) -> None:
    assert coverage(retrieved, target) == expected


def test_a_target_without_parts_is_refused() -> None:
    with pytest.raises(InputError, match="target"):
        coverage(["a"], [])


SAME, ELSE = [1.0, 0.0, 0.0], [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [-1.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("answers", "states"),
    [
        ([SAME] * 6, "→→→→→→"),
        ([SAME] * 5 + [ELSE[0]], "→→→→→←"),
        ([SAME] * 5 + [None], "→→→→→×"),
        ([ELSE[0]] + [SAME] * 4 + [None], "←→→→→×"),
        ([SAME] * 3 + ELSE[:3], "××××××"),
        ([SAME, *ELSE], "××××××"),
        ([None] * 6, "××××××"),
    ],
)
def test_lambda_is_whether_a_runs_answer_agrees_with_most(answers: list[list[float] | None], states: str) -> None:
    assert "".join(lambda_states(answers, agree=0.15)) == states


def test_answers_agree_up_to_the_given_distance() -> None:
    """The distance itself included."""
    near = [[1.0, 0.0], [0.6, 0.8]]
    assert lambda_states([near[0]] * 5 + [near[1]], agree=0.4)[-1] == "→"
    assert lambda_states([near[0]] * 5 + [near[1]], agree=0.39)[-1] == "←"
