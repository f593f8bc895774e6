"""Kafka Streams on the same records, by the programs of the peers' comparison.

`PEERS/run_peers.sh` compares several stream processors; this runs its Kafka Streams ledger with its
commands and options (`LedgerStreams.java`, `measure.py`, at-least-once, a commit a second), on our
broker and our topic. Java 17 with its compiler and Maven are needed; KAFKA_LIBS may name a
directory with the jars, and JAVA_OPTS other options.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from books import Rows, peers_digest
from measuring import Result, rate, run

from ledger.kafka import Cluster

JAVA_OPTIONS = "-Xms1g -Xmx1g -XX:+UseParallelGC"

_NEEDED = ("measure.py", "pom.xml", "java/LedgerStreams.java")


def name_of(threads: int) -> str:
    """Return what results call it."""
    return f"Kafka Streams, {threads} thread{'s' * (threads > 1)}"


@dataclass(frozen=True)
class Streams:
    """Kafka Streams' ledger, compiled."""

    peers: Path
    directory: Path
    classpath: str

    @classmethod
    def prepare(cls, peers: Path, directory: Path) -> Streams:
        """Return it, once its jars are there and it is compiled.

        Args:
            peers: the directory of the comparison, which is not written to.
            directory: where to put what is made.

        Raises:
            AssertionError: something is missing.
            CalledProcessError: Maven or the compiler failed.
        """
        for name in _NEEDED:
            assert (peers / name).is_file(), f"--peers {peers}: there is no {name} in it"
        for tool in ("java", "javac", "mvn"):
            assert shutil.which(tool), f"--peers needs {tool}"
        peers = peers.resolve()
        classes = directory / "classes"
        classes.mkdir(parents=True)
        libraries = os.environ.get("KAFKA_LIBS")
        if not libraries:
            libraries = str(directory / "libs")
            print("Kafka Streams: fetching its jars with Maven ...", flush=True)
            maven = ["mvn", "-q", "-B", "-f", str(peers / "pom.xml")]
            maven += ["dependency:copy-dependencies", f"-DoutputDirectory={libraries}"]
            subprocess.run(maven, check=True, cwd=directory)
        source = str(peers / "java" / "LedgerStreams.java")
        compiler = ["javac", "-nowarn", "-cp", f"{libraries}/*", "-d", str(classes), source]
        subprocess.run(compiler, check=True)
        return cls(peers, directory, f"{classes}:{libraries}/*")

    def run(
        self, cluster: Cluster, topic: str, events: int, rows: Rows, threads: int, pid: int | None
    ) -> Result:
        """Fold a topic of fills from an empty state; return what it took.

        The time is its own: from the first record in hand to all being committed. CPU, memory and
        writes are of the Java process, its start and its check included.

        Raises:
            AssertionError: it failed, or its balances are wrong.
        """
        expected, found = self.directory / "expected.json", self.directory / "found.jsonl"
        name = cluster.settings.topic(topic)
        digest = peers_digest(rows)
        expected.write_text(json.dumps({"topic": name, "n": events, "digest": digest}))
        found.unlink(missing_ok=True)
        env = os.environ | {
            "BOOTSTRAP": cluster.bootstrap,
            "WORK": str(self.directory),
            "GUARANTEE": "at_least_once",
            "THREADS": str(threads),
        }
        env |= {} if pid is None else {"KAFKA_PID": str(pid)}
        command = [sys.executable, str(self.peers / "measure.py"), name_of(threads)]
        command += [str(expected), str(found), "--", "java"]
        command += shlex.split(os.environ.get("JAVA_OPTS", JAVA_OPTIONS))
        command += ["-cp", self.classpath, "LedgerStreams"]
        _, took = run(command, env, self.directory / "streams.log", pid)
        line = json.loads(found.read_text())
        assert line.get("verified"), f"Kafka Streams: {line}"
        result = rate(events, line["seconds"]) | {
            "cpu_s": line["cpu_s"],
            "peak_rss_mib": line["rss_mib"],
            "written_mib": took["written_mib"],
            "threads": threads,
        }
        if pid is not None:
            result["broker_cpu_s"] = line["broker_cpu_s"]
            result["broker_written_mib"] = took["broker_written_mib"]
        return result
