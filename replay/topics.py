"""The topics that a replay reads, found to hold what tables and snapshots were made of."""

from __future__ import annotations

from ledger import console
from ledger.comparison import require_comparable_continuous
from ledger.continuity import require_tables_continuous, require_topics
from ledger.kafka import Cluster
from ledger.positions import Watermarks
from ledger.published import PublishedPartition, read_published, require_unchanged
from ledger.rebuild import Base, Rebuilder
from ledger.settings import Settings
from ledger.snapshots import Snapshots
from ledger.stack import kafka_endpoint
from replay.engine import Job, known_snapshots, refuse_loss
from replay.request import Span


class Topics:
    """The input topics of a cluster, and what is kept of them.

    Attributes:
        origin: what the topics are.
        snapshots: of the ledger.
        rebuilder: reads them in this process.
    """

    def __init__(self, settings: Settings) -> None:
        """Find the topics.

        Raises:
            ConfigurationError: no server is named and the local stack does not run.
            UnreachableError: no broker answers.
            TopicError: a topic is missing, or their numbers of partitions changed or differ.
            LostRecords: a topic is gone that tables were made of.
        """
        self.cluster = Cluster(kafka_endpoint(settings), settings)
        require_topics(self.cluster)
        self.origin = require_unchanged(self.cluster, self.cluster.origin())
        self.snapshots = Snapshots(settings.snapshot_dir, settings.topic_prefix)
        self.rebuilder = Rebuilder(self.cluster, self.origin, warn=console.warn)

    def published(self) -> dict[int, PublishedPartition]:
        """Return the published tables.

        Raises:
            LostRecords: the topics do not hold what they were made of.
        """
        with console.progress("Reading the published tables", None) as move:
            published = read_published(self.cluster, range(self.origin.partitions), move)
        require_comparable_continuous(self.cluster, published, self.origin)
        return published

    def require_tables(self) -> None:
        """Check that the topics hold what the published tables were made of.

        Raises:
            LostRecords: they do not.
        """
        require_tables_continuous(self.cluster, self.origin)

    def ends(self, base: Base) -> Watermarks:
        """Return the ends of the topics, to be asked for once.

        Raises:
            MissingRecords: with base `snapshot`, one of them is before a snapshot's.
        """
        # What is kept is listed before asking for the ends: it cannot be beyond them.
        numbers = range(self.origin.partitions)
        known = known_snapshots(self.snapshots, numbers) if base == "snapshot" else []
        ends = self.rebuilder.ends()
        refuse_loss(self.snapshots, known, self.origin, ends)
        return ends

    def job(self, span: Span, base: Base) -> Job:
        """Return the replay of a span of them."""
        return Job(self.cluster, self.origin, span, base)
