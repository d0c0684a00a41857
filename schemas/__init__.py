"""What crosses the boundary, and whether it is accepted: events, manifests, decisions, commands, signatures.

May import: nothing of Tidegate's.
Read first: event.py and decision.py: what comes in and what goes out.
"""
