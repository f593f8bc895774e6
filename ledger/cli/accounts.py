"""The commands about accounts: `balances`, `orders`, `statement`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from ledger import console, times
from ledger.amounts import plain
from ledger.cli.shared import AsJson, connect, counts_line, rebuilder_of, state_at, watermark_line
from ledger.continuity import require_topics
from ledger.errors import StateError
from ledger.events import INPUT_TOPICS
from ledger.journal import is_system
from ledger.kafka import BALANCES, Cluster
from ledger.order_rows import order_row
from ledger.partitioner import partition_of
from ledger.positions import Watermarks
from ledger.projections.orders import Order
from ledger.projections.partition import Counts, Partition
from ledger.published import Totals, add_counts, read_published, require_unchanged, totals
from ledger.rebuild import watermarks_json
from ledger.settings import load_settings
from ledger.statement import running, statement

Account = Annotated[str, typer.Argument(help="A customer's or a system account such as @fees.")]


# -- balances


@dataclass(frozen=True)
class _Balances:
    """Balances, and what they were made of."""

    totals: Totals
    watermarks: Watermarks
    counts: Counts


def balances(
    account: Annotated[
        str | None,
        typer.Argument(help="Only this account; system accounts are @clearing, @fees, …"),
    ] = None,
    asset: Annotated[str | None, typer.Option(help="Only this asset.")] = None,
    at: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WATERMARK|TIME",
            help="As of N, TOPIC=N or TOPIC:PARTITION=N (next offsets; comma-separated or "
            "repeated; partitions not named: their end), or of the records before an RFC 3339 "
            "time. Computed from snapshots and topics.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show balances, as the workers published them last.

    Balance is credits less debits; available is the balance less what open orders hold. Before
    anything was published there are none.
    """
    cluster = connect(load_settings())
    found = _rebuilt_balances(cluster, at, as_json) if at else _published_balances(cluster, as_json)
    rows = [
        total.as_json(name, what)
        for (name, what), total in found.totals.items()
        if account in (None, name) and asset in (None, what)
    ]
    if as_json:
        console.print_json(
            {
                "balances": rows,
                "watermarks": watermarks_json(found.watermarks),
                "counts": found.counts,
            }
        )
        return
    columns = ("account", "asset", "balance", "hold", "available", "debits", "credits")
    if rows:
        console.print_table("Balances", columns, ([*row.values()] for row in rows), columns[2:])
    else:
        console.out.print("No balances.")
    console.say(f"Watermark: {watermark_line(found.watermarks) or 'nothing is published yet'}.")
    console.say(f"Records: {counts_line(found.counts)}.")


def _published_balances(cluster: Cluster, quiet: bool) -> _Balances:
    require_topics(cluster)
    shapes = cluster.topics((*INPUT_TOPICS, BALANCES))
    topic_ids: dict[str, str] | None = None
    if all(topic in shapes for topic in INPUT_TOPICS):
        topic_ids = require_unchanged(cluster, cluster.origin()).topic_ids
    partitions = range(max((shape.partitions for shape in shapes.values()), default=0))
    with console.progress("Reading tables", None, quiet=quiet) as move:
        published = read_published(cluster, partitions, move)
    marks = {number: found.mark for number, found in published.items() if found.mark is not None}
    for number, mark in marks.items():
        if topic_ids is not None and mark.topic_ids != topic_ids:
            raise StateError(
                f"{BALANCES}:{number} holds the tables of other input topics than the ones in "
                "use. Delete the topic, then start a worker: it publishes the tables anew."
            )
    return _Balances(
        # Nobody vouches for rows without a mark, as 'ledger recover' leaves them.
        totals(row for number in marks for row in published[number].accounts.items()),
        {
            number: dict(marks[number].watermark)
            if number in marks
            else dict.fromkeys(INPUT_TOPICS, 0)
            for number in partitions
        },
        add_counts(mark.counts for mark in marks.values()),
    )


def _rebuilt_balances(cluster: Cluster, at: Sequence[str], quiet: bool) -> _Balances:
    require_topics(cluster)
    origin = require_unchanged(cluster, cluster.origin())
    rebuilder = rebuilder_of(cluster, origin)
    end = rebuilder.watermarks_at(at, rebuilder.limits(rebuilder.ends()), "--at")
    partitions = state_at(cluster, origin, end, quiet=quiet).partitions.values()
    return _Balances(
        totals(row for partition in partitions for row in partition.balances()),
        end,
        add_counts(partition.counts for partition in partitions),
    )


# -- orders


def orders(
    account: Annotated[str, typer.Argument(help="A customer's account.")],
    only_open: Annotated[bool, typer.Option("--open", help="Only open orders.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show an account's orders: terms, fills, holds and what is flagged.

    Computed from snapshots and the topics up to their end; no worker needs to run.
    """
    partitions, watermarks = _state_of(account, as_json)
    rows = [
        order_row(partition, order)
        for partition in partitions
        for order in _by_time(partition.orders(account))
    ]
    if only_open:
        rows = [row for row in rows if row["status"] == "open"]
    if as_json:
        document = {"account": account, "orders": rows, "watermarks": watermarks_json(watermarks)}
        console.print_json(document)
        return
    columns = (
        "order_id", "instrument", "side", "order_type", "status", "quantity", "limit_price",
        "filled", "remaining", "hold", "hold_asset", "flags",
    )  # fmt: skip
    if rows:
        cells = ([_cell(row[column]) for column in columns] for row in rows)
        numbers = ("quantity", "limit_price", "filled", "remaining", "hold")
        console.print_table(f"Orders of {account}", columns, cells, numbers)
    else:
        console.out.print("No open orders." if only_open else "No orders.")
    console.say(f"Watermark: {watermark_line(watermarks)}.")


def _by_time(found: Any) -> list[Order]:
    def moment(order: Order) -> tuple[bool, times.Instant, str]:
        placed = order.placed
        at = (0, "") if placed is None else times.instant(placed.occurred_at)
        return placed is None, at, order.order_id

    return sorted(found, key=moment)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return ", ".join(value) if isinstance(value, list) else str(value)


# -- statement


def show_statement(account: Account, as_json: AsJson = False) -> None:
    """Show every journal entry that posts to an account, and the record that it comes from.

    In order of the events' own time. A busted fill is two entries: the fill and its reversal, at
    the later of the two records. Computed from snapshots and the topics up to their end; no worker
    needs to run.
    """
    partitions, watermarks = _state_of(account, as_json)
    entries = statement(partitions, account)
    if as_json:
        console.print_json(
            {
                "account": account,
                "entries": [entry.as_json() for entry in entries],
                "watermarks": watermarks_json(watermarks),
            }
        )
        return
    columns = ("occurred_at", "type", "about", "asset", "debit", "credit", "balance", "position")
    rows = [
        (
            entry.occurred_at,
            entry.type,
            _about(entry.ids, account),
            posting.asset,
            plain(posting.debit) if posting.debit else "",
            plain(posting.credit) if posting.credit else "",
            plain(balance),
            f"{entry.topic}:{entry.partition}:{entry.offset}",
        )
        for entry, posting, balance in running(entries, account)
    ]
    if rows:
        numbers = ("debit", "credit", "balance")
        console.print_table(f"Statement of {account}", columns, rows, numbers)
    else:
        console.out.print("No entries.")
    console.say(f"Watermark: {watermark_line(watermarks)}.")


def _about(ids: dict[str, str], account: str) -> str:
    if "transfer_id" in ids:
        about = ids["transfer_id"]
    else:
        about = f"{ids['side']} {ids['quantity']} {ids['instrument']} at {ids['price']}"
    return about if ids["account"] == account else f"{ids['account']}: {about}"


# -- both


def _state_of(account: str, quiet: bool) -> tuple[list[Partition], Watermarks]:
    """Return the partitions that know an account, at the end of the topics."""
    cluster = connect(load_settings())
    require_topics(cluster)
    origin = require_unchanged(cluster, cluster.origin())
    everywhere = is_system(account)
    number = partition_of(account.encode(), origin.partitions)
    end = rebuilder_of(cluster, origin).ends(None if everywhere else [number])
    return list(state_at(cluster, origin, end, quiet=quiet).partitions.values()), end
