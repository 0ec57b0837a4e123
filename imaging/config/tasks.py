"""Every kind of config by its `task`."""

from __future__ import annotations

from imaging.config.fuse import FuseConfig
from imaging.config.task import ClassifyConfig, Config, SegmentConfig

AnyConfig = Config | FuseConfig
# Those of networks that look at images.
IMAGE_TASKS: dict[str, type[Config]] = {"segment": SegmentConfig, "classify": ClassifyConfig}
TASKS: dict[str, type[AnyConfig]] = {**IMAGE_TASKS, "fuse": FuseConfig}
