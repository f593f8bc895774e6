"""The local stack: a real Kafka broker and a real RabbitMQ for one state directory.

`up` starts what the settings do not name, `down` stops it with nothing left running, `status` tells
what answers, and `endpoints` says where to connect. All of it works on `stack/` in the state
directory, so that several ledgers on one machine each have their own.
"""

from __future__ import annotations

from ledger.stack.addresses import Endpoints, amqp_endpoint, endpoints, kafka_endpoint
from ledger.stack.health import ServerStatus, Status, status
from ledger.stack.local import down, up

__all__ = [
    "Endpoints",
    "ServerStatus",
    "Status",
    "amqp_endpoint",
    "down",
    "endpoints",
    "kafka_endpoint",
    "status",
    "up",
]
