"""Gold probes: ask both arms the same questions, and publish how far their answers drift, cover and agree.

May import: the client, the settings and the schemas; nothing that decides.
Read first: probing.py.
"""
