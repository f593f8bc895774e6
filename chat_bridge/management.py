"""RabbitMQ's management page: what AMQP cannot tell or do is asked of it."""

from __future__ import annotations

import base64
import http.client
import json
import urllib.error
import urllib.request
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from chat_bridge.amqp import user_of
from ledger.errors import ConfigurationError, UnreachableError
from ledger.settings import mask_url

_TIMEOUT_S: Final = 30.0
_PATIENCE_S: Final = 5.0
_DEFAULT_PORT: Final = 15672
_FOR_ADMINISTRATORS: Final = {"users", "permissions", "topic-permissions", "user-limits"}
# No proxy of the environment is to see the password.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class _Failed(ConfigurationError):  # noqa: N818 - what happened
    """RabbitMQ failed; release 3.10 does at any list of queues while a stream is being made."""


class Management:
    """The page of one RabbitMQ, asked with the user and password of an AMQP URL.

    Attributes:
        user: the one of the URL.
        vhost: likewise.
    """

    def __init__(self, amqp: str, page: str | None) -> None:
        """Name the server; nothing is sent yet.

        Args:
            amqp: RabbitMQ's URL.
            page: URL of the management page; without one, the usual port of the same host.
        """
        parts = urlsplit(amqp)
        self.user = user_of(amqp)
        self.vhost = unquote(parts.path.removeprefix("/")) or "/"
        self._page = (page or f"http://{parts.hostname}:{_DEFAULT_PORT}").rstrip("/")
        password = unquote(parts.password or "guest")
        token = base64.b64encode(f"{self.user}:{password}".encode()).decode()
        self._headers = {"Authorization": f"Basic {token}", "Content-Type": "application/json"}

    def get(self, *path: str, query: str = "") -> Any:
        """Return the JSON found at a path, given in its parts; None if there is nothing.

        Raises:
            UnreachableError: the page does not answer.
            ConfigurationError: it does not let this user do that.
        """
        patiently = Retrying(
            retry=retry_if_exception_type(_Failed),
            stop=stop_after_delay(_PATIENCE_S),
            wait=wait_fixed(0.2),
            reraise=True,
        )
        found: Any = patiently(self._ask, "GET", path, query)
        return found

    def put(self, *path: str, document: dict[str, Any]) -> None:
        """Make what a path names, or change it. Raises as `get` does."""
        self._ask("PUT", path, "", document)

    def delete(self, *path: str) -> None:
        """Delete what a path names, if it is there. Raises as `get` does."""
        self._ask("DELETE", path, "")

    def _ask(
        self, method: str, path: tuple[str, ...], query: str, document: Any | None = None
    ) -> Any:
        where = "/".join(quote(part, safe="") for part in ("api", *path))
        try:
            request = urllib.request.Request(
                f"{self._page}/{where}{query and '?'}{query}",
                method=method,
                headers=self._headers,
                data=None if document is None else json.dumps(document).encode(),
            )
            with _opener.open(request, timeout=_TIMEOUT_S) as answer:
                content = answer.read()
                return json.loads(content) if content else None
        except urllib.error.HTTPError as error:
            error.close()  # it is the answer as well
            if error.code == http.HTTPStatus.NOT_FOUND and method != "PUT":
                return None
            refused = (
                f"RabbitMQ's management page {mask_url(self._page)} refused {method} {where} "
                f"({error.code} {error.reason})"
            )
            if error.code in (http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.FORBIDDEN):
                tag = "administrator" if path[0] in _FOR_ADMINISTRATORS else "management"
                refused += (
                    f": the user of LEDGER_AMQP, '{self.user}', has another password, or needs "
                    f"the tag '{tag}'"
                )
            if error.code == http.HTTPStatus.INTERNAL_SERVER_ERROR:
                raise _Failed(f"{refused}; see RabbitMQ's log for why.") from error
            raise ConfigurationError(f"{refused}.") from error
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise UnreachableError(
                "RabbitMQ's management page (LEDGER_AMQP_MANAGEMENT)",
                mask_url(self._page),
                str(error),
            ) from error
