"""Gold probes of both arms, and what they measure; needs `tidegate[probes]`, which is numpy."""

from tidegate.streams.probes.gold import GoldSet, Question, load_gold, read_gold
from tidegate.streams.probes.measures import coverage, delta_s, lambda_states
from tidegate.streams.probes.probing import Answer, Summary, probe, probe_every

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
