"""RabbitMQ: one connection, and its many ways to fail turned into ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from urllib.parse import unquote, urlsplit

import aio_pika
from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import AMQPError, ChannelInvalidStateError

from chat_bridge.errors import ConnectionLost, stray_cancellation
from ledger.errors import ConfigurationError, UnreachableError
from ledger.settings import mask_url

CONNECT_TIMEOUT_S: Final = 10.0
HEARTBEAT_S: Final = 15
"""A server that is silent for about twice this is taken for lost."""


def user_of(url: str) -> str:
    """Return the user with which an AMQP URL connects."""
    return unquote(urlsplit(url).username or "guest")


async def connect(url: str, name: str) -> AbstractConnection:
    """Return a new connection, which does not come back by itself when it is lost.

    A connection that heals silently would hide that messages in flight were never confirmed.

    Raises:
        UnreachableError: nobody answers there, or not to this user.
        ConfigurationError: the URL is none.
    """
    try:
        with lost_connections():
            return await aio_pika.connect(
                url,
                timeout=CONNECT_TIMEOUT_S,
                heartbeat=HEARTBEAT_S,
                client_properties={"connection_name": name},
            )
    except ConnectionLost as error:
        cause = error.__cause__ or error
        raise UnreachableError("RabbitMQ", mask_url(url), describe(cause)) from cause
    except (ValueError, KeyError, AttributeError) as error:
        raise ConfigurationError(
            f"LEDGER_AMQP: '{mask_url(url)}' is no AMQP URL such as amqp://user:password@host/."
        ) from error


@contextmanager
def lost_connections() -> Iterator[None]:
    """Raise `ConnectionLost` for whatever the client raises when its connection breaks."""
    try:
        with stray_cancellation("RabbitMQ"):
            yield
    except (OSError, TimeoutError, AMQPError, ChannelInvalidStateError) as error:
        raise ConnectionLost("RabbitMQ", describe(error)) from error
    except Exception as error:
        # aiormq raises these very classes for what waits on a connection that ended without a
        # reason, and for what is asked of one that has ended.
        if type(error) not in (Exception, RuntimeError):
            raise
        raise ConnectionLost("RabbitMQ", "the connection was closed") from error


def describe(error: BaseException) -> str:
    """Return what an error says, in one line without a full stop."""
    text = " ".join(str(error).split()).rstrip(".")
    return text or type(error).__name__
