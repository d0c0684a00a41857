"""Everything that crosses the boundary, and its checks: events, manifests, decisions, commands, signatures.

May import: nothing of Tidegate's.
Read first: event.py and decision.py: what comes in and what goes out.
"""
