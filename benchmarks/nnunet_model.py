"""A model folder of nnU-Net v2 for a benchmark: a plain U-Net of given sizes with random weights.

It runs in nnU-Net's own environment and imports nothing of imgpipe. Preprocessing and resampling are nnU-Net's defaults
as its planner writes them (resampling by cubic splines, probabilities linearly).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CONFIGURATION, TRAINER, WEIGHTS = "3d_fullres", "nnUNetTrainer", "checkpoint_final.pth"
# Of the voxels of structures; z-scoring does not ask for them, and they must be there.
_FIGURES = ("max", "mean", "median", "min", "percentile_00_5", "percentile_99_5", "std")


def plans_of(settings: dict[str, Any]) -> dict[str, Any]:
    """What nnU-Net's planner would have written; its axes are Z, Y, X."""
    patch, spacing = settings["patch"][::-1], settings["spacing_mm"][::-1]
    features: Sequence[int] = settings["features"]
    stages = len(features)
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    architecture = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": stages, "features_per_stage": list(features), "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3, 3, 3]] * stages, "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
            "n_conv_per_stage": [2] * stages, "n_conv_per_stage_decoder": [2] * (stages - 1), "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d", "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None, "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }  # fmt: skip
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2,
        "patch_size": patch, "median_image_size_in_voxels": patch, "spacing": spacing,
        "normalization_schemes": ["ZScoreNormalization"], "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape", "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {**resampling, "order": 1},
        "batch_dice": False, "architecture": architecture,
    }  # fmt: skip
    return {
        "dataset_name": "Dataset001_Benchmark", "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": spacing, "original_median_shape_after_transp": patch,
        "image_reader_writer": "SimpleITKIO", "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2],
        "configurations": {CONFIGURATION: configuration}, "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": dict.fromkeys(_FIGURES, 1.0)},
    }  # fmt: skip


def write(folder: Path, settings: dict[str, Any]) -> None:
    """Write the model folder.

    `settings` has patch and spacing_mm (X, Y, Z), features, classes, flips (axes of X, Y, Z) and the files' ending.
    """
    import torch
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    fold = folder / "fold_0"
    fold.mkdir(parents=True, exist_ok=True)
    plans = plans_of(settings)
    names = {"background": 0, **{f"part_{number}": number for number in range(1, settings["classes"])}}
    dataset = {"channel_names": {"0": "CT"}, "labels": names, "numTraining": 1, "file_ending": settings["ending"]}
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    architecture = plans["configurations"][CONFIGURATION]["architecture"]
    torch.manual_seed(0)
    network = get_network_from_plans(
        architecture["network_class_name"], architecture["arch_kwargs"], architecture["_kw_requires_import"],
        1, settings["classes"], allow_init=True, deep_supervision=False,
    )  # fmt: skip
    checkpoint = {
        "network_weights": network.state_dict(), "trainer_name": TRAINER,
        "init_args": {"configuration": CONFIGURATION},
        "inference_allowed_mirroring_axes": tuple(2 - axis for axis in settings["flips"]),
    }  # fmt: skip
    torch.save(checkpoint, fold / WEIGHTS)
