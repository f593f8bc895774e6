"""What a bridge has done since its start, and how far it is behind; every metric is named here.

| metric | |
|---|---|
| `chat_bridge_records_total` | records of `fills` read |
| `chat_bridge_published_total` | messages sent to RabbitMQ |
| `chat_bridge_confirmed_total{type}` | messages that RabbitMQ has confirmed, by type |
| `chat_bridge_returned_total` | messages that came back because their room was gone |
| `chat_bridge_refused_total` | messages that RabbitMQ answered with a nack |
| `chat_bridge_duplicates_avoided_total` | messages found in their room, not posted again |
| `chat_bridge_rooms_refilled_total` | rooms that had lost messages and were filled anew |
| `chat_bridge_unpublishable_total` | messages that RabbitMQ never takes, sent to `dead-letters` |
| `chat_bridge_sessions_total` | connections made, the first included |
| `chat_bridge_lag_records{partition}` | records of `fills` that are not in the rooms yet |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Final

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from chat_bridge.messages import BUST, FILL, TRADE, Message
from ledger.errors import ConfigurationError

_LOOPBACK: Final = "127.0.0.1"
_PREFIX: Final = "chat_bridge_"


@dataclass
class Tally:
    """What was done since the start.

    Attributes:
        records: of `fills` read.
        trades: messages of this type that were confirmed; so are `fills` and `busts`.
        published: messages sent.
        returned: messages for which there was no room.
        refused: messages answered with a nack.
        avoided: messages that were in their room already.
        refilled: rooms filled anew, once for each partition that lost messages there.
        unpublishable: messages that RabbitMQ never takes.
        sessions: connections made.
    """

    records: int = 0
    trades: int = 0
    fills: int = 0
    busts: int = 0
    published: int = 0
    returned: int = 0
    refused: int = 0
    avoided: int = 0
    refilled: int = 0
    unpublishable: int = 0
    sessions: int = 0

    def count(self, messages: Iterable[Message]) -> None:
        """Add messages that were confirmed."""
        for message in messages:
            self.trades += message.type == TRADE
            self.fills += message.type == FILL
            self.busts += message.type == BUST

    @property
    def messages(self) -> int:
        """All messages that were confirmed."""
        return self.trades + self.fills + self.busts

    def as_json(self) -> dict[str, int]:
        """Return what `chat-bridge run --json` prints."""
        return {**asdict(self), "messages": self.messages}


def serve_metrics(port: int, tally: Tally, lags: Callable[[], Mapping[int, int]]) -> None:
    """Answer `/metrics` on loopback, in a thread of its own, until the process ends.

    Args:
        port: TCP port.
        tally: what was done.
        lags: returns how many records each partition of this bridge is behind.

    Raises:
        ConfigurationError: the port is taken.
    """
    registry = CollectorRegistry()
    registry.register(_Bridge(tally, lags))
    try:
        start_http_server(port, _LOOPBACK, registry)
    except OSError as error:
        raise ConfigurationError(f"--metrics-port {port}: {error.strerror}.") from error


class _Bridge(Collector):
    def __init__(self, tally: Tally, lags: Callable[[], Mapping[int, int]]) -> None:
        self._tally = tally
        self._lags = lags

    def collect(self) -> Iterator[Metric]:
        tally = self._tally
        confirmed = CounterMetricFamily(
            f"{_PREFIX}confirmed", "Messages that RabbitMQ has confirmed.", labels=["type"]
        )
        confirmed.add_metric([TRADE], tally.trades)
        confirmed.add_metric([FILL], tally.fills)
        confirmed.add_metric([BUST], tally.busts)
        yield confirmed
        for name, value, text in (
            ("records", tally.records, "Records of fills read."),
            ("published", tally.published, "Messages sent to RabbitMQ."),
            ("returned", tally.returned, "Messages that came back: their room was gone."),
            ("refused", tally.refused, "Messages that RabbitMQ answered with a nack."),
            ("duplicates_avoided", tally.avoided, "Messages that were in their room already."),
            ("rooms_refilled", tally.refilled, "Rooms that had lost messages."),
            ("unpublishable", tally.unpublishable, "Messages that RabbitMQ never takes."),
            ("sessions", tally.sessions, "Connections made, the first included."),
        ):
            yield CounterMetricFamily(_PREFIX + name, text, value=value)
        lag = GaugeMetricFamily(
            f"{_PREFIX}lag_records", "Records that are not in the rooms yet.", labels=["partition"]
        )
        for partition, records in sorted(self._lags().items()):
            lag.add_metric([str(partition)], records)
        yield lag
