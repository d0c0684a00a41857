"""An embedded broker for the demo and for quick tests: librdkafka's mock cluster, from the confluent-kafka wheel.

Kept in memory, gone with the process: 5 MiB a partition, of which the oldest is dropped whether read or not. Good
for one worker; two in a group hang on it.
"""

import ctypes
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import confluent_kafka

from tidegate.schemas.errors import InputError

UNKNOWN_TOPIC = 3
REBALANCE_DELAY_MS = 50
_ELSEWHERE = "start a Kafka and give its address with --broker or TIDEGATE_BROKER"
_POINTER, _INT, _TEXT = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p


def _library() -> ctypes.CDLL:
    package = Path(confluent_kafka.__file__).parent
    # Where Linux and macOS wheels keep what they bundle.
    found = [*package.parent.glob("confluent_kafka.libs/librdkafka*"), *package.glob(".dylibs/librdkafka.*dylib")]
    if not found:
        raise InputError(f"this confluent-kafka bundles no librdkafka, so there is no embedded broker; {_ELSEWHERE}")
    return ctypes.CDLL(str(found[0]))


@dataclass(frozen=True)
class EmbeddedBroker:
    """A broker inside this process, which can be disturbed."""

    servers: str
    _switch: Callable[[str], None]
    _answer: Callable[[str, int], None]

    def leave(self) -> None:
        """Be away: connections are cut and refused."""
        self._switch("rd_kafka_mock_broker_set_down")

    def come_back(self) -> None:
        """Be there again, at the same address and with all records."""
        self._switch("rd_kafka_mock_broker_set_up")

    def hide(self, topic: str) -> None:
        """Answer as if the topic were not there."""
        self._answer(topic, UNKNOWN_TOPIC)

    def show(self, topic: str) -> None:
        """Let the topic be there again."""
        self._answer(topic, 0)


@contextmanager
def embedded_broker(topics: Mapping[str, int]) -> Iterator[str]:
    """Run a broker on loopback inside this process; gives its address.

    ``topics``: the number of partitions of each topic. Raises InputError, with the way out, if it cannot be had.
    """
    with embedded(topics) as broker:
        yield broker.servers


@contextmanager
def embedded(topics: Mapping[str, int]) -> Iterator[EmbeddedBroker]:
    """``embedded_broker``, as an object."""
    library = _library()

    def call(name: str, result: Any, *typed: tuple[Any, Any]) -> Any:
        function = getattr(library, name)
        function.restype, function.argtypes = result, [kind for kind, _ in typed]
        return function(*[value for _, value in typed])

    error = ctypes.create_string_buffer(512)
    room = (ctypes.c_char_p, error), (ctypes.c_size_t, len(error))
    with ExitStack() as stack:
        settings = call("rd_kafka_conf_new", _POINTER)
        for name, value in ((b"log_level", b"0"), (b"client.id", b"tidegate-embedded")):
            call("rd_kafka_conf_set", _INT, (_POINTER, settings), (_TEXT, name), (_TEXT, value), *room)
        client = call("rd_kafka_new", _POINTER, (_INT, 0), (_POINTER, settings), *room)
        if not client:
            raise InputError(f"the embedded broker did not start ({error.value.decode()}); {_ELSEWHERE}")
        stack.callback(call, "rd_kafka_destroy", None, (_POINTER, client))
        cluster = call("rd_kafka_mock_cluster_new", _POINTER, (_POINTER, client), (_INT, 1))
        if not cluster:
            raise InputError(f"the embedded broker did not start; {_ELSEWHERE}")
        stack.callback(call, "rd_kafka_mock_cluster_destroy", None, (_POINTER, cluster))
        delay = (ctypes.c_int32, REBALANCE_DELAY_MS)
        call("rd_kafka_mock_group_initial_rebalance_delay_ms", None, (_POINTER, cluster), delay)

        for topic, partitions in topics.items():
            shape = (_TEXT, topic.encode()), (_INT, partitions), (_INT, 1)
            if call("rd_kafka_mock_topic_create", _INT, (_POINTER, cluster), *shape):
                raise InputError(f"the embedded broker cannot make topic {topic} with {partitions} partitions")

        def switch(name: str) -> None:
            call(name, _INT, (_POINTER, cluster), (ctypes.c_int32, 1))

        def answer(topic: str, error: int) -> None:
            call("rd_kafka_mock_topic_set_error", None, (_POINTER, cluster), (_TEXT, topic.encode()), (_INT, error))

        servers: bytes = call("rd_kafka_mock_cluster_bootstraps", _TEXT, (_POINTER, cluster))
        yield EmbeddedBroker(servers.decode(), switch, answer)
