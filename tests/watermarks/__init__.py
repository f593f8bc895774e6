"""Replay from any offset, proven: random watermarks, and every way to the state at each of them.

`python -m tests.watermarks` proves the Bitstamp hour and a large generated log on a Kafka of its
own; `tests/test_watermarks.py` has a short version. A run is a ledger whose snapshots a real worker
made (`ledgers`), random watermarks of it (`choice`), the naive reference with digests of its own
(`naive`), the folds and replays that are compared with it (`proof`), the command (`command`), and
all of these together (`run`).
"""
