"""Operators' orders, from their topic to the gates that decide for the flags."""

import structlog
from aiokafka import ConsumerRecord

from tidegate.schemas.errors import Refusal
from tidegate.schemas.operation import Operation, check_time, read_operation
from tidegate.schemas.signed import TrustedKeys
from tidegate.streams.engine.gate_log import Order
from tidegate.streams.settings import Settings

log = structlog.get_logger("tidegate")


class OperationLog:
    """The operations topic, taken in record by record. ``trusted`` None: operations are not signed."""

    def __init__(self, settings: Settings, trusted: TrustedKeys | None) -> None:
        self._settings, self._trusted = settings, trusted
        self._seen: dict[Operation, int] = {}
        self.orders: list[Order] = []

    def take(self, record: ConsumerRecord) -> Operation | None:
        """Add a record's operation; one that is refused is logged and changes nothing."""
        try:
            operation = read_operation(record.value, self._settings.deployment, self._trusted)
            check_time(operation, record.timestamp, self._settings.operation_max_age)
            if operation in self._seen:
                raise Refusal(f"a repeat of the record at offset {self._seen[operation]}; give the order again")
        except Refusal as refusal:
            log.warning("operation refused", offset=record.offset, reason=str(refusal))
            return None
        self._seen[operation] = record.offset
        self.orders.append(Order(operation.flag, operation.by, record.offset))
        log.info(
            "operation accepted",
            offset=record.offset,
            operation=operation.kind,
            flag=operation.flag,
            actor=operation.actor,
            reason=operation.reason,
        )
        return operation
