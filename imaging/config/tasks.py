"""Every kind of config by its `task`."""

from __future__ import annotations

from imaging.config.fuse import FuseConfig
from imaging.config.task import ClassifyConfig, Config, NetworkConfig, SegmentConfig, TextConfig

AnyConfig = NetworkConfig | FuseConfig
# Those of networks that look at images.
IMAGE_TASKS: dict[str, type[Config]] = {"segment": SegmentConfig, "classify": ClassifyConfig}
NETWORK_TASKS: dict[str, type[NetworkConfig]] = {**IMAGE_TASKS, "text": TextConfig}
TASKS: dict[str, type[AnyConfig]] = {**NETWORK_TASKS, "fuse": FuseConfig}
