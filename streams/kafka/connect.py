"""Why Kafka cannot be reached: the client library keeps the reason to its own log."""

from aiokafka.conn import collect_hosts, create_conn
from aiokafka.errors import KafkaConnectionError, KafkaError, UnknownTopicOrPartitionError

from tidegate.streams.settings import Settings

CONNECT_MS = 5_000
MISSING = "it is not there, or hidden from this user; run `tidegate topics --create`"


async def why(settings: Settings, error: Exception) -> str:
    """Describe an error in one sentence; for a connection that failed, the error of a second attempt.

    So a wrong password, a certificate that does not fit and a name that nobody knows are told apart.
    """
    if isinstance(error, UnknownTopicOrPartitionError):
        return MISSING
    if not isinstance(error, KafkaConnectionError):
        return str(error) or type(error).__name__
    arguments = {name: value for name, value in settings.kafka.items() if name != "bootstrap_servers"}
    for host, port, _ in collect_hosts(settings.kafka["bootstrap_servers"], randomize=False):
        try:
            connection = await create_conn(host, port, request_timeout_ms=CONNECT_MS, **arguments)
        except (KafkaError, OSError) as reason:
            return str(reason) or type(reason).__name__
        connection.close()
    return str(error)
