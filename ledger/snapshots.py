"""Snapshots: immutable copies of one partition's state at a watermark, in Parquet files.

A file's name says the partition and the watermark; it appears complete or not at all. Columns:
`account`, `kind`, `id` and `value` (JSON; see `ledger.projections.entries`), in order of the
entries' keys. The header is in the file's metadata under `ledger.header`, so any Parquet reader
sees state and digests. Since state is a pure function of the records before its watermark, a
snapshot is valid for ever, whoever wrote it.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from ledger import digests
from ledger.errors import StateError
from ledger.events import INPUT_TOPICS, RULES_VERSION
from ledger.projections.entries import META_KEY, split_key
from ledger.projections.partition import (
    Header,
    Origin,
    Watermark,
    read_header,
    require_same_partitions,
)
from ledger.store import MemoryStore

_HEADER_KEY: Final = b"ledger.header"
_ROWS: Final = 50_000
_ABANDONED_S: Final = 3600.0
_SCHEMA: Final = pa.schema(
    [
        ("account", pa.string()),
        ("kind", pa.string()),
        ("id", pa.string()),
        ("value", pa.string()),
    ]
)
_NAME: Final = re.compile(r"p(\d+)-orders=(\d+)-fills=(\d+)-transfers=(\d+)\.parquet")


@dataclass(frozen=True)
class SnapshotFile:
    """A snapshot that exists: its partition, watermark and path."""

    partition: int
    watermark: Watermark
    path: Path


class Snapshots:
    """The snapshots of one ledger (one topic prefix) in a directory that processes share."""

    def __init__(self, directory: Path, prefix: str) -> None:
        self.directory = directory / f"{prefix}snapshots" if prefix else directory

    def _path(self, partition: int, watermark: Watermark) -> Path:
        position = "-".join(f"{topic}={watermark[topic]}" for topic in INPUT_TOPICS)
        return self.directory / f"p{partition:05d}-{position}.parquet"

    def of_partition(self, partition: int) -> list[SnapshotFile]:
        """Return the snapshots of a partition, newest (most records) first."""
        found = []
        for path in self.directory.glob(f"p{partition:05d}-*.parquet"):
            match = _NAME.fullmatch(path.name)
            if match is not None:
                watermark = dict(zip(INPUT_TOPICS, map(int, match.groups()[1:]), strict=True))
                found.append(SnapshotFile(partition, watermark, path))
        return sorted(found, key=lambda file: sum(file.watermark.values()), reverse=True)

    def at_or_below(self, partition: int, limit: Watermark | None) -> list[SnapshotFile]:
        """Return the snapshots that no topic's offset puts beyond `limit`, newest first."""
        return [
            file
            for file in self.of_partition(partition)
            if limit is None or all(file.watermark[t] <= limit[t] for t in INPUT_TOPICS)
        ]

    def write(self, header: Header, entries: Iterable[tuple[bytes, bytes]]) -> SnapshotFile:
        """Write a snapshot of the entries under a header; the same one is left alone."""
        path = self._path(header.partition, header.watermark)
        file = SnapshotFile(header.partition, dict(header.watermark), path)
        if path.exists() and self._is_of(file, header.origin):
            return file
        self.directory.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        schema = _SCHEMA.with_metadata({_HEADER_KEY: msgspec.json.encode(header)})
        try:
            with pq.ParquetWriter(unfinished, schema, compression="zstd") as writer:
                for rows in _chunks(entries):
                    writer.write_table(pa.table(_columns(rows), schema=schema))
            with unfinished.open("rb+") as written:
                os.fsync(written.fileno())
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
        return file

    def read(self, file: SnapshotFile, origin: Origin) -> tuple[Header, MemoryStore]:
        """Return the state in a snapshot, checked against its digest.

        Raises:
            StateError: it is damaged, or of another cluster, topic or rules version.
            TopicError: the topics have another number of partitions than when it was made.
        """
        try:
            with pq.ParquetFile(file.path) as parquet:
                metadata = parquet.schema_arrow.metadata or {}
                header = read_header(metadata.get(_HEADER_KEY, b""))
                entries = dict(_entries(parquet))
        except (OSError, pa.ArrowException, ValueError) as error:
            raise StateError(f"Snapshot {file.path} cannot be read: {error}.") from error
        if not _same_source(header, origin):
            raise StateError(
                f"Snapshot {file.path} is of other topics or rules than the ones in use."
            )
        require_same_partitions(header.origin.partitions, origin.partitions)
        if header.partition != file.partition or header.watermark != file.watermark:
            raise StateError(f"Snapshot {file.path} does not hold what its name says.")
        if f"{digests.total_of(entries.items()):x}" != header.total:
            raise StateError(f"Snapshot {file.path} is damaged: its entries do not add up.")
        store = MemoryStore({**entries, META_KEY: msgspec.json.encode(header)})
        return header, store

    def _is_of(self, file: SnapshotFile, origin: Origin) -> bool:
        """Return whether a snapshot can be read and is of these topics and rules."""
        try:
            metadata = pq.read_schema(file.path).metadata or {}
            return _same_source(read_header(metadata.get(_HEADER_KEY, b"")), origin)
        except (OSError, pa.ArrowException, StateError):
            return False

    def thin(self, partition: int, kept: int, origin: Origin) -> None:
        """Remove all but the newest snapshots of a partition, and what killed writers left.

        Those of other topics or rules do not count, and are left to whoever made them.
        """
        own = [file for file in self.of_partition(partition) if self._is_of(file, origin)]
        for file in own[kept:]:
            file.path.unlink(missing_ok=True)
        for unfinished in self.directory.glob(f".p{partition:05d}-*"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - unfinished.stat().st_mtime > _ABANDONED_S:
                    unfinished.unlink()


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
    return {"account": accounts, "kind": kinds, "id": ids, "value": values}


def _entries(parquet: pq.ParquetFile) -> Iterator[tuple[bytes, bytes]]:
    for batch in parquet.iter_batches(_ROWS):
        columns = [column.to_pylist() for column in batch.columns]
        for account, kind, identity, value in zip(*columns, strict=True):
            yield f"{account}\0{kind}{identity}".encode(), value.encode()
