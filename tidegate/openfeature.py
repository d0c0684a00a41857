"""Tidegate's provider for OpenFeature, and a hook that publishes exposures; needs `tidegate[openfeature]`."""

from tidegate.streams.client.openfeature import ExposureHook, TidegateProvider

__all__ = ["ExposureHook", "TidegateProvider"]
