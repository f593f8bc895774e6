"""Every error that the ledger raises on purpose.

A message is one line that says what happened, where, and what to do. The command line prints it
and exits with 2; it never prints a traceback for one of these.
"""

from __future__ import annotations


class LedgerError(Exception):
    """The root of all errors that a person is meant to read."""


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


class MissingRecords(LedgerError):  # noqa: N818 - reads better where it is raised
    """Records that are still needed are no longer in the topic."""

    def __init__(self, topic: str, partition: int, needed: int, earliest: int, latest: int) -> None:
        self.topic = topic
        self.partition = partition
        self.needed = needed
        self.earliest = earliest
        self.latest = latest
        if needed < earliest:
            what = f"offsets {needed} to {earliest - 1} are gone (earliest offset is {earliest})"
            hint = f"start from a snapshot whose watermark is at or above {earliest}"
        else:
            what = f"the topic ends at {latest}, before the needed offset {needed}"
            hint = "it was truncated or recreated; remove the state directory to rebuild from it"
        super().__init__(f"{topic}:{partition}: {what}; {hint}.")


class StateError(LedgerError):
    """Stored state (RocksDB, snapshot) cannot be used; it says why and what to do."""


class StateInUse(LedgerError):  # noqa: N818 - reads better where it is raised
    """Another process, or another part of this one, has the stored state open."""


class StackError(LedgerError):
    """The local stack could not be started or stopped."""
