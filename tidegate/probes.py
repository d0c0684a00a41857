"""Gold probes of both arms, and what they measure; needs `tidegate[probes]`, which is numpy."""

try:
    from tidegate.streams.probes.gold import GoldSet, Question, load_gold, read_gold
    from tidegate.streams.probes.measures import coverage, delta_s, lambda_states
    from tidegate.streams.probes.probing import Answer, Summary, probe, probe_every
except ModuleNotFoundError as error:
    raise ImportError(f"tidegate.probes lacks {error.name}: pip install 'tidegate[probes]'") from None

__all__ = [
    "Answer",
    "GoldSet",
    "Question",
    "Summary",
    "coverage",
    "delta_s",
    "lambda_states",
    "load_gold",
    "probe",
    "probe_every",
    "read_gold",
]
