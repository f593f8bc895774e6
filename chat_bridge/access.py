"""Who may read and talk: each account's user in RabbitMQ, named like the account.

It may read public rooms and its own room, and publish to `chat.say`, through which only what people
say gets into rooms. It can make, bind and delete nothing, so it cannot have a queue of its own into
which messages could be led.
"""

from __future__ import annotations

import contextlib
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

from chat_bridge.management import Management
from chat_bridge.names import PUBLIC, SAY, SAY_EXCHANGE, room_of_account
from ledger.errors import InputError
from ledger.settings import Settings
from ledger.stack.state import write_private

MOST_CONNECTIONS: Final = 16
"""So many connections may one account have at a time."""
MOST_CHANNELS: Final = 64
"""So many channels may all of them have together."""
_INSTRUMENT: Final = "[A-Za-z0-9@_-]+"


@dataclass(frozen=True)
class Grant:
    """What an account connects with.

    Attributes:
        account: also the name of its user.
        url: RabbitMQ's URL for this user, with its password.
        renewed: the user was there before; its old password is no longer taken.
    """

    account: str
    url: str
    renewed: bool

    def as_json(self) -> dict[str, Any]:
        """Return what `chat-bridge grant --json` prints."""
        return {"account": self.account, "url": self.url, "renewed": self.renewed}


class Access:
    """Gives and takes away the users of accounts."""

    def __init__(self, settings: Settings, amqp: str, page: str | None) -> None:
        """Name the server; nothing is sent yet.

        Args:
            settings: prefix of the rooms, and where passwords are kept.
            amqp: RabbitMQ's URL, of an administrator.
            page: URL of the management page, if it is known.
        """
        self._settings = settings
        self._amqp = amqp
        self._management = Management(amqp, page)

    def grant(self, account: str) -> Grant:
        """Make the account's user, or give it a new password, and return what it connects with.

        The password is kept in the state directory as well, for `chat-bridge say`.

        Raises:
            InputError: there is such a user, and it is not one that this has made.
            ConfigurationError: the user of LEDGER_AMQP is no administrator.
            UnreachableError: the management page does not answer.
        """
        ask, vhost = self._management, self._management.vhost
        password = secrets.token_urlsafe(24)
        renewed = self._exists(account)
        if not renewed:  # it cannot connect before it may do only what it is meant to
            ask.put("users", account, document={"password_hash": "", "tags": ""})
        ask.put("permissions", vhost, account, document=permissions_of(account, self._settings))
        ask.put("topic-permissions", vhost, account, document=say_permission(self._settings))
        for limit, value in (("connections", MOST_CONNECTIONS), ("channels", MOST_CHANNELS)):
            ask.put("user-limits", account, f"max-{limit}", document={"value": value})
        ask.put("users", account, document={"password": password, "tags": ""})
        if renewed:
            ask.delete("connections", "username", account)
        path = _password_file(self._settings, account)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(path, password.encode())
        return Grant(account, url_of(self._amqp, account, password), renewed)

    def revoke(self, account: str) -> bool:
        """Delete the account's user; return whether there was one. RabbitMQ cuts its connections.

        Raises as `grant` does.
        """
        found = self._exists(account)
        if found:
            self._management.delete("users", account)
        _password_file(self._settings, account).unlink(missing_ok=True)
        return found

    def _exists(self, account: str) -> bool:
        """Return whether the account's user is there.

        Users are known by what they may do: whose rights are those that a grant gives loses
        nothing by one. Any other user of that name is somebody else.
        """
        ask = self._management
        if account == ask.user:
            raise InputError(f"'{account}' is the user of LEDGER_AMQP itself; nothing was changed.")
        user = ask.get("users", account)
        if user is None:
            return False
        wanted = permissions_of(account, self._settings)
        found = ask.get("users", account, "permissions")
        # Without permissions and password it was left by a grant that did not get further.
        is_unfinished = not found and not user["password_hash"]
        if user["tags"] or not (
            is_unfinished or found == [{"user": account, "vhost": ask.vhost, **wanted}]
        ):
            raise InputError(
                f"RabbitMQ has a user '{account}' that was not made by 'chat-bridge grant' for "
                "these rooms; nothing was changed. The user of an account is named like it: "
                f"delete or rename the one that is there, if it is not needed."
            )
        return True


def permissions_of(account: str, settings: Settings) -> dict[str, str]:
    """Return regular expressions of the queues and exchanges that an account's user may use."""
    prefix = re.escape(settings.topic_prefix)
    own = re.escape(room_of_account(account))
    return {
        "configure": "^$",
        "write": _exactly(prefix + re.escape(SAY_EXCHANGE)),
        "read": _exactly(f"{prefix}(?:{re.escape(PUBLIC)}{_INSTRUMENT}|{own})"),
    }


def say_permission(settings: Settings) -> dict[str, str]:
    """Return with which routing keys people may publish to `chat.say`."""
    return {
        "exchange": settings.topic(SAY_EXCHANGE),
        "write": _exactly(re.escape(SAY) + _INSTRUMENT),
        "read": "^$",
    }


def url_of(amqp: str, user: str, password: str) -> str:
    """Return the AMQP URL of another user, with a virtual host that every client understands."""
    parts = urlsplit(amqp)
    host = parts.netloc.rpartition("@")[2]
    who = f"{quote(user, safe='')}:{quote(password, safe='')}"
    # Without a path some clients take '/' for the virtual host, and some the empty one.
    path = parts.path if parts.path.strip("/") else "/%2F"
    return parts._replace(netloc=f"{who}@{host}", path=path).geturl()


def stored_password(settings: Settings, account: str) -> str | None:
    """Return the password that a grant on this machine has left, None if there was none."""
    with contextlib.suppress(FileNotFoundError):
        return _password_file(settings, account).read_text()
    return None


def _password_file(settings: Settings, account: str) -> Path:
    return settings.state_dir / settings.topic("chat") / f"{account}.password"


def _exactly(pattern: str) -> str:
    """Return an expression for nothing but whole names (`$` also matches before a line's end)."""
    return rf"^(?:{pattern})$(?!\n)"
