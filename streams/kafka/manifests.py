"""Manifest revisions: signed documents, each taken or refused for what it is and for those before it."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec
import structlog
from aiokafka import ConsumerRecord

from tidegate.schemas.canonical import canonical
from tidegate.schemas.document import quoted
from tidegate.schemas.errors import InputError, ManifestError, Refusal
from tidegate.schemas.load import load_manifest
from tidegate.schemas.signed import PrivateKey, TrustedKeys, is_signed, open_signed, read_trusted, sign
from tidegate.schemas.timeline import Revision, Timeline
from tidegate.schemas.times import iso
from tidegate.streams.files import read_whole
from tidegate.streams.kafka.follow import Follower
from tidegate.streams.settings import Settings

log = structlog.get_logger("tidegate")

NUMBER_MAX = 9_999_999_999
TIME_MAX = 2**53 - 1
POLL_SECONDS = 0.5


class _Payload(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    effective_from: int
    manifest: str
    revision: int
    retire: list[str] = []


_decoder = msgspec.json.Decoder(_Payload)


def sign_revision(
    manifest: str, number: int, effective_from: int, deployment: str, key: PrivateKey, retire: Iterable[str] = ()
) -> bytes:
    """Return the signed document of a revision; ``manifest``: the YAML, kept as it is; ``effective_from``: ms.

    ``retire``: flags of earlier revisions that this one takes out of service.
    """
    content = {"effective_from": effective_from, "manifest": manifest, "revision": number}
    payload = canonical({**content, "retire": sorted(set(retire))})
    return sign("manifest", deployment, payload, key)


def with_retired(
    document: bytes, settings: Settings, trusted: TrustedKeys, key: PrivateKey, retire: Iterable[str]
) -> bytes:
    """Return the same revision, signed again, which retires these flags too. Raises Refusal if it is none."""
    revision = open_revision(document, settings.deployment, trusted, settings.pane)
    payload, _ = open_signed(document, "manifest", settings.deployment, trusted)
    text, start = _decoder.decode(payload).manifest, revision.effective_from
    flags = {*revision.retires, *retire}
    return sign_revision(text, revision.number, start, settings.deployment, key, flags)


def open_revision(document: bytes | None, deployment: str, trusted: TrustedKeys, pane_ms: int) -> Revision:
    """Return a revision on its own, whatever came before it. Raises Refusal with the reason."""
    payload, signer = open_signed(document, "manifest", deployment, trusted)
    try:
        found = _decoder.decode(payload)
        if not (1 <= found.revision <= NUMBER_MAX and 0 <= found.effective_from <= TIME_MAX):
            raise ValueError(f"revision {found.revision} from {iso(found.effective_from)} is out of range")
        manifest = load_manifest(found.manifest, pane_ms=pane_ms)
    except ManifestError as error:
        raise Refusal(f"the manifest in it is wrong: {error}") from None
    except (ValueError, RecursionError) as error:
        raise Refusal(f"not a manifest revision: {error}") from None
    if found.effective_from % pane_ms:
        nearest = -(-found.effective_from // pane_ms) * pane_ms
        raise Refusal(
            f"effective_from {iso(found.effective_from)} is not the start of a pane; sign it with {iso(nearest)}"
        )
    both = [name for name in found.retire if name in manifest.flags]
    if both:
        raise Refusal(f"it retires {quoted(both[0])}, which its manifest names; leave one of the two out")
    return Revision(found.revision, found.effective_from, manifest.flags, signer, tuple(found.retire))


def accept(
    timeline: Timeline, document: bytes | None, timestamp: int, settings: Settings, trusted: TrustedKeys
) -> Revision:
    """Return the revision in a record that follows ``timeline``; ``timestamp``: the record's own, ms.

    Raises Refusal, with the reason, where the signature, the manifest, the number or the time is not right.

    Why there is a lead: a result can be computed again only if every worker knows a revision before it takes in the
    first event that the revision is for. A revision is for events from ``effective_from`` on, which is at least
    ``lead_ms``, the setting ``manifest_lead``, after its record was written. No event lies more than 60 s ahead of
    its own record, so the first of those events is written at least ``lead_ms`` − 60 s after the revision. By then
    each worker knows it: a worker reads the manifests topic to its end before it takes partitions, and again before
    it takes in anything if it last did so over 30 s ago. The first revision needs no lead: without one, workers wait
    and take no partitions.
    """
    pane_ms, lead_ms = settings.pane, settings.manifest_lead
    revision = open_revision(document, settings.deployment, trusted, pane_ms)
    if not timeline.revisions:
        return revision
    last = timeline.revisions[-1]
    if revision.number <= last.number:
        raise Refusal(
            f"revision {revision.number} is not above {last.number}, the last one; sign it with a higher number"
        )
    if revision.effective_from < last.effective_from:
        raise Refusal(
            f"revision {revision.number} would be in force from {iso(revision.effective_from)}, before revision "
            f"{last.number} is, from {iso(last.effective_from)}; sign it with a later --effective-from"
        )
    if revision.effective_from < timestamp + lead_ms:
        earliest = -(-(timestamp + lead_ms) // pane_ms) * pane_ms
        raise Refusal(
            f"effective_from {iso(revision.effective_from)} is less than {lead_ms / 1000:g} s after it was written; "
            f"sign it with {iso(earliest)} or later"
        )
    return revision


class ManifestLog:
    """The manifests topic, taken in record by record: a timeline that grows."""

    def __init__(self, settings: Settings, trusted: TrustedKeys) -> None:
        self._settings, self._trusted = settings, trusted
        self.timeline = Timeline()

    def take(self, record: ConsumerRecord) -> Revision | Refusal:
        """Add a record's revision; one that is refused changes nothing."""
        try:
            revision = accept(self.timeline, record.value, record.timestamp, self._settings, self._trusted)
        except Refusal as refusal:
            return refusal
        self.timeline = Timeline([*self.timeline.revisions, revision])
        return revision


def tell(record: ConsumerRecord, outcome: Revision | Refusal) -> None:
    """Log what became of a record of the manifests topic."""
    if isinstance(outcome, Refusal):
        log.warning("manifest refused", offset=record.offset, reason=str(outcome))
        return
    log.info(
        "manifest accepted",
        offset=record.offset,
        revision=outcome.number,
        effective_from=iso(outcome.effective_from),
        flags=sorted(outcome.flags),
        retires=sorted(outcome.retires),
        by=outcome.by,
    )


def record_key(revision: Revision) -> bytes:
    """Return a key of its own for each revision, so that compaction takes none away."""
    return b"revision-%010d" % revision.number


async def read_topic(
    settings: Settings,
    trusted: TrustedKeys,
    *,
    wait: bool = False,
    told: Callable[[ConsumerRecord, Revision | Refusal], None] = lambda record, outcome: None,
) -> Timeline:
    """Read the revisions in the manifests topic; ``wait``: until there is one. Raises TopicError if that fails."""
    found = ManifestLog(settings, trusted)
    follower = Follower(settings, settings.manifests_topic, lambda record: told(record, found.take(record)))
    try:
        await follower.catch_up()
        while wait and not found.timeline.revisions:
            await asyncio.sleep(POLL_SECONDS)
            await follower.catch_up()
    finally:
        await follower.close()
    return found.timeline


def load_trusted(path: Path) -> TrustedKeys:
    """Return the keys of a file. Raises InputError, naming file and line, if it is none."""
    return read_trusted(read_file(path).decode(errors="replace"), str(path))


def read_files(paths: Sequence[Path], settings: Settings, trusted: TrustedKeys | None) -> Timeline:
    """Read a timeline from signed revision files, in any order, or from a single YAML file that is always in force.

    ``trusted`` None: there are no keys to verify with. Raises InputError, naming the file.
    """
    documents = [(path, read_file(path)) for path in paths]
    if len(documents) == 1 and not is_signed(documents[0][1]):
        path, text = documents[0]
        return Timeline.of(load_manifest(text, pane_ms=settings.pane, name=str(path)).flags)
    revisions = []
    for path, document in documents:
        if not is_signed(document):
            raise InputError(f"{path}: an unsigned manifest has no time of its own; give it alone, or sign it")
        if trusted is None:
            raise InputError(f"{path}: signed, and no keys to verify it with; give a file of trusted keys")
        try:
            revisions.append(open_revision(document, settings.deployment, trusted, settings.pane))
        except Refusal as refusal:
            raise InputError(f"{path}: {refusal}") from None
    try:
        return Timeline(sorted(revisions, key=lambda revision: revision.number))
    except ValueError as error:
        raise InputError(f"the revisions do not make a sequence: {error}") from None


def read_file(path: Path) -> bytes:
    """Return a file's bytes, ``-`` for standard input. Raises InputError, naming it, if it cannot be read."""
    try:
        return read_whole(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
