"""Assertions about balances, a file of which `replay assert` checks against the topics.

One stands on each line, `#` begins a comment:

    ACCOUNT ASSET [FIELD] = AMOUNT [at POSITION]

FIELD is `balance` (which it is when left out), `hold`, `available`, `debits` or `credits`. POSITION
is a watermark in the forms of `ledger.positions`, where partitions that it does not name stand at
their end, or an RFC 3339 time: then the records before it count, by Kafka's record times. Without
one the assertion is about the end of the topics as it was when the run began.

Amounts are compared by value. What the ledger does not know has 0 everywhere. A system account is
added up over all partitions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, Literal, get_args

from ledger import events, times
from ledger.amounts import plain
from ledger.errors import InputError
from ledger.events import INPUT_TOPICS
from ledger.journal import SYSTEM_ACCOUNTS, is_system
from ledger.partitioner import partition_of
from ledger.positions import FORMS, WORDS, Watermarks, is_time, parse_snapshot_name
from ledger.projections.accounts import Texts
from ledger.projections.partition import Watermark
from ledger.published import totals
from ledger.rebuild import Rebuilder, passes
from replay.results import NOTHING

Field = Literal["balance", "hold", "available", "debits", "credits"]
FIELDS: Final[tuple[Field, ...]] = get_args(Field)

LISTED: Final = 50
"""How many lines that cannot be used are named; the others are counted."""

_ACCOUNT: Final[events.Form] = get_args(events.Account)[1]
_ASSET: Final[events.Form] = get_args(events.Asset)[1]
_AMOUNT: Final[events.Form] = get_args(events.Amount)[1]

_FORM: Final = "ACCOUNT ASSET [FIELD] = AMOUNT [at POSITION]"
# Whether partition and offset exist is known to `parse_positions` only, which asks the topics.
_POSITION: Final = re.compile(
    rf"(?:(?:{'|'.join(INPUT_TOPICS)})(?::[0-9]+)?=)?(?:[0-9]+|{'|'.join(WORDS)})"
)


@dataclass(frozen=True)
class Assertion:
    """What a line says.

    Attributes:
        text: the line without its comment.
        position: where it is about, without spaces; None means the end.
    """

    file: str
    line: int
    text: str
    account: str
    asset: str
    field: Field
    amount: Decimal
    position: str | None

    @property
    def place(self) -> str:
        """`FILE:LINE`."""
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Outcome:
    """An assertion, and the amount that the topics give."""

    assertion: Assertion
    found: Decimal

    @property
    def holds(self) -> bool:
        """Whether the assertion is true."""
        return self.found == self.assertion.amount

    def as_json(self) -> dict[str, Any]:
        """Return the outcome as the command prints it; amounts are plain decimal strings."""
        assertion = self.assertion
        return {
            "file": assertion.file,
            "line": assertion.line,
            "text": assertion.text,
            "account": assertion.account,
            "asset": assertion.asset,
            "field": assertion.field,
            "position": assertion.position,
            "expected": plain(assertion.amount),
            "found": plain(self.found),
            "holds": self.holds,
        }


def parse(lines: Iterable[str], name: str) -> list[Assertion]:
    """Return the assertions of a file, in its order.

    Args:
        lines: of the file, with or without their ends.
        name: of the file; errors begin with it.

    Raises:
        InputError: lines have another form; it names each, one on a line, as `FILE:LINE: reason`.
    """
    assertions = []
    problems = []
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        try:
            assertions.append(_assertion(name, number, text))
        except ValueError as error:
            problems.append(f"{name}:{number}: {error}.")
    _refuse(problems)
    return assertions


def _assertion(name: str, number: int, text: str) -> Assertion:
    """Return what a line says.

    Raises:
        ValueError: it has another form; the message says how, without the place.
    """
    before, _, after = text.partition("=")
    subject, claim = before.split(), after.split(None, 2)
    if len(subject) not in (2, 3) or not claim:
        raise ValueError(f"must be {_FORM} (found {text!r:.80})")
    account, asset = subject[:2]
    if is_system(account):
        if account not in SYSTEM_ACCOUNTS:
            raise ValueError(
                f"account: must be a customer's or one of {', '.join(SYSTEM_ACCOUNTS)} "
                f"(found {account!r:.80})"
            )
    else:
        _require_form("account", _ACCOUNT, account)
    _require_form("asset", _ASSET, asset)
    _require_form("amount", _AMOUNT, claim[0])
    return Assertion(
        file=name,
        line=number,
        text=text,
        account=account,
        asset=asset,
        field=_field(subject[2]) if len(subject) == 3 else "balance",
        amount=Decimal(claim[0]),
        position=_position(claim[1:]) if len(claim) > 1 else None,
    )


def _require_form(what: str, form: events.Form, text: str) -> None:
    try:
        form.verify(text)
    except ValueError as error:
        raise ValueError(f"{what}: {error} (found {text!r:.80})") from error


def _field(word: str) -> Field:
    for field in FIELDS:
        if word == field:
            return field
    raise ValueError(f"field: must be one of {', '.join(FIELDS)} (found {word!r:.80})")


def _position(words: Sequence[str]) -> str:
    """Return the position that `at POSITION` names, without spaces between its parts."""
    if words[0] != "at" or len(words) != 2:
        raise ValueError(
            f"after the amount may stand 'at' and a position (found {' '.join(words)!r:.80})"
        )
    text = words[1]
    if is_time(text):
        try:
            times.instant(text)
        except ValueError as error:
            raise ValueError(f"position: {error} (found {text!r:.80})") from error
        return text
    parts = [part.strip() for part in text.split(",")]
    if not all(_POSITION.fullmatch(part) or parse_snapshot_name(part) for part in parts):
        raise ValueError(
            f"position: must be {FORMS}; several of them joined by commas; or an RFC 3339 time "
            f"(found {text!r:.80})"
        )
    return ",".join(parts)


def _refuse(problems: Sequence[str]) -> None:
    """Raise the problems as one error, if there are any."""
    if not problems:
        return
    listed = list(problems[:LISTED])
    if len(problems) > LISTED:
        listed.append(f"The number of further lines that cannot be used: {len(problems) - LISTED}.")
    raise InputError("\n".join(listed))


# -- evaluating

_Cut = tuple[int, ...]
"""A partition's watermark as a key: the offsets in the order of the input topics."""


def evaluate(
    assertions: Sequence[Assertion],
    rebuilder: Rebuilder,
    ends: Watermarks,
    partitions: int,
) -> list[Outcome]:
    """Return the outcome of each assertion, in their order.

    Only partitions where accounts asked about live are rebuilt, in one pass over their records if
    the watermarks asked about lie one after the other.

    Args:
        assertions: what to check.
        rebuilder: of the ledger's topics; keeping states in memory.
        ends: the end of the topics, of all partitions.
        partitions: how many there are.

    Raises:
        InputError: positions are of partitions that do not exist, beyond the end or contradict
            themselves; it names each assertion's line.
        MissingRecords: records that are needed are gone.
        ReplacedRecords: others have the offsets of a snapshot's.
    """
    resolved = _resolved(assertions, rebuilder, ends)
    wanted: dict[int, dict[_Cut, set[str]]] = {}
    for assertion in assertions:
        for number in _homes(assertion.account, partitions):
            cut = _cut(resolved[assertion.position][number])
            wanted.setdefault(number, {}).setdefault(cut, set()).add(assertion.account)
    rows = _rows(wanted, rebuilder)
    outcomes = []
    for assertion in assertions:
        account, marks = assertion.account, resolved[assertion.position]
        homes = _homes(account, partitions)
        sums = totals((account, rows[number, _cut(marks[number]), account]) for number in homes)
        total = sums.get((account, assertion.asset), NOTHING)
        outcomes.append(Outcome(assertion, getattr(total, assertion.field)))
    return outcomes


def _resolved(
    assertions: Iterable[Assertion], rebuilder: Rebuilder, ends: Watermarks
) -> dict[str | None, Watermarks]:
    """Return what each position means."""
    limits = rebuilder.limits(ends)
    resolved: dict[str | None, Watermarks] = {None: ends}
    problems = []
    for assertion in assertions:
        position = assertion.position
        if position is None or position in resolved:
            continue
        try:
            resolved[position] = rebuilder.watermarks_at([position], limits, assertion.place)
        except InputError as error:
            problems.append(str(error))
    _refuse(problems)
    return resolved


def _homes(account: str, partitions: int) -> Sequence[int]:
    """Return the partitions where an account's totals are."""
    if is_system(account):
        return range(partitions)
    return (partition_of(account.encode(), partitions),)


def _cut(mark: Watermark) -> _Cut:
    return tuple(mark[topic] for topic in INPUT_TOPICS)


def _mark(cut: _Cut) -> Watermark:
    return dict(zip(INPUT_TOPICS, cut, strict=True))


def _rows(
    wanted: dict[int, dict[_Cut, set[str]]], rebuilder: Rebuilder
) -> dict[tuple[int, _Cut, str], Texts]:
    """Return the accounts that are wanted of each partition and watermark."""
    rows: dict[tuple[int, _Cut, str], Texts] = {}
    # Of all partitions at once; those with fewer watermarks stay at their last.
    passes_of = {number: passes(sorted(cuts, key=sum), _mark) for number, cuts in wanted.items()}
    for turn in range(max(map(len, passes_of.values()), default=0)):
        chains = {number: turns[turn] for number, turns in passes_of.items() if turn < len(turns)}
        stops = [
            {number: _mark(chain[min(step, len(chain) - 1)]) for number, chain in chains.items()}
            for step in range(max(map(len, chains.values())))
        ]
        for step, rebuilt in enumerate(rebuilder.walk(stops)):
            for number, chain in chains.items():
                if step < len(chain):
                    cut = chain[step]
                    found = rebuilt.partitions[number].balances_of(wanted[number][cut])
                    rows.update(((number, cut, account), texts) for account, texts in found)
    return rows
