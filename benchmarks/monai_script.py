"""A plain MONAI script: one study in, its mask out as NIfTI. The peer that `imgpipe infer` is measured beside.

    python benchmarks/monai_script.py STUDY CHECKPOINT OUT [--restore labels]

The network is on a GPU where there is one. It is what a careful user writes after MONAI's spleen tutorial: the
transforms of a dictionary, the sliding window with a Gaussian, `Invertd` back to the image's own grid, evaluation mode,
inference mode, the weights of the checkpoint, and its patch, overlap and flips. It imports nothing of imgpipe. The
tutorial brings the scores of every class back to the image's grid and decides there, as imgpipe does; `--restore
labels` decides first and brings labels back by nearest neighbour, which costs less and shifts edges by up to half a
voxel of the network's grid.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from monai.data import MetaTensor, decollate_batch
from monai.inferers import sliding_window_inference
from monai.networks import nets
from monai.transforms import (
    AsDiscreted,
    Compose,
    Invertd,
    LoadImaged,
    NormalizeIntensityd,
    Orientationd,
    SaveImaged,
    Spacingd,
)
from safetensors.torch import load_file

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Of the network's scores on the image's own grid, or of labels.
Restore = Literal["scores", "labels"]


@dataclass(frozen=True)
class Model:
    """A network with its weights, and what its config says."""

    network: torch.nn.Module
    config: dict[str, Any]


def load_model(checkpoint: Path) -> Model:
    """The network of a checkpoint folder."""
    config = yaml.safe_load((checkpoint / "config.yaml").read_text())
    options = config["network"].get("options", {})
    network = getattr(nets, config["network"]["name"])(
        spatial_dims=len(config["predict"]["patch"]), in_channels=1, out_channels=len(config["labels"]) + 1, **options
    )
    # DynUNet has its blocks under two names, and the file each weight once.
    unknown = network.load_state_dict(load_file(checkpoint / "weights.safetensors"), strict=False).unexpected_keys
    assert not unknown, unknown
    return Model(network.eval().to(DEVICE), config)


def transforms_of(model: Model) -> Compose:
    """From a path to the network's input."""
    preprocess = model.config["preprocess"]
    assert preprocess["normalise"] == "zscore"
    return Compose(
        [
            LoadImaged("image", image_only=True, ensure_channel_first=True),
            Orientationd("image", axcodes=preprocess["orientation"], labels=None),
            Spacingd("image", pixdim=preprocess["spacing_mm"], mode="bilinear", padding_mode="border"),
            NormalizeIntensityd("image"),
        ]
    )


@torch.inference_mode()
def scores_of(model: Model, image_BCXYZ: torch.Tensor) -> torch.Tensor:
    """The network's part: the mean of the softmax over the flips that the config names."""
    predict = model.config["predict"]
    axes = [axis + 2 for axis in predict.get("flip_axes", [])]
    flips = [flip for size in range(len(axes) + 1) for flip in combinations(axes, size)]
    total = torch.zeros(())
    for flip in flips:
        logits = sliding_window_inference(
            image_BCXYZ.flip(flip), predict["patch"], predict["batch_size"], model.network,
            overlap=predict["overlap"], mode="gaussian",
        )  # fmt: skip
        assert isinstance(logits, torch.Tensor)
        total = total + logits.softmax(1).flip(flip)
    return total / len(flips)


def save(sample: dict[str, Any], before: Compose, out: Path, restore: Restore) -> None:
    """Back to the image's own grid, and into a file."""
    decide = AsDiscreted("pred", argmax=True)
    invert = Invertd("pred", before, orig_keys="image", nearest_interp=restore == "labels", to_tensor=True)
    write = SaveImaged(
        "pred", output_dir=out, output_postfix="seg", separate_folder=False, resample=False, output_dtype=np.uint8,
        print_log=False,
    )  # fmt: skip
    Compose([decide, invert, write] if restore == "labels" else [invert, decide, write])(sample)


@torch.inference_mode()
def segment(study: Path, model: Model, out: Path, restore: Restore = "scores") -> None:
    """One study, whole."""
    before = transforms_of(model)
    sample = before({"image": str(study)})
    assert isinstance(sample, dict)
    image = sample["image"]
    assert isinstance(image, MetaTensor)
    scores = scores_of(model, image.as_tensor()[None].to(DEVICE))
    sample["pred"] = decollate_batch(MetaTensor(scores, meta=image.meta))[0]
    del scores
    save(sample, before, out, restore)


def main() -> None:
    """One study from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="a folder of one DICOM series, or a NIfTI file")
    parser.add_argument("checkpoint", type=Path, help="a checkpoint's folder")
    parser.add_argument("out", type=Path)
    parser.add_argument("--restore", choices=["scores", "labels"], default="scores")
    given = parser.parse_args()
    segment(given.study, load_model(given.checkpoint), given.out, given.restore)


if __name__ == "__main__":
    main()
