"""Chaos: a stream of mixed events, workers and a broker that are killed and paused, and proof.

`python -m tests.chaos` runs seeds; `tests/test_chaos.py` runs short ones. A run is a broker of its
own (`tests/broker.py`), a feed of events (`events`, `feed`), a fleet of real workers (`fleet`), a
plan of what is done to them (`mischief`), and a comparison of all that came of it with the naive
reference (`verify`, `partition`).
"""
