"""Who may read and talk: every way that is forbidden, tried with a real AMQP client."""

from __future__ import annotations

import contextlib
import json
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import (
    AMQPConnectionError,
    ChannelClosedByBroker,
    ConnectionClosedByBroker,
    ProbableAuthenticationError,
)
from pika.exchange_type import ExchangeType
from pika.spec import BasicProperties

from chat_bridge.access import (
    MOST_CONNECTIONS,
    Access,
    permissions_of,
    say_permission,
    stored_password,
    url_of,
)
from chat_bridge.management import Management
from chat_bridge.names import exchange_of, parse_account, retention_of, routing_keys_of
from ledger.errors import ConfigurationError, InputError
from ledger.settings import Settings
from ledger.stack import Endpoints
from tests.support import eventually, settings_on
from tests.test_bridge import chat_bridge

pytestmark = pytest.mark.integration

STREAM: Final = {"x-queue-type": "stream"}
FROM_FIRST: Final = {"x-stream-offset": "first"}
ACCOUNTS: Final = ["trader-6", "trader-67", "trader", "a:b", "a_b", "A_b", "a-b"]
"""Names of which one begins with another, or differs where a careless expression would not see."""
ME: Final = "trader-6"
OTHER: Final = "trader-67"


@dataclass(frozen=True)
class Said:
    """A message as it came out of a room."""

    routing_key: str | None
    user_id: str | None
    body: bytes


class House:
    """The rooms of one ledger without a bridge, as an operator makes, fills and reads them."""

    def __init__(self, settings: Settings) -> None:
        assert settings.amqp is not None
        self.settings = settings
        self.amqp = settings.amqp.get_secret_value()
        self.management = Management(self.amqp, settings.amqp_management)
        self.access = Access(settings, self.amqp, settings.amqp_management)
        self._granted: dict[str, str] = {}

    def name(self, name: str) -> str:
        """Return what RabbitMQ calls a queue or exchange of this ledger."""
        return self.settings.topic(name)

    def account(self, name: str) -> str:
        """Return an account that no other test has: users are everybody's."""
        return self.settings.topic_prefix.partition(".")[0] + name

    def room(self, name: str) -> str:
        """Return the private room of an account."""
        return f"account.{self.account(name)}"

    def key(self, key: str) -> str:
        """Return a routing key with the account that is meant by OTHER."""
        return key.replace("OTHER", self.account(OTHER))

    def make(self, *rooms: str) -> None:
        """Make rooms as the bridge does."""
        with connected(self.amqp) as channel:
            for exchange in map(exchange_of, ("room.", "say.")):
                channel.exchange_declare(self.name(exchange), ExchangeType.topic, durable=True)
            for room in rooms:
                arguments = {**retention_of(room).arguments()}
                channel.queue_declare(self.name(room), durable=True, arguments=arguments)
                for key in routing_keys_of(room):
                    channel.queue_bind(self.name(room), self.name(exchange_of(key)), key)

    def post(self, room: str, **document: Any) -> None:
        """Post a message as the bridge does."""
        self.send(self.name(exchange_of(room)), room, json.dumps(document).encode())

    def send(
        self, exchange: str, key: str, body: bytes, properties: BasicProperties | None = None
    ) -> None:
        """Publish any message as the operator."""
        with connected(self.amqp) as channel:
            channel.basic_publish(exchange, key, body, properties, mandatory=True)

    def history(self, room: str) -> list[Said]:
        """Return what a room holds: everything before a message that is posted there now."""
        mark = uuid.uuid4().hex.encode()
        found: list[Said] = []
        with connected(self.amqp) as channel:
            channel.basic_publish("", self.name(room), b"mark " + mark, mandatory=True)
            channel.basic_qos(prefetch_count=100)
            queue = self.name(room)
            for method, properties, body in channel.consume(
                queue, arguments=FROM_FIRST, inactivity_timeout=30
            ):
                assert method is not None, "the mark did not come"
                assert properties is not None
                assert body is not None
                channel.basic_ack(method.delivery_tag or 0)
                if body == b"mark " + mark:
                    return found
                if not body.startswith(b"mark "):
                    found.append(Said(method.routing_key, properties.user_id, body))
        raise AssertionError

    def bindings(self) -> set[tuple[str, str, str]]:
        """Return exchange, key and queue of everything that is bound in this ledger's rooms."""
        found = self.management.get("bindings", self.management.vhost)
        prefix = self.settings.topic_prefix
        return {
            (one["source"], one["routing_key"], one["destination"])
            for one in found
            if one["source"] and prefix in one["source"] + one["destination"]
        }

    def grant(self, account: str) -> str:
        """Give an account access, once, and return its URL."""
        if account not in self._granted:
            self._granted[account] = self.access.grant(account).url
        return self._granted[account]

    def close(self) -> None:
        """Delete the users; nothing else is anybody else's."""
        for account in self._granted:
            self.access.revoke(account)


@contextmanager
def connected(url: str) -> Iterator[BlockingChannel]:
    """Give a channel with confirms on a connection of its own."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    try:
        channel = connection.channel()
        channel.confirm_delivery()
        yield channel
    finally:
        if connection.is_open:
            # pika rejects what nobody has looked at, which a stream answers by cutting off.
            with contextlib.suppress(ConnectionClosedByBroker):
                connection.close()


@pytest.fixture(scope="module")
def house(stack: Endpoints, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    settings = settings_on(stack, tmp_path_factory.mktemp("house"), 1)
    # A prefix in whose place a careless expression would take other letters, too.
    house = House(settings.model_copy(update={"topic_prefix": f"{settings.topic_prefix}a.b."}))
    house.make("room.BTC-USD", "room.ETH-USD", *map(house.room, ACCOUNTS))
    house.post("room.BTC-USD", type="trade", text="a trade")
    for account in ACCOUNTS:
        house.post(house.room(account), type="fill", text=account)
    yield house
    house.close()


def properties(house: House, **more: Any) -> BasicProperties:
    return BasicProperties(user_id=house.account(ME), **more)


def publish(house: House, channel: BlockingChannel, exchange: str, key: str, **more: Any) -> None:
    channel.basic_publish(exchange, key, b"forged", properties(house, **more), mandatory=True)


Attempt = Callable[[House, BlockingChannel], object]


def binding(key: str) -> Attempt:
    """Bind the account's own room, which it may read, to what is posted with a key."""
    return lambda h, c: c.queue_bind(h.name(h.room(ME)), h.name("chat.rooms"), h.key(key))


def publishing(exchange: str, key: str) -> Attempt:
    """Publish to an exchange of these rooms, or to one of RabbitMQ's own."""
    return lambda h, c: publish(
        h, c, exchange if exchange.startswith("amq.") else h.name(exchange), h.key(key)
    )


def publishing_straight(room: str) -> Attempt:
    """Publish through the default exchange, which leads into the queue that the key names."""
    return lambda h, c: publish(h, c, "", h.name(h.key(room)))


FORBIDDEN: Final[dict[str, Attempt]] = {
    # -- reading what is another's
    "read another's room": lambda h, c: consume(c, h.name(h.room(OTHER))),
    "read the room of an account with a shorter name": lambda h, c: consume(
        c, h.name(h.room("trader"))
    ),
    "read a queue that is no room": lambda h, c: consume(c, h.name("bridge.3")),
    "read rooms of another prefix": lambda h, c: consume(
        c, h.name("room.BTC-USD").replace(".", "x")
    ),
    # -- a queue of its own, to bind it to whatever is posted
    "have RabbitMQ name a queue": lambda h, c: c.queue_declare("", exclusive=True),
    "declare a queue": lambda h, c: c.queue_declare(h.name("mine")),
    "declare an exclusive queue": lambda h, c: c.queue_declare(h.name("mine"), exclusive=True),
    "declare a stream": lambda h, c: c.queue_declare(
        h.name("mine"), durable=True, arguments=STREAM
    ),
    "declare a private room that is not there yet": lambda h, c: c.queue_declare(
        h.name("account.future"), durable=True, arguments=STREAM
    ),
    "declare a public room that is not there yet": lambda h, c: c.queue_declare(
        h.name("room.NEW-USD"), durable=True, arguments=STREAM
    ),
    "declare its own room": lambda h, c: c.queue_declare(
        h.name(h.room(ME)), durable=True, arguments={**retention_of("account.").arguments()}
    ),
    "take the bridge's place": lambda h, c: c.queue_declare(h.name("bridge.3"), exclusive=True),
    "lead a queue's dead letters into a room": lambda h, c: c.queue_declare(
        h.name("mine"),
        arguments={
            "x-dead-letter-exchange": h.name("chat.rooms"),
            "x-dead-letter-routing-key": h.room(OTHER),
            "x-message-ttl": 1,
        },
    ),
    "lead dead letters by the default exchange": lambda h, c: c.queue_declare(
        h.name("mine"),
        arguments={
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": h.name(h.room(OTHER)),
            "x-max-length": 0,
        },
    ),
    # -- binding
    **{
        f"bind its room to {key}": binding(key)
        for key in ("account.#", "#", "*.*", "account.OTHER", "room.*", "say.*")
    },
    "bind its room to what people say": lambda h, c: c.queue_bind(
        h.name(h.room(ME)), h.name("chat.say"), "say.*"
    ),
    "bind a public room to private ones": lambda h, c: c.queue_bind(
        h.name("room.BTC-USD"), h.name("chat.rooms"), "account.#"
    ),
    "bind another's room": lambda h, c: c.queue_bind(
        h.name(h.room(OTHER)), h.name("chat.say"), "say.BTC-USD"
    ),
    "unbind a room": lambda h, c: c.queue_unbind(
        h.name("room.BTC-USD"), h.name("chat.rooms"), "room.BTC-USD"
    ),
    "lead all that is posted into what people say": lambda h, c: c.exchange_bind(
        h.name("chat.say"), h.name("chat.rooms"), "#"
    ),
    "lead what people say into private rooms": lambda h, c: c.exchange_bind(
        h.name("chat.rooms"), h.name("chat.say"), "#"
    ),
    "lead it through a standard exchange": lambda h, c: c.exchange_bind(
        "amq.topic", h.name("chat.rooms"), "#"
    ),
    "declare an exchange": lambda h, c: c.exchange_declare(h.name("mine"), ExchangeType.topic),
    "declare an exchange with an alternate one": lambda h, c: c.exchange_declare(
        h.name("mine"),
        ExchangeType.fanout,
        arguments={"alternate-exchange": h.name("chat.rooms")},
    ),
    # -- publishing
    **{
        f"publish {key!r} to {exchange}": publishing(exchange, key)
        for exchange in ("chat.rooms", "chat.say")
        for key in ("room.BTC-USD", "account.OTHER", "#", "say.BTC-USD.x", "say.BTC-USD\n", "")
    },
    "publish what it says to the bridge's exchange": lambda h, c: publish(
        h, c, h.name("chat.rooms"), "say.BTC-USD"
    ),
    "publish into its own room": lambda h, c: publish(h, c, h.name("chat.rooms"), h.room(ME)),
    **{
        f"publish straight into {room}": publishing_straight(room)
        for room in ("room.BTC-USD", "account.OTHER")
    },
    "publish straight into its own room": lambda h, c: publish(h, c, "", h.name(h.room(ME))),
    "answer somebody who asked": lambda h, c: publish(h, c, "", "amq.rabbitmq.reply-to.x"),
    **{
        f"publish to {exchange}": publishing(exchange, "room.BTC-USD")
        for exchange in ("amq.topic", "amq.direct", "amq.fanout", "amq.headers")
    },
    "publish to an exchange of another prefix": lambda h, c: publish(
        h, c, h.name("chat.say").replace(".", "x"), "say.BTC-USD"
    ),
    "talk as somebody else": lambda h, c: c.basic_publish(
        h.name("chat.say"),
        "say.BTC-USD",
        b"forged",
        BasicProperties(user_id=h.account(OTHER)),
        mandatory=True,
    ),
    "talk as the bridge": lambda h, c: c.basic_publish(
        h.name("chat.say"), "say.BTC-USD", b"forged", BasicProperties(user_id=h.management.user)
    ),
    # -- destroying
    "delete its room": lambda h, c: c.queue_delete(h.name(h.room(ME))),
    "delete a public room": lambda h, c: c.queue_delete(h.name("room.BTC-USD")),
    "purge another's room": lambda h, c: c.queue_purge(h.name(h.room(OTHER))),
    "delete the bridge's exchange": lambda h, c: c.exchange_delete(h.name("chat.rooms")),
    "delete the exchange of what people say": lambda h, c: c.exchange_delete(h.name("chat.say")),
}


def consume(channel: BlockingChannel, queue: str) -> None:
    """Begin to read: from what comes next on, since pika rejects what it has not looked at."""
    channel.basic_qos(prefetch_count=10)
    channel.basic_consume(queue, lambda *_: None, arguments={"x-stream-offset": "next"})


@pytest.mark.parametrize("what", FORBIDDEN)
def test_a_granted_account_cannot(house: House, what: str) -> None:
    with (
        connected(house.grant(house.account(ME))) as channel,
        pytest.raises(ChannelClosedByBroker) as refused,
    ):
        FORBIDDEN[what](house, channel)
    assert refused.value.reply_code == (406 if what.startswith("talk as") else 403)


@pytest.mark.parametrize(
    ("what", "attempt"),
    [
        ("purge a public room", lambda h, c: c.queue_purge(h.name("room.BTC-USD"))),
        ("take messages out", lambda h, c: c.basic_get(h.name("room.BTC-USD"))),
    ],
)
def test_no_stream_lets_anybody(house: House, what: str, attempt: Attempt) -> None:
    """RabbitMQ would allow this to who may read."""
    with (
        connected(house.grant(house.account(ME))) as channel,
        pytest.raises(ConnectionClosedByBroker) as refused,
    ):
        attempt(house, channel)
    assert refused.value.reply_code == 540


def test_a_reader_who_asks_for_a_room_alone_does_not_get_it_alone(house: House) -> None:
    with connected(house.grant(house.account(ME))) as channel:
        channel.basic_qos(prefetch_count=10)
        channel.basic_consume(
            house.name("room.BTC-USD"),
            lambda *_: None,
            exclusive=True,
            arguments={"x-stream-offset": "next"},
        )
        with connected(house.grant(house.account(OTHER))) as other:
            consume(other, house.name("room.BTC-USD"))


@pytest.mark.parametrize("header", ["CC", "BCC"])
def test_what_is_said_cannot_be_copied_into_private_rooms(house: House, header: str) -> None:
    """RabbitMQ 3.10 routes by these headers, too, and does not ask whether that is allowed."""
    keys = [house.room(OTHER), house.room(ME), "room.BTC-USD", "say.ETH-USD"]
    with connected(house.grant(house.account(ME))) as channel:
        publish(house, channel, house.name("chat.say"), "say.BTC-USD", headers={header: keys})
    assert house.history(house.room(OTHER)) == [fill(house, OTHER)]
    assert house.history(house.room(ME)) == [fill(house, ME)]
    # That public room the speaker may talk in anyhow.
    for room in ("room.BTC-USD", "room.ETH-USD"):
        assert house.history(room)[-1] == Said("say.BTC-USD", house.account(ME), b"forged")


def fill(house: House, account: str) -> Said:
    """Return the message that an account's room was given at the start."""
    body = json.dumps({"type": "fill", "text": account}).encode()
    return Said(house.room(account), None, body)


def test_nothing_that_was_tried_has_left_a_trace(house: House) -> None:
    """Runs after all of the above."""
    for account in ACCOUNTS:
        assert house.history(house.room(account)) == [fill(house, account)]
    for said in house.history("room.BTC-USD")[1:]:
        assert (said.routing_key, said.user_id) == ("say.BTC-USD", house.account(ME))
    rooms = ["room.BTC-USD", "room.ETH-USD", *map(house.room, ACCOUNTS)]
    bound = {(exchange_of(key), key, room) for room in rooms for key in routing_keys_of(room)}
    assert house.bindings() == {(house.name(e), k, house.name(r)) for e, k, r in bound}


@pytest.mark.parametrize("account", ACCOUNTS)
def test_a_granted_account_reads_public_rooms_and_its_own_and_no_other(
    house: House, account: str
) -> None:
    url = house.grant(house.account(account))
    for room in ("room.BTC-USD", house.room(account)):
        with connected(url) as channel:
            channel.basic_qos(prefetch_count=1)
            for method, _, body in channel.consume(
                house.name(room), arguments={"x-stream-offset": 0}, inactivity_timeout=30
            ):
                assert method is not None
                assert body is not None
                channel.basic_ack(method.delivery_tag or 0)
                text = "a trade" if room == "room.BTC-USD" else account
                assert json.loads(body)["text"] == text
                break
    for other in set(ACCOUNTS) - {account}:
        with (
            connected(url) as channel,
            pytest.raises(ChannelClosedByBroker, match="ACCESS_REFUSED"),
        ):
            consume(channel, house.name(house.room(other)))


def test_a_granted_account_reads_on_live(house: House) -> None:
    with connected(house.grant(house.account(ME))) as channel:
        channel.basic_qos(prefetch_count=10)
        arguments = {"x-stream-offset": "next"}
        consuming = channel.consume(
            house.name(house.room(ME)), arguments=arguments, inactivity_timeout=0.2
        )
        assert next(consuming)[0] is None
        house.send("", house.name(house.room(ME)), b"mark live")
        assert eventually(lambda: next(consuming)[2]) == b"mark live"


def test_the_rights_are_these_and_no_others(house: House) -> None:
    account = house.account(ME)
    house.grant(account)
    user = house.management.get("users", account)
    assert user["tags"] == []
    assert user["limits"] == {"max-connections": MOST_CONNECTIONS, "max-channels": 64}
    vhost = {"user": account, "vhost": "/"}
    assert house.management.get("users", account, "permissions") == [
        {**vhost, **permissions_of(account, house.settings)}
    ]
    assert house.management.get("users", account, "topic-permissions") == [
        {**vhost, **say_permission(house.settings)}
    ]


def test_expressions_match_whole_names_only(house: House) -> None:
    """Said without RabbitMQ: also with the end of a line behind the name."""
    rights = permissions_of("a-b", house.settings)
    read, prefix = re.compile(rights["read"]), house.settings.topic_prefix
    for name in ("room.BTC-USD", "room.@107-USDC", "account.a-b"):
        assert read.search(prefix + name)
        for wrong in (name, prefix + name + "\n", "x" + prefix + name, prefix + name + ".x"):
            assert not read.search(wrong), wrong
    for name in ("account.a-bc", "account.a", "account.a_b", "room.", "bridge.3", "chat.rooms"):
        assert not read.search(prefix + name), name


def test_the_management_page_lets_no_granted_account_in(house: House) -> None:
    page = Management(house.grant(house.account(ME)), house.settings.amqp_management)
    for path in ("overview", "queues", "users", "definitions"):
        with pytest.raises(ConfigurationError, match="401 Unauthorized"):
            page.get(path)


def test_an_account_has_so_many_connections_and_no_more(house: House) -> None:
    url = house.grant(house.account("trader"))
    open_ones = []
    try:
        open_ones = [
            pika.BlockingConnection(pika.URLParameters(url)) for _ in range(MOST_CONNECTIONS)
        ]
        with pytest.raises(AMQPConnectionError):
            pika.BlockingConnection(pika.URLParameters(url))
    finally:
        for connection in open_ones:
            connection.close()


# -- granting, renewing and revoking


def test_renewing_takes_the_old_password_away_and_cuts_what_is_connected(house: House) -> None:
    account = house.account("renewed")
    old = house.access.grant(account)
    assert not old.renewed
    with connected(old.url) as channel:
        new = house.access.grant(account)
        assert new.renewed
        assert is_cut(channel)
    assert (stored_password(house.settings, account) or "?") in new.url
    with pytest.raises(ProbableAuthenticationError):
        pika.BlockingConnection(pika.URLParameters(old.url))
    with connected(new.url) as channel:
        consume(channel, house.name("room.BTC-USD"))
        assert house.access.revoke(account)
        assert is_cut(channel)
    with pytest.raises(ProbableAuthenticationError):
        pika.BlockingConnection(pika.URLParameters(new.url))
    assert stored_password(house.settings, account) is None
    assert not house.access.revoke(account)


def is_cut(channel: BlockingChannel) -> bool:
    """Return whether RabbitMQ ends a channel's connection."""

    def is_over() -> bool:
        try:
            channel.connection.process_data_events(0.1)
        except AMQPConnectionError:
            return True
        return False

    return eventually(is_over, 10)


def test_the_password_is_kept_where_only_its_owner_reads_it(house: House) -> None:
    account = house.account(ME)
    house.grant(account)
    files = list(house.settings.state_dir.rglob(f"{account}.password"))
    assert [oct(path.stat().st_mode)[-3:] for path in files] == ["600"]
    assert oct(files[0].parent.stat().st_mode)[-3:] == "700"


def test_no_user_that_grant_did_not_make_is_taken_over(house: House) -> None:
    users = house.management
    account = house.account("taken")
    try:
        for tags, permissions in (
            ("monitoring", None),
            ("impersonator", permissions_of(account, house.settings)),
            ("", None),
            ("", {"configure": "", "write": ".*", "read": ".*"}),
        ):
            users.put("users", account, document={"password": "x", "tags": tags})
            if permissions:
                users.put("permissions", "/", account, document=permissions)
            before = users.get("users", account)
            for act in (house.access.grant, house.access.revoke):
                with pytest.raises(InputError, match="was not made by 'chat-bridge grant'"):
                    act(account)
            assert users.get("users", account) == before
            users.delete("users", account)
        # What a grant that was killed has left is no obstacle.
        users.put("users", account, document={"password_hash": "", "tags": ""})
        assert house.access.grant(account).renewed
    finally:
        users.delete("users", account)


def test_the_user_who_asks_is_not_granted_anything(house: House) -> None:
    for act in (house.access.grant, house.access.revoke):
        with pytest.raises(InputError, match="the user of LEDGER_AMQP itself"):
            act(house.management.user)


def test_the_command_prints_the_url_once_and_revoke_takes_it_back(settings: Settings) -> None:
    account = settings.topic_prefix + "trader:1"
    granted = chat_bridge(settings, "grant", account)
    try:
        assert granted.returncode == 0, granted.stderr
        assert granted.stdout.startswith(f"amqp://{account.replace(':', '%3A')}:")
        assert granted.stdout.count("\n") == 1
        assert (urlsplit(granted.stdout).password or "?") not in granted.stderr
    finally:
        revoked = json.loads(chat_bridge(settings, "revoke", account, "--json").stdout)
    assert revoked == {"account": account, "revoked": True}


@pytest.mark.parametrize("text", ["", "a.b", "a b", "é", "a" * 129, "a\n"])
def test_what_is_no_accounts_name_is_not_granted_anything(text: str) -> None:
    with pytest.raises(InputError, match="is no account's name"):
        parse_account(text)


@pytest.mark.parametrize(
    ("amqp", "url"),
    [
        ("amqp://o:p@h:5672/", "amqp://a%3Ab:s@h:5672/%2F"),
        ("amqp://o:p@h", "amqp://a%3Ab:s@h/%2F"),
        (
            "amqps://o:p%40@[::1]:5671/my%2Fhost?cafile=x",
            "amqps://a%3Ab:s@[::1]:5671/my%2Fhost?cafile=x",
        ),
    ],
)
def test_the_url_names_the_same_server_and_virtual_host(amqp: str, url: str) -> None:
    assert url_of(amqp, "a:b", "s") == url
