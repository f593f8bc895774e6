"""Real workers whose surroundings fail: topics that take nothing, full disks, damaged files."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen
from typing import Final

import psutil
import pytest
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource

from ledger.agents.owned import stored_progress
from ledger.agents.worker import SESSION_TIMEOUT_S
from ledger.errors import UnreachableError
from ledger.kafka import BALANCES, DEAD_LETTERS
from ledger.published import PublishedPartition, newest_marks
from ledger.rocks import RocksStore
from ledger.settings import Settings
from tests.broker import own_broker
from tests.support import (
    BITSTAMP,
    cluster_of,
    eventually,
    lines_of,
    publish,
    published_at_end,
    raw_producer,
    worker,
)
from tests.test_worker import (
    assert_published_equals_reference,
    read_dead_letters,
    reference_of,
)

pytestmark = pytest.mark.integration

BAD: Final = b"no event"


@pytest.fixture
def lines() -> list[bytes]:
    return list(lines_of(BITSTAMP))


def configure(settings: Settings, topic: str, name: str, value: str | None) -> None:
    """Set a topic's configuration value on the broker; None sets it back to its default."""
    operation = AlterConfigOpType.DELETE if value is None else AlterConfigOpType.SET
    entry = ConfigEntry(name, value or "", incremental_operation=operation)
    resource = ConfigResource(
        ConfigResource.Type.TOPIC, settings.topic(topic), incremental_configs=[entry]
    )
    admin = cluster_of(settings).admin  # it must outlive its futures
    for future in admin.incremental_alter_configs([resource]).values():
        future.result()


@contextmanager
def configured(
    settings: Settings, topic: str, name: str, value: str, after: str | None
) -> Iterator[None]:
    """Set a topic's configuration value for a while."""
    configure(settings, topic, name, value)
    try:
        yield
    finally:
        configure(settings, topic, name, after)


def publish_bad_record(settings: Settings) -> None:
    producer = raw_producer(settings)
    producer.produce(settings.topic("fills"), BAD, b"trader-01")
    assert producer.flush(10) == 0


def states_of(settings: Settings) -> Path:
    """Return the directory that has the local state of each partition."""
    (lowest,) = {path.parent.parent for path in settings.state_dir.glob("**/p*/CURRENT")}
    return lowest


def assert_stored_is_not_ahead(settings: Settings) -> None:
    """No state is beyond its published mark: what lies between would never be published."""
    stored = stored_progress(states_of(settings))
    marks = newest_marks(cluster_of(settings), range(8))
    for number, records in stored.items():
        mark = marks.get(number)
        assert records <= (0 if mark is None else sum(mark.watermark.values()))


def assert_ends_exact(settings: Settings, log: Path) -> None:
    """A worker folds all there is, as the reference does, and the bad record is out once."""
    with worker(settings, log) as process:
        eventually(lambda: log.exists() and "folding partitions" in log.read_text())
        published = eventually(lambda: published_at_end(settings))
        process.terminate()
        assert process.wait(30) == 0
    naive = reference_of(settings)
    assert_published_equals_reference(settings, published, naive)
    invalid = sum(tally["invalid"] for tally in naive.counts().values())
    assert [value for _, value, _ in read_dead_letters(settings)] == [BAD] * invalid


def published_when_it_answers(settings: Settings) -> dict[int, PublishedPartition] | None:
    """Return the published tables once they are complete; a broker may not answer yet."""
    try:
        return published_at_end(settings)
    except UnreachableError:
        return None


def publish_when_it_answers(settings: Settings, lines: list[bytes]) -> int | None:
    """Publish lines; a broker may not answer yet."""
    try:
        return publish(settings, lines)
    except UnreachableError:
        return None


def has_ended(process: Popen[bytes]) -> bool:
    return process.poll() is not None


def said(log: Path) -> str:
    """Return the one sentence with which a worker ended."""
    (sentence,) = [line for line in log.read_text().splitlines() if line.startswith("error: ")]
    return sentence


@pytest.mark.parametrize("topic", [BALANCES, DEAD_LETTERS])
def test_a_topic_that_takes_no_record_stops_the_worker_and_loses_nothing(
    settings: Settings, tmp_path: Path, lines: list[bytes], topic: str
) -> None:
    publish(settings, lines[:500])
    publish_bad_record(settings)
    log = tmp_path / "1.log"
    with configured(settings, topic, "max.message.bytes", "100", str(16 << 20)):
        with worker(settings, log) as process:
            assert process.wait(60) == 2
        assert settings.topic(topic) in said(log)
        assert_stored_is_not_ahead(settings)
    publish(settings, lines[500:600])
    assert_ends_exact(settings, tmp_path / "2.log")


def test_a_broker_that_does_not_answer_is_waited_for(tmp_path: Path, lines: list[bytes]) -> None:
    """It is stopped in the middle of what it does, transactions included, and goes on later.

    A worker that is told to stop while the broker is away does not wait for it, even when its
    session is over and the consumer's own stopping fails.
    """
    with own_broker(tmp_path / "broker") as broker:
        settings = broker.settings(tmp_path / "state", partitions=8)
        publish(settings, lines[:500])
        publish_bad_record(settings)
        log = tmp_path / "1.log"
        with worker(settings, log) as process:
            eventually(lambda: published_at_end(settings))
            publish(settings, lines[500:4000])
            server = broker.process()
            server.suspend()
            try:
                eventually(lambda: "wait" in log.read_text())
                assert process.poll() is None
            finally:
                server.resume()
            eventually(lambda: has_ended(process) or published_when_it_answers(settings), 120)
            assert process.poll() is None
            eventually(lambda: publish_when_it_answers(settings, lines[4000:]), 120)
            psutil.Process(process.pid).suspend()
            broker.kill()
            time.sleep(SESSION_TIMEOUT_S + 0.5)
            psutil.Process(process.pid).resume()
            eventually(lambda: "marking coordinator dead" in log.read_text())
            process.terminate()
            assert process.wait(5) == 0
            assert "INFO stopped" in log.read_text()
        broker.start()
        assert_ends_exact(settings, tmp_path / "2.log")


def test_a_full_disk_stops_the_worker_and_loses_nothing(
    settings: Settings, tmp_path: Path, lines: list[bytes]
) -> None:
    """A limit on the size of files fails writes as a full disk does."""
    publish(settings, lines[:2000])
    publish_bad_record(settings)
    log = tmp_path / "1.log"
    # What was stored is brought to disk before each snapshot.
    hurried = settings.model_copy(update={"snapshot_interval_s": 1.0})
    with worker(hurried, log) as process:
        eventually(lambda: published_at_end(settings))
        psutil.Process(process.pid).rlimit(psutil.RLIMIT_FSIZE, (16_384, 16_384))
        publish(settings, lines[2000:])
        assert process.wait(60) == 2
    assert str(states_of(settings)) in said(log)
    assert "free some space" in said(log)
    assert "it goes on where it stopped" in said(log)
    assert_stored_is_not_ahead(settings)
    assert_ends_exact(settings, tmp_path / "2.log")
    assert "damaged" not in (tmp_path / "2.log").read_text()


def test_snapshots_that_cannot_be_written_are_a_warning(
    settings: Settings, tmp_path: Path, lines: list[bytes]
) -> None:
    (tmp_path / "file").write_bytes(b"")
    without = settings.model_copy(
        update={"snapshots": tmp_path / "file" / "snapshots", "snapshot_interval_s": 0.2}
    )
    publish(without, lines[:500])
    log = tmp_path / "1.log"
    with worker(without, log) as process:
        eventually(lambda: "no snapshot could be written" in log.read_text() or None)
        publish(without, lines[500:600])
        published = eventually(lambda: published_at_end(without))
        process.terminate()
        assert process.wait(30) == 0
    assert_published_equals_reference(without, published, reference_of(without))


def damage(database: Path) -> None:
    """Change some bytes within a closed database's tables, the state's own entries among them."""
    store = RocksStore(database)
    store._db.flush()
    store.close()
    tables = list(database.glob("*.sst"))
    assert tables
    for table in tables:
        content = bytearray(table.read_bytes())
        for place in range(len(content) // 20, len(content) * 2 // 3, 500):
            content[place] ^= 0x55
        table.write_bytes(content)


def test_damaged_tables_of_the_state_are_rebuilt_aloud(
    settings: Settings, tmp_path: Path, lines: list[bytes]
) -> None:
    publish(settings, lines[:4000])
    publish_bad_record(settings)
    with worker(settings, tmp_path / "1.log") as process:
        eventually(lambda: published_at_end(settings))
        process.terminate()
        assert process.wait(30) == 0
    for database in states_of(settings).glob("p*"):
        damage(database)
    publish(settings, lines[4000:])
    assert_ends_exact(settings, tmp_path / "2.log")
    assert "It is rebuilt." in (tmp_path / "2.log").read_text()
