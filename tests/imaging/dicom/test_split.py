"""What a volume has only once keeps slices apart; of several at one place none is chosen at random."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from phantom import AXIAL, OBLIQUE, Edit, Orientation, Phantom, write_series
from pydicom.dataset import Dataset
from pydicom.uid import BasicTextSRStorage

from imaging.dicom import Policy, Series, load_series, read_stack, scan, stacks
from imaging.errors import ImagingError

POLICIES: tuple[Policy, ...] = ("strict", "repair")


def refusal(folder: Path, policy: Policy = "repair") -> ImagingError:
    with pytest.raises(ImagingError) as caught:
        load_series(folder, policy=policy)
    return caught.value


def series_in(folder: Path) -> Series:
    found = scan(folder)
    assert found.refused == ()
    ((series,),) = (study.series for study in found.studies)
    return series


def with_values(**values: object) -> Edit:
    """Set attributes; None removes one."""

    def edit(dataset: Dataset, _k: int) -> None:
        for keyword, value in values.items():
            if value is None:
                delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, value)

    return edit


def as_report(dataset: Dataset, _k: int) -> None:
    dataset.Modality = "SR"
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = BasicTextSRStorage
    for keyword in ("PixelData", "Rows", "Columns"):
        delattr(dataset, keyword)


def after(count: int, edit: Edit) -> Edit:
    """Apply an edit to what follows the first `count` slices."""

    def later(dataset: Dataset, k: int) -> None:
        if k >= count:
            edit(dataset, k)

    return later


# ------------------------------------------------------------------------------------------ what a volume has only once


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (with_values(FrameOfReferenceUID="1.2.3"), "FrameOfReferenceUID"),
        (with_values(FrameOfReferenceUID=None), "FrameOfReferenceUID"),
        (with_values(Modality="OT"), "Modality"),
        (with_values(SOPClassUID="1.2.840.10008.5.1.4.1.1.2"), "SOPClassUID"),
        (with_values(ImageOrientationPatient=[0, 1, 0, 0, 0, -1]), "ImageOrientationPatient"),
        (with_values(ImageOrientationPatient=[-1, 0, 0, 0, -1, 0]), "ImageOrientationPatient"),
        (with_values(ImageOrientationPatient=[0.9998, 0.02, 0, -0.02, 0.9998, 0]), "ImageOrientationPatient"),
        (with_values(PixelSpacing=[0.7, 1.3]), "PixelSpacing"),
        (with_values(Rows=4), "Rows"),
        (with_values(Columns=8), "Columns"),
        (with_values(PhotometricInterpretation="MONOCHROME1"), "PhotometricInterpretation"),
        (with_values(ImageType=["DERIVED", "SECONDARY", "MPR"]), "ImageType"),
    ],
)
def test_slices_that_differ_are_never_stacked_and_the_attribute_is_named(
    tmp_path: Path, edit: Edit, named: str, policy: Policy
) -> None:
    phantom = write_series(tmp_path, slices=10, edit=after(6, edit))
    found, refused = stacks(series_in(tmp_path), policy=policy)
    members = [{item.instance.sop_instance_uid for item in stack.slices} for stack in found]
    assert set(phantom.uids[:6]) in members
    assert all(part in (set(phantom.uids[:6]), set(phantom.uids[6:])) for part in members)
    assert len(found) + len(refused) == 2
    for stack in found:
        assert f"{named}=" in stack.name
        (defect,) = [defect for defect in stack.defects if defect.code == "mixed_slices"]
        assert (defect.action, named in defect.detail) == ("noted", True)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_series_of_several_volumes_is_not_one(tmp_path: Path, policy: Policy) -> None:
    phantom = write_series(tmp_path, slices=10, edit=after(6, with_values(FrameOfReferenceUID="1.2.3")))
    assert refusal(tmp_path, policy).code == "several_series"
    series = series_in(tmp_path)
    volumes = [read_stack(series, stack) for stack in stacks(series, policy=policy)[0]]
    assert sorted(volume.shape[2] for volume in volumes) == [4, 6]
    assert all(phantom.worst_error(volume) <= phantom.tolerance for volume in volumes)
    assert len({volume.facts.subject for volume in volumes}) == 2


def test_cosines_and_spacings_within_their_rounding_are_one_volume(tmp_path: Path) -> None:
    edit = with_values(ImageOrientationPatient=[1, 0.0004, 0, -0.0004, 1, 0], PixelSpacing=[1.30004, 0.7])
    write_series(tmp_path, slices=10, edit=after(6, edit))
    assert load_series(tmp_path).shape == (7, 5, 10)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("edit", "code"),
    [
        (as_report, "not_an_image"),
        (with_values(SOPClassUID="1.2.840.10008.5.1.4.1.1.7"), "secondary_capture"),
        (with_values(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "localizer"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_lies_among_the_slices_is_set_aside_and_listed(
    tmp_path: Path, edit: Edit, code: str, policy: Policy
) -> None:
    phantom = write_series(tmp_path, slices=8, edit=after(6, edit))
    (stack,), (error,) = stacks(series_in(tmp_path), policy=policy)
    assert (error.code, error.seen.split()[0]) == (code, "2")
    assert [item.instance.sop_instance_uid for item in stack.slices] == list(phantom.uids[:6])


def test_what_was_set_aside_is_told_in_the_volume(tmp_path: Path) -> None:
    edit = with_values(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_series(tmp_path, slices=8, edit=after(6, edit))
    assert any("LOCALIZER" in defect.detail for defect in load_series(tmp_path).defects)


def test_under_strict_a_slice_that_lost_an_attribute_is_not_passed_over(tmp_path: Path) -> None:
    write_series(tmp_path, slices=6, edit=after(5, with_values(ImageOrientationPatient=None)))
    assert refusal(tmp_path, "strict").code == "missing_attribute"


# ------------------------------------------------------------------------------------------------- several at one place


@pytest.mark.parametrize("orientation", [AXIAL, OBLIQUE], ids=["axial", "oblique"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("keep", [[0, 1, 1, 2], [0, 0, 1, 2, 2, 2]])
def test_a_picture_sent_twice_counts_once_and_is_told(
    tmp_path: Path, keep: list[int], policy: Policy, orientation: Orientation
) -> None:
    phantom = write_series(tmp_path, keep=keep, orientation=orientation, numbering="missing")
    volume = load_series(tmp_path, policy=policy)
    assert volume.shape == (7, 5, 3)
    assert phantom.worst_error(volume) <= phantom.tolerance
    (defect,) = volume.defects
    assert (defect.code, defect.action) == ("duplicate_slices", "noted")
    assert defect.detail.startswith(f"{len(keep) - 3} ")


def write_phases(folder: Path, count: int, moment: Callable[[int], Edit], *, slices: int = 4) -> list[Phantom]:
    """Several stacks at one place in one series, each 500 above the one before."""

    def edit_of(phase: int) -> Edit:
        def edit(dataset: Dataset, k: int) -> None:
            dataset.SeriesInstanceUID = "1.2.826.0.1.3680043.8.498.1.1"
            dataset.SeriesNumber = 1
            dataset.RescaleIntercept = float(dataset.RescaleIntercept) + 500 * phase
            moment(phase)(dataset, k)

        return edit

    return [
        write_series(folder, series=phase + 1, slices=slices, edit=edit_of(phase), numbering="equal")
        for phase in range(count)
    ]


def slicewise(keyword: str, value: Callable[[int, int], object]) -> Callable[[int], Edit]:
    """An attribute by phase and slice."""
    return lambda phase: lambda dataset, k: setattr(dataset, keyword, value(phase, k))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("keyword", "value", "name"),
    [
        ("EchoTime", lambda phase, _: [4.92, 9.84, 14.76][phase], "EchoTime=4.92"),
        ("InversionTime", lambda phase, _: 100 + phase, "InversionTime=100"),
        ("DiffusionBValue", lambda phase, _: 500.0 * phase, "DiffusionBValue=0"),
        ("TemporalPositionIdentifier", lambda phase, _: phase + 1, "TemporalPositionIdentifier=1"),
        ("TriggerTime", lambda phase, _: 40 * phase, "TriggerTime=0"),
        ("TriggerTime", lambda phase, k: 40 * phase + k, "TriggerTime#1"),
        ("AcquisitionNumber", lambda phase, _: phase + 3, "AcquisitionNumber=3"),
        ("AcquisitionTime", lambda phase, k: f"{100000 + 10 * phase + k}.5", "AcquisitionTime#1"),
        ("ContentTime", lambda phase, _: f"10000{phase}", "ContentTime=100000"),
        ("ImageType", lambda phase, _: ["ORIGINAL", "PRIMARY", "MPR"[phase]], "ImageType=ORIGINAL\\PRIMARY\\M"),
    ],
)
def test_phases_at_one_place_are_volumes_of_their_own(
    tmp_path: Path, keyword: str, value: Callable[[int, int], object], name: str, policy: Policy
) -> None:
    phantoms = write_phases(tmp_path, 3, slicewise(keyword, value))
    assert refusal(tmp_path, policy).code == "several_series"
    series = series_in(tmp_path)
    found, refused = stacks(series, policy=policy)
    assert refused == []
    assert found[0].name == name or keyword == "ImageType"
    assert name in {stack.name for stack in found}
    volumes = [read_stack(series, stack) for stack in found]
    by_uids = {tuple(frame.sop_instance_uid for frame in volume.sources): volume for volume in volumes}
    assert set(by_uids) == {phantom.uids for phantom in phantoms}
    for phase, phantom in enumerate(phantoms):
        volume = by_uids[phantom.uids]
        volume.array[...] -= 500 * phase
        assert phantom.worst_error(volume) <= phantom.tolerance
        (defect,) = volume.defects
        assert (defect.code, defect.action) == ("duplicate_slices", "noted")
        assert keyword in defect.detail


def test_two_attributes_together_tell_what_neither_tells_alone(tmp_path: Path) -> None:
    def moment(phase: int) -> Edit:
        return with_values(EchoTime=[3, 3, 6, 6][phase], DiffusionBValue=[0.0, 1000.0, 0.0, 1000.0][phase])

    write_phases(tmp_path, 4, moment)
    found, refused = stacks(series_in(tmp_path))
    assert refused == []
    assert {stack.name for stack in found} == {
        f"EchoTime={echo} DiffusionBValue={b}" for echo in (3, 6) for b in (0, 1000)
    }


@pytest.mark.parametrize("policy", POLICIES)
def test_different_pictures_that_nothing_tells_apart_are_refused(tmp_path: Path, policy: Policy) -> None:
    write_phases(tmp_path, 2, lambda _: with_values())
    assert refusal(tmp_path, policy).code == "duplicate_slices"


def test_a_phase_that_stops_early_is_a_shorter_volume(tmp_path: Path) -> None:
    phantoms = write_phases(tmp_path, 2, slicewise("TemporalPositionIdentifier", lambda phase, _: phase), slices=5)
    phantoms[1].paths[4].unlink()
    found, _ = stacks(series_in(tmp_path))
    assert [stack.shape[2] for stack in found] == [5, 4]


@settings(max_examples=20, deadline=None)
@given(phases=st.integers(2, 4), slices=st.integers(2, 5), order=st.randoms(use_true_random=False), rank=st.booleans())
def test_any_number_of_phases_in_any_order_of_files_comes_apart(
    tmp_path_factory: pytest.TempPathFactory, phases: int, slices: int, order: object, rank: bool
) -> None:
    folder = tmp_path_factory.mktemp("phases")
    value = (lambda phase, k: 100 * phase + k) if rank else (lambda phase, _: 100 * phase)
    phantoms = write_phases(folder, phases, slicewise("TriggerTime", value), slices=slices)
    paths = [path for phantom in phantoms for path in phantom.paths]
    order.shuffle(paths)  # type: ignore[attr-defined]
    ((series,),) = (study.series for study in scan(paths).studies)
    found, refused = stacks(series)
    assert refused == []
    members = [tuple(item.instance.sop_instance_uid for item in stack.slices) for stack in found]
    assert members == [phantom.uids for phantom in phantoms]
    heights = [read_stack(series, stack).array.mean() for stack in found]
    assert np.diff(heights) == pytest.approx(500, abs=1)
