"""Says where the servers are: those that the settings name, else those of the local stack."""

from __future__ import annotations

from dataclasses import dataclass, field

from ledger.errors import ConfigurationError, StackError
from ledger.settings import Settings
from ledger.stack.ports import LOOPBACK
from ledger.stack.rabbitmq import RabbitServer
from ledger.stack.state import RabbitRecord, StackDirectory


@dataclass(frozen=True)
class Endpoints:
    """Where to connect.

    Attributes:
        kafka: bootstrap servers, `host:port` and commas.
        amqp: the AMQP URL with user and password; not for eyes, see `ledger.settings.mask_url`.
        management: URL of RabbitMQ's management page, None if it is not known.
    """

    kafka: str
    amqp: str = field(repr=False)  # a password does not belong in logs
    management: str | None


def endpoints(settings: Settings) -> Endpoints:
    """Return where Kafka and RabbitMQ are: named in the settings, else the running local ones.

    Raises:
        ConfigurationError: one of them is neither named nor running.
    """
    return Endpoints(
        kafka=kafka_endpoint(settings),
        amqp=amqp_endpoint(settings),
        management=management_endpoint(settings),
    )


def kafka_endpoint(settings: Settings) -> str:
    """Return Kafka's bootstrap servers: those named in the settings, else the local broker's.

    Raises:
        ConfigurationError: none are named and the local broker does not run.
    """
    if settings.kafka is not None:
        return settings.kafka
    record = _directory(settings).read().kafka
    if record is None or record.process is None or not record.process.is_running():
        raise ConfigurationError(
            "No Kafka broker: the local stack is not running and none is named. "
            "Run 'ledger up' or set LEDGER_KAFKA."
        )
    return f"{LOOPBACK}:{record.port}"


def amqp_endpoint(settings: Settings) -> str:
    """Return RabbitMQ's URL with its password: that of the settings, else the local server's.

    Raises:
        ConfigurationError: none is named and the local server does not run.
    """
    if settings.amqp is not None:
        return settings.amqp.get_secret_value()
    directory = _directory(settings)
    try:
        return RabbitServer(directory.path / "rabbitmq").url(_running_rabbit(directory))
    except StackError as error:
        raise ConfigurationError(str(error)) from error


def management_endpoint(settings: Settings) -> str | None:
    """Return the URL of the management page, or None if RabbitMQ is named without one.

    Raises:
        ConfigurationError: no RabbitMQ is named and the local server does not run.
    """
    if settings.amqp is not None:
        return settings.amqp_management
    return f"http://{LOOPBACK}:{_running_rabbit(_directory(settings)).management_port}"


def _running_rabbit(directory: StackDirectory) -> RabbitRecord:
    record = directory.read().rabbitmq
    if record is None or record.process is None or not record.process.is_running():
        raise ConfigurationError(
            "No RabbitMQ: the local stack is not running and none is named. "
            "Run 'ledger up' or set LEDGER_AMQP."
        )
    return record


def _directory(settings: Settings) -> StackDirectory:
    return StackDirectory(settings)
