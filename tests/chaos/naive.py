"""The naive reference at many watermarks of one partition, without starting over for each.

Records of different keys never meet: a valid record's key is its account, and identity is the
account's own. So each key has a reference of its own, and only those that got records since the
last question are asked again; what they say is added up.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from decimal import Decimal, localcontext

from tests.reference import EXACT, TOPICS, VERDICTS, Balances, Reference, Verdict

_Row = tuple[Decimal, Decimal, Decimal]
_NOTHING: _Row = (Decimal(0), Decimal(0), Decimal(0))


class NaivePartition:
    """One partition's records so far, and what follows from them."""

    def __init__(self, number: int, partitions: int) -> None:
        self._number = number
        self._partitions = partitions
        self._by_key: dict[bytes | None, Reference] = {}
        self._shares: dict[bytes | None, Balances] = {}
        self._unasked: set[bytes | None] = set()
        self._sums: defaultdict[tuple[str, str], _Row] = defaultdict(lambda: _NOTHING)
        self._counts: Counter[tuple[str, Verdict]] = Counter()

    def apply(self, topic: str, offset: int, key: bytes | None, value: bytes | None) -> None:
        """Take in a record; those of a topic come in order."""
        reference = self._by_key.get(key)
        if reference is None:
            reference = self._by_key[key] = Reference(self._partitions)
        self._counts[topic, reference.apply(topic, self._number, offset, key, value)] += 1
        self._unasked.add(key)

    def counts(self) -> dict[str, dict[str, int]]:
        """Topic -> verdict -> number of records."""
        return {
            topic: {verdict: self._counts[topic, verdict] for verdict in VERDICTS}
            for topic in TOPICS
        }

    def balances(self) -> Balances:
        """Account -> asset -> (debits, credits, hold), without rows of zeros."""
        with localcontext(EXACT):
            for key in self._unasked:
                share = self._by_key[key].balances_of_partition(self._number)
                self._add(self._shares.get(key, {}), -1)
                self._add(share, 1)
                self._shares[key] = share
        self._unasked.clear()
        found: Balances = {}
        for (account, asset), row in self._sums.items():
            if any(row):
                found.setdefault(account, {})[asset] = row
        return found

    def _add(self, share: Balances, sign: int) -> None:
        for account, rows in share.items():
            for asset, (debits, credits_, hold) in rows.items():
                before = self._sums[account, asset]
                self._sums[account, asset] = (
                    before[0] + sign * debits,
                    before[1] + sign * credits_,
                    before[2] + sign * hold,
                )
