"""A run explains itself, can be repeated and continued, and refuses by name what it cannot train on."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from imaging.card import model_card
from imaging.checkpoint import open_checkpoint
from imaging.config import load_config
from imaging.errors import (
    ConfigInvalid,
    ConstantImage,
    ImagingError,
    LabelMismatch,
    ManifestInvalid,
    NothingToResume,
    OutputNotWritable,
    ResumeMismatch,
    RunExists,
    TooFewCases,
    TrainingDiverged,
    UnknownKey,
    UnknownName,
)
from imaging.manifest import Case
from imaging.metrics import dice
from imaging.predict import Predictor
from imaging.samples import load_case
from imaging.tasks.segment import SegmentTask
from pipelines.measure_segmenter import measure_segmenter
from pipelines.run_folder import versions
from pipelines.train import Run, train

# Enough to train a step on: a smaller network, on patches, of four cases.
MICRO = (
    "network.options.filters=[4, 8, 8]",
    "train.patch=[16, 16, 16]",
    "train.epochs=1",
    "data.folds=2",
    "data.test_fraction=0",
)


class Stopped(Exception):
    """What stops a run in these tests."""


@pytest.fixture
def four_cases(data: Path, tmp_path: Path) -> Path:
    """A CSV of four real cases, with their files beside it."""
    rows = ["case,image,label"]
    for number in ("001", "003", "006", "007"):
        for kind in ("images", "labels"):
            source = data / "hippocampus" / f"{kind}Tr" / f"hippocampus_{number}.nii.gz"
            shutil.copy(source, tmp_path / f"{kind}_{number}.nii.gz")
        rows.append(f"c{number},images_{number}.nii.gz,labels_{number}.nii.gz")
    manifest = tmp_path / "cases.csv"
    manifest.write_text("\n".join(rows))
    return manifest


@pytest.fixture
def micro(tiny: Path, four_cases: Path, tmp_path: Path) -> Callable[..., Run]:
    """Train the smallest thing that trains."""

    def call(*overrides: str, out: str = "run", resume: bool = False) -> Run:
        chosen = [*MICRO, f"data.root={four_cases}", *overrides]
        return train(config=tiny, overrides=chosen, out=tmp_path / out, resume=resume, progress=False)

    return call


def rewrite(path: Path, change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]], shift_mm: float = 0) -> None:
    """Change the voxels of a NIfTI file, or its place."""
    image = nib.load(path)
    affine = image.affine.copy()
    affine[0, 3] += shift_mm
    nib.save(nib.Nifti1Image(change(np.asarray(image.dataobj, dtype=np.float32)), affine), path)


def logged(folder: Path, column: str) -> list[tuple[int, float]]:
    """Epoch and value of each row of the log that tells this column, the log of a resumed run after the first."""
    rows = []
    for path in sorted((folder / "log").glob("version_*/metrics.csv")):
        with path.open(newline="") as stream:
            rows += [(int(row["epoch"]), float(row[column])) for row in csv.DictReader(stream) if row.get(column)]
    return rows


# ------------------------------------------------------------------------------------------------------- the run folder


@pytest.mark.parametrize(
    "file",
    [
        "config.yaml", "split.json", "data.json", "versions.json", "metrics.json", "log/version_0/metrics.csv",
        "state/best.ckpt", "state/last.ckpt", "checkpoint/config.yaml", "checkpoint/weights.safetensors",
        "checkpoint/metrics.json", "checkpoint/README.md", "checkpoint/SHA256SUMS",
    ],
)  # fmt: skip
def test_run_folder_holds(trained: Run, file: str) -> None:
    assert (trained.folder / file).stat().st_size > 0


def test_run_folder_holds_no_partial_file(trained: Run) -> None:
    assert not [path for path in trained.folder.rglob("*") if ".partial" in path.name]


def test_resolved_config_is_the_one_that_was_given(trained: Run, tiny: Path) -> None:
    assert load_config(trained.folder / "config.yaml") == load_config(tiny)


def test_published_config_names_no_path_of_this_machine(trained: Run, data: Path) -> None:
    published = yaml.safe_load((trained.checkpoint.folder / "config.yaml").read_text())
    assert published["data"].get("root") is None
    assert not [file for file in trained.checkpoint.folder.iterdir() if str(data).encode() in file.read_bytes()]


def test_split_is_saved_and_disjoint(trained: Run) -> None:
    split = json.loads((trained.folder / "split.json").read_text())
    names = [name for side in split.values() for name in side]
    assert set(split) == {"train", "validation", "test"}
    assert len(names) == len(set(names)) == 8


def test_versions_name_what_decides_the_numbers(trained: Run) -> None:
    saved = json.loads((trained.folder / "versions.json").read_text())
    assert saved == versions()
    assert saved["torch"] == torch.__version__ or saved["torch"] in torch.__version__
    assert "not installed" not in saved.values()


@pytest.mark.parametrize("side", ["validation", "test"])
def test_metrics_have_dice_with_its_interval(trained: Run, side: str) -> None:
    measured = json.loads((trained.folder / "metrics.json").read_text())[side]
    split = json.loads((trained.folder / "split.json").read_text())
    assert list(measured["each"]) == split[side]
    for column, label in enumerate(trained.checkpoint.config.labels):
        interval = measured["dice"][label.name]
        assert 0 <= interval["low"] <= interval["mean"] <= interval["high"] <= 1
        mean = np.mean([scores[column] for scores in measured["each"].values()])
        assert interval["mean"] == pytest.approx(mean, abs=1e-5)


def test_metrics_are_what_a_user_of_the_checkpoint_gets(trained: Run, data: Path) -> None:
    name, scores = next(iter(trained.checkpoint.metrics["test"]["each"].items()))
    files = [data / "hippocampus" / folder / f"{name}.nii.gz" for folder in ("imagesTr", "labelsTr")]
    image, mask = load_case(Case(name, (files[0],), files[1], patient=name), values=(1, 2))
    found = Predictor(open_checkpoint(trained.checkpoint.folder))(image).mask_XYZ
    assert [dice(found, mask.array[0], label) for label in (1, 2)] == pytest.approx(scores, abs=1e-5)


def test_card_tells_the_measured_dice(trained: Run) -> None:
    card = (trained.checkpoint.folder / "README.md").read_text()
    for side in ("validation", "test"):
        for interval in trained.checkpoint.metrics[side]["dice"].values():
            assert f"{interval['mean']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]" in card


def test_loss_falls(trained: Run) -> None:
    epochs, losses = zip(*logged(trained.folder, "train_loss"), strict=True)
    assert epochs == (0, 1, 2, 3)
    assert losses[-1] < 0.9 * losses[0]


def test_best_state_is_the_epoch_with_the_highest_validation_dice(trained: Run) -> None:
    _, scores = zip(*logged(trained.folder, "val_dice"), strict=True)
    assert trained.checkpoint.metrics["training"]["best_epoch"] == int(np.argmax(scores)) + 1


def test_published_weights_are_those_of_the_best_state(trained: Run) -> None:
    state = torch.load(trained.folder / "state" / "best.ckpt", weights_only=True)["state_dict"]
    for name, tensor in load_file(trained.checkpoint.folder / "weights.safetensors").items():
        assert torch.equal(tensor, state[f"network.{name}"])


def test_last_weights_are_published_where_they_are_asked_for(trained: Run, tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained.folder, tmp_path / "run")
    other = (folder / "state" / "best.ckpt").rename(folder / "state" / "other.ckpt")
    run = train(config=tiny, overrides=["train.keep=last"], out=folder, resume=True, progress=False)
    state = torch.load(folder / "state" / "last.ckpt", weights_only=True)["state_dict"]
    published = load_file(run.checkpoint.folder / "weights.safetensors")
    assert all(torch.equal(tensor, state[f"network.{name}"]) for name, tensor in published.items())
    assert "best_epoch" not in run.checkpoint.metrics["training"]
    assert run.checkpoint.metrics["training"]["last_epoch"] == 4
    card = (run.checkpoint.folder / "README.md").read_text()
    assert "epoch 4 of 4, the last" in card and "best on validation" not in card
    assert load_config(folder / "config.yaml").train.keep == "last", "the run tells what it published"
    assert other.exists()


# -------------------------------------------------------------------------------------------------- repeat and continue


def test_same_seed_gives_the_same_bits_and_another_does_not(micro: Callable[..., Run]) -> None:
    first, second, other = micro(out="a"), micro(out="b"), micro("train.seed=1", out="c")
    assert first.checkpoint.weights_sha256 == second.checkpoint.weights_sha256
    assert first.checkpoint.weights_sha256 != other.checkpoint.weights_sha256
    assert (first.folder / "split.json").read_bytes() == (other.folder / "split.json").read_bytes()


@pytest.fixture(scope="module")
def resumed(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run of `trained`, stopped within its third epoch and resumed."""
    folder = tmp_path_factory.mktemp("resumed") / "run"
    step = SegmentTask.training_step
    steps: list[tuple[int, int]] = []

    def counted(self: SegmentTask, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        steps.append((self.current_epoch, batch_idx))
        if len(steps) == 6:
            raise Stopped
        return step(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SegmentTask, "training_step", counted)
        with pytest.raises(Stopped):
            train(config=tiny, out=folder, progress=False)
        assert not (folder / "checkpoint").exists()
        run = train(config=tiny, out=folder, resume=True, progress=False)
    assert steps[5:] == [(2, 1), (2, 0), (2, 1), (3, 0), (3, 1)], "the third epoch begins again, the first two do not"
    return run


def test_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(resumed: Run, trained: Run) -> None:
    weights, expected = (load_file(run.checkpoint.folder / "weights.safetensors") for run in (resumed, trained))
    different = [name for name in expected if not torch.equal(weights[name], expected[name])]
    assert different == []


def test_resumed_run_measures_the_same(resumed: Run, trained: Run) -> None:
    assert resumed.checkpoint.metrics == trained.checkpoint.metrics


def test_resumed_run_logs_every_epoch_once(resumed: Run, trained: Run) -> None:
    for column in ("train_loss", "val_dice"):
        assert logged(resumed.folder, column) == logged(trained.folder, column)


def test_finished_run_resumed_publishes_the_same(trained: Run, tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained.folder, tmp_path / "run")
    shutil.rmtree(folder / "checkpoint")
    again = train(config=tiny, out=folder, resume=True, progress=False)
    assert again.checkpoint.weights_sha256 == trained.checkpoint.weights_sha256
    assert again.checkpoint.metrics == trained.checkpoint.metrics


def test_run_folder_in_use_is_refused(trained: Run, tiny: Path) -> None:
    with pytest.raises(RunExists, match="--resume"):
        train(config=tiny, out=trained.folder, progress=False)


def test_run_folder_that_is_a_file_is_refused(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises((OutputNotWritable, RunExists)):
        train(config=tiny, out=tmp_path / "file", progress=False)
    assert (tmp_path / "file").read_text() == "mine"


def test_run_folder_below_a_file_is_refused(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputNotWritable):
        train(config=tiny, out=tmp_path / "file" / "run", progress=False)


def test_nothing_to_resume(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(NothingToResume):
        train(config=tiny, out=tmp_path / "new", resume=True, progress=False)


@pytest.mark.parametrize(
    ("overrides", "keys"),
    [
        (["train.learning_rate=0.5"], ["train.learning_rate"]),
        (["train.epochs=9", "network.options.filters=[4, 8, 16]"], ["network.options.filters", "train.epochs"]),
        (["labels.0.title=Head"], ["labels.0.title"]),
        (["train.augment.0.options.prob=0.8"], ["train.augment.0.options.prob"]),
        (["train.augment=[]", "predict.flip_axes=[0]"], ["predict.flip_axes", "train.augment"]),
    ],
)
def test_resume_with_another_config_names_the_differing_keys(
    trained: Run, tiny: Path, overrides: list[str], keys: list[str]
) -> None:
    with pytest.raises(ResumeMismatch) as caught:
        train(config=tiny, overrides=overrides, out=trained.folder, resume=True, progress=False)
    assert caught.value.seen.endswith("for " + ", ".join(keys))


def test_resume_with_another_data_set_is_refused(trained: Run, tiny: Path, four_cases: Path) -> None:
    with pytest.raises(ResumeMismatch, match="split"):
        train(config=tiny, overrides=[f"data.root={four_cases}"], out=trained.folder, resume=True, progress=False)


def test_resume_after_a_mask_was_corrected_is_refused(trained: Run, tiny: Path, data: Path, tmp_path: Path) -> None:
    name = json.loads((trained.folder / "split.json").read_text())["train"][0]
    copied = Path(shutil.copytree(data / "hippocampus", tmp_path / "hippocampus"))
    mask = nib.load(copied / "labelsTr" / f"{name}.nii.gz")
    array = np.asarray(mask.dataobj).copy()
    array[0, 0, 0] = 1
    nib.save(nib.Nifti1Image(array, mask.affine), copied / "labelsTr" / f"{name}.nii.gz")
    with pytest.raises(ResumeMismatch, match=name):
        train(config=tiny, overrides=[f"data.root={copied}"], out=trained.folder, resume=True, progress=False)


# ------------------------------------------------------------------------------------------------------ what is refused


def test_diverged_training_names_its_cases(micro: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: SegmentTask, image_BCXYZ: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network(image_BCXYZ)
        return logits * float("nan")

    monkeypatch.setattr(SegmentTask, "forward", broken)
    with pytest.raises(TrainingDiverged, match=r"cases c\d{3}, c\d{3}"):
        micro()


def test_huge_learning_rate_diverges_by_name(micro: Callable[..., Run]) -> None:
    with pytest.raises(TrainingDiverged, match=r"cases c\d{3}"):
        micro("train.learning_rate=1.0e+30", "train.epochs=4")


@pytest.mark.parametrize(
    ("error", "file", "change"),
    [
        (ConstantImage, "images_003.nii.gz", lambda array: np.full_like(array, 7)),
        (LabelMismatch, "labels_003.nii.gz", lambda array: array + 1),
        (LabelMismatch, "labels_003.nii.gz", lambda array: array / 2),
        (LabelMismatch, "labels_003.nii.gz", lambda array: array[:-1]),
    ],
    ids=["constant", "label_3", "label_half", "shape"],
)
def test_bad_case_is_refused_by_name(
    micro: Callable[..., Run], four_cases: Path, error: type[ImagingError], file: str, change: Callable[..., Any]
) -> None:
    rewrite(four_cases.parent / file, change)
    with pytest.raises(error) as caught:
        micro()
    assert "003" in caught.value.subject
    assert not (four_cases.parent / "run").exists(), "the same command can be given again"


def test_mask_elsewhere_than_its_image_is_refused(micro: Callable[..., Run], four_cases: Path) -> None:
    rewrite(four_cases.parent / "labels_006.nii.gz", lambda array: array, shift_mm=1)
    with pytest.raises(LabelMismatch, match=r"labels_006.*1\.00 mm"):
        micro()


@pytest.mark.parametrize(
    ("error", "overrides"),
    [
        (ConfigInvalid, ["data.root=null"]),
        (ConfigInvalid, ["data.fold=2"]),
        (UnknownKey, ["train.epoch=2"]),
        (ManifestInvalid, ["data.root=/nonexistent"]),
        (TooFewCases, ["data.folds=9", "data.fold=8"]),
        (UnknownName, ["network.name=DynUnet"]),
        (UnknownName, ["train.augment=[{name: RandomFlip}]"]),
        (ConfigInvalid, ["network.options.strides=[1]"]),
    ],
    ids=lambda value: value[0].partition("=")[0] if isinstance(value, list) else value.code,
)
def test_wrong_usage_is_refused_by_name(
    micro: Callable[..., Run], tmp_path: Path, error: type[ImagingError], overrides: list[str]
) -> None:
    with pytest.raises(error):
        micro(*overrides)
    assert not (tmp_path / "run").exists(), "the same command can be given again"


def test_arguments_override_the_config(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="fold 7 does not exist"):
        train(config=tiny, fold=7, out=tmp_path / "run", progress=False)
    with pytest.raises(ConfigInvalid, match=r"train\.precision"):
        train(config=tiny, precision="8", out=tmp_path / "run", progress=False)


# --------------------------------------------------------------------------------------------------- measure_segmenter


def test_structure_that_no_case_has_leaves_the_metrics_valid_json(trained: Run, four_cases: Path) -> None:
    """Dice of nothing against nothing is no number: it may not enter metrics.json as NaN, nor stop the publication."""
    folder = four_cases.parent
    for number in ("001", "003"):
        rewrite(folder / f"labels_{number}.nii.gz", np.zeros_like)
    cases = [
        Case(number, (folder / f"images_{number}.nii.gz",), folder / f"labels_{number}.nii.gz", number)
        for number in ("001", "003")
    ]

    class FindsNothing(Predictor):
        """The trained network with a mask wiped clean."""

        def __call__(self, volume: Any) -> Any:
            prediction = super().__call__(volume)
            prediction.mask_XYZ[:] = 0
            return prediction

    metrics = measure_segmenter(FindsNothing(trained.checkpoint), {"validation": cases}, data="toy").metrics
    json.dumps(metrics, allow_nan=False)


def test_metrics_and_card_tell_borders_and_volumes(trained: Run) -> None:
    card = (trained.checkpoint.folder / "README.md").read_text()
    assert "HD95" in card and "interval over patients" in card
    for side in ("validation", "test"):
        measured = trained.checkpoint.metrics[side]
        assert measured["tolerance_mm"] == 1
        for label in trained.checkpoint.config.labels:
            assert 0 <= measured["surface_dice"][label.name]["mean"] <= 1
            assert 0 < measured["hd95_mm"][label.name]["mean"] < 60
            assert f"{measured['hd95_mm'][label.name]['mean']:.3f}" in card


def test_card_of_a_checkpoint_without_borders_has_none(trained: Run) -> None:
    kept = ("cases", "dice", "each")  # what a checkpoint of version 0.1 had
    before = {side: {key: trained.checkpoint.metrics[side][key] for key in kept} for side in ("validation", "test")}
    card = model_card(trained.checkpoint.config, trained.checkpoint.metrics | before)
    assert "HD95" not in card and "interval over cases" in card
