"""A replayed state as files: tables in Parquet, CSV or JSON Lines, and a manifest that proves them.

Rows come in the order in which state is stored, so that no table needs to be in memory; it is the
same for equal states.

| table | a row is | in order of |
|---|---|---|
| `balances` | an account's totals of one asset | account, asset |
| `orders` | an order, as `ledger orders` says it | partition, account, order id |
| `journal` | one posting of an entry | partition; then as `entries_of` yields entries |

Amounts are plain decimal strings. What a row does not have is null; in CSV (RFC 4180) that is an
empty field, and no value is empty but a list of no flags.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from itertools import islice
from pathlib import Path
from typing import IO, Any, Final, Literal

import msgspec

from ledger.amounts import canonical, plain
from ledger.errors import InputError
from ledger.objects import StorageError, keep_on_disk
from ledger.order_rows import order_row
from ledger.positions import Watermarks
from ledger.projections.partition import Partition
from ledger.published import Total
from ledger.statement import Entry, entries_of
from replay.results import ALL, Shown

Form = Literal["parquet", "csv", "jsonl"]
Row = tuple[Any, ...]
"""A table's values, in order of its columns."""

BALANCES: Final = "balances"
ORDERS: Final = "orders"
JOURNAL: Final = "journal"
MANIFEST: Final = "manifest.json"


@cache
def schemas() -> Mapping[str, Any]:
    """Return the columns of each table by its name, as Parquet has them."""
    import pyarrow as pa  # it takes long, and most replays export nothing

    def texts(names: str) -> list[Any]:
        return [pa.field(name, pa.string(), nullable=False) for name in names.split()]

    def texts_or_null(names: str) -> list[Any]:
        return [pa.field(name, pa.string()) for name in names.split()]

    return {
        BALANCES: pa.schema(texts("account asset balance hold available debits credits")),
        ORDERS: pa.schema(
            [
                *texts("account order_id"),
                *texts_or_null("instrument side order_type"),
                *texts("status"),
                *texts_or_null("quantity limit_price reserve"),
                *texts("filled"),
                *texts_or_null("remaining"),
                *texts("used hold"),
                *texts_or_null("hold_asset placed_at closed_at reason"),
                pa.field("flags", pa.list_(*texts("item")), nullable=False),
            ]
        ),
        JOURNAL: pa.schema(
            [
                *texts("occurred_at type topic"),
                pa.field("partition", pa.int32(), nullable=False),
                pa.field("offset", pa.int64(), nullable=False),
                pa.field("reversal", pa.bool_(), nullable=False),
                *texts("account"),
                *texts_or_null("order_id fill_id trade_id transfer_id"),
                *texts_or_null("instrument side price quantity reason"),
                pa.field("posting", pa.int32(), nullable=False),
                *texts("posting_account asset debit credit"),
            ]
        ),
    }


_ROWS: Final = 50_000
"""Of a table, in memory at a time; a row group in Parquet."""

_IDS: Final = ("account", "order_id", "fill_id", "trade_id", "transfer_id", "instrument", "side")
_ID_AMOUNTS: Final = ("price", "quantity")


# -- rows


def balance_rows(rows: Iterable[tuple[str, str, Total]], shown: Shown = ALL) -> Iterator[Row]:
    """Yield the rows of `balances`, in the order given: those that are shown."""
    for account, asset, total in rows:
        if (account, asset) in shown:
            yield tuple(total.as_json(account, asset).values())


def order_rows(partitions: Iterable[Partition], shown: Shown = ALL) -> Iterator[Row]:
    """Yield the rows of `orders`.

    Args:
        partitions: frozen and settled.
        shown: whose orders; its assets do not count, an order is in two.
    """
    for partition in partitions:
        for order in partition.orders():
            if not shown.accounts or order.account in shown.accounts:
                yield (order.account, *order_row(partition, order).values())


def journal_rows(
    partitions: Iterable[Partition], start: Watermarks | None = None, shown: Shown = ALL
) -> Iterator[Row]:
    """Yield the rows of `journal`, one for each posting.

    Args:
        partitions: frozen and settled.
        start: leave out the entries of records before it; a reversal's is the later record.
        shown: an entry of which one posting is shown is there whole, so that it balances.
    """
    for partition in partitions:
        first = None if start is None else start[partition.number]
        for entry in entries_of(partition):
            if first is not None and entry.offset < first[entry.topic]:
                continue
            if any((posting.account, posting.asset) in shown for posting in entry.postings):
                yield from _posting_rows(entry)


def _posting_rows(entry: Entry) -> Iterator[Row]:
    ids = entry.ids
    said = (
        entry.occurred_at,
        entry.type,
        entry.topic,
        entry.partition,
        entry.offset,
        entry.is_reversal,
        *(ids.get(name) for name in _IDS),
        *(canonical(ids[name]) if name in ids else None for name in _ID_AMOUNTS),
        ids.get("reason"),
    )
    for number, posting in enumerate(entry.postings, 1):
        amounts = plain(posting.debit), plain(posting.credit)
        yield (*said, number, posting.account, posting.asset, *amounts)


# -- files


def require_new(directory: Path) -> None:
    """Check that a directory can be made under this name; ask before a long replay.

    Raises:
        InputError: something else is there, it is not empty, or nothing can be made there.
    """
    target = _real(directory)
    try:
        require_writable(target.parent)
        if not target.exists():
            return
        if not target.is_dir():
            raise InputError(f"{directory} is not a directory; name a new one.")
        if any(target.iterdir()):
            raise InputError(f"The directory {directory} is not empty; name a new or an empty one.")
        if target == Path.cwd() or target.is_mount():
            raise InputError(
                f"The directory {directory} is in use and cannot be replaced; name one in it."
            )
    except OSError as error:
        raise InputError(f"The directory {directory} cannot be used: {error}.") from error


def require_writable(directory: Path) -> None:
    """Check that files can be made in a directory, which may have to be made itself.

    Raises:
        InputError: they cannot.
    """
    there = next(path for path in (directory, *directory.parents) if path.exists())
    if not there.is_dir():
        raise InputError(f"{there} is not a directory; name another place than below it.")
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise InputError(
            f"The directory {there} cannot be written to ({error.strerror}); name another place."
        ) from error


def export(
    directory: Path,
    form: Form,
    tables: Mapping[str, Iterable[Row]],
    manifest: Mapping[str, Any],
) -> list[Path]:
    """Write tables and their manifest; return the files' paths, the manifest's last.

    The directory appears complete or not at all, also after a power loss. It has one file for each
    table, named like it, and `manifest.json`: what the caller says, and `tables`, by name: `file`,
    `format`, `columns` (name to type), `rows` and `sha256` of the file.

    Args:
        directory: a new one, or an empty one.
        form: the tables' format.
        tables: some of `schemas()` and their rows, which are taken one after the other, once.
        manifest: what the tables are of: watermark, digests, versions, counts.

    Raises:
        InputError: something is there already.
        StorageError: it cannot be written; nothing is left behind.
    """
    require_new(directory)
    target = _real(directory)
    try:
        with _replacing(target) as unfinished:
            written = {
                name: _write_table(unfinished, name, form, rows) for name, rows in tables.items()
            }
            document = {**manifest, "tables": written}
            text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
            (unfinished / MANIFEST).write_text(text, encoding="utf-8")
            keep_on_disk(unfinished / MANIFEST)
    except OSError as error:
        require_new(directory)  # another may have made it meanwhile
        raise StorageError(f"The directory {directory} cannot be written: {error}.") from error
    return [*(directory / table["file"] for table in written.values()), directory / MANIFEST]


def _real(directory: Path) -> Path:
    """Return the path without symbolic links: what is renamed is what they lead to."""
    return Path(os.path.realpath(directory))


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """Give a directory to write to, which becomes `target` at the end, or is removed."""
    missing = [parent for parent in target.parents if not parent.exists()]
    unfinished = target.parent / f".unfinished-{uuid.uuid4().hex}"
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        keep_on_disk(unfinished)
        unfinished.rename(target)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        with suppress(OSError):  # not there, or used by another meanwhile
            for parent in missing:
                parent.rmdir()
        raise
    for parent in (target.parent, *(made.parent for made in missing)):
        keep_on_disk(parent)


def _write_table(directory: Path, name: str, form: Form, rows: Iterable[Row]) -> dict[str, Any]:
    """Write a table's file; return what the manifest says of it."""
    schema = schemas()[name]
    path = directory / f"{name}.{form}"
    left = iter(rows)
    count = 0
    with path.open("xb") as file, _WRITERS[form](file, schema) as write:
        while some := list(islice(left, _ROWS)):
            write(some)
            count += len(some)
    keep_on_disk(path)
    with path.open("rb") as written:
        sha256 = hashlib.file_digest(written, "sha256").hexdigest()
    return {
        "file": path.name,
        "format": form,
        "columns": {field.name: str(field.type) for field in schema},
        "rows": count,
        "sha256": sha256,
    }


_Write = Callable[[Sequence[Row]], object]


@contextmanager
def _parquet(file: IO[bytes], schema: Any) -> Iterator[_Write]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def write(rows: Sequence[Row]) -> None:
        columns = zip(*rows, strict=True)
        arrays = [
            pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)
        ]
        writer.write_batch(pa.record_batch(arrays, schema=schema))

    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        yield write


@contextmanager
def _csv(file: IO[bytes], schema: Any) -> Iterator[_Write]:
    with io.TextIOWrapper(file, encoding="utf-8", newline="") as text:
        writer = csv.writer(text)
        writer.writerow(schema.names)
        yield lambda rows: writer.writerows(map(_cell, row) for row in rows)


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    return ",".join(value) if isinstance(value, list) else value


@contextmanager
def _jsonl(file: IO[bytes], schema: Any) -> Iterator[_Write]:
    encode = msgspec.json.Encoder().encode
    names = schema.names
    yield lambda rows: file.writelines(
        encode(dict(zip(names, row, strict=True))) + b"\n" for row in rows
    )


_WRITERS: Final = {"parquet": _parquet, "csv": _csv, "jsonl": _jsonl}
