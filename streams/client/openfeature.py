"""A provider for OpenFeature that follows the control topic, and a hook that tells of exposures."""

import asyncio
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NoReturn

from openfeature.evaluation_context import EvaluationContext
from openfeature.event import ProviderEventDetails
from openfeature.exception import (
    FlagNotFoundError,
    ProviderNotReadyError,
    TargetingKeyMissingError,
    TypeMismatchError,
)
from openfeature.flag_evaluation import (
    FlagEvaluationDetails,
    FlagMetadata,
    FlagResolutionDetails,
    FlagValueType,
    Reason,
)
from openfeature.hook import Hook, HookContext, HookHints
from openfeature.provider import AbstractProvider, Metadata

from tidegate.schemas.assignment import arm, bucket
from tidegate.schemas.decision import Command
from tidegate.schemas.signed import TrustedKeys
from tidegate.streams.client.bound import ARMS, Bindable, Publishing
from tidegate.streams.client.control import ControlConsumer
from tidegate.streams.kafka.manifests import load_trusted
from tidegate.streams.settings import Settings, load_settings

log = logging.getLogger("tidegate.openfeature")

LOOK_SECONDS = 0.5
SCOPE_FIELDS = ("tenant", "endpoint", "cohort", "surface")


class TidegateProvider(AbstractProvider):
    """Evaluates flags in this process, by the last commands of the control topic::

        api.set_provider_and_wait(TidegateProvider(region="eu"))
        client = api.get_client()
        client.get_boolean_value("prompt_pack", False, EvaluationContext(user))

    True, or the text ``canary``, is the canary. The region is the context's ``region``, else the provider's. What no
    command speaks of is FLAG_NOT_FOUND, a region that a flag has no unit in is the baseline. Reads in a thread of its
    own. ``settings`` None: from the environment. ``trusted_keys`` None: those of TIDEGATE_TRUSTED_KEYS, if it is set; a
    command that none of them signed counts for nothing. ``ready_seconds``: how long to wait for the topic to be read.
    ``stale_after``: seconds without Kafka from which on evaluations say STALE; they go on with the last weights.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        region: str = "",
        trusted_keys: TrustedKeys | None = None,
        ready_seconds: float = 10.0,
        stale_after: float = 60.0,
    ) -> None:
        super().__init__()
        self._settings = settings or load_settings()
        keys = self._settings.trusted_keys
        self._trusted = load_trusted(keys) if trusted_keys is None and keys else trusted_keys
        self._region, self._ready_seconds, self._stale_after = region, ready_seconds, stale_after
        self._last: Mapping[str, Command] = {}
        self._flags: frozenset[str] = frozenset()
        self._stale = False
        self._ready, self._late = threading.Event(), False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._following: asyncio.Task[None] | None = None
        self._thread: threading.Thread | None = None

    def get_metadata(self) -> Metadata:
        """Return the provider's name."""
        return Metadata("tidegate")

    def initialize(self, evaluation_context: EvaluationContext) -> None:
        """Begin to follow the topic, and wait until it has been read. Raises ProviderNotReadyError.

        Reading goes on after that too, and the provider is ready once it succeeds.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="tidegate-openfeature", daemon=True)
            self._thread.start()
        self._late = not self._ready.wait(self._ready_seconds)
        if self._late and not self._ready.is_set():
            where = f"topic {self._settings.control_topic} at {self._settings.broker} (TIDEGATE_BROKER)"
            raise ProviderNotReadyError(f"{where} was not read within {self._ready_seconds:g} s")

    def shutdown(self) -> None:
        """Stop following the topic."""
        if self._thread is not None and self._loop is not None and self._following is not None:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._following.cancel)
            self._thread.join(10)
        self._thread = None
        self._ready.clear()

    def resolve_boolean_details(
        self, flag_key: str, default_value: bool, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[bool]:
        """Evaluate a flag; True is the canary."""
        variant, reason, metadata = self._evaluate(flag_key, evaluation_context)
        return FlagResolutionDetails(variant == "canary", reason=reason, variant=variant, flag_metadata=metadata)

    def resolve_string_details(
        self, flag_key: str, default_value: str, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[str]:
        """Evaluate a flag; ``baseline`` or ``canary``."""
        variant, reason, metadata = self._evaluate(flag_key, evaluation_context)
        return FlagResolutionDetails(variant, reason=reason, variant=variant, flag_metadata=metadata)

    def resolve_integer_details(
        self, flag_key: str, default_value: int, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[int]:
        """Raise TypeMismatchError."""
        _mismatch(flag_key)

    def resolve_float_details(
        self, flag_key: str, default_value: float, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[float]:
        """Raise TypeMismatchError."""
        _mismatch(flag_key)

    def resolve_object_details(
        self,
        flag_key: str,
        default_value: Sequence[FlagValueType] | Mapping[str, FlagValueType],
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[Sequence[FlagValueType] | Mapping[str, FlagValueType]]:
        """Raise TypeMismatchError."""
        _mismatch(flag_key)

    def _evaluate(self, flag: str, context: EvaluationContext | None) -> tuple[str, Reason, FlagMetadata]:
        """Return variant, reason and metadata. Raises FlagNotFoundError or TargetingKeyMissingError."""
        if flag not in self._flags:
            raise FlagNotFoundError(f"no command of topic {self._settings.control_topic} speaks of flag {flag}")
        key = context.targeting_key if context is not None else None
        if not key:
            raise TargetingKeyMissingError("set the context's targeting key: it is what the assignment sticks to")
        region = str(context.attributes.get("region", self._region)) if context is not None else self._region
        command = self._last.get(f"{flag}|{region}")
        if command is None:
            return "baseline", Reason.DEFAULT, {"region": region, "weight": 0.0}
        # Weights of the future are not served yet; a time in the past means now.
        weights = command.weights if command.effective_from <= time.time() * 1000 else command.previous_weights
        metadata: FlagMetadata = {
            "region": region,
            "weight": weights.canary,
            "bucket": bucket(flag, key),
            "applied_seq": command.seq,
            "action": command.action,
            "manifest_hash": command.manifest_hash,
        }
        reason = Reason.SPLIT
        if weights.canary <= 0:
            reason = Reason.DISABLED
        elif weights.canary >= 1:
            reason = Reason.STATIC
        return arm(flag, key, weights.canary), Reason.STALE if self._stale else reason, metadata

    def _run(self) -> None:
        asyncio.run(self._live())

    async def _live(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._following = asyncio.create_task(self._follow())
        with suppress(asyncio.CancelledError):
            await self._following

    async def _follow(self) -> None:
        try:
            async with ControlConsumer(self._settings, self._trusted) as commands:
                self._last = commands.last
                await commands.caught_up()
                changing = asyncio.create_task(self._change(commands))
                try:
                    while not changing.done():
                        self._look(commands)
                        await asyncio.wait([changing], timeout=LOOK_SECONDS)
                    await changing
                finally:
                    changing.cancel()
        except Exception as error:
            log.exception("the control topic is followed no more")
            self.emit_provider_error(ProviderEventDetails(message=f"{type(error).__name__}: {error}"))

    async def _change(self, commands: ControlConsumer) -> None:
        known = {key: command.seq for key, command in commands.last.items()}
        async for command in commands:
            self._flags |= {command.flag}
            # The first ones are those that the topic began with.
            if command.seq > known.get(command.key, 0):
                self.emit_provider_configuration_changed(ProviderEventDetails(flags_changed=[command.flag]))

    def _look(self, commands: ControlConsumer) -> None:
        """Tell when the topic has been read, when Kafka is away for too long, and when it is back."""
        away = commands.away_seconds
        if not self._ready.is_set():
            self._flags = frozenset(command.flag for command in commands.last.values())
            self._ready.set()
            if self._late:
                self.emit_provider_ready(ProviderEventDetails())
        elif self._stale != (away > self._stale_after):
            self._stale = not self._stale
            if self._stale:
                self.emit_provider_stale(ProviderEventDetails(message=f"no word from Kafka for {away:.0f} s"))
            else:
                self.emit_provider_ready(ProviderEventDetails())


class ExposureHook(Hook):
    """Publishes an exposure of each evaluation that gave an arm::

        api.add_hooks([ExposureHook(SyncTelemetryPublisher())])

    ``telemetry``: any publisher; ``TelemetryPublisher`` where all evaluations are in its event loop. Tenant, endpoint,
    cohort and surface come from the evaluation's context.
    """

    def __init__(self, telemetry: Publishing) -> None:
        self._telemetry = telemetry

    def after(self, hook_context: HookContext, details: FlagEvaluationDetails[FlagValueType], hints: HookHints) -> None:
        """Publish; an error of telemetry is no error of the evaluation."""
        context, facts = hook_context.evaluation_context, details.flag_metadata
        if details.error_code is not None or details.variant not in ARMS or not context.targeting_key:
            return
        fields: dict[str, Any] = {
            name: str(context.attributes[name]) for name in SCOPE_FIELDS if name in context.attributes
        }
        fields |= {name: facts[name] for name in ("bucket", "applied_seq", "manifest_hash") if name in facts}
        fields |= {"arm": details.variant, "evaluated_by": "server"}
        bound = Bindable.bind(self._telemetry, details.flag_key, region=str(facts.get("region", "")))
        bound.exposure(context.targeting_key, **fields)


def _mismatch(flag: str) -> NoReturn:
    raise TypeMismatchError(f"flag {flag} is a boolean (true is the canary) or a string (baseline, canary)")
