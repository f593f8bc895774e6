"""Every error that the ledger raises on purpose.

A message is one line that says what happened, where, and what to do. The command line prints it
and exits with 2; it never prints a traceback for one of these.
"""

from __future__ import annotations

from typing import Any

_RECOVER = (
    "Bring the topic back from a copy, or stop the workers and run 'ledger recover', which accepts "
    "the topics as they are and lets tables be rebuilt from the newest snapshot that matches them."
)


class LedgerError(Exception):
    """The root of all errors that a person is meant to read."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Let errors travel between processes, whatever their arguments were."""
        return _made_again, (type(self), self.args, self.__dict__)


def _made_again(
    kind: type[LedgerError], args: tuple[Any, ...], attributes: dict[str, Any]
) -> LedgerError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(attributes)
    return error


class ConfigurationError(LedgerError):
    """A setting is missing, malformed or contradicts the servers."""


class UnreachableError(LedgerError):
    """A server did not answer within its time limit."""

    def __init__(self, server: str, address: str, detail: str) -> None:
        self.server = server
        self.address = address
        super().__init__(
            f"{server} at {address} cannot be reached ({detail}). "
            "Start the local stack with 'ledger up' or name a running server in the environment."
        )


class TopicError(LedgerError):
    """A topic is missing or does not have the shape that the ledger needs."""


class InputError(LedgerError):
    """A file or argument that a person gave cannot be used."""


class InvalidRecord(LedgerError):  # noqa: N818 - a verdict about a record, not a failure
    """One record is not a valid event; `reason` is a short word, `detail` one sentence."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason = reason
        self.detail = detail
        super().__init__(f"{reason}: {detail}")


class LostRecords(LedgerError):  # noqa: N818 - reads better where it is raised
    """The topics do not hold what state was made of, or needs next.

    Attributes:
        what_happened: in a sentence, without what to do.
    """

    def __init__(self, topic: str, partition: int, what_happened: str) -> None:
        self.topic = topic
        self.partition = partition
        self.what_happened = f"{topic}:{partition}: {what_happened}."
        super().__init__(f"{self.what_happened} {_RECOVER}")


class MissingRecords(LostRecords):
    """Records are not in the topic."""

    def __init__(
        self,
        topic: str,
        partition: int,
        needed: int,
        earliest: int,
        latest: int,
        what: str | None = None,
    ) -> None:
        self.needed = needed
        self.earliest = earliest
        self.latest = latest
        if needed < earliest:
            found = f"offsets {needed} to {earliest - 1} are gone (earliest offset is {earliest})"
            used = "" if what is None else f", and {what} needs them next"
        else:
            found = f"the topic ends at {latest}, before the needed offset {needed}"
            used = "" if what is None else f", up to which {what} has its records"
        super().__init__(topic, partition, found + used)


class ReplacedRecords(LostRecords):
    """Other records have the offsets of records that state was made of."""

    def __init__(self, topic: str, partition: int, first: int, last: int, what: str) -> None:
        self.first = first
        self.last = last
        where = f"offset {last} holds" if first == last else f"offsets {first} to {last} hold"
        super().__init__(
            topic,
            partition,
            f"{where} something else than was applied to {what}: a broker lost records that it had "
            "acknowledged, and used their offsets again",
        )


class ReplacedTopic(LostRecords):
    """A topic was deleted and created anew since tables were made of it."""

    def __init__(self, topic: str, partition: int, next_offset: int) -> None:
        self.next_offset = next_offset
        super().__init__(
            topic,
            partition,
            f"the topic was created anew: the records before offset {next_offset} that the "
            "published tables were made of are gone",
        )


class UnreadableRecords(LedgerError):  # noqa: N818 - reads better where it is raised
    """The broker has records that are damaged: their bytes are not those that were acknowledged.

    Attributes:
        offset: the first of them; no record at or after it was read.
        what_happened: in a sentence, without what to do.
    """

    def __init__(self, topic: str, partition: int, offset: int, detail: str) -> None:
        self.topic = topic
        self.partition = partition
        self.offset = offset
        self.what_happened = (
            f"{topic}:{partition}: the records from offset {offset} on cannot be read ({detail})."
        )
        super().__init__(
            f"{self.what_happened} Bring the topic back from a copy or, where it is replicated, "
            "let the broker fetch the partition again from a replica that is whole."
        )


class StateError(LedgerError):
    """Stored state (RocksDB, snapshot) cannot be used; it says why and what to do."""


class DamagedState(StateError):  # noqa: N818 - reads better where it is raised
    """Stored state is corrupt: it has to be rebuilt from a snapshot or the topics."""


class RefusedState(StateError):  # noqa: N818 - reads better where it is raised
    """Stored state was made of other topics, or by other rules: it has to be rebuilt."""


class StateInUse(LedgerError):  # noqa: N818 - reads better where it is raised
    """Another process, or another part of this one, has the stored state open."""


class StackError(LedgerError):
    """The local stack could not be started or stopped."""
