"""Starts and stops the local stack, one at a time, keeping its record true at every step."""

from __future__ import annotations

import time
from collections.abc import Callable

from msgspec.structs import asdict, replace

from ledger.errors import StackError
from ledger.settings import Settings
from ledger.stack.addresses import Endpoints, endpoints
from ledger.stack.install import Progress
from ledger.stack.kafka import KafkaServer
from ledger.stack.ports import LOOPBACK, Ports
from ledger.stack.process import marked, stop
from ledger.stack.rabbitmq import RabbitServer
from ledger.stack.state import KafkaRecord, RabbitRecord, StackDirectory, StackRecord

STOP_TIMEOUT_S = 45.0


def up(settings: Settings, progress: Progress) -> Endpoints:
    """Return where the servers are once all of them work; start those that are not named.

    Servers that run and answer are left alone; one that died or hangs is started again with its
    data. When one cannot be started, those that this call started are stopped again.

    Args:
        settings: what is named, ports, and the state directory.
        progress: told, in a line each, what takes time.

    Raises:
        StackError: a server cannot be installed, configured or started; the message says why.
    """
    if settings.kafka is None or settings.amqp is None:
        directory = StackDirectory(settings)
        directory.create()
        with directory.locked(lambda: progress("Waiting for another 'ledger up' or 'down' ...")):
            _Start(settings, directory, progress).run()
    return endpoints(settings)


def down(settings: Settings, progress: Progress) -> list[str]:
    """Return what was stopped, in words, when nothing of the local stack runs any more.

    Processes are known by pid and start time and by the mark in their environment, never by name.

    Args:
        settings: the state directory is taken from it; servers named in it are not touched.
        progress: told, in a line each, what takes time.

    Raises:
        StackError: a process is another user's or does not go.
    """
    directory = StackDirectory(settings)
    if not directory.path.is_dir():  # never was, or was deleted under running servers
        return _stop_stragglers(directory, progress)
    with directory.locked(lambda: progress("Waiting for another 'ledger up' or 'down' ...")):
        return _stop_all(directory, progress)


def _stop_all(directory: StackDirectory, progress: Progress) -> list[str]:
    try:
        record = directory.read()
    except StackError:  # the marks still tell what runs
        _stop_stragglers(directory, progress)
        raise
    _, rabbit = _servers(directory)
    processes = {
        "RabbitMQ": record.rabbitmq.process if record.rabbitmq is not None else None,
        "Kafka": record.kafka.process if record.kafka is not None else None,
    }
    running = {
        name: process
        for name, process in processes.items()
        if process is not None and process.is_running()
    }
    if running:
        progress(f"{' and '.join(running)}: stopping ...")
    stop(running.values(), STOP_TIMEOUT_S)  # all are asked first, then awaited
    if record.rabbitmq is not None:
        rabbit.stop(record.rabbitmq)
    stopped = [f"{name} (pid {process.pid})" for name, process in running.items()]
    stopped += _stop_stragglers(directory, progress)
    if record != StackRecord():
        directory.write(_without_processes(record))
    return stopped


def _stop_stragglers(directory: StackDirectory, progress: Progress) -> list[str]:
    """Stop what carries this stack's marks without being in its record; return it in words."""
    stopped = []
    kafka, rabbit = _servers(directory)
    for name, mark in (("Kafka", kafka.mark), ("RabbitMQ", rabbit.mark)):
        left = marked(mark)
        if left:
            progress(f"{name}: stopping what an interrupted start left behind ...")
            stop(left, STOP_TIMEOUT_S)
            stopped += [f"{name} (unrecorded pid {process.pid})" for process in left]
    return stopped


def _without_processes(record: StackRecord) -> StackRecord:
    """Return the record with its ports only, to be used again at the next start."""
    kafka, rabbitmq = record.kafka, record.rabbitmq
    return StackRecord(
        kafka=replace(kafka, process=None) if kafka else None,
        rabbitmq=replace(rabbitmq, process=None, epmd=None) if rabbitmq else None,
    )


def _servers(directory: StackDirectory) -> tuple[KafkaServer, RabbitServer]:
    return KafkaServer(directory.path / "kafka"), RabbitServer(directory.path / "rabbitmq")


class _Start:
    """One `up`: both servers are launched first and awaited then, so that they start together."""

    def __init__(self, settings: Settings, directory: StackDirectory, progress: Progress) -> None:
        self.settings = settings
        self.directory = directory
        self.progress = progress
        self.record = directory.read()
        self.kafka, self.rabbit = _servers(directory)
        self.ports = Ports(
            reserved={
                port
                for port in (settings.kafka_port, settings.amqp_port, settings.management_port)
                if port is not None
            }
        )
        self.undo: list[Callable[[], None]] = []

    def run(self) -> None:
        began = time.monotonic()
        try:
            start_kafka = self.settings.kafka is None and not self._kafka_runs()
            start_rabbit = self.settings.amqp is None and not self._rabbit_runs()
            kafka = self._launch_kafka() if start_kafka else None
            rabbit = self._launch_rabbit() if start_rabbit else None
            if kafka is not None:
                self.kafka.await_ready(kafka)
                self._ready("Kafka", kafka.port, began)
            if rabbit is not None:
                self.rabbit.await_ready(rabbit)
                self._ready("RabbitMQ", rabbit.port, began)
        except BaseException:
            for stop_again in reversed(self.undo):
                stop_again()
            raise

    def _ready(self, name: str, port: int, began: float) -> None:
        seconds = time.monotonic() - began
        self.progress(f"{name}: ready on {LOOPBACK}:{port} after {seconds:.1f} s.")

    def _keep(self, record: StackRecord) -> None:
        self.record = record
        self.directory.write(record)

    def _kafka_runs(self) -> bool:
        """Return whether the broker serves; clear away one that is dead or hangs."""
        record = self.record.kafka
        if record is not None and record.process is not None and record.process.is_running():
            _same_port(self.settings.kafka_port, record.port, "LEDGER_KAFKA_PORT", "Kafka")
            if self.kafka.answers(record) or self._recovers(
                "Kafka", lambda: self.kafka.await_ready(record)
            ):
                return True
            self.kafka.stop(record)
        stop(marked(self.kafka.mark), 5)
        return False

    def _rabbit_runs(self) -> bool:
        """Return whether RabbitMQ serves; clear away one that is dead or hangs."""
        record = self.record.rabbitmq
        if record is not None and record.process is not None and record.process.is_running():
            _same_port(self.settings.amqp_port, record.port, "LEDGER_AMQP_PORT", "RabbitMQ")
            _same_port(
                self.settings.management_port,
                record.management_port,
                "LEDGER_MANAGEMENT_PORT",
                "RabbitMQ's management page",
            )
            if self.rabbit.answers(record) or self._recovers(
                "RabbitMQ", lambda: self.rabbit.await_ready(record)
            ):
                return True
        if record is not None:
            self.rabbit.stop(record)
        stop(marked(self.rabbit.mark), 5)
        return False

    def _recovers(self, name: str, await_ready: Callable[[], None]) -> bool:
        """Return whether a running server answers after all, say because it was still starting."""
        self.progress(f"{name}: runs but does not answer; waiting for it ...")
        try:
            await_ready()
        except StackError:
            self.progress(f"{name}: does not answer; starting it again ...")
            return False
        return True

    def _launch_kafka(self) -> KafkaRecord:
        last = asdict(self.record.kafka) if self.record.kafka is not None else {}
        record = KafkaRecord(
            port=self.ports.choose(
                self.settings.kafka_port, "LEDGER_KAFKA_PORT", "Kafka", last.get("port")
            ),
            controller_port=self.ports.free(last.get("controller_port")),
        )
        self.undo.append(self._undo_kafka)
        record = replace(record, process=self.kafka.start(record, self.progress))
        self._keep(replace(self.record, kafka=record))
        return record

    def _launch_rabbit(self) -> RabbitRecord:
        last = asdict(self.record.rabbitmq) if self.record.rabbitmq is not None else {}
        port = self.ports.choose(
            self.settings.amqp_port, "LEDGER_AMQP_PORT", "RabbitMQ", last.get("port")
        )
        management_port = self.ports.choose(
            self.settings.management_port,
            "LEDGER_MANAGEMENT_PORT",
            "RabbitMQ's management page",
            last.get("management_port"),
        )
        record = RabbitRecord(
            port=port,
            management_port=management_port,
            stream_port=self.ports.free(last.get("stream_port")),
            distribution_port=self.ports.free(last.get("distribution_port")),
            epmd_port=self.ports.free(last.get("epmd_port")),
        )
        self.undo.append(self._undo_rabbit)
        self.rabbit.prepare(record, self.progress)
        record = replace(record, epmd=self.rabbit.start_epmd(record))
        self._keep(replace(self.record, rabbitmq=record))
        record = replace(record, process=self.rabbit.start(record, self.progress))
        self._keep(replace(self.record, rabbitmq=record))
        return record

    def _undo_kafka(self) -> None:
        if self.record.kafka is not None:
            self.kafka.stop(self.record.kafka)
            self._keep(replace(self.record, kafka=replace(self.record.kafka, process=None)))
        stop(marked(self.kafka.mark), 5)

    def _undo_rabbit(self) -> None:
        if self.record.rabbitmq is not None:
            self.rabbit.stop(self.record.rabbitmq)
            stopped = replace(self.record.rabbitmq, process=None, epmd=None)
            self._keep(replace(self.record, rabbitmq=stopped))
        stop(marked(self.rabbit.mark), 5)


def _same_port(wanted: int | None, running: int, setting: str, name: str) -> None:
    if wanted is not None and wanted != running:
        raise StackError(
            f"{name} already runs on port {running}, but {setting} asks for {wanted}: "
            "run 'ledger down' first to move it."
        )
