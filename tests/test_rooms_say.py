"""People talk: what is said, by whom, and what nobody can make of it."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika.spec import BasicProperties
from pydantic import SecretStr
from typer.testing import CliRunner, Result

from chat_bridge.amqp import connect
from chat_bridge.cli import app
from chat_bridge.history import Entry, Rooms
from chat_bridge.speech import AT_ONCE, MOST_CHARACTERS, PAUSE_S, keep_pace, saying
from chat_bridge.text import harmless, harmless_json
from ledger.errors import InputError, LedgerError
from ledger.settings import Settings
from ledger.stack import Endpoints
from tests.support import environment, settings_on
from tests.test_bridge import chat_bridge
from tests.test_rooms_access import House, connected

ROOM: Final = "room.BTC-USD"


@pytest.fixture(scope="module")
def house(stack: Endpoints, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    house = House(settings_on(stack, tmp_path_factory.mktemp("house"), 1))
    house.make(ROOM, "room.ETH-USD", house.room("alice"), house.room("bob"))
    house.post(ROOM, type="trade", timestamp="2015-05-01T00:00:06Z", text="BTC-USD  sell 1 @ 2")
    house.grant(house.account("alice"))
    yield house
    house.close()


@pytest.fixture(autouse=True)
def _nobody_waits(house: House) -> None:
    """What an earlier test said does not count."""
    for file in house.settings.state_dir.rglob("*.pace"):
        file.unlink()


def command(settings: Settings, *words: str) -> Result:
    """Run the command in this process, which takes less time than to start another."""
    return CliRunner().invoke(app, words, env=environment(settings))


def error(settings: Settings, *words: str) -> str:
    """Return the sentence with which the command could not run."""
    failed = command(settings, *words).exception
    assert isinstance(failed, LedgerError), failed
    return str(failed)


def as_user(house: House, url: str) -> Settings:
    """Return the settings of somebody on another machine who was given a URL."""
    return house.settings.model_copy(
        update={"amqp": SecretStr(url), "state_dir": Path("elsewhere")}
    )


# -- saying


@pytest.mark.integration
def test_what_is_said_is_in_the_room_with_the_name_that_rabbitmq_has_checked(house: House) -> None:
    alice = house.account("alice")
    before = datetime.now(UTC)
    done = chat_bridge(house.settings, "say", "BTC-USD", "hello\n there", "--as", alice, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    with connected(house.amqp) as channel:
        channel.basic_qos(prefetch_count=1)
        method, properties, body = next(
            channel.consume(
                house.name(ROOM), arguments={"x-stream-offset": "last"}, inactivity_timeout=30
            )
        )
    assert method is not None
    assert properties is not None
    found = json.loads(body or b"")
    assert found == {
        "type": "say",
        "message_id": said["message_id"],
        "timestamp": said["timestamp"],
        "text": "hello there",
        "from": alice,
        "instrument": "BTC-USD",
    }
    assert said == {"room": ROOM, **found}
    assert method.routing_key == "say.BTC-USD"
    assert properties.user_id == alice
    assert properties.type == "say"
    assert properties.message_id == said["message_id"]
    assert said["message_id"].startswith("say:")
    assert properties.content_type == "application/json"
    assert properties.delivery_mode == 2
    stated = datetime.fromisoformat(said["timestamp"])
    assert before.replace(microsecond=0) <= stated <= datetime.now(UTC)
    assert properties.timestamp == int(stated.timestamp())


@pytest.mark.integration
def test_the_user_of_the_settings_needs_no_grant(house: House) -> None:
    user = house.management.user
    assert command(house.settings, "say", "BTC-USD", "by the house", "--as", user).exit_code == 0
    assert house.history(ROOM)[-1].user_id == user


@pytest.mark.integration
def test_a_granted_account_talks_and_reads_with_its_url_alone(house: House) -> None:
    alice = house.account("alice")
    away = as_user(house, house.grant(alice))
    assert command(away, "say", "BTC-USD", "from afar", "--as", alice).exit_code == 0
    shown = command(away, "tail", "BTC-USD", "--no-follow", "--last", "1")
    assert shown.stdout.endswith(f"  <{alice}> from afar\n")
    house.post(house.room("alice"), type="fill", text="a fill")
    assert command(away, "tail", house.room("alice"), "--no-follow").stdout == "a fill\n"
    assert "RabbitMQ does not let" in error(away, "tail", house.room("bob"))
    assert "RabbitMQ does not let" in error(away, "tail", house.room("nobody"))
    assert "There is no room 'room.NO-ROOM'" in error(away, "tail", "NO-ROOM")
    assert "needs the tag 'management'" in error(away, "rooms")
    assert "needs the tag 'administrator'" in error(away, "grant", house.account("bob"))


@pytest.mark.integration
@pytest.mark.parametrize(
    ("room", "text", "reason"),
    [
        ("NO-ROOM", "hi", "There is no room 'room.NO-ROOM' yet: RabbitMQ returned the message."),
        ("account.alice", "hi", "'account.alice' is private"),
        ("BTC", "hi", "is no room's name"),
        ("BTC-USD", "", "the text is empty"),
        ("BTC-USD", " \u200b\u3000\u0301\t\n", "the text is empty"),
        ("BTC-USD", "é" * (MOST_CHARACTERS + 1), "1,001 characters, and 1,000 is the most"),
        ("BTC-USD", "x" + "\x1b" * 250, "1,001 characters"),
    ],
)
def test_what_cannot_be_said_is_refused_in_a_sentence(
    house: House, room: str, text: str, reason: str
) -> None:
    assert reason in error(house.settings, "say", room, text, "--as", house.account("alice"))


@pytest.mark.integration
def test_the_longest_text_is_taken_whole(house: House) -> None:
    text = "\U0001f680" * MOST_CHARACTERS
    done = command(house.settings, "say", "BTC-USD", text, "--as", house.account("alice"))
    assert done.exit_code == 0
    shown = command(house.settings, "tail", "BTC-USD", "--no-follow", "--last", "1").stdout
    assert text in shown


@pytest.mark.integration
def test_who_has_no_password_here_or_an_old_one_is_told_what_to_do(house: House) -> None:
    bob = house.account("bob")
    assert f"run 'chat-bridge grant {bob}' here" in error(
        house.settings, "say", "BTC-USD", "hi", "--as", bob
    )
    house.grant(bob)
    elsewhere = house.settings.model_copy(update={"state_dir": Path("elsewhere")})
    command(elsewhere, "grant", bob)
    assert "does not take the password" in error(
        house.settings, "say", "BTC-USD", "hi", "--as", bob
    )
    assert command(elsewhere, "say", "BTC-USD", "hi", "--as", bob).exit_code == 0
    # Nor is a path made of what is no account's name.
    assert "is no account's name" in error(house.settings, "say", "BTC-USD", "hi", "--as", "../bob")


@pytest.mark.integration
def test_before_there_are_rooms_nobody_talks(house: House, settings: Settings) -> None:
    user = house.management.user
    assert "There is no room" in error(settings, "say", "BTC-USD", "hi", "--as", user)


@pytest.mark.integration
def test_an_account_of_other_rooms_may_not_talk_here(house: House, settings: Settings) -> None:
    alice = house.account("alice")
    other = House(settings)
    other.make(ROOM)
    away = as_user(other, house.grant(alice))
    assert "does not let" in error(away, "say", "BTC-USD", "hi", "--as", alice)
    with pytest.raises(InputError, match="was not made by 'chat-bridge grant' for these rooms"):
        other.access.grant(alice)


# -- not too fast


def test_some_messages_may_be_sent_at_once_and_then_one_at_a_time(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_800_000_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    for _ in range(AT_ONCE):
        keep_pace(settings, "alice")
    with pytest.raises(InputError, match=r"the next message may be sent in 1\.0 s"):
        keep_pace(settings, "alice")
    keep_pace(settings, "bob")
    now += PAUSE_S / 2
    with pytest.raises(InputError, match=r"in 0\.5 s"):
        keep_pace(settings, "alice")
    now += PAUSE_S / 2
    keep_pace(settings, "alice")
    now += 1000
    for _ in range(AT_ONCE):
        keep_pace(settings, "alice")
    now -= 500_000  # a clock that is put back lets nobody wait for days
    with pytest.raises(InputError, match=r"in 1\.0 s"):
        keep_pace(settings, "alice")
    for file in settings.state_dir.rglob("alice.pace"):
        file.write_text("nonsense")
    keep_pace(settings, "alice")


def test_processes_that_say_something_together_are_counted_together(settings: Settings) -> None:
    said = []

    def one() -> None:
        try:
            keep_pace(settings, "alice")
        except InputError:
            return
        said.append(1)

    threads = [threading.Thread(target=one) for _ in range(4 * AT_ONCE)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert AT_ONCE <= len(said) <= AT_ONCE + (time.monotonic() - began) / PAUSE_S


# -- nobody passes for the bridge, or for somebody else


FORGED: Final[dict[str, Any]] = {
    "type": "trade",
    "message_id": "fills:0:0:room",
    "timestamp": "2015-05-01T00:00:07Z",
    "text": "BTC-USD  sell 99 @ 1",
    "instrument": "ETH-USD",
    "price": "1",
    "from": "bob",
    "said_by": "bob",
    "user_id": "ledger",
    "stream_offset": 3,
}


@pytest.mark.integration
@pytest.mark.parametrize("signed", [True, False])
def test_a_forged_trade_is_shown_as_what_its_sender_says(house: House, signed: bool) -> None:
    alice = house.account("alice")
    with connected(house.grant(alice)) as channel:
        channel.basic_publish(
            house.name("chat.say"),
            "say.BTC-USD",
            json.dumps(FORGED).encode(),
            BasicProperties(
                user_id=alice if signed else None,
                message_id="fills:0:0:room",
                type="trade",
                app_id="chat-bridge",
                headers={"x-stream-offset": "0", "partition": 0, "offset": 0},
            ),
            mandatory=True,
        )
    last = ["tail", "BTC-USD", "--no-follow", "--last", "1"]
    who = alice if signed else "?"
    assert command(house.settings, *last).stdout == (
        f"2015-05-01T00:00:07Z  <{who}> BTC-USD  sell 99 @ 1\n"
    )
    (shown,) = json.loads(command(house.settings, *last, "--json").stdout)["messages"]
    assert shown.pop("stream_offset") > 0
    assert shown == {
        "type": "say",
        "message_id": None,
        "timestamp": "2015-05-01T00:00:07Z",
        "text": "BTC-USD  sell 99 @ 1",
        "instrument": "BTC-USD",
        "said_by": alice if signed else None,
        "user_id": alice if signed else None,
    }


@pytest.mark.parametrize("when", ["2015-05-01T00:00:06Z  BTC-USD  sell 1 @ 2", "soon", 5, None])
def test_only_a_time_is_shown_where_the_time_is(when: object) -> None:
    body = json.dumps({"text": "hi", "timestamp": when}).encode()
    assert Entry(0, body, "say.BTC-USD", "alice").line() == ("", "<alice> hi")


@pytest.mark.parametrize("body", [b"\xff\x1b[31m", b"[1]", b'{"text": 5}', b"{", b"", b"1e999"])
def test_whatever_is_said_is_shown_as_said(body: bytes) -> None:
    entry = Entry(3, body, "say.BTC-USD", "alice", "say:1")
    shown = entry.document()
    assert (shown["type"], shown["said_by"], shown["message_id"]) == ("say", "alice", "say:1")
    assert isinstance(shown["text"], str)
    assert entry.line()[1].startswith("<alice> ")
    assert "\x1b" not in entry.line()[1]


# -- nothing that is said breaks a terminal, a page, or a reader


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("[bold]x[/] [link=http://x]y[/link] :key:", "[bold]x[/] [link=http://x]y[/link] :key:"),
        ("<b>&amp;</b>", "<b>&amp;</b>"),
        ("\x1b[31mred\x9b0m", r"\x1b[31mred\x9b0m"),
        ("\x1b]8;;http://x\x1b\\y", r"\x1b]8;;http://x\x1b" + "\\y"),
        ("a\x07\b\r\x00", r"a\x07\x08 \x00"),
        ("two\r\nlines\u2028three\x85", "two lines three"),
        ("\u202egnp.exe\u2066", r"\u202egnp.exe\u2066"),
        ("a\u200bb\ufeffc\u00add\U000e0041", r"a\u200bb\ufeffc\xadd\U000e0041"),
        ("Z" + "\u0301" * 50 + "a", "Z" + "\u0301" * 4 + "a"),
        ("\u0e01" + "\u0e47" * 50, "\u0e01" + "\u0e47" * 4),
        # Nothing is lost of what people write with.
        (
            "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
            "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        ),
        (
            "\U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f",
            "\U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f",
        ),
        ("Tiếng Việt, ñandú, 한국어", "Tiếng Việt, ñandú, 한국어"),
    ],
)
def test_text_is_made_harmless_where_it_is_said_and_where_it_is_shown(
    said: str, shown: str
) -> None:
    assert saying("BTC-USD", said, "alice").text == shown.strip()
    body = json.dumps({"text": said}).encode()
    line = Entry(0, body, "say.BTC-USD", "alice").line()[1]
    assert line == f"<alice> {harmless(said)}"
    assert len(line.splitlines()) == 1


@given(st.text(st.characters(), max_size=200))
def test_json_shown_on_a_terminal_is_the_same_and_steers_nothing(text: str) -> None:
    document = {"text": text, "more": [1, {"\u202e": None}]}
    shown = harmless_json(json.dumps(document, ensure_ascii=False, indent=2))
    assert json.loads(shown) == json.loads(json.dumps(document))
    for character in shown.replace("\n", ""):
        assert character.isprintable() or harmless(character) == character
    shown.encode()


@pytest.mark.integration
def test_a_message_whose_properties_are_no_text_keeps_nobody_from_reading_on(
    house: House,
) -> None:
    """RabbitMQ takes such properties, and aio-pika's client would end the connection at them."""
    alice = house.account("alice")
    room = "room.ETH-USD"
    bad: Any = b"\xff\xfe"
    with connected(house.grant(alice)) as channel:
        for properties in (
            BasicProperties(message_id=bad, type=bad, content_type=bad, app_id=bad),
            BasicProperties(headers={bad: 1, "k": bad, "n": {"m": [bad]}}),
            BasicProperties(timestamp=2**53),
            BasicProperties(timestamp=2**64 - 1),
            BasicProperties(user_id=alice),
        ):
            channel.basic_publish(
                house.name("chat.say"), "say.ETH-USD", b'"x"', properties, mandatory=True
            )

    async def read() -> list[Entry]:
        async with await connect(house.amqp, "test") as connection:
            return await Rooms(connection, house.settings).last(room, 100)

    found = asyncio.run(read())
    assert [entry.offset for entry in found] == list(range(5))
    assert found[-1].user_id == alice


@pytest.mark.integration
def test_a_bridge_binds_public_rooms_to_what_people_say(settings: Settings) -> None:
    from chat_bridge.poster import Poster

    house = House(settings)

    async def declare() -> None:
        poster = await Poster.open(house.amqp, settings)
        await poster.declare([ROOM, "account.alice"])
        await poster.close()

    asyncio.run(declare())
    assert house.bindings() == {
        (settings.topic("chat.rooms"), ROOM, settings.topic(ROOM)),
        (settings.topic("chat.say"), "say.BTC-USD", settings.topic(ROOM)),
        (settings.topic("chat.rooms"), "account.alice", settings.topic("account.alice")),
    }
