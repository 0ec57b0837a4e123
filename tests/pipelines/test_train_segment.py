"""Every kind of segmentation learns what is known, and what is served is what was learnt. The cases are synthetic."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from phantom import change, write_series
from pydicom import dcmread
from pydicom.dataset import Dataset
from segmented import AFFINE, REGIONS, segment_config, write_cases, write_pictures, written

from imaging.channels import read_channels
from imaging.checkpoint import open_checkpoint
from imaging.config import SeriesRule
from imaging.errors import ConfigInvalid
from imaging.inputs import gather
from imaging.metrics import dice
from imaging.nifti import read_nifti
from imaging.png import read_png
from imaging.predict import Predictor
from imaging.report.findings import findings_of
from imaging.report.pictures import key_pictures
from imaging.study_channels import view_study
from imaging.volume import Volume
from pipelines.infer import infer
from pipelines.inspect import inspect
from pipelines.train import Run, train


def trained(folder: Path, *overrides: str, **cases: Any) -> Run:
    config = segment_config(write_cases(folder / "cases", **cases), *overrides)
    return train(config=written(config, folder / "boxes.yaml"), out=folder / "run", progress=False)


def check_dice(run: Run, least: float) -> None:
    for side in ("validation", "test"):
        found = run.checkpoint.metrics[side]["dice"]
        assert min(figure["mean"] for figure in found.values()) > least, f"{side}: {found}"


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A network that sees slices. Read only."""
    return trained(tmp_path_factory.mktemp("flat"))


def test_a_network_of_slices_learns_volumes(flat: Run) -> None:
    check_dice(flat, 0.9)


def test_slices_are_labelled_one_by_one_whatever_lies_beside_them(flat: Run) -> None:
    """A volume of slices in another order has the masks of its slices in that order."""
    volume = read_nifti(flat.folder.parent / "cases" / "a_0000.nii.gz")
    predictor = Predictor(open_checkpoint(flat.checkpoint.folder), device="cpu")
    order = np.random.default_rng(0).permutation(volume.shape[2])
    shuffled = Volume(np.ascontiguousarray(volume.array[..., order]), volume.affine, volume.facts)
    assert np.array_equal(predictor(shuffled).mask_XYZ, predictor(volume).mask_XYZ[..., order])
    assert predictor(volume).mask_XYZ.any()


def test_the_axis_of_the_slices_is_that_of_the_config(tmp_path: Path) -> None:
    """Sagittal slices in files whose axes run R-L last: the grid comes back as it was."""
    affine = np.array([[0, 0, 5.0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    run = trained(tmp_path, "preprocess.orientation=ASR", "train.epochs=1", affine=affine)
    volume = read_nifti(tmp_path / "cases" / "a_0000.nii.gz")
    prediction = Predictor(run.checkpoint, device="cpu")(volume)
    assert prediction.mask_XYZ.shape == volume.shape


def test_a_patch_that_the_network_does_not_take_is_refused_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match=r"train\.patch: UNet does not take 25 x 24"):
        trained(tmp_path, "train.patch=[25, 24]")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "overrides",
    [
        ("predict.patch=[24, 24, 8]",),
        ("predict.flip_axes=[2]",),
        ("train.patch=[24]",),
        ("preprocess.orientation=RLS",),
        ("preprocess.orientation=RA",),
    ],
    ids=str,
)
def test_axes_that_do_not_go_together_are_refused(overrides: tuple[str, ...]) -> None:
    with pytest.raises(ConfigInvalid):
        segment_config(Path("cases.csv"), *overrides)


def test_regions_that_overlap_are_learnt_each_on_its_own(tmp_path: Path) -> None:
    """The whole box counts its inside: what is found and the truth are measured as regions, not as mask values."""
    run = trained(tmp_path, *REGIONS, "train.epochs=80")
    check_dice(run, 0.85)
    volume, mask = (read_nifti(tmp_path / "cases" / f"a_{kind}.nii.gz") for kind in ("0000", "mask"))
    prediction = Predictor(run.checkpoint, device="cpu")(volume)
    assert prediction.regions_KXYZ is not None
    whole, core = prediction.regions_KXYZ
    assert (whole & core).sum() > 0.8 * core.sum(), "the core lies in the whole"
    assert np.array_equal(prediction.mask_XYZ == 2, core)
    assert np.array_equal(prediction.mask_XYZ == 1, whole & ~core)
    assert set(prediction.mean_probability) == {1, 2}
    (found, _) = findings_of(prediction)
    assert found.structure is not None and found.structure.voxels == whole.sum()
    # The box and what is in it, not the box alone.
    assert whole.sum() == pytest.approx((mask.array > 0).sum(), rel=0.2)
    assert max(len(picture.outlines) for picture in key_pictures(prediction)) == 2


# Rules for the series of a DICOM study; files are told by their order.
TWO = """channels=[{name: first, series: {description: "(?i)^t1"}},
                   {name: second, series: {description: "(?i)^t2", modality: [MR]}}]"""


@pytest.fixture(scope="module")
def paired(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A network of two images a case. Read only."""
    return trained(tmp_path_factory.mktemp("paired"), TWO, "train.epochs=80", channels=2)


def test_two_channels_tell_what_one_does_not(paired: Run) -> None:
    """The decoy looks like the box in the first image; in the second it is not there."""
    check_dice(paired, 0.8)
    folder = paired.folder.parent / "cases"
    mask = read_nifti(folder / "a_mask.nii.gz").array[0]
    first = read_nifti(folder / "a_0000.nii.gz")
    both = read_channels([folder / "a_0000.nii.gz", folder / "a_0001.nii.gz"])
    decoy = (first.array[0] > 140) & (mask == 0)
    predictor = Predictor(paired.checkpoint, device="cpu")
    twice = replace(both, array=np.concatenate([first.array, first.array]))
    taken, taken_without = ((predictor(volume).mask_XYZ[decoy] == 1).mean() for volume in (both, twice))
    assert taken < 0.1
    assert taken_without > 2 * taken, "without the second image the decoy is taken for the box more often"


def test_pictures_with_masks_are_learnt_and_served(tmp_path: Path) -> None:
    config = segment_config(write_pictures(tmp_path / "films"), "preprocess.spacing_mm=[null, null, null]")
    run = train(config=written(config, tmp_path / "films.yaml"), out=tmp_path / "run", progress=False)
    check_dice(run, 0.85)
    film = tmp_path / "films" / "a.png"
    done = infer(paths=[film], models=[str(run.checkpoint.folder)], out=tmp_path / "out")
    assert [study.problems for study in done.studies] == [()]
    found = read_nifti(tmp_path / "out" / "a" / "mask_boxes.nii.gz").array[0, :, :, 0]
    truth = read_png(tmp_path / "films" / "a_mask.png").array[0, :, :, 0]
    assert dice(found, truth, 1) > 0.8 and dice(found, truth, 2) > 0.8


@pytest.fixture
def inbox(paired: Run, tmp_path: Path) -> Path:
    """The files of two cases, as nnU-Net calls them."""
    folder = tmp_path / "inbox"
    folder.mkdir()
    for case in ("a", "b"):
        for channel in ("0000", "0001"):
            name = f"{case}_{channel}.nii.gz"
            (folder / name).write_bytes((paired.folder.parent / "cases" / name).read_bytes())
    return folder


def test_files_that_are_the_channels_of_a_case_are_served_as_one(paired: Run, inbox: Path, tmp_path: Path) -> None:
    done = infer(paths=[inbox], models=[str(paired.checkpoint.folder)], out=tmp_path / "out")
    assert [(study.name, study.problems) for study in done.studies] == [("a", ()), ("b", ())]
    for study in done.studies:
        found = read_nifti(tmp_path / "out" / study.name / "mask_boxes.nii.gz").array[0]
        truth = read_nifti(paired.folder.parent / "cases" / f"{study.name}_mask.nii.gz").array[0]
        assert dice(found, truth, 1) > 0.7


def test_a_case_that_lacks_a_channel_is_refused_by_name(paired: Run, inbox: Path, tmp_path: Path) -> None:
    (inbox / "a_0001.nii.gz").unlink()
    done = infer(paths=[inbox], models=[str(paired.checkpoint.folder)], out=tmp_path / "out")
    problems = {study.name: [str(problem) for problem in study.problems] for study in done.studies}
    assert problems.pop("b") == []
    ((name, (told,)),) = problems.items()
    assert name == "a_0000"
    assert told.startswith("not_applicable") and "2 on one grid were expected: first, second" in told


def test_channels_on_different_grids_are_refused_by_name(paired: Run, inbox: Path, tmp_path: Path) -> None:
    moved = read_nifti(inbox / "a_0001.nii.gz")
    shift = np.eye(4)
    shift[0, 3] = 3
    nib.save(nib.Nifti1Image(moved.array[0], shift @ moved.affine), inbox / "a_0001.nii.gz")
    done = infer(paths=[inbox], models=[str(paired.checkpoint.folder)], out=tmp_path / "out")
    problems = {study.name: [problem.code for problem in study.problems] for study in done.studies}
    assert problems == {"a": ["channel_mismatch"], "b": []}


def write_study(paired: Run, folder: Path, *descriptions: str, **options: Any) -> Path:
    """Case a as a DICOM study: a series for each description, with the second image where it begins with T2."""
    for number, description in enumerate(descriptions, start=1):
        shown = read_nifti(paired.folder.parent / "cases" / f"a_000{int(description.startswith('T2'))}.nii.gz").array[0]

        def edit(dataset: Dataset, k: int, shown: Any = shown, description: str = description) -> None:
            del dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType
            dataset.SeriesDescription = description
            dataset.PixelData = np.rint(shown[:, :, k].T).astype("<i2").tobytes()

        own = {key: value for key, value in options.items() if number == len(descriptions)}
        own = {"origin": (0.0, 0.0, 0.0), **own}
        write_series(folder, orientation=((-1, 0, 0), (0, -1, 0)), pixel_spacing=(1, 1), slice_spacing=5, rows=24,
                     columns=26, slices=8, series=number, edit=edit, **own)  # fmt: skip
    return folder


def test_series_of_a_study_are_the_channels_of_one_case(paired: Run, tmp_path: Path) -> None:
    """Whatever their order in the study; the SEG is over the first channel's instances."""
    write_study(paired, tmp_path / "study", "T2 tse", "scout of something", "T1 mprage")
    model = str(paired.checkpoint.folder)
    (study,) = infer(paths=[tmp_path / "study"], models=[model], out=tmp_path / "out").studies
    assert study.report is not None and study.folder is not None
    assert [problem.code for problem in study.problems] == ["not_applicable"], "the third series is no channel"
    second, other, first = sorted(study.report.series, key=lambda entry: entry.uid)
    assert [entry.models for entry in (first, second, other)] == [("boxes",), ("boxes",), ()]
    assert (first.channel_of, second.channel_of, other.channel_of) == ({"boxes": "first"}, {"boxes": "second"}, {})
    assert "it is no channel of the case" in other.refusals[0].seen
    assert {finding.series_uid for finding in study.report.findings} == {first.uid}
    (output,) = [item for item in study.report.outputs if item.file.startswith("seg_")]
    assert output.series_uid == first.uid
    seg = dcmread(study.folder / output.file)
    referenced = {item.ReferencedSOPInstanceUID for item in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert [item.SeriesInstanceUID for item in seg.ReferencedSeriesSequence] == [first.uid]
    assert referenced <= set(first.source_sop_instance_uids)
    assert "channel second of boxes" in (study.folder / "report.html").read_text()
    both = read_channels([paired.folder.parent / "cases" / f"a_000{channel}.nii.gz" for channel in (0, 1)])
    expected = Predictor(paired.checkpoint, device="cpu")(replace(both, array=np.rint(both.array))).mask_XYZ
    found = {finding.name: finding.structure.voxels for finding in study.report.findings if finding.structure}
    assert list(found.values()) == [int((expected == 1).sum()), int((expected == 2).sum())]
    assert min(found.values()) > 0


@pytest.mark.parametrize(
    ("descriptions", "options", "told"),
    [
        (("T1 a", "scout"), {}, "no series is channel 'second'"),
        (("T1 a", "T2 a", "T2 b"), {}, "several volumes may be channel 'second'"),
        (("T1 a", "T2 a"), {"modality": "CT"}, "no series is channel 'second'"),
        (("T1 a", "T2 a"), {"origin": (0.0, 3.0, 0.0)}, "channel 'second' lies up to 3.00 mm from 'first'"),
        (("T1 a", "T2 a"), {"keep": range(7)}, "channel 'second' has the shape (26, 24, 7)"),
        (("T1 a", "T2 a"), {"keep": [0]}, "the series of channel 'second' was refused (too_few_slices)"),
    ],
    ids=["none", "several", "another_modality", "elsewhere", "shorter", "refused"],
)
def test_a_study_whose_channels_are_not_clear_is_refused_with_the_reason(
    paired: Run, tmp_path: Path, descriptions: tuple[str, ...], options: dict[str, Any], told: str
) -> None:
    write_study(paired, tmp_path / "study", *descriptions, **options)
    model = str(paired.checkpoint.folder)
    (study,) = infer(paths=[tmp_path / "study"], models=[model], out=tmp_path / "out").studies
    assert study.report is not None and not study.report.findings
    reasons = [str(problem) for problem in study.problems if problem.code == "not_applicable"]
    assert [told in reason for reason in reasons] == [True], "once, not for each series"
    (viewed,) = inspect(paths=[tmp_path / "study"], models=[model])["studies"]
    assert not any(series["taken_by"] or series["channel_of"] for series in viewed["series"])


def test_channels_in_other_frames_of_reference_are_refused(paired: Run, tmp_path: Path) -> None:
    write_study(paired, tmp_path / "study", "T1 a", "T2 a")
    for path in (tmp_path / "study").glob("2_*.dcm"):
        change(path, FrameOfReferenceUID="1.2.3.4")
    done = infer(paths=[tmp_path / "study"], models=[str(paired.checkpoint.folder)], out=tmp_path / "out")
    (problem,) = done.studies[0].problems
    assert "another frame of reference" in problem.seen


def test_one_series_is_not_two_channels(paired: Run, tmp_path: Path) -> None:
    write_study(paired, tmp_path / "study", "T1 a")
    twice = SeriesRule(modality=("MR",))
    channels = tuple(channel.model_copy(update={"series": twice}) for channel in paired.checkpoint.segmenter().channels)
    config = paired.checkpoint.segmenter().model_copy(update={"channels": channels})
    (study,) = gather([tmp_path / "study"]).scan.studies
    ((_, reason),) = view_study(study, [replace(paired.checkpoint, config=config)], named=True, policy="repair")[
        0
    ].view.declined_by
    assert "it matches channels 'first' and 'second'" in reason.seen


@pytest.mark.parametrize("rules", ["{name: a, series: {modality: [MR]}}, {name: b}", "{name: a, series: {}}"])
def test_rules_for_some_channels_or_of_nothing_are_refused(rules: str) -> None:
    with pytest.raises(ConfigInvalid):
        segment_config(Path("cases.csv"), f"channels=[{rules}]")


def test_a_network_of_one_image_takes_each_file_by_itself(flat: Run, inbox: Path, tmp_path: Path) -> None:
    done = infer(paths=[inbox], models=[str(flat.checkpoint.folder)], out=tmp_path / "out")
    assert [study.name for study in done.studies] == ["a_0000", "a_0001", "b_0000", "b_0001"]


@pytest.mark.parametrize("regions", [(), REGIONS], ids=["labels", "regions"])
def test_a_network_learns_from_patches_larger_than_the_volume(tmp_path: Path, regions: tuple[str, ...]) -> None:
    run = trained(tmp_path, *regions, "train.patch=[40, 32]", "train.padding=ignored", "train.epochs=60")
    check_dice(run, 0.8)


def test_a_label_that_marks_what_is_ignored_is_refused() -> None:
    values = ("labels.0.values=[1, 255]", "labels.1.values=[255]")
    assert segment_config(Path("cases.csv"), *values).train.padding == "background"
    with pytest.raises(ConfigInvalid, match="255"):
        segment_config(Path("cases.csv"), *values, "train.padding=ignored")


@pytest.mark.parametrize("name", ["SegResNetDS", "DynUNet"])
def test_deep_supervision_learns_too(tmp_path: Path, name: str) -> None:
    options = {
        "SegResNetDS": "{init_filters: 8, blocks_down: [1, 1, 1], norm: instance, dsdepth: 2}",
        "DynUNet": "{filters: [8, 16, 16], kernel_size: [3, 3, 3], strides: [1, 2, 2], upsample_kernel_size: [2, 2],"
        " norm_name: [instance, {affine: true}], deep_supervision: true, deep_supr_num: 1}",
    }[name]
    run = trained(tmp_path, f"network={{name: {name}, options: {options}}}", "predict.flip_axes=[]")
    check_dice(run, 0.85)


def test_the_phantoms_are_as_said(tmp_path: Path) -> None:
    write_cases(tmp_path, channels=2)
    image, mask = read_nifti(tmp_path / "a_0000.nii.gz"), read_nifti(tmp_path / "a_mask.nii.gz")
    assert np.allclose(image.affine, AFFINE)
    assert sorted(np.unique(mask.array)) == [0, 1, 2]
    assert (image.array[0][mask.array[0] == 0] > 140).sum() > 100, "the decoy is bright and is no structure"
