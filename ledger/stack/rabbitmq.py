"""One RabbitMQ with management and streams, on loopback, data in the state directory.

It is the distribution's server, run as a plain child of ours: its own node name, cookie, ports,
plugins and user, and a port mapper (`epmd`) of its own that is started and stopped with it.
"""

from __future__ import annotations

import os
import secrets
import subprocess
from pathlib import Path
from urllib.parse import quote

from ledger.errors import StackError
from ledger.stack import checks, install
from ledger.stack.install import Progress
from ledger.stack.logs import last_meaningful_line, set_aside
from ledger.stack.ports import LOOPBACK, answers
from ledger.stack.process import (
    Process,
    await_server,
    launch,
    marked,
    server_environment,
    stop,
    wait_until,
)
from ledger.stack.state import RabbitRecord, write_private

NAME = "RabbitMQ"
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 45.0
CHECK_TIMEOUT_S = 5.0
SETTLE_TIMEOUT_S = 3.0
QUEUES_TIMEOUT_S = 10.0
WARM_UP_STREAM = "ledger.stack.warm-up"
USER = "ledger"
NODE = "ledger@localhost"
# Twice, with a pause: what is being made at this very moment is whole by then.
_MEND_QUEUES = """
Queues = fun() ->
    mnesia:dirty_match_object(rabbit_durable_queue, amqqueue:pattern_match_all())
end,
HalfMade = fun() -> [amqqueue:get_name(Q) || Q <- Queues(), amqqueue:get_pid(Q) =:= none] end,
First = HalfMade(),
timer:sleep(2000),
[rabbit_amqqueue:internal_delete(Name, <<"ledger">>) || Name <- HalfMade(),
    lists:member(Name, First)],
[rabbit_amqqueue:ensure_rabbit_queue_record_is_initialized(Q) || Q <- Queues(),
    mnesia:dirty_read(rabbit_queue, amqqueue:get_name(Q)) =:= []].
"""
_OWN_VARIABLES = ("RABBITMQ_", "ERL_", "EPMD_", "NOTIFY_SOCKET", "RUNNING_UNDER_SYSTEMD")


class RabbitServer:
    """The server whose files are in one directory."""

    def __init__(self, directory: Path) -> None:
        """Name the directory; nothing is created before `start`."""
        self.directory = directory
        self.mark = f"{directory}"
        self.log_directory = directory / "log"
        self.console = self.log_directory / "console.log"

    @property
    def logs(self) -> list[Path]:
        """The server's log and what Erlang printed."""
        return [self.log_directory / "rabbitmq.log", self.console]

    def url(self, record: RabbitRecord) -> str:
        """Return the AMQP URL with user and password.

        Raises:
            StackError: the password's file is gone.
        """
        try:
            password = (self.directory / "password").read_text().strip()
        except OSError as error:
            raise StackError(
                f"The password of the local RabbitMQ cannot be read from {error.filename} "
                f"({error.strerror}): run 'ledger down', then 'ledger up'."
            ) from error
        return f"amqp://{USER}:{quote(password, safe='')}@{LOOPBACK}:{record.port}/"

    def prepare(self, record: RabbitRecord, progress: Progress) -> None:
        """Install RabbitMQ if it is missing; write its configuration, password and cookie.

        Raises:
            StackError: it is missing and cannot be installed.
        """
        install.rabbitmq_server(progress)
        self.log_directory.mkdir(parents=True, exist_ok=True)
        self._write_secrets()
        password = (self.directory / "password").read_text().strip()
        write_private(self.directory / "rabbitmq.conf", configuration(record, password).encode())
        (self.directory / "enabled_plugins").write_text("[rabbitmq_management,rabbitmq_stream].\n")
        set_aside(self.logs[0])

    def start_epmd(self, record: RabbitRecord) -> Process:
        """Return this stack's own port mapper, in the foreground so that its pid is known.

        Raises:
            StackError: there is no `epmd` or it does not listen.
        """
        console = self.log_directory / "epmd.log"
        process = launch(
            [install.epmd(), "-port", str(record.epmd_port), "-address", LOOPBACK],
            mark=self.mark,
            environment=self._environment(record),
            directory=self.directory,
            console=console,
        )
        if not wait_until(lambda: answers(record.epmd_port) or not process.is_running(), 10):
            stop([process], 1)
        if not process.is_running():
            raise StackError(f"epmd ended: {last_meaningful_line([console])} (log: {console})")
        return process

    def start(self, record: RabbitRecord, progress: Progress) -> Process:
        """Return the started server, which may not answer yet; `prepare` comes first.

        Raises:
            StackError: it could not be started.
        """
        server = install.rabbitmq_server(progress)
        progress(f"RabbitMQ: starting on {LOOPBACK}:{record.port} ...")
        return launch(
            [server],
            mark=self.mark,
            environment=self._environment(record),
            directory=self.directory,
            console=self.console,
        )

    def await_ready(self, record: RabbitRecord) -> None:
        """Return once AMQP and the management page answer.

        Raises:
            StackError: it ended or did not answer in time; with the log's line and path.
        """
        process = record.process
        assert process is not None
        await_server(
            "RabbitMQ",
            process,
            lambda: answers(record.port) and self.answers(record),
            self.logs,
            START_TIMEOUT_S,
        )
        self._settle_streams(record)
        self._mend_queues(record)

    def answers(self, record: RabbitRecord) -> bool:
        """Return whether the process runs, takes our user, and its management page answers."""
        if record.process is None or not record.process.is_running():
            return False
        url = self.url(record)
        management = f"http://{LOOPBACK}:{record.management_port}"
        return checks.amqp_problem(url, CHECK_TIMEOUT_S) is None and checks.management_answers(
            management, url, CHECK_TIMEOUT_S
        )

    def stop(self, record: RabbitRecord) -> None:
        """Stop the server, what it left behind, and its port mapper; return when all have gone."""
        if record.process is not None:
            stop([record.process], STOP_TIMEOUT_S)
        if record.epmd is not None:
            stop([record.epmd], 5)
        stop(marked(self.mark), 2)

    def _settle_streams(self, record: RabbitRecord) -> None:
        """Have the coordinator of streams made and stored, which the first stream would do.

        RabbitMQ stores its name only about half a second later. A `kill -9` before that leaves
        every stream "down or inaccessible" for ever, so that no first room is made in that time.
        """
        names = self.directory / "data/node/coordination" / NODE / "names.dets"

        def stored() -> bool:
            return names.exists() and b"rabbit_stream_coordinator" in names.read_bytes()

        if stored():
            return
        problem = checks.make_and_delete_stream(self.url(record), WARM_UP_STREAM, CHECK_TIMEOUT_S)
        if problem is not None:
            raise StackError(f"RabbitMQ makes no streams: {problem} (log: {self.logs[0]})")
        wait_until(stored, SETTLE_TIMEOUT_S)  # another release may store it elsewhere

    def _mend_queues(self, record: RabbitRecord) -> None:
        """Mend streams that RabbitMQ 3.10 has lost when it was killed, which a restart does not.

        One that was being made has an entry without a process: whoever names it loses the
        connection, and no queues are listed any more. It never held a message and is removed. Of
        one that was being started the entry is "down or inaccessible": it is put back.
        """
        management = f"http://{LOOPBACK}:{record.management_port}"
        url = self.url(record)

        def are_all_there() -> bool:
            return not checks.has_lost_queues(management, url, CHECK_TIMEOUT_S)

        if wait_until(are_all_there, QUEUES_TIMEOUT_S):  # after a crash streams take their time
            return
        problem = self.evaluate(record, _MEND_QUEUES)
        if problem is not None:
            raise StackError(
                f"RabbitMQ has lost queues, and they cannot be mended: {problem} "
                f"(log: {self.logs[0]})"
            )

    def evaluate(self, record: RabbitRecord, code: str) -> str | None:
        """Return None once the running server has evaluated Erlang code, else what went wrong."""
        try:
            done = subprocess.run(
                [str(install.rabbitmqctl()), "eval", code],
                env=self._environment(record),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=START_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        return None if done.returncode == 0 else " ".join(done.stderr.split())[:300]

    def _write_secrets(self) -> None:
        """Make the password and the Erlang cookie once; only their owner can read them."""
        for name in ("password", ".erlang.cookie"):
            path = self.directory / name
            if not path.exists() or not path.read_text().strip():
                write_private(path, secrets.token_urlsafe(24).encode())
        (self.directory / ".erlang.cookie").chmod(0o400)

    def _environment(self, record: RabbitRecord) -> dict[str, str]:
        here = str(self.directory)
        return server_environment(
            _OWN_VARIABLES,
            HOME=here,  # where Erlang looks for its cookie
            LANG="C.UTF-8",
            LC_ALL="C.UTF-8",
            # Anything but empty makes the script become the server instead of watching over it.
            detached="yes",
            ERL_EPMD_PORT=str(record.epmd_port),
            ERL_EPMD_ADDRESS=LOOPBACK,
            ERL_AFLAGS="-kernel inet_dist_use_interface {127,0,0,1}",
            ERL_CRASH_DUMP=os.path.join(here, "log", "erl_crash.dump"),
            ERL_CRASH_DUMP_SECONDS="5",
            RABBITMQ_NODENAME=NODE,
            RABBITMQ_NODE_PORT=str(record.port),
            RABBITMQ_NODE_IP_ADDRESS=LOOPBACK,
            RABBITMQ_DIST_PORT=str(record.distribution_port),
            RABBITMQ_CONF_ENV_FILE=os.path.join(here, "none"),
            RABBITMQ_CONFIG_FILE=os.path.join(here, "rabbitmq.conf"),
            RABBITMQ_CONFIG_FILES=os.path.join(here, "none"),
            RABBITMQ_ADVANCED_CONFIG_FILE=os.path.join(here, "none.config"),
            RABBITMQ_GENERATED_CONFIG_DIR=os.path.join(here, "generated"),
            RABBITMQ_SCHEMA_DIR=os.path.join(here, "schema"),
            RABBITMQ_MNESIA_BASE=os.path.join(here, "data"),
            RABBITMQ_MNESIA_DIR=os.path.join(here, "data", "node"),
            RABBITMQ_QUORUM_DIR=os.path.join(here, "data", "node", "quorum"),
            RABBITMQ_STREAM_DIR=os.path.join(here, "data", "node", "stream"),
            RABBITMQ_FEATURE_FLAGS_FILE=os.path.join(here, "data", "feature_flags"),
            RABBITMQ_PLUGINS_EXPAND_DIR=os.path.join(here, "data", "plugins"),
            RABBITMQ_ENABLED_PLUGINS_FILE=os.path.join(here, "enabled_plugins"),
            RABBITMQ_PID_FILE=os.path.join(here, "data", "pid"),
            RABBITMQ_LOG_BASE=os.path.join(here, "log"),
            RABBITMQ_LOGS=os.path.join(here, "log", "rabbitmq.log"),
        )


def configuration(record: RabbitRecord, password: str) -> str:
    """Return `rabbitmq.conf`."""
    values: dict[str, str | int] = {
        "listeners.tcp.1": f"{LOOPBACK}:{record.port}",
        "stream.listeners.tcp.1": f"{LOOPBACK}:{record.stream_port}",
        "stream.advertised_host": LOOPBACK,
        "stream.advertised_port": record.stream_port,
        "management.tcp.ip": LOOPBACK,
        "management.tcp.port": record.management_port,
        "default_user": USER,
        "default_pass": password,
        "default_user_tags.administrator": "true",
        "cluster_name": "ledger",
        "disk_free_limit.absolute": "200MB",
        # What people say is far smaller, and messages of the bridge are; the broker enforces it.
        "max_message_size": 64 * 1024,
        "vm_memory_high_watermark.absolute": "1GB",
        "log.file.level": "info",
        "log.file.rotation.size": 10 * 1024 * 1024,
        "log.file.rotation.count": 5,
    }
    return "".join(f"{name} = {value}\n" for name, value in values.items())
