"""A checkpoint as a MONAI bundle, which MONAI alone runs: configs/, models/, docs/.

Invariant: the transforms, the tiles and the flips are the checkpoint's own, in MONAI's words; what these cannot say is
refused. Nothing of imgpipe is needed to run it:
`monai.bundle.run(config_file="configs/inference.json", bundle_root=".", images=["case.nii.gz"])`.
"""

from __future__ import annotations

import importlib.metadata
import json
from itertools import combinations
from pathlib import Path
from typing import Any

from imaging.checkpoint import CARD, Checkpoint, read_verified
from imaging.config import SegmentConfig
from imaging.engines.torch_engine import networks_of
from imaging.errors import ExportImpossible
from imaging.files import write_whole

_KEY = "image"


def write_bundle(checkpoint: Checkpoint, folder: Path) -> None:
    """Write the bundle of a checkpoint into a folder that is there.

    Raises
    ------
    ExportImpossible
        If it is no segmenter, an ensemble, or its channels are scaled each in its own way.
    """
    import torch

    config = checkpoint.config
    if not isinstance(config, SegmentConfig):
        raise ExportImpossible(f"checkpoint {checkpoint.name}", seen=f"its task is {config.task}")
    if config.members > 1:
        raise ExportImpossible(f"checkpoint {checkpoint.name}", seen=f"it is an ensemble of {config.members}")
    if len(config.scales) > 1:
        raise ExportImpossible(f"checkpoint {checkpoint.name}", seen=f"it has {len(config.scales)} channels")
    for name in ("configs", "models", "docs"):
        (folder / name).mkdir()
    (network,) = networks_of(checkpoint)
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    write_whole(folder / "configs" / "inference.json", json.dumps(inference_of(config), indent=1) + "\n")
    write_whole(folder / "configs" / "metadata.json", json.dumps(metadata_of(config), indent=1) + "\n")
    write_whole(folder / "docs" / CARD, read_verified(checkpoint.folder / CARD, checkpoint.sums[CARD]))


def inference_of(config: SegmentConfig) -> dict[str, Any]:
    """`configs/inference.json`: each of `images` becomes a mask under `output_dir`."""
    activation = "torch.sigmoid(y)" if config.overlapping else "torch.softmax(y, 1)"
    axes = [axis + 2 for axis in config.predict.flip_axes]
    flips = [list(flip) for count in range(len(axes) + 1) for flip in combinations(axes, count)]
    chosen = {"threshold": 0.5} if config.overlapping else {"argmax": True}
    return {
        "bundle_root": ".",
        "images": [],
        "output_dir": "$@bundle_root + '/eval'",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "network_def": _network(config),
        "network": "$@network_def.to(@device).eval()",
        "weights": "$torch.load(@bundle_root + '/models/model.pt', map_location=@device, weights_only=True)",
        "preprocessing": {"_target_": "Compose", "transforms": _preprocessing(config)},
        "inferer": _inferer(config),
        "flips": flips,
        "activation": f"$lambda y: {activation}",
        "flipped": "$lambda x, f: @activation(@inferer(x.flip(f), @network)).flip(f)",
        "probability": "$lambda x: sum(@flipped(x, f) for f in @flips) / len(@flips)",
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": _KEY,
                 "nearest_interp": False, "to_tensor": True},
                {"_target_": "AsDiscreted", "keys": "pred", **chosen},
                {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "output_postfix": "mask",
                 "separate_folder": False, "output_dtype": "$np.uint8", "resample": False},
            ],
        },
        "cases": "$[@preprocessing({'image': path}) for path in @images]",
        "run": [
            "$@network.load_state_dict(@weights)",
            "$torch.set_grad_enabled(False)",
            "$[@postprocessing({**case, 'pred': @probability(case['image'][None].to(@device))[0]}) for case in @cases]",
        ],
    }  # fmt: skip


def _network(config: SegmentConfig) -> dict[str, Any]:
    network, patch = config.network, config.train.patch
    given: dict[str, Any] = {"in_channels": len(config.scales), "out_channels": config.outputs}
    if network.name == "UNETR":
        given["img_size"] = list(patch)
    return {"_target_": network.name, "spatial_dims": len(patch), **given, **network.options}


def _preprocessing(config: SegmentConfig) -> list[dict[str, Any]]:
    grid, (scale,) = config.preprocess, config.scales
    # MONAI keeps the spacing where it is given none above zero.
    spacing = [-1.0 if step is None else step for step in grid.spacing_mm]
    steps: list[dict[str, Any]] = [
        {"_target_": "LoadImaged", "keys": _KEY, "ensure_channel_first": True},
        {"_target_": "Orientationd", "keys": _KEY, "axcodes": grid.orientation},
        {"_target_": "Spacingd", "keys": _KEY, "pixdim": spacing, "mode": "bilinear"},
    ]
    window = scale.window
    if window is None:
        return [*steps, {"_target_": "NormalizeIntensityd", "keys": _KEY, "channel_wise": True}]
    return [
        *steps,
        {"_target_": "ThresholdIntensityd", "keys": _KEY, "threshold": window.low, "above": True, "cval": window.low},
        {"_target_": "ThresholdIntensityd", "keys": _KEY, "threshold": window.high, "above": False,
         "cval": window.high},
        {"_target_": "NormalizeIntensityd", "keys": _KEY, "subtrahend": window.mean, "divisor": window.deviation},
    ]  # fmt: skip


def _inferer(config: SegmentConfig) -> dict[str, Any]:
    settings = config.predict
    common = {"roi_size": list(settings.patch), "sw_batch_size": settings.batch_size, "overlap": settings.overlap,
              "mode": "gaussian"}  # fmt: skip
    if len(settings.patch) == 2:
        return {"_target_": "SliceInferer", **common, "spatial_dim": 2}
    return {"_target_": "SlidingWindowInferer", **common}


def metadata_of(config: SegmentConfig) -> dict[str, Any]:
    """`configs/metadata.json`."""
    card = config.card
    ids = {"0": "background"} if not config.overlapping else {}
    ids |= {str(label.id if not config.overlapping else label.id - 1): label.name for label in config.labels}
    patch = list(config.predict.patch)
    common = {"type": "image", "spatial_shape": patch, "dtype": "float32", "is_patch_data": True}
    return {
        "version": config.version,
        "changelog": {config.version: f"exported by imgpipe {importlib.metadata.version('imgpipe')}"},
        "monai_version": importlib.metadata.version("monai"),
        "pytorch_version": importlib.metadata.version("torch").split("+", maxsplit=1)[0],
        "numpy_version": importlib.metadata.version("numpy"),
        "required_packages_version": {"nibabel": importlib.metadata.version("nibabel")},
        "name": config.name,
        "task": config.title,
        "description": config.title,
        "authors": "",
        "copyright": card.licence,
        "data_source": card.data,
        "data_type": "nibabel",
        "intended_use": f"{card.intended_use} {card.limits}",
        "network_data_format": {
            "inputs": {
                "image": {**common, "format": "magnitude", "modality": "/".join(config.applies_to.modality),
                          "num_channels": len(config.scales), "value_range": [], "channel_def": {"0": "image"}},
            },
            "outputs": {
                "pred": {**common, "format": "segmentation", "num_channels": config.outputs, "value_range": [0, 1],
                         "channel_def": ids},
            },
        },
    }  # fmt: skip
