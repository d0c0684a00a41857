"""States as bytes and back."""

from collections.abc import Generator, Hashable, Mapping
from typing import Any, Generic, TypeVar, get_type_hints

import msgspec

from tidegate.gates.digest import Digest
from tidegate.gates.samples import IdSample

_T = TypeVar("_T")
_K = TypeVar("_K", bound=Hashable)


def _encode(value: Any) -> Any:
    if isinstance(value, Digest | IdSample):
        return value.dump()
    raise NotImplementedError(type(value))


def _decode(kind: type, value: Any) -> Any:
    if issubclass(kind, Digest | IdSample):
        return kind.load(value)
    raise NotImplementedError(kind)


class StateCodec(Generic[_T]):
    """MessagePack of a state struct, digests and samples included.

    A large state is written and read in parts, each as ``msgspec.Raw`` in the place of what it stands for; the bytes
    are the same.
    """

    def __init__(self, kind: type[_T]) -> None:
        self._encoder = msgspec.msgpack.Encoder(enc_hook=_encode)
        self._decoder = msgspec.msgpack.Decoder(kind, dec_hook=_decode)

    def dump(self, state: _T) -> bytes:
        """Return the state's bytes."""
        return self._encoder.encode(state)

    def load(self, blob: bytes | msgspec.Raw) -> _T:
        """Return the state back; msgspec.MsgspecError if the bytes are no such state."""
        return self._decoder.decode(blob)

    def dump_parts(self, parts: Mapping[_K, _T]) -> Generator[None, None, dict[_K, Any]]:
        """Yield the bytes of each part, for an encoder to take in; stops after each one."""
        dumped: dict[_K, Any] = {}
        for name, part in parts.items():
            dumped[name] = msgspec.Raw(self.dump(part))
            yield
        return dumped

    def load_parts(self, parts: Mapping[_K, Any]) -> Generator[None, None, dict[_K, _T]]:
        """Yield the parts back from what ``in_parts`` reads; stops after each one."""
        loaded: dict[_K, _T] = {}
        for name, part in parts.items():
            loaded[name] = self.load(part)
            yield
        return loaded


def in_parts(kind: type[_T], **parts: Any) -> type[_T]:
    """Return a struct like ``kind`` as its bytes are read first: fields that have parts hold bytes in their place."""
    hints = get_type_hints(kind)
    fields: list[Any] = []
    for field in msgspec.structs.fields(kind):  # type: ignore[arg-type]  # a struct
        default = field.default
        if field.default_factory is not msgspec.NODEFAULT:
            default = msgspec.field(default_factory=field.default_factory)
        shape = (field.name, parts.get(field.name, hints[field.name]))
        fields.append(shape if field.required else (*shape, default))
    return msgspec.defstruct(kind.__name__, fields, array_like=True)  # type: ignore[return-value]  # the same fields
