"""What the ledger must hold, in integers: sums made while records are, and their comparison.

It shares no code with the ledger. Amounts are integers of a millionth (10^-6), which all amounts
and products of the workloads are exact in.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping

import msgspec

from ledger.kafka import BALANCES, Cluster

CLEARING, FEES, EXTERNAL, ADJUSTMENTS = "@clearing", "@fees", "@external", "@adjustments"

Rows = dict[tuple[str, str], tuple[int, int, int]]
"""Account and asset to debits, credits and hold, in millionths; no row is all zeros."""

_DIGITS = 6


class Books:
    """Running totals of debits and credits, and of what is held."""

    def __init__(self) -> None:
        self.debits: defaultdict[tuple[str, str], int] = defaultdict(int)
        self.credits: defaultdict[tuple[str, str], int] = defaultdict(int)
        self.holds: defaultdict[tuple[str, str], int] = defaultdict(int)

    def move(self, debited: str, credited: str, asset: str, amount: int) -> None:
        """Post an amount (millionths, not negative) from one account to another."""
        self.debits[debited, asset] += amount
        self.credits[credited, asset] += amount

    def fill(self, account: str, base: str, is_buy: bool, quantity: int, cash: int) -> None:
        """Post quantity and notional of a fill, both in millionths, against US dollars."""
        if is_buy:
            self.move(account, CLEARING, "USD", cash)
            self.move(CLEARING, account, base, quantity)
        else:
            self.move(CLEARING, account, "USD", cash)
            self.move(account, CLEARING, base, quantity)

    def fee(self, account: str, fee: int) -> None:
        """Post a fee in US dollars; a negative one is a rebate."""
        if fee > 0:
            self.move(account, FEES, "USD", fee)
        else:
            self.move(FEES, account, "USD", -fee)

    def rows(self) -> Rows:
        """Return what the tables must be."""
        keys = self.debits.keys() | self.credits.keys() | self.holds.keys()
        found = {
            key: (self.debits.get(key, 0), self.credits.get(key, 0), self.holds.get(key, 0))
            for key in keys
        }
        return {key: row for key, row in found.items() if any(row)}


def require_equal(found: Rows, expected: Rows, what: str) -> None:
    """Compare all rows.

    Raises:
        AssertionError: some differ; it says how many and shows one.
    """
    if found == expected:
        return
    differing = sorted(
        key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key)
    )
    first = differing[0]
    raise AssertionError(
        f"{what}: {len(differing)} of {len(expected)} rows are wrong, such as {first}: "
        f"{found.get(first)} instead of {expected.get(first)} (millionths)"
    )


def peers_digest(rows: Rows) -> str:
    """Return SHA-256 of all balances in the form of the peers' comparison."""
    names = {CLEARING: "contra:clearing", FEES: "contra:fees"}
    balances = {
        (names.get(account, account), asset): credits_ - debits
        for (account, asset), (debits, credits_, _) in rows.items()
    }
    lines = []
    for (account, asset), balance in sorted(balances.items()):
        whole, millionths = divmod(abs(balance), 10**_DIGITS)
        text = f"{whole}.{millionths:06d}".rstrip("0").rstrip(".")
        lines.append(f"{account}|{asset}|{'-' if balance < 0 else ''}{text}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


# -- what the ledger says


class _Amounts(msgspec.Struct):
    debits: str
    credits: str
    hold: str


class _Row(msgspec.Struct):
    account: str
    balances: dict[str, _Amounts]


class _Shown(_Amounts):
    account: str
    asset: str


_decode_row = msgspec.json.Decoder(_Row).decode


def published_rows(cluster: Cluster, partitions: Iterable[int]) -> Rows:
    """Return what the newest committed records of `balances` say."""
    slots = [(BALANCES, partition) for partition in partitions]
    earliest, ends = cluster.earliest(slots), cluster.ends(slots)
    newest: dict[tuple[int, bytes | None], bytes | None] = {}
    for batch in cluster.read({slot: (earliest[slot], ends[slot]) for slot in slots}):
        newest.update(((batch.partition, one.key), one.value) for one in batch.records)
    books = Books()
    for (_, key), value in newest.items():
        if value is not None and key != b"@watermark":
            row = _decode_row(value)
            for asset, amounts in row.balances.items():
                _add(books, row.account, asset, amounts)
    return books.rows()


def shown_rows(balances: Iterable[Mapping[str, str]]) -> Rows:
    """Return what the JSON document of a command says."""
    books = Books()
    for row in msgspec.convert(balances, list[_Shown]):
        _add(books, row.account, row.asset, row)
    return books.rows()


def _add(books: Books, account: str, asset: str, amounts: _Amounts) -> None:
    """Add a row; system accounts have one in each partition."""
    books.debits[account, asset] += _millionths(amounts.debits)
    books.credits[account, asset] += _millionths(amounts.credits)
    books.holds[account, asset] += _millionths(amounts.hold)


def _millionths(text: str) -> int:
    whole, _, decimals = text.partition(".")
    assert len(decimals) <= _DIGITS, text
    assert not whole.startswith("-"), text  # totals and holds never are
    return int(whole + decimals.ljust(_DIGITS, "0"))
