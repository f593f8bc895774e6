"""Snapshots: immutable copies of one partition's state at a watermark, in Parquet files.

A file's name says the partition and the watermark; it appears complete or not at all, in a
directory or in a bucket (`ledger.objects`). Columns: `account`, `kind`, `id` and `value` (JSON; see
`ledger.projections.entries`), in order of the entries' keys. The file's metadata has, so that any
Parquet reader sees them:

| key | value |
|---|---|
| `ledger.header` | the header, JSON |
| `ledger.header_sha256` | SHA-256 of those bytes, hex |
| `ledger.state_digest` | the state digest (contract, section 4), hex |
| `ledger.log_digests` | the log digest of each topic, JSON; null for a log that was begun later |

The 32 bytes before the footer are a SHA-256 of all others (`ledger.seal`). Everything is checked
when a snapshot is read. Since state is a pure function of the records before its watermark, a
snapshot is valid for ever, whoever wrote it.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from ledger import digests
from ledger._fold import EntrySum
from ledger.errors import StateError
from ledger.events import RULES_VERSION
from ledger.objects import Listed, NotThereError, StorageError, objects_at
from ledger.positions import parse_snapshot_name, snapshot_name
from ledger.projections.entries import META_KEY, joined_key, split_key
from ledger.projections.partition import (
    Header,
    Origin,
    Partition,
    Watermark,
    dominates,
    read_header,
    require_same_partitions,
)
from ledger.seal import require_sealed, sealed_writer
from ledger.store import MemoryStore

_HEADER_KEY: Final = b"ledger.header"
_CHECKSUM_KEY: Final = b"ledger.header_sha256"
_STATE_DIGEST_KEY: Final = b"ledger.state_digest"
_LOG_DIGESTS_KEY: Final = b"ledger.log_digests"
_ROWS: Final = 50_000
_ROWS_AT_ONCE: Final = 10_000
_COLUMNS: Final = ("account", "kind", "id", "value")

Entries = Iterator[tuple[bytes, bytes]]


class SnapshotError(StorageError):
    """A snapshot is damaged, gone, or of another cluster, topic or rules version."""


class ForeignSnapshot(SnapshotError):  # noqa: N818 - reads better where it is raised
    """A snapshot is whole, but of another cluster, topic or rules version."""


@dataclass(frozen=True)
class SnapshotFile:
    """A snapshot that exists: its partition, watermark, file name, and path or URL."""

    partition: int
    watermark: Watermark
    name: str
    path: str

    @property
    def records(self) -> int:
        """How far it is in the log: the sum of its offsets."""
        return sum(self.watermark.values())


class Snapshots:
    """The snapshots of one ledger (one topic prefix) in a place that processes share."""

    def __init__(self, place: Path | str, prefix: str) -> None:
        """Name the place; nothing is asked of it yet.

        Args:
            place: a directory, or a bucket's URL.
            prefix: that of the topics.
        """
        if prefix:
            below = f"{prefix}snapshots"
            place = place / below if isinstance(place, Path) else f"{place.rstrip('/')}/{below}"
        self._objects = objects_at(place)
        self._headers: dict[Listed, Header | None] = {}  # of those that are there, None if damaged
        self._refused: set[str] = set()  # names of those that `open` could not use

    def _file(self, name: str) -> SnapshotFile | None:
        found = parse_snapshot_name(name)
        return None if found is None else SnapshotFile(*found, name, self._objects.address(name))

    def _listed(self, partition: int) -> list[tuple[SnapshotFile, Listed]]:
        """Return the snapshots of a partition, newest first, and what listing said of them."""
        found = [
            (file, listed)
            for listed in self._objects.names()
            if (file := self._file(listed.name)) is not None and file.partition == partition
        ]
        return sorted(found, key=lambda pair: (pair[0].records, pair[0].name), reverse=True)

    def of_partition(self, partition: int) -> list[SnapshotFile]:
        """Return the snapshots of a partition, newest (most records) first.

        Raises:
            StorageError: they cannot be listed.
        """
        return [file for file, _ in self._listed(partition)]

    def at_or_below(self, partition: int, limit: Watermark | None) -> list[SnapshotFile]:
        """Return the snapshots that no topic's offset puts beyond `limit`, newest first.

        Raises:
            StorageError: they cannot be listed.
        """
        return [
            file
            for file in self.of_partition(partition)
            if limit is None or dominates(limit, file.watermark)
        ]

    def newest(self, partition: int, limit: Watermark, origin: Origin) -> SnapshotFile | None:
        """Return the newest snapshot of these topics and rules that is not beyond `limit`.

        Raises:
            StorageError: they cannot be listed.
        """
        for file, listed in self._listed(partition):
            if dominates(limit, file.watermark) and self._is_of(file, listed, origin):
                return file
        return None

    def write(self, header: Header, entries: Iterable[tuple[bytes, bytes]]) -> SnapshotFile:
        """Write a snapshot of the entries under a header; the same one is left alone.

        Raises:
            StorageError: it cannot be written; then nothing of it is there.
        """
        file = self._file(snapshot_name(header.partition, header.watermark))
        assert file is not None
        for known, listed in self._listed(file.partition):
            if known == file and self._is_of(known, listed, header.origin):
                return file
        arrow = _arrow()
        schema = _schema().with_metadata(_metadata(header))
        with (
            self._objects.writing(file.name) as unfinished,
            sealed_writer(unfinished, schema) as writer,
        ):
            for rows in _chunks(entries):
                writer.write_table(arrow.table(_columns(rows), schema=schema))
        self._refused.discard(file.name)
        return file

    @contextlib.contextmanager
    def open(self, file: SnapshotFile, origin: Origin) -> Iterator[tuple[Header, Entries]]:
        """Return the header of a snapshot, and its entries as a store holds them, one by one.

        The header's own entry is the last, and comes only when all before it add up to the digest:
        whoever is not given it has nothing that can be used. The memory needed does not depend on
        how many there are.

        Raises:
            ForeignSnapshot: it is of other topics or rules.
            SnapshotError: it cannot be used; the entries raise it too, at their end or before.
            StorageError: it cannot be read now, whatever it holds; the entries raise it, too.
            TopicError: the topics have another number of partitions than when it was made.
        """
        try:
            with contextlib.ExitStack() as stack:
                with _refusing(file):
                    source = stack.enter_context(self._objects.reading(file.name))
                    require_sealed(source)
                    parquet = stack.enter_context(_arrow().parquet.ParquetFile(source))
                    header = _checked_header(parquet.schema_arrow)
                if not _same_source(header, origin):
                    raise ForeignSnapshot(
                        f"Snapshot {file.path} is of other topics or rules than the ones in use."
                    )
                require_same_partitions(header.origin.partitions, origin.partitions)
                if header.partition != file.partition or header.watermark != file.watermark:
                    raise SnapshotError(f"Snapshot {file.path} does not hold what its name says.")
                yield header, _checked_entries(parquet, header, file)
        except SnapshotError:
            self._refused.add(file.name)  # `write` puts a good one in its place
            raise

    def read(self, file: SnapshotFile, origin: Origin) -> tuple[Header, MemoryStore]:
        """Return the state in a snapshot, checked against its digest.

        Raises:
            SnapshotError: it cannot be used.
            StorageError: it cannot be read now, whatever it holds.
            TopicError: the topics have another number of partitions than when it was made.
        """
        with self.open(file, origin) as (header, entries):
            return header, MemoryStore(dict(entries))

    def _is_of(self, file: SnapshotFile, listed: Listed, origin: Origin) -> bool:
        """Return whether a snapshot is of these topics and rules, and not known to be damaged."""
        if file.name in self._refused:
            return False
        if listed not in self._headers:
            try:
                with _refusing(file), self._objects.reading(file.name) as source:
                    self._headers[listed] = _checked_header(_arrow().parquet.read_schema(source))
            except SnapshotError:
                self._headers[listed] = None
            except StorageError:
                return False  # perhaps only now
        header = self._headers[listed]
        return header is not None and _same_source(header, origin)

    def thin(self, partition: int, kept: int, origin: Origin) -> None:
        """Remove the snapshots of a partition that `superfluous` names, and what writers left.

        Those of other topics or rules do not count, and are left to whoever made them.

        Raises:
            StorageError: they cannot be listed or removed.
        """
        listed = self._listed(partition)
        own = [file for file, what in listed if self._is_of(file, what, origin)]
        for file in superfluous(own, kept):
            self._objects.delete(file.name)
        there = {what for _, what in listed}
        self._headers = {
            what: header
            for what, header in list(self._headers.items())
            if what in there or not what.name.startswith(f"p{partition:05d}-")
        }
        self._objects.delete_abandoned(f"p{partition:05d}-")

    def set_aside(self, file: SnapshotFile) -> None:
        """Keep a snapshot, as evidence, under a new name that nobody starts from.

        Raises:
            StorageError: it cannot be renamed.
        """
        there = {listed.name for listed in self._objects.names()}
        names = (f"set-aside-{number}-{file.name}" for number in itertools.count(1))
        self._objects.rename(file.name, next(name for name in names if name not in there))


def superfluous(files: Sequence[SnapshotFile], kept: int) -> list[SnapshotFile]:
    """Return those that need not be kept: beyond the newest few, the rest stand ever further apart.

    Let *d* be how many records a snapshot lies behind the newest, and *g* half of the largest power
    of two that is not above *d*. The log is cut into stretches of *g* records, counted from its
    beginning; the oldest snapshot of a stretch stays. Stretches of one size lie within those of the
    next, so whichever is the oldest of its stretch was so in every smaller one, too, and was never
    removed before, whenever, however often and by whomever others were.

    So at any time, for every snapshot there ever was, one is kept that is as old or older, and less
    than 5/3 times as far from the newest. At most three are kept for each power of two, that is
    `kept + 3 × log2(records)`; no clock is asked.

    Args:
        files: of one partition and origin, newest first.
        kept: how many of the newest stay in any case.
    """
    if not files:
        return []
    newest = files[0].records
    found = []
    for file, older in zip(files[kept:], files[kept + 1 :], strict=False):
        stretch = max(1, 1 << (newest - file.records).bit_length() >> 2)
        if file.records // stretch == older.records // stretch:
            found.append(file)
    return found


def _arrow() -> Any:
    """Return pyarrow: a worker need not wait for it, nor have the memory, before a snapshot."""
    import pyarrow.parquet

    return pyarrow


def _schema() -> Any:
    arrow = _arrow()
    return arrow.schema([(name, arrow.string()) for name in _COLUMNS])


def _metadata(header: Header) -> dict[bytes, bytes]:
    stored = msgspec.json.encode(header)
    return {
        _HEADER_KEY: stored,
        _CHECKSUM_KEY: hashlib.sha256(stored).hexdigest().encode(),
        _STATE_DIGEST_KEY: state_digest_of(header).encode(),
        _LOG_DIGESTS_KEY: msgspec.json.encode(header.log_digests),
    }


def state_digest_of(header: Header) -> str:
    """Return the state digest (hex) that follows from a header."""
    store = MemoryStore({META_KEY: msgspec.json.encode(header)})
    return Partition(header.partition, store, header.origin).state_digest()


def _checked_header(schema: Any) -> Header:
    """Return the header in a Parquet schema.

    Raises:
        ValueError: it is not what was written.
        StateError: nor is its JSON.
    """
    if not schema.remove_metadata().equals(_schema()):
        raise ValueError("its columns are not those of a snapshot")
    metadata: dict[bytes, bytes] = schema.metadata or {}
    stored = metadata.get(_HEADER_KEY, b"")
    if metadata.get(_CHECKSUM_KEY) != hashlib.sha256(stored).hexdigest().encode():
        raise ValueError("its header is damaged")
    header = read_header(stored)
    if header.rules_version == RULES_VERSION:  # else only its own rules can tell
        expected = _metadata(header)
        for key in (_STATE_DIGEST_KEY, _LOG_DIGESTS_KEY):
            if metadata.get(key) != expected[key]:
                raise ValueError(f"its {key.decode()} is not that of its header")
    return header


def _checked_entries(parquet: Any, header: Header, file: SnapshotFile) -> Entries:
    entry_sum = EntrySum()
    with _refusing(file):
        for key, value in _entries(parquet):
            entry_sum.add(key, value)
            yield key, value
    if f"{digests.from_bytes(entry_sum.total):x}" != header.total:
        raise SnapshotError(f"Snapshot {file.path} is damaged: its entries do not add up.")
    yield META_KEY, msgspec.json.encode(header)


@contextlib.contextmanager
def _refusing(file: SnapshotFile) -> Iterator[None]:
    """Say of any trouble with a file's bytes that it cannot be read.

    Raises:
        SnapshotError: it is damaged, or gone.
        StorageError: its bytes could not be had; they may be as they should.
    """
    try:
        yield
    except NotThereError as error:
        raise SnapshotError(_unreadable(file, error)) from error
    except StorageError:
        raise
    except (StateError, OSError, ValueError, OverflowError, _arrow().ArrowException) as error:
        # Arrow's own errors about what a file holds are OSErrors, too, but have no number.
        of_place = isinstance(error, OSError) and error.errno is not None
        kind = StorageError if of_place else SnapshotError
        raise kind(_unreadable(file, error)) from error


def _unreadable(file: SnapshotFile, error: Exception) -> str:
    said = " ".join(str(error).split()).rstrip(".")
    return f"Snapshot {file.path} cannot be read: {said}."


def _same_source(header: Header, origin: Origin) -> bool:
    return (
        header.rules_version == RULES_VERSION
        and header.origin.cluster_id == origin.cluster_id
        and header.origin.topic_ids == origin.topic_ids
    )


def _chunks(entries: Iterable[tuple[bytes, bytes]]) -> Iterator[list[tuple[bytes, bytes]]]:
    rows: list[tuple[bytes, bytes]] = []
    for key, value in entries:
        if key == META_KEY:
            continue
        rows.append((key, value))
        if len(rows) == _ROWS:
            yield rows
            rows = []
    yield rows


def _columns(rows: list[tuple[bytes, bytes]]) -> dict[str, list[str]]:
    accounts, kinds, ids = [], [], []
    for key, _ in rows:
        account, kind, identity = split_key(key)
        accounts.append(account)
        kinds.append(kind)
        ids.append(identity)
    values = [value.decode() for _, value in rows]
    return dict(zip(_COLUMNS, (accounts, kinds, ids, values), strict=True))


def _entries(parquet: Any) -> Entries:
    for batch in parquet.iter_batches(_ROWS_AT_ONCE):
        if any(column.null_count for column in batch.columns):
            raise ValueError("a value is missing")
        columns = [column.to_pylist() for column in batch.columns]
        for account, kind, identity, value in zip(*columns, strict=True):
            yield joined_key(account, kind, identity), value.encode()
