"""A real Kafka for tests and benchmarks.

It is an address that the user gave, else a container, else a node from Kafka's own jars.
:class:`LocalBroker` is the last of these: a single KRaft node on loopback that can be stopped,
killed and started again on the same ports and data. The session fixture ``kafka_broker`` yields the
bootstrap servers of whichever could be had. Where none could, it skips with the reason, and fails
under CI: a run without Kafka must not look green there.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self
from xml.etree import ElementTree

import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from docker.errors import DockerException
from testcontainers.core.container import DockerContainer

POM = Path(__file__).parent / "kafka" / "pom.xml"
CLUSTER_ID = "dGlkZWdhdGUtdGVzdHMtMQ"
QUIET = "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"
PATIENCE = 60.0
"""Seconds that a broker has for its first answer."""


class BrokerUnavailable(Exception):
    """No Kafka could be had; the message says what was tried and what is missing."""


def kafka_version() -> str:
    """The Kafka version of the tests, read from the pom; the container image follows it."""
    found = ElementTree.parse(POM).findtext(".//{*}kafka.version")  # noqa: S314  # our own file
    if found is None:
        raise ValueError(f"{POM} has no property kafka.version")
    return found


def server_properties(listeners: str, advertised: str, controller: str, data: str) -> dict[str, str]:
    """The settings of a single KRaft node that is ready at once and keeps whatever it is given.

    Retention is off because records may carry the timestamps of an old trace.
    """
    return {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@{controller}",
        "controller.listener.names": "CONTROLLER",
        "listeners": listeners,
        "advertised.listeners": advertised,
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "log.dirs": data,
        "log.retention.ms": "-1",
        "auto.create.topics.enable": "false",
        "broker.heartbeat.interval.ms": "200",
        "broker.session.timeout.ms": "3000",
        "group.initial.rebalance.delay.ms": "0",
        "offsets.topic.num.partitions": "1",
        "offsets.topic.replication.factor": "1",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
    }


def kafka_jars() -> Path:
    """The folder with Kafka's jars, fetched by Maven on the first call (about 54 MB).

    The fetch goes to a folder of its own that is renamed when whole, so an interrupted one leaves
    nothing that looks usable.

    Raises:
        BrokerUnavailable: Java or Maven is missing, or Maven failed.
    """
    if shutil.which("java") is None:
        raise BrokerUnavailable("no Java on PATH (17 or newer is needed)")
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tidegate"
    jars = root / f"kafka-{kafka_version()}"
    if jars.is_dir():
        return jars
    maven = shutil.which("mvn")
    if maven is None:
        raise BrokerUnavailable(f"no Maven on PATH to fetch Kafka's jars into {jars}")
    root.mkdir(parents=True, exist_ok=True)
    print(f"Fetching Kafka's jars into {jars} (once)", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix=f".{jars.name}-", dir=root) as partial:
        fetched = Path(partial) / "jars"
        command = [maven, "-B", "-q", "-f", str(POM), "dependency:copy-dependencies"]
        done = subprocess.run(
            [*command, f"-DoutputDirectory={fetched}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            raise BrokerUnavailable(f"Maven could not fetch Kafka's jars:\n{done.stdout[-2000:]}")
        try:
            fetched.rename(jars)
        except OSError:  # another run put the same jars there first
            if not jars.is_dir():
                raise
    return jars


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nothing listened on a moment ago."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def wait_until_answers(servers: str, check: Callable[[], None] = lambda: None) -> None:
    """Returns once ``servers`` answers a metadata request; ``check`` may raise to end the wait.

    Raises:
        BrokerUnavailable: it did not answer within ``PATIENCE``.
    """
    client = AdminClient({"bootstrap.servers": servers, "log_level": 0, "reconnect.backoff.max.ms": 250})
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        check()
        with suppress(KafkaException):
            client.list_topics(timeout=1.0)
            return
    raise BrokerUnavailable(f"no answer from {servers} in {PATIENCE:g} s")


class LocalBroker:
    """One Kafka node in KRaft mode on loopback, from Kafka's jars; about 4 s to the first answer.

    Alone, or with ``node`` and ``quorum`` one of a :class:`LocalCluster`.

    Args:
        folder: takes ``server.properties``, ``broker.log`` and the data.
        cpu: the core to pin the process to; ``None`` leaves the choice to the system.
        heap: the JVM's ``-Xms`` and ``-Xmx``.
        properties: entries for ``server.properties`` beyond or in place of ours.
        listeners: listeners beside the open one, by name with their security protocol; ``addresses`` has where.
        format_options: more arguments for formatting the storage, for instance to add SCRAM users.
        node: its id.
        quorum: the controller's address of each node of its cluster, its own among them; none: it is alone.

    Used as a context manager it starts on entry and stops on exit.
    """

    def __init__(
        self,
        folder: Path,
        *,
        cpu: int | None = None,
        heap: str = "512m",
        properties: Mapping[str, str] | None = None,
        listeners: Mapping[str, str] | None = None,
        format_options: Sequence[str] = (),
        node: int = 1,
        quorum: Mapping[int, str] | None = None,
    ) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._java = ["java", f"-Xms{heap}", f"-Xmx{heap}", QUIET, "-cp", f"{kafka_jars()}/*"]
        self._pin = [] if cpu is None else ["taskset", "-c", str(cpu)]
        self._config, self._log = folder / "server.properties", folder / "broker.log"
        self.node, self.data = node, folder / "data"
        more = dict(listeners or {})
        client, controller, *others = (f"127.0.0.1:{port}" for port in free_ports(2 + len(more)))
        if quorum is not None:
            controller = quorum[node]
        self.bootstrap = client
        self.addresses = dict(zip(more, others, strict=True))
        open_to_clients = ",".join(f"{name}://{at}" for name, at in [("PLAINTEXT", client), *self.addresses.items()])
        settings = server_properties(
            f"{open_to_clients},CONTROLLER://{controller}", open_to_clients, controller, str(self.data)
        )
        if quorum is not None:
            voters = ",".join(f"{number}@{address}" for number, address in quorum.items())
            settings |= {"node.id": str(node), "controller.quorum.voters": voters}
        for name, protocol in more.items():
            settings["listener.security.protocol.map"] += f",{name}:{protocol}"
        settings.update(properties or {})
        folder.mkdir(parents=True, exist_ok=True)
        self._config.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
        self._format(format_options)

    @property
    def pid(self) -> int | None:
        """The process id while the broker runs."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Starts the broker and returns when it answers.

        Raises:
            BrokerUnavailable: it ended or did not answer; the message has the end of its log.
        """
        self.launch()
        self.await_answer()

    def launch(self) -> None:
        """Starts the process without waiting for an answer."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._pin, *self._java, "kafka.Kafka", str(self._config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def await_answer(self) -> None:
        """Returns when the launched broker answers; ends it and raises BrokerUnavailable where it does not."""
        try:
            wait_until_answers(self.bootstrap, self._check_running)
        except BaseException as error:
            self.kill()
            if isinstance(error, BrokerUnavailable):
                raise BrokerUnavailable(f"{error}\n{self.log_tail()}") from error
            raise

    def wait(self, seconds: float) -> bool:
        """Whether the broker ends of itself within ``seconds``."""
        try:
            assert self._process is not None
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        self._process = None
        return True

    def stop(self, seconds: float = 30.0) -> None:
        """Ends the broker if it runs: cleanly, or by SIGKILL when that takes over ``seconds``."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def kill(self) -> None:
        """Ends the broker, if it runs, by SIGKILL, as a crash would."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        self._process = None

    def restart(self) -> None:
        """Stops the broker and starts it on the same ports and data."""
        self.stop()
        self.start()

    def log_tail(self, lines: int = 30) -> str:
        """The last lines that the broker printed."""
        text = self._log.read_text(errors="replace") if self._log.exists() else ""
        return f"The end of {self._log}:\n" + "\n".join(text.splitlines()[-lines:])

    def _format(self, options: Sequence[str]) -> None:
        tool = [*self._java, "kafka.tools.StorageTool", "format"]
        done = subprocess.run(
            [*tool, "--cluster-id", CLUSTER_ID, "--config", str(self._config), *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            raise BrokerUnavailable(f"Kafka could not format its storage:\n{done.stdout[-2000:]}")

    def _check_running(self) -> None:
        if self._process is not None and self._process.poll() is not None:
            raise BrokerUnavailable(f"Kafka ended with exit code {self._process.returncode}")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


REPLICAS = 3
IN_SYNC = 2
REPLICATED = {
    "default.replication.factor": str(REPLICAS),
    "min.insync.replicas": str(IN_SYNC),
    "offsets.topic.replication.factor": str(REPLICAS),
    "transaction.state.log.replication.factor": str(REPLICAS),
    "transaction.state.log.min.isr": str(IN_SYNC),
    "share.coordinator.state.topic.replication.factor": str(REPLICAS),
    "share.coordinator.state.topic.min.isr": str(IN_SYNC),
    "replica.lag.time.max.ms": "5000",
}


class LocalCluster:
    """Three Kafka nodes on loopback, each broker and controller; a write counts once two of them have it.

    Starts, stops and is used like a :class:`LocalBroker`.
    """

    def __init__(self, folder: Path, *, heap: str = "256m") -> None:
        ports = free_ports(REPLICAS)
        quorum = {node: f"127.0.0.1:{port}" for node, port in enumerate(ports, start=1)}
        self.nodes = [
            LocalBroker(folder / f"node-{node}", heap=heap, properties=REPLICATED, node=node, quorum=quorum)
            for node in quorum
        ]
        self.bootstrap = ",".join(node.bootstrap for node in self.nodes)

    def start(self) -> None:
        """Starts the nodes that are down and returns when each answers."""
        down = [node for node in self.nodes if node.pid is None]
        for node in down:
            node.launch()
        for node in down:
            node.await_answer()

    def stop(self) -> None:
        """Ends all nodes at once, by SIGKILL: the last two could not hand their partitions over anyway."""
        for node in self.nodes:
            node.kill()

    def leader(self, topic: str, partition: int = 0) -> LocalBroker:
        """The node that leads a partition now."""
        found = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0}).list_topics(topic, timeout=30)
        leader = found.topics[topic].partitions[partition].leader
        return next(node for node in self.nodes if node.node == leader)

    def wait_in_sync(self, seconds: float = PATIENCE) -> None:
        """Returns once every replica of every partition is in sync. Raises BrokerUnavailable if they are not."""
        admin, deadline = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0}), time.monotonic() + seconds
        behind: list[str] = []
        while time.monotonic() < deadline:
            with suppress(KafkaException):
                topics = admin.list_topics(timeout=5.0).topics.values()
                parts = [(topic.topic, part) for topic in topics for part in topic.partitions.values()]
                behind = [f"{name}-{part.id}" for name, part in parts if len(part.isrs) < len(part.replicas)]
                if parts and not behind:
                    return
            time.sleep(0.2)
        raise BrokerUnavailable(f"not in sync after {seconds:g} s: {behind}")

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def docker_answers() -> bool:
    """Whether a Docker engine, and not only its client, is there."""
    # In a process of its own: the client leaves its socket unclosed when nothing answers.
    ping = [sys.executable, "-c", "import docker; docker.from_env(timeout=3).ping()"]
    try:
        return subprocess.run(ping, capture_output=True, timeout=10).returncode == 0
    except subprocess.TimeoutExpired:
        return False


@contextmanager
def container_broker() -> Iterator[str]:
    """Kafka's own image in a container; yields its bootstrap servers.

    testcontainers' KafkaContainer drives Confluent's images only: this is the plain container.
    """
    (port,) = free_ports(1)
    image = f"apache/kafka:{kafka_version()}"
    container = DockerContainer(image).with_bind_ports("9092/tcp", port)
    address = f"{container.get_docker_client().host()}:{port}"
    settings = server_properties(
        "PLAINTEXT://:9092,CONTROLLER://:9093",
        f"PLAINTEXT://{address}",
        "localhost:9093",
        "/tmp/data",  # noqa: S108  # inside the container
    )
    for key, value in settings.items():
        container.with_env("KAFKA_" + key.upper().replace(".", "_"), value)
    try:
        container.start()
    except DockerException as error:
        raise BrokerUnavailable(f"Docker could not start {image}: {error}") from error
    try:
        wait_until_answers(address)
        yield address
    finally:
        container.stop()


@contextmanager
def any_broker(folder: Path) -> Iterator[str]:
    """Yields the servers of the first broker that can be had; ``folder`` takes a local one's files.

    Raises:
        BrokerUnavailable: there is none.
    """
    if given := os.environ.get("TIDEGATE_TEST_BROKER"):
        wait_until_answers(given)
        yield given
    elif docker_answers():
        with container_broker() as address:
            yield address
    else:
        with LocalBroker(folder) as broker:
            yield broker.bootstrap


def give_up(error: BrokerUnavailable) -> NoReturn:
    """Skips the test for want of a broker; fails it under CI, where a skip would go unseen."""
    reason = (
        f"NO KAFKA, so nothing that needs one was tested: {error}\n"
        "Set TIDEGATE_TEST_BROKER to a broker, or start Docker, or install Java 17 and Maven."
    )
    if os.environ.get("CI", "").lower() not in ("", "0", "false"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def provide(folder: Path) -> Iterator[str]:
    """What ``kafka_broker`` does: yields bootstrap servers, or gives up."""
    with ExitStack() as stack:
        try:
            servers = stack.enter_context(any_broker(folder))
        except BrokerUnavailable as error:
            give_up(error)
        yield servers


@pytest.fixture(scope="session")
def kafka_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Bootstrap servers of a real Kafka, shared by the whole run: name topics and groups apart."""
    yield from provide(tmp_path_factory.mktemp("kafka"))
