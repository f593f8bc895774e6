"""Tells which servers answer, in the form that `ledger status --json` prints."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr

from ledger.errors import StackError
from ledger.settings import Settings, mask_url
from ledger.stack import checks
from ledger.stack.kafka import KafkaServer
from ledger.stack.ports import LOOPBACK
from ledger.stack.rabbitmq import RabbitServer
from ledger.stack.state import StackDirectory, StackRecord

TIMEOUT_S = 5.0


@dataclass(frozen=True)
class ServerStatus:
    """One server.

    Attributes:
        url: where it is, or was while it last ran, its password masked; None if it never was.
        up: whether it answered just now.
        management: URL of RabbitMQ's management page; None for Kafka or if it is not known.
    """

    url: str | None
    up: bool
    management: str | None = None


@dataclass(frozen=True)
class Status:
    """What `status` found; `settings` are those of this process with secrets masked."""

    kafka: ServerStatus
    amqp: ServerStatus
    settings: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Return the document that `ledger status --json` prints."""
        return {
            "kafka": {"url": self.kafka.url, "up": self.kafka.up},
            "amqp": {
                "url": self.amqp.url,
                "management": self.amqp.management,
                "up": self.amqp.up,
            },
            "settings": self.settings,
        }


def status(settings: Settings) -> Status:
    """Return what answers now, after at most some seconds; nothing is started or changed.

    A server that is not there, or a stack that never was, is a result and not an error.
    """
    directory = StackDirectory(settings)
    try:
        record = directory.read()
    except StackError:
        record = StackRecord()
    with ThreadPoolExecutor(2) as pool:
        kafka = pool.submit(_kafka, settings, directory, record)
        amqp = pool.submit(_amqp, settings, directory, record)
        return Status(kafka.result(), amqp.result(), masked_settings(settings))


def masked_settings(settings: Settings) -> dict[str, Any]:
    """Return every setting as JSON has it, with passwords masked."""
    values: dict[str, Any] = settings.model_dump(mode="json")
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, SecretStr):
            values[name] = mask_url(value.get_secret_value())
        elif isinstance(value, str):
            values[name] = mask_url(value)
    return values


def _kafka(settings: Settings, directory: StackDirectory, record: StackRecord) -> ServerStatus:
    if settings.kafka is not None:
        up = checks.kafka_cluster_id(settings.kafka, TIMEOUT_S) is not None
        return ServerStatus(mask_url(settings.kafka), up)
    if record.kafka is None:
        return ServerStatus(None, False)
    up = KafkaServer(directory.path / "kafka").answers(record.kafka)
    return ServerStatus(f"{LOOPBACK}:{record.kafka.port}", up)


def _amqp(settings: Settings, directory: StackDirectory, record: StackRecord) -> ServerStatus:
    if settings.amqp is not None:
        url = settings.amqp.get_secret_value()
        management = settings.amqp_management
        up = checks.amqp_problem(url, TIMEOUT_S) is None
        return ServerStatus(mask_url(url), up, management and mask_url(management))
    if record.rabbitmq is None:
        return ServerStatus(None, False)
    server = RabbitServer(directory.path / "rabbitmq")
    management = f"http://{LOOPBACK}:{record.rabbitmq.management_port}"
    try:
        url, up = server.url(record.rabbitmq), server.answers(record.rabbitmq)
    except StackError:
        return ServerStatus(None, False, management)
    return ServerStatus(mask_url(url), up, management)
