"""One Kafka broker that is its own controller (KRaft), on loopback, data in the state directory."""

from __future__ import annotations

import base64
import subprocess
import uuid
from importlib import resources
from pathlib import Path

from ledger.errors import StackError
from ledger.stack import checks, install, jars
from ledger.stack.install import Progress
from ledger.stack.logs import last_meaningful_line, set_aside
from ledger.stack.ports import LOOPBACK, answers
from ledger.stack.process import Process, await_server, launch, server_environment, stop
from ledger.stack.state import KafkaRecord

NAME = "Kafka"
START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 30.0
CHECK_TIMEOUT_S = 3.0
FORMAT_TIMEOUT_S = 120.0
INTERNAL_PARTITIONS = 8
_OWN_VARIABLES = ("KAFKA_", "CLASSPATH", "JDK_JAVA_OPTIONS")


class KafkaServer:
    """The broker whose files are in one directory."""

    def __init__(self, directory: Path) -> None:
        """Name the directory; nothing is created before `start`."""
        self.directory = directory
        self.mark = f"{directory}"
        self.data = directory / "data"
        self.log_directory = directory / "log"
        self.console = self.log_directory / "console.log"

    @property
    def logs(self) -> list[Path]:
        """The broker's log and what the JVM printed."""
        return [self.log_directory / "server.log", self.console]

    def start(self, record: KafkaRecord, progress: Progress) -> Process:
        """Return the started broker, which may not answer yet; fetch and format as needed.

        Raises:
            StackError: Java, the jars or the data directory cannot be used.
        """
        self.log_directory.mkdir(parents=True, exist_ok=True)
        java = install.java(progress)
        classpath = f"{jars.kafka_jars(java, self.directory.parent / 'cache', progress)}/*"
        properties = self.directory / "server.properties"
        properties.write_text(server_properties(record, self.data))
        logging = self.directory / "log4j2.xml"
        logging.write_bytes(resources.files("ledger.stack").joinpath("log4j2.xml").read_bytes())
        command: list[str | Path] = [java, "-cp", classpath]
        command.append(f"-Dlog4j2.configurationFile={logging.as_uri()}")
        command.append(f"-Dledger.log.dir={self.log_directory}")
        if not (self.data / "meta.properties").exists():
            self._format([*command, "kafka.tools.StorageTool"], properties)
        set_aside(self.logs[0])
        progress(f"Kafka: starting on {LOOPBACK}:{record.port} ...")
        return launch(
            [
                *command,
                *("-Xms256m", "-Xmx768m", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=50"),
                *("-XX:+ExitOnOutOfMemoryError", "-Djava.awt.headless=true"),
                "kafka.Kafka",
                properties,
            ],
            mark=self.mark,
            environment=server_environment(_OWN_VARIABLES),
            directory=self.directory,
            console=self.console,
        )

    def await_ready(self, record: KafkaRecord) -> None:
        """Return once the broker serves its own cluster.

        Raises:
            StackError: it ended or did not answer in time; with the log's line and path.
        """
        process = record.process
        assert process is not None
        await_server(
            "Kafka",
            process,
            lambda: answers(record.port) and self.answers(record),
            self.logs,
            START_TIMEOUT_S,
        )

    def answers(self, record: KafkaRecord) -> bool:
        """Return whether the process runs and serves the cluster whose data are here."""
        if record.process is None or not record.process.is_running():
            return False
        cluster = checks.kafka_cluster_id(f"{LOOPBACK}:{record.port}", CHECK_TIMEOUT_S)
        return cluster is not None and cluster == self.cluster_id()

    def cluster_id(self) -> str | None:
        """Return the id that the data directory was formatted with, or None if it was not."""
        try:
            lines = (self.data / "meta.properties").read_text().splitlines()
        except OSError:
            return None
        return next((line[11:] for line in lines if line.startswith("cluster.id=")), None)

    def stop(self, record: KafkaRecord) -> None:
        """Stop the broker and return when it has gone."""
        if record.process is not None:
            stop([record.process], STOP_TIMEOUT_S)

    def _format(self, command: list[str | Path], properties: Path) -> None:
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        cluster = cluster.replace("-", "A")  # one at the start would be taken for an option
        ran = subprocess.run(
            [*command, "format", "--ignore-formatted", "-t", cluster, "-c", properties],
            cwd=self.directory,
            env=server_environment(_OWN_VARIABLES),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=FORMAT_TIMEOUT_S,
            check=False,
        )
        if ran.returncode != 0:
            self.console.write_text(ran.stdout + ran.stderr)
            raise StackError(
                f"Kafka's data directory {self.data} cannot be formatted: "
                f"{last_meaningful_line([self.console])} (log: {self.console})"
            )


def server_properties(record: KafkaRecord, data: Path) -> str:
    """Return the broker's configuration."""
    here = f"{LOOPBACK}:{record.port}"
    controller = f"{LOOPBACK}:{record.controller_port}"
    values: dict[str, str | int] = {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.voters": f"1@{controller}",
        "controller.listener.names": "CONTROLLER",
        "listeners": f"PLAINTEXT://{here},CONTROLLER://{controller}",
        "advertised.listeners": f"PLAINTEXT://{here}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "log.dirs": str(data),
        "auto.create.topics.enable": "false",
        "default.replication.factor": 1,
        "min.insync.replicas": 1,
        "offsets.topic.num.partitions": INTERNAL_PARTITIONS,
        "offsets.topic.replication.factor": 1,
        "transaction.state.log.num.partitions": INTERNAL_PARTITIONS,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "share.coordinator.state.topic.num.partitions": 1,
        "share.coordinator.state.topic.replication.factor": 1,
        "share.coordinator.state.topic.min.isr": 1,
        "group.initial.rebalance.delay.ms": 0,
        # A broker that was killed may register anew once the session of its former self is over.
        "broker.session.timeout.ms": 4_000,
        "broker.heartbeat.interval.ms": 500,
        # A bridge that rests for more than a week must still find its committed offsets.
        "offsets.retention.minutes": 10 * 365 * 24 * 60,
        "log.cleaner.dedupe.buffer.size": 32 * 1024 * 1024,
    }
    return "".join(f"{name}={_escaped(value)}\n" for name, value in values.items())


def _escaped(value: str | int) -> str:
    """Return a value as Java's properties files want it (backslashes, what is not Latin-1)."""
    escaped = str(value).replace("\\", "\\\\")
    return "".join(
        character if character.isascii() else f"\\u{ord(character):04x}" for character in escaped
    )
