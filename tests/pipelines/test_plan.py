"""What `plan` writes is a config that `train` takes as it is, says why, and is not written for a broken data set."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from click.testing import Result
from monai.transforms import RandAffine
from segmented import write_pictures

from imaging.config import load_config
from imaging.errors import ManifestInvalid, OutputNotWritable, TooFewCases
from imaging.networks import build_network, check_patches
from imaging.patches import Patches
from pipelines.plan import Planned, plan
from pipelines.train import train

Invoke = Callable[..., Result]


def make(folder: Path, cases: int = 6, *, size: tuple[int, ...] = (24, 24, 24), spacing: tuple[float, ...] = (1, 1, 1),
         **told: object) -> Path:  # fmt: skip
    """A synthetic data set with two structures in each case."""
    generator = np.random.default_rng(0)
    affine = np.diag([*spacing, 1.0])
    rows = []
    for number in range(cases):
        mask = np.zeros(size)
        mask[4:10, 4:10, 1:4], mask[12:18, 4:10, 1:4] = 1, 2
        for suffix, array in (("", generator.normal(40, 20, size) + 100 * mask), ("_mask", mask)):
            nib.save(nib.Nifti1Image(array.astype(np.float32), affine), folder / f"c{number}{suffix}.nii.gz")
        rows.append({"image": f"c{number}.nii.gz", "label": f"c{number}_mask.nii.gz"})
    content = {"name": "Made", "modality": {"0": "CT"}, "labels": {"0": "b", "1": "Liver", "2": "Spleen"}, **told}
    (folder / "dataset.json").write_text(json.dumps({**content, "training": rows}))
    return folder


@pytest.fixture
def planned(tmp_path: Path) -> Callable[..., tuple[Planned, Path]]:
    """Plan a data set into a new file."""

    def call(dataset: Path, **options: object) -> tuple[Planned, Path]:
        out = tmp_path / "planned.yaml"
        return plan(dataset=dataset, out=out, **options), out

    return call


Plan = Callable[..., tuple[Planned, Path]]


def test_pictures_are_refused_by_name(planned: Plan, tmp_path: Path) -> None:
    with pytest.raises(ManifestInvalid, match="size of their pixels"):
        planned(write_pictures(tmp_path), modality="DX")
    assert not (tmp_path / "planned.yaml").exists()


def test_train_takes_what_plan_wrote(data: Path, planned: Plan, tmp_path: Path) -> None:
    _, out = planned(data / "hippocampus", memory_gib=0.2, steps=3)
    run = train(config=out, out=tmp_path / "run", progress=False)
    assert load_config(run.folder / "config.yaml") == load_config(out)
    assert run.checkpoint.metrics["training"]["epochs"] == 1
    assert set(run.checkpoint.metrics["validation"]["dice"]) == {"anterior", "posterior"}


def test_config_says_why_with_the_figures_seen(data: Path, planned: Plan) -> None:
    _, out = planned(data / "hippocampus")
    text = out.read_text()
    for told in ("8 cases of 8 patients", "1.32 to 2.31 mL", "Isensee", "40x56x40, 20x28x20", "Seen: 1 x 1 x 1"):
        assert told in text
    config = load_config(out)
    assert (config.train.patch, config.preprocess.spacing_mm) == ((40, 56, 40), (1, 1, 1))
    assert config.applies_to.modality == ("MR",)
    assert max(map(len, (line for line in text.splitlines() if line.lstrip().startswith("#")))) <= 120


def test_every_reason_stands_above_its_key(data: Path, planned: Plan) -> None:
    found, out = planned(data / "hippocampus")
    assert found.proposal is not None
    lines = out.read_text().splitlines()
    for choice in found.proposal.choices:
        key = choice.key.rpartition(".")[2]
        above = [lines[at - 1] for at, line in enumerate(lines) if line.strip().startswith(f"{key}:")]
        assert above
        assert not choice.why or any(line.lstrip().startswith("#") for line in above)
    assert yaml.safe_load(out.read_text()) == found.proposal.as_dict()


def test_same_data_set_gives_the_same_config(data: Path, tmp_path: Path) -> None:
    texts = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        plan(dataset=data / "hippocampus", out=tmp_path / name / "config.yaml")
        texts.append((tmp_path / name / "config.yaml").read_text())
    assert texts[0] == texts[1]


def test_codes_come_from_the_names_where_dicom_has_them(tmp_path: Path, planned: Plan) -> None:
    config = load_config(planned(make(tmp_path))[1])
    assert [label.code.value for label in config.labels] == ["10200004", "78961009"]
    assert [label.name for label in config.labels] == ["liver", "spleen"]


def test_far_apart_slices_are_turned_within_themselves_only(tmp_path: Path, planned: Plan) -> None:
    folder = make(tmp_path, size=(40, 40, 8), spacing=(0.8, 0.8, 6))
    config = load_config(planned(folder, memory_gib=0.5)[1])
    assert config.preprocess.spacing_mm == (0.8, 0.8, 6)
    build_network(config.network, in_channels=1, out_channels=3)
    options = next(item.options for item in config.train.augment if item.name == "RandAffine")
    assert options["rotate_range"] == [0.0, 0.0, 0.52]
    turned = RandAffine(**{**options, "prob": 1.0, "padding_mode": "border"}).set_random_state(3)
    slices = torch.arange(8.0).expand(1, 40, 40, 8)
    assert torch.allclose(turned(slices), slices, atol=1e-4), "a value that depends on the slice alone is not moved"


@pytest.mark.parametrize(
    "names",
    [("Left kidney", "Right kidney"), ("LeftKidney", "RightKidney"), ("kidneyleft", "kidneyright"),
     ("KidneyL", "KidneyR"), ("LKidney", "RKidney"), ("kidney_l", "kidney_r")],
)  # fmt: skip
def test_names_that_tell_a_side_are_not_mirrored(tmp_path: Path, planned: Plan, names: tuple[str, str]) -> None:
    folder = make(tmp_path, labels={"0": "b", "1": names[0], "2": names[1]})
    config = load_config(planned(folder)[1])
    assert "RandFlip" not in [item.name for item in config.train.augment]
    assert config.predict.flip_axes == ()


def test_augmentation_that_is_proposed_is_taken(tmp_path: Path, planned: Plan) -> None:
    config = load_config(planned(make(tmp_path))[1])
    assert "RandFlip" in [item.name for item in config.train.augment]
    Patches(config.train)


def test_ct_is_clipped_and_scaled_by_the_figures_of_its_structures(tmp_path: Path, planned: Plan) -> None:
    """nnU-Net's rule, against the plain definition: the 0.5th and 99.5th percentile, mean and deviation."""
    folder = make(tmp_path)
    config = load_config(planned(folder)[1])
    inside = []
    for number in range(6):
        image, mask = (np.asarray(nib.load(folder / f"c{number}{end}.nii.gz").dataobj) for end in ("", "_mask"))
        inside.append(image[mask > 0])
    values = np.concatenate(inside).astype(np.float64)
    low, high = np.percentile(values, [0.5, 99.5])
    window = config.preprocess.window
    assert config.preprocess.normalise == "window" and window is not None
    assert (window.low, window.high, window.mean, window.deviation) == pytest.approx(
        (low, high, values.mean(), values.std()), rel=1e-4
    )


def test_regions_are_planned_as_they_are_told(tmp_path: Path, planned: Plan) -> None:
    """nnU-Net's labels of several values become regions, the one inside the other after it."""
    folder = make(tmp_path, labels={"background": 0, "whole": [1, 2], "core": [2]}, regions_class_order=[1, 2])
    config = load_config(planned(folder)[1])
    found = [(label.id, label.name, label.values) for label in config.labels]
    assert found == [(1, "whole", (1, 2)), (2, "core", (2,))]
    assert config.overlapping and config.outputs == 2
    check_patches(config)


def test_each_channel_is_scaled_by_its_modality(tmp_path: Path, planned: Plan) -> None:
    folder = make(tmp_path, modality={"0": "PET", "1": "CT"})
    generator = np.random.default_rng(1)
    for number in range(6):
        image = nib.load(folder / f"c{number}.nii.gz")
        both = np.stack([np.asarray(image.dataobj), generator.normal(0, 1, image.shape)], axis=-1)
        nib.save(nib.Nifti1Image(both.astype(np.float32), image.affine), folder / f"c{number}.nii.gz")
    config = load_config(planned(folder)[1])
    assert [(channel.name, channel.normalise) for channel in config.channels] == [("pet", "zscore"), ("ct", "window")]
    assert config.channels[1].window.mean == pytest.approx(0, abs=0.1)
    assert config.applies_to.modality == ("PT", "CT")
    assert config.preprocess.window is None


def test_many_patients_have_a_test_part_and_few_have_none(tmp_path: Path, planned: Plan) -> None:
    assert load_config(planned(make(tmp_path, cases=6))[1]).data.test_fraction == 0
    (tmp_path / "many").mkdir()
    many = plan(dataset=make(tmp_path / "many", cases=20, size=(20, 20, 6)), out=tmp_path / "many.yaml")
    assert many.proposal is not None
    assert many.proposal.as_dict()["data"]["test_fraction"] == 0.15


def test_structure_that_a_part_of_the_split_lacks_is_told(tmp_path: Path, planned: Plan) -> None:
    folder = make(tmp_path)
    for number in range(1, 6):
        path = folder / f"c{number}_mask.nii.gz"
        image = nib.load(path)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj) * (np.asarray(image.dataobj) == 1), image.affine), path)
    _, out = planned(folder)
    assert "WARNING: with fold" in out.read_text() and "no case of Spleen" in out.read_text()


@pytest.mark.parametrize(
    "name", ["x\n  evil: 1", "x\u2028evil: 1", "# '\"]}{", "\x07bell", "é" * 300, "1", "-", "null", "<script>"]
)
def test_hostile_names_stay_text(tmp_path: Path, planned: Plan, name: str) -> None:
    folder = make(tmp_path, name=name, description=name, licence=name, labels={"0": "b", "1": name, "2": "y"})
    config = load_config(planned(folder)[1])
    assert [label.id for label in config.labels] == [1, 2]


# ------------------------------------------------------------------------------------------------------------- refusals


def test_nothing_is_written_for_a_data_set_to_mend(invoke: Invoke, tmp_path: Path) -> None:
    folder = make(tmp_path)
    (folder / "c1.nii.gz").unlink()
    shutil.copy(folder / "c2.nii.gz", folder / "c3.nii.gz")
    result = invoke("plan", folder, "--out", tmp_path / "out.yaml", "--json")
    content = json.loads(result.stdout)
    assert result.exit_code == content["exit_status"] == 3
    assert [problem["code"] for problem in content["dataset"]["problems"]] == ["missing_file", "duplicate_image"]
    assert content["config"] is None and not (tmp_path / "out.yaml").exists()


def test_config_that_exists_is_not_overwritten(data: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("mine")
    with pytest.raises(OutputNotWritable):
        plan(dataset=data / "hippocampus", out=tmp_path / "mine.yaml")
    assert (tmp_path / "mine.yaml").read_text() == "mine"


def test_folder_that_does_not_exist_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputNotWritable):
        plan(dataset=data / "hippocampus", out=tmp_path / "missing" / "c.yaml")


def test_modality_is_asked_for_where_nobody_tells_it(tmp_path: Path, planned: Plan) -> None:
    folder = make(tmp_path)
    rows = [f"c{number}.nii.gz,c{number}_mask.nii.gz" for number in range(6)]
    (folder / "cases.csv").write_text("\n".join(["image,label", *rows]))
    with pytest.raises(ManifestInvalid, match="--modality"):
        planned(folder / "cases.csv")
    config = load_config(planned(folder / "cases.csv", modality="CT")[1])
    assert config.applies_to.modality == ("CT",)
    assert [label.name for label in config.labels] == ["label_1", "label_2"]


def test_one_patient_cannot_be_split(tmp_path: Path, planned: Plan) -> None:
    with pytest.raises(TooFewCases):
        planned(make(tmp_path, cases=1))


def test_command_line_tells_the_data_set_and_the_file(invoke: Invoke, data: Path, tmp_path: Path) -> None:
    result = invoke("plan", data / "hippocampus", "--out", tmp_path / "c.yaml")
    assert result.exit_code == 0
    assert "nothing to mend" in result.stdout and str(tmp_path / "c.yaml") in result.stdout.replace("\n", "")
