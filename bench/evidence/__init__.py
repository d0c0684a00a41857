"""``python -m bench.evidence``: what a rollout's evidence is worth, on modelled traffic; writes docs/evidence.md."""
