"""No replay has an effect on the running system: brokers, groups, rooms, states and snapshots.

Everything that can be asked of Kafka and RabbitMQ, and the files of a worker, are looked at before
and after each command: nothing may differ.
"""

from __future__ import annotations

import asyncio
import base64
import fcntl
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import urllib.request
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from itertools import islice
from pathlib import Path
from typing import Any, Final
from urllib.error import HTTPError
from urllib.parse import quote, unquote, urlsplit

import pytest
from confluent_kafka import (
    ConsumerGroupTopicPartitions,
    IsolationLevel,
    Producer,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, ConfigResource, OffsetSpec

from chat_bridge.amqp import connect
from chat_bridge.history import Rooms
from chat_bridge.listing import listed_rooms
from chat_bridge.names import EXCHANGE, GROUP
from ledger.console import COULD_NOT_RUN, DIFFERENT, FINE
from ledger.settings import Settings
from ledger.stack import Endpoints
from tests.support import (
    BITSTAMP,
    cluster_of,
    environment,
    eventually,
    lines_of,
    publish,
    published_at_end,
    settings_on,
    worker,
)
from tests.test_bridge import post_all
from tests.test_bridge_messages import FILL
from tests.test_replay import RunReplay, deposit
from tests.test_replay import replay as replay  # a fixture
from tests.test_trouble import configure

pytestmark = pytest.mark.integration

ACCOUNT: Final = "trader-64"
EVENT: Final = "bts-fill-189"
WORKERS: Final = "ledger"
"""The workers' consumer group."""

# Other tests may use the same servers at the same time.
_OTHER_TESTS: Final = re.compile(r"t[0-9a-f]{8}-")

Picture = dict[str, Any]


def may_be_ours(name: str, prefix: str) -> bool:
    """Whether a topic, group or queue is this ledger's, or nobody's."""
    return name.startswith(prefix) or not _OTHER_TESTS.match(name)


# -- what there is in Kafka


def kafka_picture(settings: Settings) -> Picture:
    """Return topics, their shapes, settings and offsets, and groups and what they committed."""
    admin = cluster_of(settings).admin
    prefix = settings.topic_prefix
    names = sorted(name for name in admin.list_topics().topics if may_be_ours(name, prefix))
    ours = [name for name in names if name.startswith(prefix)]
    topics = {
        name: future.result()
        for name, future in admin.describe_topics(TopicCollection(ours)).items()
    }
    resources = [ConfigResource(ConfigResource.Type.TOPIC, name) for name in ours]
    slots = [(name, part.id) for name, topic in topics.items() for part in topic.partitions]
    listed = admin.list_consumer_groups().result()
    assert not listed.errors
    groups = {
        group.group_id: (group.state.name, group.type.name, group.is_simple_consumer_group)
        for group in listed.valid
        if may_be_ours(group.group_id, prefix)
    }
    return {
        "topics": names,
        "shapes": {
            name: (str(topic.topic_id), [part.id for part in topic.partitions])
            for name, topic in topics.items()
        },
        "configs": {
            resource.name: {key: entry.value for key, entry in future.result().items()}
            for resource, future in admin.describe_configs(resources).items()
        },
        "earliest": offsets(admin, slots, OffsetSpec.earliest()),
        "ends": offsets(admin, slots, OffsetSpec.latest()),
        "groups": sorted(groups),
        "group_states": {name: how for name, how in groups.items() if name.startswith(prefix)},
        "members": {name: members(admin, name) for name in groups if name.startswith(prefix)},
        "committed": {name: committed(admin, name) for name in groups if name.startswith(prefix)},
    }


def offsets(
    admin: AdminClient, slots: Iterable[tuple[str, int]], spec: OffsetSpec
) -> dict[tuple[str, int], int]:
    asked = {TopicPartition(topic, number): spec for topic, number in slots}
    # Records of a transaction that was begun and not committed count, too.
    found = admin.list_offsets(asked, isolation_level=IsolationLevel.READ_UNCOMMITTED)
    return {(slot.topic, slot.partition): int(f.result().offset) for slot, f in found.items()}


def committed(admin: AdminClient, group: str) -> dict[tuple[str, int], int]:
    asked = [ConsumerGroupTopicPartitions(group)]
    found = admin.list_consumer_group_offsets(asked)[group].result()
    return {(slot.topic, slot.partition): slot.offset for slot in found.topic_partitions}


def members(admin: AdminClient, group: str) -> dict[str, list[tuple[str, int]]]:
    """Return the ids of a group's members, each with what is assigned to it."""
    found = admin.describe_consumer_groups([group])[group].result()
    return {
        member.member_id: sorted(
            (slot.topic, slot.partition) for slot in member.assignment.topic_partitions
        )
        for member in found.members
    }


# -- what there is in RabbitMQ


def rabbit_picture(settings: Settings) -> Picture:
    """Return users, permissions, exchanges, queues and bindings, and what is in the rooms."""
    found = eventually(lambda: definitions(settings))
    picture = {
        what: sorted(
            json.dumps(one, sort_keys=True)
            for one in found[what]
            if all(
                may_be_ours(str(one.get(name, "")), settings.topic_prefix)
                for name in ("name", "source", "destination", "user")
            )
        )
        for what in (
            "users", "vhosts", "permissions", "topic_permissions", "parameters",
            "global_parameters", "policies", "queues", "exchanges", "bindings",
        )
    }  # fmt: skip
    # Its own message counts are some seconds old, so the rooms themselves are read.
    picture["rooms"] = asyncio.run(rooms_picture(settings))
    return picture


async def rooms_picture(settings: Settings) -> list[str]:
    """Return each room's name and the offset and body of its last message."""
    assert settings.amqp is not None
    amqp = settings.amqp.get_secret_value()
    listed = listed_rooms(settings, amqp, settings.amqp_management)
    names = [room.name for room in listed]
    async with await connect(amqp, settings.topic("test")) as connection:
        newest = await asyncio.gather(*map(Rooms(connection, settings).newest, names))
    return [f"{name}: {entry}" for name, entry in zip(names, newest, strict=True)]


def definitions(settings: Settings) -> Any:
    """Return all that is defined; None where RabbitMQ fails, as while a stream is being made."""
    try:
        return management(settings, "definitions")
    except HTTPError as error:
        if error.code != HTTPStatus.INTERNAL_SERVER_ERROR:
            raise
        return None


def management(settings: Settings, path: str, document: Any = None, method: str = "GET") -> Any:
    """Ask RabbitMQ's management page, or tell it something."""
    assert settings.amqp is not None
    parts = urlsplit(settings.amqp.get_secret_value())
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    request = urllib.request.Request(
        f"{settings.amqp_management}/api/{path}",
        headers={
            "Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode(),
            "Content-Type": "application/json",
        },
        data=None if document is None else json.dumps(document).encode(),
        method=method,
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        content = answer.read()
    return json.loads(content) if content else None


# -- what there is on disk


def files_picture(*places: Path) -> dict[str, tuple[int, int, str]]:
    """Return the files in some directories: size, time of the last change, and content."""
    return {
        str(path): (
            path.stat().st_size,
            path.stat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for place in places
        for path in (place, *place.rglob("*"))
        if path.exists()
    }


def picture(settings: Settings) -> Picture:
    """Return everything that a replay could have an effect on."""
    assert isinstance(settings.snapshot_dir, Path)
    return {
        "kafka": kafka_picture(settings),
        "rabbit": rabbit_picture(settings),
        "files": files_picture(settings.state_dir, settings.snapshot_dir),
    }


# -- one ledger with all that a running system makes


@dataclass(frozen=True)
class Prepared:
    """A ledger that worked for a while.

    Attributes:
        middle: a time between the first half of its records and the second.
        before: what there was when its processes had stopped.
    """

    settings: Settings
    middle: str
    before: Picture


@pytest.fixture(scope="module")
def ledger(stack: Endpoints, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A ledger whose worker folded two halves of some records, a snapshot after each."""
    directory = tmp_path_factory.mktemp("ledger")
    settings = settings_on(stack, directory, 4)
    files = {path.stem: path for path in BITSTAMP}
    lines = [
        line
        for name, count in (("transfers", 100), ("orders", 600), ("fills", 12))
        for line in islice(lines_of([files[name]]), count)
    ]
    middle = ""
    for number, half in enumerate((lines[::2], lines[1::2])):
        middle = datetime.now(UTC).isoformat()
        publish(settings, half)
        with worker(settings, directory / f"{number}.log") as process:
            eventually(lambda: published_at_end(settings))
            process.terminate()  # it writes its last snapshots then
            assert process.wait(30) == 0
    assert post_all(settings)["messages"] >= 12
    before = picture(settings)
    assert len(list((settings.state_dir / "snapshots").rglob("*.parquet"))) >= 8
    assert len(before["rabbit"]["rooms"]) > 2
    assert any(before["kafka"]["committed"].values())
    return Prepared(settings, middle, before)


def words_of(command: str, ledger: Prepared, directory: Path) -> list[str]:
    """Return a command's words, with the files and names that it is about."""
    (directory / "fees.toml").write_text('[[fee]]\nmaker = "0"\ntaker = "0.001"\n')
    (directory / "true.txt").write_text("nobody USD = 0\nnobody BTC hold = 0 at 20\n")
    (directory / "false.txt").write_text("nobody USD = 1\n")
    return command.format(account=ACCOUNT, event=EVENT, time=ledger.middle).split()


COMMANDS: Final = {
    "": FINE,
    "--json": FINE,
    "--base snapshot --from-offset latest": FINE,
    "--base genesis": FINE,
    "--base empty --from-offset 20": FINE,
    "--from-offset 20 --from-offset fills:3=1 --to-offset orders=70": FINE,
    "--from-time {time}": FINE,
    "--to-time {time} --account {account} --asset USD": FINE,
    "--from-offset fills:0=999999": COULD_NOT_RUN,
    "--verify": FINE,
    "--verify --base genesis --from-time {time}": FINE,
    "--threads 2": FINE,
    "--state new": FINE,
    "--state new --threads 2 --from-offset 20": FINE,
    "--into new": FINE,
    "--into new --workers 2 --threads 2": FINE,
    "--out new --journal": FINE,
    "--out new --journal --format csv": FINE,
    "--out new --journal --format jsonl --from-offset 20": FINE,
    "--plot new.svg --account {account}": FINE,
    "--plot new.png --account {account} --asset USD": FINE,
    "--fees fees.toml": FINE,
    "--ignore-account {account} --json": FINE,
    "--without-event {event} --without-event orders:0:3": FINE,
    "--fees fees.toml --ignore-account {account} --threads 2 --out new": FINE,
    "verify": FINE,
    "verify --json": FINE,
    "diff 20 latest": FINE,
    "diff {time} latest --account {account} --threads 2": FINE,
    "statement {account} --from-offset 20": FINE,
    "statement @fees --to-time {time} --json": FINE,
    "assert true.txt": FINE,
    "assert false.txt --json": DIFFERENT,
}


@pytest.mark.parametrize(("command", "code"), COMMANDS.items(), ids=COMMANDS)
def test_a_replay_has_no_effect_on_the_running_system(
    ledger: Prepared,
    replay: RunReplay,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    command: str,
    code: int,
) -> None:
    """Nor does it leave a file but those that it was asked for."""
    words = words_of(command, ledger, tmp_path)
    inputs = set(tmp_path.iterdir())
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    ran = replay(ledger.settings, *words)
    assert ran.code == code, ran.err
    assert picture(ledger.settings) == ledger.before
    asked_for = {tmp_path / word for word in words if word.startswith("new")}
    assert set(tmp_path.iterdir()) - inputs - {temporary} == asked_for
    assert not list(temporary.iterdir())


@pytest.mark.parametrize(
    ("options", "number"),
    [
        ("--state new --threads 1", signal.SIGINT),
        ("--state new --threads 2", signal.SIGINT),
        ("--state new --threads 2", signal.SIGTERM),
    ],
)
def test_a_replay_that_is_interrupted_has_no_effect_on_the_running_system(
    ledger: Prepared, tmp_path: Path, options: str, number: signal.Signals
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with subprocess.Popen(
        [sys.executable, "-m", "replay", "--json", *options.split()],
        env={**environment(ledger.settings), "TMPDIR": str(temporary)},
        cwd=tmp_path,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)  # so it cannot end before we read
        eventually((tmp_path / "new" / "replay.json").exists)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        _, err = process.communicate(timeout=60)
    said = "Interrupted.\n" if number == signal.SIGINT else ""
    assert (process.returncode, err) == (128 + number, said)
    assert picture(ledger.settings) == ledger.before
    assert not list(temporary.iterdir())


def test_a_replay_beside_a_running_worker_leaves_its_group_as_it_is(
    settings: Settings, replay: RunReplay, tmp_path: Path
) -> None:
    admin = cluster_of(settings).admin
    group = settings.topic(WORKERS)
    log = tmp_path / "1.log"

    def group_picture() -> tuple[dict[str, list[tuple[str, int]]], int]:
        """Return who is in the group with what, and how often its partitions were given out."""
        return members(admin, group), log.read_text().count("folding partitions")

    publish(settings, (deposit(f"account-{number}", number) for number in range(200)))
    with worker(settings, log) as process:
        eventually(lambda: published_at_end(settings))
        before = group_picture()
        assert sum(map(len, before[0].values())) == 3 * 8
        for options in ((), ("--verify",), ("--threads", "2"), ("verify",), ("diff", "5", "9")):
            assert replay(settings, *options).code == FINE
            assert group_picture() == before
        publish(settings, (deposit("account-0", number) for number in range(200, 210)))
        assert replay(settings).code == FINE
        eventually(lambda: published_at_end(settings))
        assert group_picture() == before
        assert process.poll() is None


def test_the_picture_shows_every_kind_of_effect(settings: Settings) -> None:
    """What the tests above rely on."""
    admin = cluster_of(settings).admin
    publish(settings, [json.dumps(FILL).encode()])
    assert post_all(settings)["messages"] == 2
    foreign = f"foreign-{uuid.uuid4().hex}"  # a group of nobody's, as a careless reader's would be

    def publish_a_record() -> None:
        publish(settings, [deposit("alice", 1)])

    def begin_a_transaction() -> None:
        producer = Producer(
            {"bootstrap.servers": settings.kafka, "transactional.id": settings.topic("mine")}
        )
        producer.init_transactions(30)
        producer.begin_transaction()
        producer.produce(settings.topic("balances"), b"{}", b"alice")
        producer.flush(30)
        producer.abort_transaction(30)

    def commit_an_offset(name: str) -> None:
        where = [TopicPartition(settings.topic("fills"), 0, 1)]
        asked = [ConsumerGroupTopicPartitions(name, where)]
        for future in admin.alter_consumer_group_offsets(asked).values():
            future.result()

    def say_something() -> None:
        management(
            settings,
            f"exchanges/{vhost}/{settings.topic(EXCHANGE)}/publish",
            {
                "properties": {},
                "routing_key": "room.BTC-USD",
                "payload": "hello",
                "payload_encoding": "string",
            },
            "POST",
        )

    def make_a_queue() -> None:
        management(settings, f"queues/{vhost}/{settings.topic('mine')}", {"durable": True}, "PUT")

    assert settings.amqp is not None
    vhost = quote(unquote(urlsplit(settings.amqp.get_secret_value()).path[1:]) or "/", safe="")
    before = picture(settings)
    for act, server, parts in (
        (publish_a_record, "kafka", {"ends"}),
        (begin_a_transaction, "kafka", {"ends"}),
        (lambda: commit_an_offset(settings.topic(GROUP)), "kafka", {"committed"}),
        (lambda: commit_an_offset(foreign), "kafka", {"groups"}),
        (lambda: configure(settings, "fills", "retention.ms", "1"), "kafka", {"configs"}),
        (say_something, "rabbit", {"rooms"}),
        (make_a_queue, "rabbit", {"queues"}),
    ):
        act()
        after = picture(settings)
        assert after.keys() == before.keys()
        differ = {
            (s, part) for s in after for part in after[s] if after[s][part] != before[s][part]
        }
        assert differ == {(server, part) for part in parts}
        before = after
    (settings.state_dir / "mine").touch()
    assert picture(settings)["files"] != before["files"]
    admin.delete_consumer_groups([foreign])[foreign].result()
