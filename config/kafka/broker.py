"""One Apache Kafka on the loopback: behind `make kafka`, and behind the tests' private brokers.

    broker.py start [--otherwise TEXT]    start it unless it runs; print HOST:PORT and nothing else
    broker.py stop                        stop it; its data stays
    broker.py fetch                       get Kafka's jars
    broker.py needs                       print the Debian packages that are missing for all this

Only `start` needs more than Python's own library.
"""

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
HOME: Final = HERE.parent.parent / ".kafka"
HOST: Final = "127.0.0.1"
JAVA_VERSION: Final = 17
START_SECONDS: Final = 90
STOP_SECONDS: Final = 30

# Room for one record of 8 MiB and what Kafka wraps around it.
LARGEST_BATCH: Final = 9 << 20

PROPERTIES: Final = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
    "auto.create.topics.enable": "false",
    "message.max.bytes": str(LARGEST_BATCH),
    "replica.fetch.max.bytes": str(LARGEST_BATCH),
    # Time is the events' own: what is replayed from last month would be deleted within minutes.
    "log.retention.ms": "-1",
    "log.retention.bytes": str(4 << 30),
    # There is one node: nothing can have a second copy.
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    # The usual 50 partitions each only make the first consumer wait.
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.num.partitions": "4",
    "group.initial.rebalance.delay.ms": "0",
    # After a crash a broker may only come back when its old session is over: 9 s unless told.
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
}
JVM: Final = ("-Xms256m", "-Xmx768m", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20", "-Djava.awt.headless=true")


class UnavailableError(Exception):
    """Java, Maven or Kafka's jars cannot be had here."""


class BrokerError(Exception):
    """The broker did not start."""


# ---- what a broker is made of


def find_java() -> str | None:
    """A Java that is new enough for Kafka."""
    home = os.environ.get("JAVA_HOME")
    candidates = [f"{home}/bin/java" if home else None, shutil.which("java")]
    candidates += sorted(map(str, Path("/usr/lib/jvm").glob("*/bin/java")))
    for java in candidates:
        if java and os.access(java, os.X_OK):
            said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
            version = re.search(r'version "(\d+)', said)
            if version and int(version[1]) >= JAVA_VERSION:
                return java
    return None


def jars() -> Path:
    """Where the jars of this pom belong; the folder exists only when it is complete."""
    return HOME / f"jars-{hashlib.sha256((HERE / 'pom.xml').read_bytes()).hexdigest()[:12]}"


def missing_packages() -> list[str]:
    missing = [] if find_java() else [f"openjdk-{JAVA_VERSION}-jre-headless"]
    if not jars().is_dir() and not shutil.which("mvn"):
        missing.append("maven")
    return missing


def fetch() -> Path:
    """Copy Kafka's jars from where Maven gets them, once."""
    target = jars()
    if target.is_dir():
        return target
    maven = shutil.which("mvn")
    if not maven:
        raise UnavailableError("Maven, which fetches Apache Kafka, is not installed")
    with locked(HOME):
        if target.is_dir():
            return target
        log = HOME / "maven.log"
        with tempfile.TemporaryDirectory(dir=HOME) as folder, log.open("wb") as output:
            copy = [maven, "-B", "-f", str(HERE / "pom.xml"), "dependency:copy-dependencies"]
            copy += ["-DincludeScope=runtime", f"-DoutputDirectory={folder}/jars"]
            done = subprocess.run(copy, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False)
            if done.returncode:
                raise UnavailableError(f"Maven could not fetch Apache Kafka (see {log})")
            os.rename(f"{folder}/jars", target)
    return target


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Two `make` at once must not both fetch or start."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def java_command() -> list[str]:
    """How to call a class of Kafka's."""
    java = find_java()
    if not java:
        raise UnavailableError(f"Java {JAVA_VERSION}, which Apache Kafka needs, is not installed")
    return [java, "-cp", f"{fetch()}/*"]


def choose_port(wanted: int | None = None) -> int:
    """A free port below the kernel's range for outgoing connections.

    From inside that range a client that keeps trying a stopped broker can be given the broker's own port,
    connect to itself and keep the broker from coming back.
    """
    if wanted and is_free(wanted):
        return wanted
    while True:
        port = 20000 + secrets.randbelow(12000)
        if port not in _chosen and is_free(port):
            _chosen.add(port)
            return port


_chosen: set[int] = set()
"""By this process: who asks for several ports binds none before it has them all."""


def new_cluster() -> str:
    """An id for a cluster."""
    cluster = urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
    return "A" + cluster[1:]  # Kafka's tools would take a leading dash for an option


def last_error(text: str) -> str | None:
    """The line of a Java log that says most."""
    lines = [line for line in text.splitlines() if re.match(r"\S.*(ERROR|FATAL|Exception|Error:)", line)]
    return lines[-1] if lines else None


# ---- one broker


class Broker:
    """A broker whose data, ports, process id and logs are in one folder."""

    def __init__(
        self,
        folder: Path,
        port: int | None = None,
        properties: Mapping[str, str] | None = None,
        cluster: str | None = None,
    ) -> None:
        """`cluster`: id of the one that it is part of, whose voters `properties` name; None: it is alone."""
        self.folder = folder.resolve()
        self.extra = dict(properties or {})
        self.cluster = cluster
        self.wanted = port
        self.ports: tuple[int, int] | None = None
        self.child: subprocess.Popen[bytes] | None = None
        self.settings = self.folder / "server.properties"
        self.log = self.folder / "broker.log"

    @property
    def address(self) -> str:
        """HOST:PORT for clients; known once the broker was started."""
        if self.ports is None:
            raise BrokerError("this broker was never started")
        return f"{HOST}:{self.ports[0]}"

    @property
    def pid(self) -> int | None:
        """The process that runs, if it is really this broker and not a later process with its number."""
        try:
            pid = int((self.folder / "pid").read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return None
        return pid if b"kafka.Kafka" in command and os.fsencode(self.settings) in command else None

    def start(self) -> str:
        """Start unless it runs, wait until it answers, return its address."""
        java = None if self.pid else java_command()
        with locked(self.folder):
            if self.pid is None:
                self._launch(java or java_command())
            elif self.ports is None:
                self.ports = self._saved_ports()
        self._wait()
        return self.address

    def stop(self) -> bool:
        """Let it end in good order; true if there was one."""
        return self._end(signal.SIGTERM)

    def kill(self) -> bool:
        """End it as a crash would."""
        return self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Make it hang: connections stay, nothing answers."""
        self._signal(signal.SIGSTOP)
        # Each thread stops in its own time: until the last has, an answer may still come.
        while any(state not in "TtZX" for state in self._thread_states()):
            time.sleep(0.001)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    # -- the parts

    def _launch(self, java: list[str]) -> None:
        if self.ports is None:
            self.ports = self._choose_ports()
        elif not is_free(self.ports[0]):
            raise BrokerError(f"another process took {self.address}")
        self._write_settings()
        if not (self.folder / "cluster").exists():
            self._format(java)
        log_rules = (HERE / "log4j2.properties").as_uri()
        logging = [f"-Dlog4j2.configurationFile={log_rules}", f"-Dbroker.log={self.log}"]
        with (self.folder / "output.log").open("ab") as output:
            self.child = subprocess.Popen(
                [*java, *JVM, *logging, "kafka.Kafka", str(self.settings)],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # the Ctrl-C of whoever started it is not meant for it
            )
        (self.folder / "pid").write_text(f"{self.child.pid}\n")
        while self.pid is None and self.child.poll() is None:
            time.sleep(0.001)  # a process has no command line yet in the first moment of its exec

    def _saved_ports(self) -> tuple[int, int] | None:
        try:
            client, controller = json.loads((self.folder / "ports").read_text())
        except (OSError, ValueError):
            return None
        return int(client), int(controller)

    def _choose_ports(self) -> tuple[int, int]:
        """The ports of last time where they are still free."""
        client, controller = self._saved_ports() or (self.wanted, None)
        ports = choose_port(client), choose_port(controller)
        (self.folder / "ports").write_text(json.dumps(ports))
        return ports

    def _write_settings(self) -> None:
        assert self.ports is not None
        client, controller = (f"{HOST}:{port}" for port in self.ports)
        settings = {
            **PROPERTIES,
            "listeners": f"PLAINTEXT://{client},CONTROLLER://{controller}",
            "advertised.listeners": f"PLAINTEXT://{client},CONTROLLER://{controller}",
            "controller.quorum.bootstrap.servers": controller,
            "log.dirs": str(self.folder / "data"),
            **self.extra,
        }
        self.settings.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))

    def _format(self, java: list[str]) -> None:
        """Make an empty store. The file `cluster` says that it is whole: without it, begin again."""
        cluster = self.cluster or new_cluster()
        shutil.rmtree(self.folder / "data", ignore_errors=True)
        tool = [*java, "-XX:TieredStopAtLevel=1", "kafka.tools.StorageTool", "format"]
        tool += ["-t", cluster, "-c", str(self.settings)]
        tool += [] if self.cluster else ["--standalone"]
        done = subprocess.run(tool, cwd=self.folder, capture_output=True, text=True, check=False)
        if done.returncode:
            why = last_error(done.stderr + done.stdout) or "it does not say why"
            raise BrokerError(f"Kafka could not prepare {self.folder}: {why}")
        (self.folder / "cluster").write_text(cluster)

    def _wait(self) -> None:
        """Ask for metadata until this very broker answers."""
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient

        cluster = (self.folder / "cluster").read_text()
        client = AdminClient(
            {"bootstrap.servers": self.address, "log_level": 0, "reconnect.backoff.max.ms": 100}
        )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.pid is None:
                self._forget()
                raise BrokerError(f"Kafka ended as it started: {self._last_words()}")
            with contextlib.suppress(KafkaException):
                answer = client.list_topics(timeout=0.5)
                if answer.brokers and str(answer.cluster_id) == cluster:
                    return
        raise BrokerError(f"Kafka did not answer within {START_SECONDS} s: {self._last_words()}")

    def _last_words(self) -> str:
        for log in (self.log, self.folder / "output.log"):
            with contextlib.suppress(OSError):
                why = last_error(log.read_text(errors="replace"))
                if why:
                    return f"{why} ({log})"
        return f"see {self.log}"

    def _open(self) -> int | None:
        """A handle on the process, so that no other can take its place between our look and our signal."""
        pid = self.pid
        if pid is None:
            return None
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            return None
        if self.pid == pid:
            return handle
        os.close(handle)
        return None

    def _thread_states(self) -> Iterator[str]:
        for stat in Path(f"/proc/{self.pid}/task").glob("*/stat"):
            with contextlib.suppress(OSError):  # that thread has just ended
                yield stat.read_text().rpartition(")")[2].split()[0]

    def _signal(self, number: signal.Signals) -> None:
        handle = self._open()
        if handle is None:
            raise BrokerError("this broker does not run")
        signal.pidfd_send_signal(handle, number)
        os.close(handle)

    def _end(self, number: signal.Signals) -> bool:
        handle = self._open()
        if handle is not None:
            signal.pidfd_send_signal(handle, number)
            signal.pidfd_send_signal(handle, signal.SIGCONT)  # in case it was paused
            if not select.select([handle], [], [], STOP_SECONDS)[0]:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
                select.select([handle], [], [])
            os.close(handle)
        self._forget()
        return handle is not None

    def _forget(self) -> None:
        if self.child:
            self.child.wait()
            self.child = None
        (self.folder / "pid").unlink(missing_ok=True)


# ---- the command


def main() -> int:
    parser = argparse.ArgumentParser(description="A single Apache Kafka on the loopback, in .kafka/.")
    parser.add_argument("what", choices=["start", "stop", "fetch", "needs"])
    parser.add_argument("--otherwise", metavar="TEXT", help="what happens where Kafka cannot be had")
    options = parser.parse_args()
    broker = Broker(HOME, port=9092)
    try:
        if options.what == "needs":
            print(*missing_packages())
        elif options.what == "fetch":
            fetch()
        elif options.what == "stop":
            print("Kafka stopped" if broker.stop() else "Kafka was not running")
        else:
            if broker.pid is None:
                java_command()  # says what is missing before we promise anything
                print("starting Kafka", file=sys.stderr)
            print(broker.start())
    except (UnavailableError, BrokerError, OSError) as error:
        print(f"Kafka: {error}{'; ' + options.otherwise if options.otherwise else ''}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
