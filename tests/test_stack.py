"""The local stack: its pure parts, and a whole second stack in a directory with a space."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import aio_pika
import psutil
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from pydantic import SecretStr

from ledger import stack
from ledger.errors import ConfigurationError, StackError
from ledger.settings import Settings, load_settings, mask_url
from ledger.stack import install, jars, kafka, local, logs, ports, process, rabbitmq
from ledger.stack.state import KafkaRecord, RabbitRecord, StackDirectory, StackRecord
from tests.support import command, eventually
from tests.support import publish as publish_events
from tests.support import running as running_module
from tests.test_bridge_messages import FILL

NOWHERE = "127.0.0.1:1"
KAFKA = KafkaRecord(port=9092, controller_port=9093)
RABBIT = RabbitRecord(
    port=5672, management_port=15672, stream_port=5552, distribution_port=25672, epmd_port=4369
)


def quiet(_: str) -> None:
    """Stand in for a person who watches."""


# --- settings in, addresses out ------------------------------------------------------------------


def test_named_servers_are_used_without_a_local_stack(tmp_path: Path) -> None:
    settings = Settings(
        kafka="a:1,b:2",
        amqp=SecretStr("amqp://u:p@h/"),
        amqp_management="http://h:3",
        state_dir=tmp_path,
    )
    named = stack.Endpoints(kafka="a:1,b:2", amqp="amqp://u:p@h/", management="http://h:3")
    assert stack.endpoints(settings) == named
    assert stack.up(settings, quiet) == named
    assert list(tmp_path.iterdir()) == []


def test_what_is_neither_named_nor_running_says_what_to_do(tmp_path: Path) -> None:
    only_kafka = Settings(kafka="a:1", state_dir=tmp_path)
    assert stack.kafka_endpoint(only_kafka) == "a:1"
    with pytest.raises(ConfigurationError, match=r"Run 'ledger up' or set LEDGER_AMQP\."):
        stack.amqp_endpoint(only_kafka)
    with pytest.raises(ConfigurationError, match=r"Run 'ledger up' or set LEDGER_KAFKA\."):
        stack.kafka_endpoint(Settings(state_dir=tmp_path))


def test_status_and_down_of_a_stack_that_never_was(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path / "none")
    found = stack.status(settings).as_json()
    assert found["kafka"] == {"url": None, "up": False}
    assert found["amqp"] == {"url": None, "management": None, "up": False}
    assert stack.down(settings, quiet) == []
    assert not (tmp_path / "none").exists()


def test_status_of_named_servers_that_do_not_answer_shows_no_password(tmp_path: Path) -> None:
    settings = Settings(
        kafka=NOWHERE, amqp=SecretStr("amqp://me:s3cr3t@127.0.0.1:1/"), state_dir=tmp_path
    )
    found = stack.status(settings).as_json()
    assert found["kafka"] == {"url": NOWHERE, "up": False}
    assert found["amqp"] == {
        "url": "amqp://me:***@127.0.0.1:1/",
        "management": None,
        "up": False,
    }
    assert found["settings"]["amqp"] == "amqp://me:***@127.0.0.1:1/"
    assert "s3cr3t" not in str(found)


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("amqp://u:p@h:1/v", "amqp://u:***@h:1/v"),
        ("amqp://u:p@/:x@h/", "amqp://u:***@h/"),
        ("amqps://u:@h", "amqps://u:***@h"),
        ("amqp://:p@h", "amqp://:***@h"),
        ("amqp://u@h:1/", "amqp://u@h:1/"),
        ("http://h:15672", "http://h:15672"),
        ("h:9092,g:9092", "h:9092,g:9092"),
    ],
)
def test_passwords_in_urls_are_masked(url: str, masked: str) -> None:
    assert mask_url(url) == masked


def test_a_setting_that_cannot_be_used_is_shown_without_its_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LEDGER_SNAPSHOTS", "s3://me:s3cr3t@bucket/snapshots")
    with pytest.raises(ConfigurationError, match=r"^LEDGER_SNAPSHOTS: .*me:\*\*\*@bucket"):
        load_settings()


# --- configuration of the servers ----------------------------------------------------------------


def test_servers_are_told_to_listen_on_loopback_only(tmp_path: Path) -> None:
    broker = kafka.server_properties(KAFKA, tmp_path / "däta")
    assert "listeners=PLAINTEXT://127.0.0.1:9092,CONTROLLER://127.0.0.1:9093\n" in broker
    assert "log.dirs=" in broker
    assert "d\\u00e4ta" in broker
    rabbit = rabbitmq.configuration(RABBIT, "pw")
    assert "listeners.tcp.1 = 127.0.0.1:5672\n" in rabbit
    assert "management.tcp.ip = 127.0.0.1\n" in rabbit
    assert "guest" not in rabbit


def test_the_pom_pins_the_broker() -> None:
    pom = Path(jars.__file__).with_name("pom.xml").read_bytes()
    assert jars.kafka_version(pom).startswith("4.")
    assert b"SNAPSHOT" not in pom
    assert b"<version>[" not in pom


def test_a_jar_that_was_cut_short_makes_the_cache_incomplete(tmp_path: Path) -> None:
    (tmp_path / "a.jar").write_bytes(b"1234")
    (tmp_path / jars.INVENTORY).write_text(jars._inventory(tmp_path))
    assert jars._is_complete(tmp_path)
    (tmp_path / "a.jar").write_bytes(b"12")
    assert not jars._is_complete(tmp_path)
    assert not jars._is_complete(tmp_path / "none")


def test_without_a_home_the_jars_go_to_the_state_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert jars._cache(tmp_path / "fallback") == tmp_path / "fallback"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert jars._cache(tmp_path / "fallback") == tmp_path / "cache" / "ledger"


def test_the_newest_line_about_an_error_is_found(tmp_path: Path) -> None:
    log, console = tmp_path / "server.log", tmp_path / "console.log"
    log.write_text("INFO fine\nERROR port in use\n\tat some.Frame(x)\nINFO stopping\n\n")
    console.write_text("hello\n")
    assert logs.last_meaningful_line([console, log]) == "ERROR port in use"
    assert logs.last_meaningful_line([console]) == "hello"
    assert logs.last_meaningful_line([tmp_path / "none"]) == "its log is empty"


# --- ports ---------------------------------------------------------------------------------------


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


def test_a_taken_configured_port_is_one_sentence(taken_port: int, tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path, kafka_port=taken_port, amqp="amqp://h/")
    with pytest.raises(StackError) as caught:
        stack.up(settings, quiet)
    assert f"port {taken_port} " in str(caught.value)
    assert "LEDGER_KAFKA_PORT" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert stack.down(settings, quiet) == []


def test_a_free_port_is_kept_over_restarts_unless_it_was_taken(taken_port: int) -> None:
    first = ports.Ports(reserved=set()).free(None)
    assert ports.Ports(reserved=set()).free(first) == first
    assert ports.Ports(reserved={first}).free(first) != first
    assert ports.Ports(reserved=set()).free(taken_port) != taken_port
    chooser = ports.Ports(reserved=set())
    assert chooser.free(first) != chooser.free(first)


# --- processes -----------------------------------------------------------------------------------


def run_sleeper(tmp_path: Path, script: str = "sleep 300") -> process.Process:
    return process.launch(
        ["/bin/sh", "-c", script],
        mark=str(tmp_path),
        environment=dict(os.environ),
        directory=tmp_path,
        console=tmp_path / "console",
    )


def test_a_reused_pid_is_never_stopped(tmp_path: Path) -> None:
    sleeper = run_sleeper(tmp_path)
    try:
        process.stop([process.Process(sleeper.pid, "another:1")], 1)
        assert sleeper.is_running()
    finally:
        process.stop([sleeper], 1)
    assert not sleeper.is_running()


def test_what_ignores_the_request_or_is_paused_is_stopped_all_the_same(tmp_path: Path) -> None:
    stubborn = run_sleeper(tmp_path, "trap '' TERM; echo ready; while :; do sleep 0.05; done")
    assert process.wait_until(lambda: (tmp_path / "console").read_text() == "ready\n", 10)
    stubborn.send(signal.SIGSTOP)
    process.stop([stubborn], 0.2)
    assert not stubborn.is_running()
    process.stop(process.marked(str(tmp_path)), 5)


def test_children_are_found_by_the_mark_when_their_parent_has_gone(tmp_path: Path) -> None:
    parent = run_sleeper(tmp_path, "sleep 300 & wait")
    assert process.wait_until(lambda: len(process.marked(str(tmp_path))) == 2, 10)
    parent.send(signal.SIGKILL)
    assert process.wait_until(lambda: not parent.is_running(), 10)
    left = process.marked(str(tmp_path))
    assert len(left) == 1
    process.stop(left, 5)
    assert process.marked(str(tmp_path)) == []
    assert process.marked(str(tmp_path.parent)) == []


# --- installing ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("banner", "major"),
    [
        ('openjdk version "17.0.15" 2025-04-15', 17),
        ('java version "1.8.0_392"', 8),
        ('openjdk version "21" 2023-09-19', 21),
        ("command not found", None),
    ],
)
def test_java_versions_are_read(banner: str, major: int | None) -> None:
    assert install.java_major(banner) == major


def test_what_cannot_be_installed_is_named_with_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(install, "find_rabbitmq_server", lambda: None)
    monkeypatch.setattr(install, "_find_java", lambda: None)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(StackError, match="sudo apt-get install rabbitmq-server"):
        install.rabbitmq_server(quiet)
    with pytest.raises(StackError, match="sudo apt-get install openjdk-17-jre-headless"):
        install.java(quiet)
    with pytest.raises(StackError, match="sudo apt-get install maven"):
        install.maven(quiet)


@pytest.mark.parametrize("before", [None, "#!/bin/sh\nexit 104\n"])
def test_packages_start_no_service_and_the_policy_is_put_back(
    before: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = tmp_path / "policy-rc.d"
    monkeypatch.setattr(install, "POLICY", policy)
    monkeypatch.setattr(install, "SAVED_POLICY", tmp_path / "saved")
    if before is not None:
        policy.write_text(before)
        policy.chmod(0o755)
    with install._services_stay_stopped():
        assert subprocess.run([policy], check=False).returncode == 101
        abandoned = policy.read_text().replace(f"kill -0 {os.getpid()} ", "kill -0 4194305 ")
        policy.write_text(abandoned)  # what a killed installation leaves behind
        expected = 0 if before is None else 104
        assert subprocess.run([policy], check=False).returncode == expected
    assert (policy.read_text() if policy.exists() else None) == before
    assert not (tmp_path / "saved").exists()


# --- the record ----------------------------------------------------------------------------------


def test_the_record_survives_and_a_broken_one_is_one_sentence(tmp_path: Path) -> None:
    directory = StackDirectory(Settings(state_dir=tmp_path))
    assert directory.read() == StackRecord()
    directory.create()
    record = StackRecord(kafka=KAFKA, rabbitmq=RABBIT)
    directory.write(record)
    assert directory.read() == record
    assert directory.record_file.stat().st_mode & 0o777 == 0o600
    directory.record_file.write_text("{")
    with pytest.raises(StackError, match="delete it and run 'ledger up'"):
        directory.read()


# --- a whole stack -------------------------------------------------------------------------------


def recorded(settings: Settings) -> tuple[KafkaRecord, RabbitRecord]:
    record = StackDirectory(settings).read()
    assert record.kafka is not None
    assert record.rabbitmq is not None
    return record.kafka, record.rabbitmq


def named_servers(settings: Settings) -> Settings:
    """Return settings that name the servers of a stack."""
    found = stack.endpoints(settings)
    return settings.model_copy(
        update={
            "kafka": found.kafka,
            "amqp": SecretStr(found.amqp),
            "amqp_management": found.management,
        }
    )


def rabbit_of(settings: Settings) -> rabbitmq.RabbitServer:
    return rabbitmq.RabbitServer(settings.state_dir / "stack" / "rabbitmq")


def processes_of(settings: Settings) -> list[process.Process]:
    servers = local._servers(StackDirectory(settings))
    return [found for server in servers for found in process.marked(server.mark)]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Bring a stack up from two sides at once, and leave nothing behind."""
    settings = Settings(state_dir=tmp_path_factory.mktemp("stack") / "with space")
    try:
        with ThreadPoolExecutor(2) as pool:
            first, second = pool.map(lambda _: stack.up(settings, quiet), range(2))
        assert first == second == stack.endpoints(settings)
        yield settings
    finally:
        stack.down(settings, quiet)
    assert processes_of(settings) == []


@pytest.mark.integration
def test_up_twice_changes_nothing(running: Settings) -> None:
    before = recorded(running)
    began = time.monotonic()
    stack.up(running, quiet)
    assert time.monotonic() - began < 5
    assert recorded(running) == before


@pytest.mark.integration
def test_status_of_a_running_stack_shows_no_password(running: Settings) -> None:
    found = stack.status(running).as_json()
    assert found["kafka"] == {"url": stack.kafka_endpoint(running), "up": True}
    assert found["amqp"]["up"] is True
    assert found["amqp"]["url"] == mask_url(stack.amqp_endpoint(running))
    assert found["amqp"]["management"] == stack.endpoints(running).management
    password = (running.state_dir / "stack" / "rabbitmq" / "password").read_text()
    assert len(password) > 20
    assert password not in str(found)


@pytest.mark.integration
def test_every_process_listens_on_loopback_only(running: Settings) -> None:
    listening = [
        (connection.laddr.ip, connection.laddr.port)
        for found in processes_of(running)
        for connection in psutil.Process(found.pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    broker, rabbit = recorded(running)
    assert {port for _, port in listening} >= {broker.port, rabbit.port, rabbit.epmd_port}
    assert {ip for ip, _ in listening} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


@pytest.mark.integration
def test_secrets_are_readable_by_their_owner_only(running: Settings) -> None:
    rabbit = running.state_dir / "stack" / "rabbitmq"
    for name in ("password", ".erlang.cookie", "rabbitmq.conf"):
        assert (rabbit / name).stat().st_mode & 0o077 == 0
    command_lines = [psutil.Process(found.pid).cmdline() for found in processes_of(running)]
    assert (rabbit / "password").read_text() not in str(command_lines)


@pytest.mark.integration
def test_another_port_for_a_running_server_is_refused(running: Settings) -> None:
    moved = running.model_copy(update={"kafka_port": 31_999})
    with pytest.raises(StackError, match=r"already runs on port \d+, but LEDGER_KAFKA_PORT"):
        stack.up(moved, quiet)
    assert stack.status(running).kafka.up


@pytest.mark.integration
def test_a_queue_that_rabbitmq_has_lost_holds_up_no_other_room_and_is_mended(
    running: Settings,
) -> None:
    """Found by chaos: `kill -9` while a stream is made leaves an entry without a process."""
    named = named_servers(running)
    publish_events(named, [json.dumps(FILL).encode()])
    _, record = recorded(running)
    server = rabbit_of(running)
    plant = """
        {ok, _} = {ok, rabbit_amqqueue:declare(rabbit_misc:r(<<"/">>, queue, <<"whole">>), true,
            false, [{<<"x-queue-type">>, longstr, <<"stream">>}], none, <<"test">>)},
        [Q] = mnesia:dirty_read(rabbit_durable_queue, rabbit_misc:r(<<"/">>, queue, <<"whole">>)),
        mnesia:dirty_write(rabbit_durable_queue, setelement(2, amqqueue:set_pid(Q, none),
            rabbit_misc:r(<<"/">>, queue, <<"account.alice">>))).
    """
    assert server.evaluate(record, plant) is None
    done = command(named, "chat_bridge", "run", "--once", "--json")
    assert done.returncode == 2, done.stderr
    assert "account.alice: RabbitMQ has lost the queue account.alice" in done.stderr
    shown = command(named, "chat_bridge", "tail", "BTC-USD", "--json")
    assert [one["type"] for one in json.loads(shown.stdout)["messages"]] == ["trade"]

    assert record.process is not None
    record.process.send(signal.SIGKILL)
    assert process.wait_until(lambda: not record.process.is_running(), 10)  # type: ignore[union-attr]
    stack.up(running, quiet)
    done = command(named, "chat_bridge", "run", "--once", "--json")
    assert json.loads(done.stdout)["messages"] == 1, done.stderr


@pytest.mark.integration
def test_a_bridge_waits_while_rabbitmq_is_short_of_memory(
    running: Settings, tmp_path: Path
) -> None:
    named, server, log = named_servers(running), rabbit_of(running), tmp_path / "bridge.log"
    _, record = recorded(running)
    limit = "vm_memory_monitor:set_vm_memory_high_watermark({})."
    with running_module(named, log, "chat_bridge", "run"):
        eventually(lambda: "Partitions of" in log.read_text())
        try:
            assert server.evaluate(record, limit.format("0.00001")) is None
            fill = FILL | {"account": "bob", "fill_id": "late"}
            publish_events(named, [json.dumps(fill).encode()])
            eventually(lambda: "RabbitMQ takes no messages" in log.read_text())
        finally:
            assert server.evaluate(record, limit.format("0.4")) is None
        eventually(lambda: "RabbitMQ takes messages again" in log.read_text())
    done = command(named, "chat_bridge", "run", "--once", "--json")
    assert json.loads(done.stdout)["messages"] == 0, done.stderr
    shown = command(named, "chat_bridge", "tail", "account.bob", "--json")
    assert [one["fill_id"] for one in json.loads(shown.stdout)["messages"]] == ["late"]


@pytest.mark.integration
@pytest.mark.timeout(300)
def test_data_survive_kills_and_restarts_and_down_leaves_no_process(running: Settings) -> None:
    send_record(running, b"first")
    asyncio.run(publish(running, b"first"))
    ports_before = ports_of(running)

    broker, rabbit = recorded(running)
    assert broker.process is not None
    assert rabbit.process is not None
    broker.process.send(signal.SIGKILL)
    rabbit.process.send(signal.SIGKILL)
    assert process.wait_until(
        lambda: not (broker.process.is_running() or rabbit.process.is_running()),  # type: ignore[union-attr]
        10,
    )
    noticed = stack.status(running)
    assert not noticed.kafka.up
    assert not noticed.amqp.up
    with pytest.raises(ConfigurationError):
        stack.kafka_endpoint(running)

    stack.up(running, quiet)
    assert ports_of(running) == ports_before
    send_record(running, b"second")
    asyncio.run(publish(running, b"second"))

    everything = processes_of(running)
    assert len(everything) >= 3
    stopped = stack.down(running, quiet)
    assert [words.split()[0] for words in stopped] == ["RabbitMQ", "Kafka"]
    assert not any(found.is_running() for found in everything)
    assert processes_of(running) == []
    assert not any(ports.answers(port) for port in ports_before)
    assert stack.down(running, quiet) == []
    assert not stack.status(running).kafka.up

    stack.up(running, quiet)
    assert read_records(running, 2) == [b"first", b"second"]
    assert asyncio.run(read_stream(running, 2)) == [b"first", b"second"]


@pytest.mark.integration
def test_a_hanging_broker_is_noticed(running: Settings) -> None:
    broker, _ = recorded(running)
    assert broker.process is not None
    broker.process.send(signal.SIGSTOP)
    try:
        assert not stack.status(running).kafka.up
    finally:
        broker.process.send(signal.SIGCONT)
    assert process.wait_until(lambda: stack.status(running).kafka.up, 30)


@pytest.mark.integration
def test_down_finds_what_a_killed_up_has_started(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path, amqp=SecretStr("amqp://h/"))
    program = (
        "import sys; from ledger import stack; from ledger.settings import Settings; "
        "stack.up(Settings(state_dir=sys.argv[1], amqp='amqp://h/'), print)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.DEVNULL
    ) as starting:
        try:
            assert process.wait_until(lambda: bool(processes_of(settings)), 120)
        finally:
            starting.kill()
    (tmp_path / "stack" / "stack.json").unlink(missing_ok=True)
    assert stack.down(settings, quiet) != []
    assert processes_of(settings) == []


@pytest.mark.integration
def test_a_broker_that_cannot_start_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path, amqp=SecretStr("amqp://h/"))
    data = tmp_path / "stack" / "kafka" / "data"
    data.mkdir(parents=True)
    (data / "meta.properties").write_text("version=1\nnode.id=7\ncluster.id=abc\n")
    with pytest.raises(StackError, match=r"Kafka ended while starting: .*7.*\(log: .*/server\.log"):
        stack.up(settings, quiet)
    assert processes_of(settings) == []


def ports_of(settings: Settings) -> list[int]:
    broker, rabbit = recorded(settings)
    return [
        broker.port,
        broker.controller_port,
        rabbit.port,
        rabbit.management_port,
        rabbit.stream_port,
        rabbit.distribution_port,
        rabbit.epmd_port,
    ]


def send_record(settings: Settings, value: bytes) -> None:
    servers: dict[str, str | int | float | bool] = {
        "bootstrap.servers": stack.kafka_endpoint(settings),
        "log_level": 0,
    }
    admin = AdminClient(servers)
    if "kept" not in admin.list_topics(timeout=30).topics:
        admin.create_topics([NewTopic("kept", 1, 1)])["kept"].result(30)
    delivered: list[object] = []
    producer = Producer({**servers, "acks": "all"})
    producer.produce("kept", value, on_delivery=lambda error, _: delivered.append(error))
    assert producer.flush(30) == 0
    assert delivered == [None]


def read_records(settings: Settings, count: int) -> list[bytes]:
    servers = stack.kafka_endpoint(settings)
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "none"})
    try:
        consumer.assign([TopicPartition("kept", 0, 0)])
        found = consumer.consume(count, timeout=30)
        return [bytes(message.value() or b"") for message in found]
    finally:
        consumer.close()


async def publish(settings: Settings, body: bytes) -> None:
    async with await aio_pika.connect(stack.amqp_endpoint(settings)) as connection:
        channel = await connection.channel()
        await declare_stream(channel)
        await channel.default_exchange.publish(aio_pika.Message(body), "kept")


async def read_stream(settings: Settings, count: int) -> list[bytes]:
    found: list[bytes] = []
    enough = asyncio.Event()

    async def take(message: aio_pika.abc.AbstractIncomingMessage) -> None:
        await message.ack()
        found.append(message.body)
        if len(found) == count:
            enough.set()

    async with await aio_pika.connect(stack.amqp_endpoint(settings)) as connection:
        channel = await connection.channel()
        await channel.set_qos(10)
        queue = await declare_stream(channel)
        tag = await queue.consume(take, arguments={"x-stream-offset": "first"})
        await asyncio.wait_for(enough.wait(), 30)
        await queue.cancel(tag)
    return found


async def declare_stream(channel: aio_pika.abc.AbstractChannel) -> aio_pika.abc.AbstractQueue:
    return await channel.declare_queue("kept", durable=True, arguments={"x-queue-type": "stream"})


def test_checks_leave_no_thread_behind(tmp_path: Path) -> None:
    before = threading.active_count()
    stack.status(Settings(kafka=NOWHERE, amqp=SecretStr(f"amqp://{NOWHERE}/"), state_dir=tmp_path))
    assert process.wait_until(lambda: threading.active_count() <= before, 10)
