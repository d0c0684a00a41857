"""A modelled service over a real trace, a router, an embedded broker: what the demo shows.

May import: everything but the commands.
Read first: service.py, then closed_loop.py.
"""
