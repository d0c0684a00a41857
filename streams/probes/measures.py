"""Measures of answers: distance from the anchor, share of a section retrieved, agreement with each other."""

from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt

from tidegate.schemas.errors import InputError

Vector = Sequence[float] | npt.NDArray[np.floating]
AGREE, DIVERGENT, CHAOTIC = "→", "←", "×"


def delta_s(answer: Vector, anchor: Vector) -> float:
    """Return ΔS, 1 − the cosine of two embeddings: 0 (the same direction) to 2 (opposite).

    Raises InputError where they are not of one length, not finite, or one is all zeros.
    """
    first, second = _unit(answer, "the answer"), _unit(anchor, "the anchor")
    if len(first) != len(second):
        raise InputError(f"the answer's embedding has {len(first)} numbers, the anchor's {len(second)}: use one model")
    return float(np.clip(1 - first @ second, 0, 2))


def coverage(retrieved: Sequence[Hashable], target: Sequence[Hashable]) -> float:
    """Return the share of the target section's parts that were retrieved, 0 to 1; both are ids, each counted once.

    Raises InputError for a target without parts.
    """
    wanted = list(dict.fromkeys(target))
    if not wanted:
        raise InputError("the target section has no parts: list the ids of those that should be retrieved")
    found = set(retrieved)
    return float(np.mean([part in found for part in wanted]))


def lambda_states(answers: Sequence[Vector | None], agree: float) -> list[str]:
    """Return λ of each run of one question: whether its answer agrees with most.

    Two answers agree where ΔS between them is at most ``agree``. The answer with which most agree stands for all: those
    that agree with it are convergent, the others divergent. Where they are not more than half of the runs all are
    chaotic, as is a run without an answer (None).
    """
    given = [i for i, answer in enumerate(answers) if answer is not None]
    states = [CHAOTIC] * len(answers)
    if not given:
        return states
    units = np.stack([_unit(answer, "an answer") for answer in answers if answer is not None])
    close = 1 - units @ units.T <= agree + 1e-9
    np.fill_diagonal(close, val=True)
    chosen = close[int(close.sum(axis=1).argmax())]
    if 2 * int(chosen.sum()) > len(answers):
        for i, agrees in zip(given, chosen.tolist(), strict=True):
            states[i] = AGREE if agrees else DIVERGENT
    return states


def _unit(vector: Vector, whose: str) -> npt.NDArray[np.float64]:
    numbers = np.asarray(vector, np.float64)
    # By the largest first: squares of very large or small numbers are not numbers.
    largest = np.abs(numbers).max(initial=0.0)
    if numbers.ndim != 1 or not np.isfinite(largest) or largest == 0:
        raise InputError(f"the embedding of {whose} is not a list of finite numbers with one that is not 0")
    scaled = numbers / largest
    return np.asarray(scaled / np.linalg.norm(scaled), np.float64)
