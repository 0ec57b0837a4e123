"""Small networks of random weights, and what nobody trained: every label is somewhere, and none means anything."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from classified import toy_config, write_pictures

from imaging.checkpoint import Checkpoint, save_checkpoint
from imaging.config import SegmentConfig, load_config
from imaging.files import shipped
from imaging.networks import build_classifier, build_segmenter, weights_of

TINY = (
    "network.options.filters=[4, 8, 8]",
    "network.options.kernel_size=[3, 3, 3]",
    "network.options.strides=[1, 2, 2]",
    "network.options.upsample_kernel_size=[2, 2]",
)


def tiny_segmenter(folder: Path, metrics: Mapping[str, Any] | None = None) -> Checkpoint:
    """Of hippocampus_mr's labels."""
    overrides = (*TINY, "predict.patch=[40, 56, 40]", "predict.precision='32'", "predict.flip_axes=[]")
    config = load_config(shipped("configs") / "hippocampus_mr.yaml", overrides)
    assert isinstance(config, SegmentConfig)
    torch.manual_seed(3)
    return save_checkpoint(folder, config, weights_of(build_segmenter(config)), metrics or {})


def toy_classifier(folder: Path, *, cases: int = 12, metrics: Mapping[str, Any] | None = None) -> Checkpoint:
    """Of pictures that lie beside it; its config's `data.root` is left out: `folder/films` has their manifest."""
    (folder / "films").mkdir(parents=True)
    config = toy_config(folder, f"data.root={write_pictures(folder / 'films', cases=cases)}")
    torch.manual_seed(0)
    weights = weights_of(build_classifier(config.network, spatial_dims=2, in_channels=1, classes=2))
    return save_checkpoint(folder / "checkpoint", config, weights, metrics or {})
