"""The topics: what they have to be like, making them, and checking those that are there."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import structlog
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import GroupAuthorizationFailedError, KafkaError, for_code

from tidegate.schemas.errors import AccessError, NoBrokerError, TopicError
from tidegate.schemas.signed import DOCUMENT_BYTES_MAX
from tidegate.streams.kafka.connect import why
from tidegate.streams.settings import Settings

log = structlog.get_logger("tidegate")

STATE_MAX_BYTES = 4 << 20
"""Room for a partial or a decision of a very large pane."""


@dataclass(frozen=True)
class Topic:
    """Requirements of a topic. ``partitions`` None: as it is found."""

    name: str
    partitions: int
    cleanup: Literal["delete", "compact"]
    config: Mapping[str, str]
    what: str


def topics(settings: Settings) -> list[Topic]:
    """Return every topic a worker needs, in the order of the flow."""
    kept = {"retention.ms": str(settings.retention)}
    state = {"segment.ms": "3600000", "segment.bytes": str(64 << 20), "min.cleanable.dirty.ratio": "0.1"}
    large = {"max.message.bytes": str(STATE_MAX_BYTES)}
    # As long as telemetry: it is what tells where an order stood.
    passing = {**kept, **large}
    # The broker's clock, not the writer's: what a record may do depends on when it was written.
    ordered = {"message.timestamp.type": "LogAppendTime", "max.message.bytes": str(2 * DOCUMENT_BYTES_MAX)}
    p, g = settings.partitions, settings.gate_partitions
    return [
        Topic(settings.telemetry_topic, p, "delete", kept, "events in"),
        Topic(settings.late_topic, p, "delete", kept, "events whose pane was closed"),
        Topic(settings.dead_letter_topic, p, "delete", kept, "records that are no events"),
        Topic(settings.window_checkpoints_topic, p, "compact", state, "state of each telemetry partition"),
        Topic(settings.partials_topic, g, "delete", passing, "closed panes"),
        Topic(settings.gate_checkpoints_topic, g, "compact", state, "state of each gate"),
        Topic(settings.retained_topic, 2, "delete", kept, "states for replays from mid-history: index and parts"),
        Topic(settings.decisions_topic, g, "delete", {"retention.ms": "-1", **large}, "decisions out"),
        Topic(settings.corrections_topic, g, "delete", {"retention.ms": "-1"}, "corrections out"),
        Topic(settings.control_topic, g, "compact", {"min.cleanable.dirty.ratio": "0.1"}, "commands out"),
        Topic(settings.manifests_topic, 1, "compact", ordered, "signed manifest revisions in"),
        Topic(settings.operations_topic, 1, "delete", {"retention.ms": "-1", **ordered}, "kills and rearms in"),
    ]


async def connect(settings: Settings) -> AIOKafkaAdminClient:
    """Return an admin client. Raises TopicError, naming the broker, if none answers."""
    admin = AIOKafkaAdminClient(**settings.kafka, request_timeout_ms=10_000)
    try:
        await admin.start()
    except (KafkaError, OSError) as error:
        await admin.close()
        reason = await why(settings, error)
        raise NoBrokerError(f"no Kafka answers at {settings.broker} (TIDEGATE_BROKER): {reason}") from None
    return admin


async def found_partitions(admin: AIOKafkaAdminClient, names: list[str]) -> dict[str, int]:
    """Return the number of partitions of each of the topics that exists."""
    existing = set(await admin.list_topics())
    present = [name for name in names if name in existing]
    described = await admin.describe_topics(present) if present else []
    return {topic["topic"]: len(topic["partitions"]) for topic in described}


async def create_topics(settings: Settings) -> list[str]:
    """Make the topics that are missing; the names of those made. Raises TopicError if the broker refuses."""
    admin = await connect(settings)
    try:
        found = await found_partitions(admin, [topic.name for topic in topics(settings)])
        # Telemetry that is there already decides how many partitions its late events and states have.
        p = found.get(settings.telemetry_topic, settings.partitions)
        g = found.get(settings.partials_topic, settings.gate_partitions)
        wanted = settings.model_copy(update={"partitions": p, "gate_partitions": g})
        missing = [topic for topic in topics(wanted) if topic.name not in found]
        if missing:
            answer = await _create(admin, missing, settings.replication_factor)
            for name, code, *message in answer.topic_errors:
                # Another worker may have been quicker.
                if code and for_code(code).__name__ != "TopicAlreadyExistsError":
                    raise TopicError(f"topic {name} cannot be made: {message[0] if message else for_code(code)}")
        return [topic.name for topic in missing]
    except KafkaError as error:
        raise TopicError(f"the topics cannot be made: {error}; make them by hand, see `tidegate topics`") from None
    finally:
        await admin.close()


async def _create(admin: AIOKafkaAdminClient, missing: list[Topic], replicas: int) -> Any:
    new = [
        NewTopic(
            topic.name, topic.partitions, replicas, topic_configs={"cleanup.policy": topic.cleanup, **topic.config}
        )
        for topic in missing
    ]
    try:
        return await admin.create_topics(new)
    except AttributeError:
        # aiokafka asks the controller for its id, also where there is none.
        raise TopicError("the topics cannot be made while the cluster has no controller; try again") from None


async def check_topics(settings: Settings) -> tuple[int, int]:
    """Partitions of the telemetry topic and of the partials topic.

    Raises TopicError, naming topic and remedy, if a topic is missing or would break results: compacted where every
    record counts, not compacted where only the last one does, or with partitions that do not match.
    """
    admin = await connect(settings)
    try:
        wanted = topics(settings)
        found = await found_partitions(admin, [topic.name for topic in wanted])
        missing = [topic.name for topic in wanted if topic.name not in found]
        if missing:
            raise TopicError(
                f"topics are missing, or hidden from this user: {', '.join(missing)}; run `tidegate topics --create`"
            )
        p, g = found[settings.telemetry_topic], found[settings.partials_topic]
        for name, count in (
            (settings.window_checkpoints_topic, p),
            (settings.gate_checkpoints_topic, g),
        ):
            if found[name] != count:
                raise TopicError(
                    f"topic {name} has {found[name]} partitions, not {count}; partitions cannot be added later: "
                    "start a new TIDEGATE_APPLICATION_ID"
                )
        if found[settings.retained_topic] < 2:
            raise TopicError(f"topic {settings.retained_topic} has 1 partition, not 2; delete and recreate it")
        for name in (settings.manifests_topic, settings.operations_topic):
            if found[name] != 1:
                raise TopicError(
                    f"topic {name} has {found[name]} partitions, not 1, so its records have no order; "
                    "delete and recreate it"
                )
        policies = await _policies(admin, [topic.name for topic in wanted])
        for topic in wanted:
            policy = policies.get(topic.name)
            if policy is not None and policy != topic.cleanup:
                raise TopicError(
                    f"topic {topic.name} has cleanup.policy={policy}, not {topic.cleanup}; set it with kafka-configs"
                )
        return p, g
    finally:
        await admin.close()


async def check_group(settings: Settings) -> None:
    """Raises AccessError if this user may not be in the consumer group; the client library would wait without a word.

    Asked by the group's coordinator, which takes a little to be there on a new broker.
    """
    admin = await connect(settings)
    group = settings.application_id
    try:
        await admin.find_coordinator(group)
    except GroupAuthorizationFailedError:
        raise AccessError(
            f"group {group} (TIDEGATE_APPLICATION_ID) is not open to this user: it needs Read on it"
        ) from None
    except KafkaError as error:
        log.debug("group not checked", group=group, error=str(error))
    finally:
        await admin.close()


async def _policies(admin: AIOKafkaAdminClient, names: list[str]) -> dict[str, str]:
    """cleanup.policy by topic; empty where the broker does not say."""
    try:
        answers = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name) for name in names])
    except (KafkaError, NotImplementedError):
        return {}
    policies: dict[str, str] = {}
    for answer in answers:
        for _, _, _, name, entries in answer.resources:
            for key, value, *_ in entries:
                if key == "cleanup.policy":
                    policies[name] = value
    return policies
