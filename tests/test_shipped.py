"""What ships works: the checkpoint is what its config says, and labels real images rightly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.transforms import Compose, NormalizeIntensityd, Orientationd, Spacingd

from imaging.checkpoint import WEIGHTS, Checkpoint, find_checkpoint, open_checkpoint
from imaging.config import SegmentConfig, find_config, load_config
from imaging.dicom import load_series
from imaging.engines import engines_of, runtime
from imaging.engines.accepted import trial_of, trials_of
from imaging.engines.quantized import files_of
from imaging.manifest import read_manifest
from imaging.metrics import dice
from imaging.predict import Predictor
from imaging.report.findings import findings_of
from imaging.samples import load_case
from imaging.volume import Volume


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return open_checkpoint(find_checkpoint("hippocampus_mr"))


@pytest.fixture(scope="module")
def predictor(checkpoint: Checkpoint) -> Predictor:
    return Predictor(checkpoint)


def test_checkpoint_was_trained_by_the_config_that_ships(checkpoint: Checkpoint) -> None:
    config = load_config(find_config("hippocampus_mr"))
    assert checkpoint.config.digest() == config.digest() == checkpoint.metrics["training"]["config_sha256"]


def test_weights_are_under_20_mb(checkpoint: Checkpoint) -> None:
    assert (checkpoint.folder / WEIGHTS).stat().st_size < 20_000_000


def test_no_case_is_on_two_sides(checkpoint: Checkpoint) -> None:
    measured, training = checkpoint.metrics["cross_validation"], checkpoint.metrics["training"]
    assert len(set(measured["each"])) == measured["cases"] == 217
    folds = [set(fold["names"]) for fold in measured["folds"]]
    assert sum(map(len, folds)) == len(set.union(*folds)) == 217
    assert folds[0].isdisjoint(training["names"])  # the network that ships is that of the first fold
    assert len(folds[0]) + len(training["names"]) == 217


def test_int8_was_chosen_by_cases_that_trained_and_accepted_by_others(checkpoint: Checkpoint) -> None:
    trial = trial_of(trials_of(checkpoint), "openvino", "int8")
    assert trial is not None
    assert (trial.why_not(), trial.unseen, trial.side, trial.cases) == ("", (), "validation", 44)
    trained = set(checkpoint.metrics["training"]["names"])
    assert set(trial.calibrated).isdisjoint(trial.chosen_by)
    assert {*trial.calibrated, *trial.chosen_by} <= trained
    assert set(files_of(0)) <= checkpoint.sums.keys()
    assert sum((checkpoint.folder / name).stat().st_size for name in files_of(0)) < 6_000_000


@pytest.mark.skipif(not (runtime.installed() and runtime.has_int8()), reason="this processor has no int8")
def test_int8_is_taken_and_says_what_torch_says(checkpoint: Checkpoint, data: Path) -> None:
    engines = engines_of(checkpoint, wanted="openvino", device="cpu")
    assert (engines.choice.name, engines.choice.precision) == ("openvino", "int8")
    reference = engines_of(checkpoint, wanted="torch", device="cpu", precision="fp32")
    image, _ = load_case(read_manifest(data / "hippocampus")[0], values=(1, 2))
    found, expected = (Predictor(checkpoint, engine=each)(image).mask_XYZ for each in (engines, reference))
    assert min(dice(found, expected, label) for label in (1, 2)) > 0.99
    assert not np.array_equal(found, expected)  # it is not torch that was asked twice


def test_it_labels_the_cases_that_ship(predictor: Predictor, data: Path) -> None:
    for case in read_manifest(data / "hippocampus"):
        image, truth = load_case(case, values=(1, 2))
        found = predictor(image).mask_XYZ
        assert min(dice(found, truth.array[0], label) for label in (1, 2)) > 0.75, case.name


@pytest.mark.parametrize("study", ["hippocrop_study1", "hippocrop_study2"])
def test_on_dicom_the_anterior_part_lies_in_front_of_the_posterior(
    predictor: Predictor, data: Path, study: str
) -> None:
    anterior, posterior = findings_of(predictor(load_series(data / study)))
    assert anterior.structure is not None
    assert posterior.structure is not None
    assert anterior.structure.centre_ras_mm is not None
    assert posterior.structure.centre_ras_mm is not None
    assert anterior.structure.centre_ras_mm[1] > posterior.structure.centre_ras_mm[1] + 5
    assert 1 < anterior.structure.volume_ml < 3


def by_monai(volume: Volume, config: SegmentConfig) -> torch.Tensor:
    """The network's input (C, X, Y, Z) as MONAI's own transforms make it."""
    preprocess = config.preprocess
    prepare = Compose([
        Orientationd(["image"], axcodes=preprocess.orientation, labels=None),
        Spacingd(["image"], pixdim=preprocess.spacing_mm, mode="bilinear", padding_mode="border"),
        NormalizeIntensityd(["image"]),
    ])  # fmt: skip
    return torch.as_tensor(np.asarray(prepare({"image": volume.as_metatensor()})["image"]))


def test_masks_are_those_that_monai_s_transforms_give(
    checkpoint: Checkpoint, predictor: Predictor, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints that were trained with MONAI's transforms say what they said."""
    cases = [load_case(case, values=(1, 2))[0] for case in read_manifest(data / "hippocampus")[::4]]
    config = checkpoint.segmenter()
    for volume in (load_series(data / "hippocrop_study1"), *cases):
        found = predictor(volume).mask_XYZ
        truth = by_monai(volume, config)
        with monkeypatch.context() as patched:
            patched.setattr("imaging.predict.scaled", lambda *_, truth=truth, **__: truth.numpy())
            expected = predictor(volume).mask_XYZ
        assert np.array_equal(found, expected), volume.facts.subject
