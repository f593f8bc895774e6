"""Which records of `fills` count: the ledger's own fold over that topic, one partition at a time.

It is the same `Partition` that workers and replays run, fed with one topic only, so a duplicate is
a duplicate here exactly where it is one for the tables.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from chat_bridge.messages import Message, Subject, of_bust, of_fill
from ledger.errors import StateError
from ledger.events import FILLS, RULES_VERSION, AnyEvent, FillBusted, OrderFilled
from ledger.partitioner import partition_of
from ledger.projections.entries import META_KEY
from ledger.projections.partition import (
    APPLIED,
    Origin,
    Partition,
    Record,
    Verdict,
    read_header,
)
from ledger.rocks import RocksStore
from ledger.store import Store


class Identity:
    """The fold of one partition of `fills`, and the messages that its records make.

    `posted_until` is the offset before which records were posted by an earlier run: they are
    folded where the stored state does not have them, but make no messages.
    """

    def __init__(self, number: int, store: Store, origin: Origin) -> None:
        """Open the state that `store` holds, or an empty one.

        Raises:
            StateError: it is of another cluster, topic or rules version.
        """
        self.number = number
        self.posted_until = 0
        self._partition = Partition(number, store, partition_of, origin)

    @property
    def next_offset(self) -> int:
        """The offset of the next record to fold."""
        return self._partition.watermark[FILLS]

    @property
    def counts(self) -> dict[str, int]:
        """How many records had which verdict, since offset 0."""
        return self._partition.counts[FILLS]

    def read(self, records: Iterable[Record], next_offset: int) -> list[Message]:
        """Fold records in offset order, and return the messages that they make, in order.

        Args:
            records: of this partition, from `next_offset` on.
            next_offset: the position after them, transaction markers included.
        """
        messages: list[Message] = []

        def observe(_: str, record: Record, event: AnyEvent | None, verdict: Verdict) -> None:
            if verdict is not APPLIED or record.offset < self.posted_until:
                return
            assert isinstance(event, OrderFilled | FillBusted)
            subject = Subject(self.number, event.account, event.order_id, event.fill_id)
            execution = self._partition.execution(event.account, event.order_id, event.fill_id)
            make = of_fill if isinstance(event, OrderFilled) else of_bust
            messages.extend(make(subject, execution))

        self._partition.apply(FILLS, records, next_offset, observe)
        return messages

    def settle(self) -> None:
        """Store what was folded, in one batch; what it made must be in its rooms by now."""
        if self._partition.is_dirty:
            self._partition.freeze()
            self._partition.settle()


class StoredIdentity(Identity):
    """An `Identity` whose state is in a directory of its own."""

    def __init__(self, number: int, directory: Path, origin: Origin) -> None:
        """Open or create the state; one of older rules is thrown away and folded again.

        Raises:
            StateError: another process has it open, or it is of another cluster or topic.
        """
        store = RocksStore(directory)
        try:
            header = store.get(META_KEY)
            if header is not None and read_header(header).rules_version != RULES_VERSION:
                store.destroy()
                store = RocksStore(directory)
            super().__init__(number, store, origin)
        except StateError as error:
            store.close()
            raise StateError(
                f"{error} If the topics were meant to be replaced, remove {directory}."
            ) from error
        self._rocks = store

    def close(self) -> None:
        """Close the state without storing what was not settled."""
        self._rocks.close()
