"""Tidegate's provider for OpenFeature, and a hook that publishes exposures; needs `tidegate[openfeature]`."""

try:
    from tidegate.streams.client.openfeature import ExposureHook, TidegateProvider
except ModuleNotFoundError as error:
    raise ImportError(f"tidegate.openfeature lacks {error.name}: pip install 'tidegate[openfeature]'") from None

__all__ = ["ExposureHook", "TidegateProvider"]
