"""The benchmark's telemetry: about 500 bytes an event, four partitions, two arms, pins, users, event time."""

import random
from collections.abc import Iterator

from confluent_kafka import Producer

from tidegate.streams.dumps.log import partition_of

FLAG, TOPIC_PARTITIONS, START = "answer", 4, 1_700_000_000_000
MANIFEST = f"flags: {{{FLAG}: {{policy: {{lambda_source: traffic}}}}}}\n"
USERS, EVENTS_PER_SECOND = 100_000, 2_000
_PINS = '"PROMPT_VER":"p-2025.08.31-h1","INDEX_HASH":"b7f3a1c2","RERANK_CONF":"bge-rerank-v2@top32","TOK_VER":"t1"'


def events(count: int, seed: int = 1) -> Iterator[tuple[int, bytes]]:
    """(partition, value) of events in order of time, jittered by up to 2 s."""
    rnd = random.Random(seed)
    partitions = [partition_of(b"user-%d" % user, TOPIC_PARTITIONS) for user in range(USERS)]
    for number in range(count):
        user = rnd.randrange(USERS)
        arm = "baseline" if user % 4 else "canary"
        ts = START + number * 1000 // EVENTS_PER_SECOND + rnd.randrange(-2_000, 2_000)
        yield (
            partitions[user],
            (
                f'{{"event_id":"e-{number:012d}","ts":{ts},"flag":"{FLAG}","arm":"{arm}","sticky_id":"user-{user}",'
                f'"tenant":"acme","region":"us-east-1","endpoint":"/rag/reason",'
                f'"versions":{{"MODEL_VER":"m-{arm}",{_PINS},"ANALYZER_CONF":"a1"}},'
                f'"delta_s":{rnd.random() / 10:.5f},"coverage":{0.75 + rnd.random() / 5:.5f},"lambda_state":"→",'
                f'"latency_ms":{rnd.lognormvariate(6, 0.3):.2f},"status":{500 if rnd.random() < 0.001 else 200},'
                f'"tool_calls":1,"tool_ok":1,"cost":{0.001 + rnd.random() / 1e4:.6f},"solved":true}}'
            ).encode(),
        )


def fill(broker: str, topic: str, count: int) -> int:
    """Write the events to a topic; the mean size of a value in bytes."""
    producer = Producer(
        {"bootstrap.servers": broker, "linger.ms": 50, "batch.size": 1 << 20, "queue.buffering.max.messages": 200_000}
    )
    size = 0
    for partition, value in events(count):
        size += len(value)
        while True:
            try:
                producer.produce(topic, value, partition=partition)
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)
    producer.flush()
    return size // count
