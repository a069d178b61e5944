"""A seeded, single-threaded simulation of both cores, and an oracle that checks P1 to P7.

`python -m tests.sim --seed N --runs M` runs it by hand; see `simulation.py` for how a run is put together.
"""
