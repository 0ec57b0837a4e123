"""A SEG holds exactly the mask it was made from, in the place where it was meant, or it is not there."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import highdicom as hd
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from phantom import AXIAL, NUMBERINGS, OBLIQUE, ORIENTATIONS, PATIENT_NAME, Orientation, change, write_series
from pydicom.dataset import Dataset
from validators import assert_valid

from imaging.config import Code, Label
from imaging.dicom import load_series, seg
from imaging.dicom.seg import Algorithm, check_seg, write_seg
from imaging.errors import FormatNotApplicable, ImagingError, MissingAttribute, OutputMismatch, OutputNotWritable
from imaging.volume import Volume, lps_to_ras

Mask = NDArray[np.uint8]
ALGORITHM = Algorithm("phantom_mr", "1.0", "ab" * 32, "cd" * 32, "0.1.0")
_ANATOMY = Code(value="91723000", meaning="Anatomical Structure")
_HIPPOCAMPUS = Code(value="5366008", meaning="Hippocampus")
ANTERIOR = Label(
    id=1, name="anterior", title="Anterior part", category=_ANATOMY, code=_HIPPOCAMPUS, colour="#e69f00",
    modifier=Code(value="255549009", meaning="Anterior"),
)  # fmt: skip
POSTERIOR = Label(
    id=2, name="posterior", title="Posterior part", category=_ANATOMY, code=_HIPPOCAMPUS, colour="#56b4e9"
)
LABELS = (ANTERIOR, POSTERIOR)


def check(path: Path, mask: seg.Mask, volume: Volume, labels: Sequence[Label]) -> None:
    with path.open("rb") as stream:
        check_seg(stream, mask, volume, labels)


def mask_for(volume: Volume) -> Mask:
    """Two labels without any symmetry; the last slice is empty."""
    x, y, z = volume.shape
    mask = np.zeros(volume.shape, dtype=np.uint8)
    mask[: x // 2, 0, 0] = 1
    mask[0, 1:3, : z - 2] = 1
    mask[x - 2 :, y - 2, 1 : z - 1] = 2
    mask[x - 1, y - 1, 1] = 2
    return mask


def series(folder: Path, orientation: Orientation = AXIAL, numbering: str = "scrambled") -> Volume:
    write_series(folder, orientation=orientation, numbering=numbering, rows=8, columns=11, slices=6)
    return load_series(folder)


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    return series(tmp_path / "source", OBLIQUE)


def segment_numbers(path: Path) -> list[int]:
    return [item.SegmentNumber for item in pydicom.dcmread(path).SegmentSequence]


@pytest.mark.parametrize("numbering", NUMBERINGS)
@pytest.mark.parametrize("orientation", ["axial", "oblique", "negative_both", "sagittal"])
def test_highdicom_reads_the_mask_of_every_source_slice(tmp_path: Path, orientation: str, numbering: str) -> None:
    volume = series(tmp_path / "source", ORIENTATIONS[orientation], numbering)
    mask = mask_for(volume)
    write_seg(tmp_path / "seg.dcm", mask, volume, LABELS, ALGORITHM)
    segmentation = hd.seg.segread(tmp_path / "seg.dcm")
    frames_ZYX = segmentation.get_pixels_by_source_instance(
        [frame.sop_instance_uid for frame in volume.sources],
        combine_segments=True,
        assert_missing_frames_are_empty=True,
        ignore_spatial_locations=True,
    )
    np.testing.assert_array_equal(frames_ZYX.transpose(2, 1, 0), mask)
    check(tmp_path / "seg.dcm", mask, volume, LABELS)


@pytest.mark.parametrize("orientation", [AXIAL, OBLIQUE], ids=["axial", "oblique"])
def test_highdicom_finds_every_voxel_in_its_place_in_the_patient(tmp_path: Path, orientation: Orientation) -> None:
    volume = series(tmp_path / "source", orientation)
    mask = mask_for(volume)
    write_seg(tmp_path / "seg.dcm", mask, volume, LABELS, ALGORITHM)
    read = hd.seg.segread(tmp_path / "seg.dcm").get_volume(combine_segments=True)
    found = np.zeros_like(mask)
    to_index = np.linalg.inv(volume.affine) @ lps_to_ras(read.affine)
    for where in np.argwhere(read.array):
        place = to_index @ [*where, 1]
        index = np.rint(place[:3]).astype(int)
        assert np.abs(place[:3] - index).max() < 1e-3
        found[tuple(index)] = read.array[tuple(where)]
    np.testing.assert_array_equal(found, mask)


def moved(mask: Mask, axis: int) -> Mask:
    return np.roll(mask, 1, axis=axis)


def one_more(mask: Mask) -> Mask:
    more = mask.copy()
    more[5, 5, 5] = 2
    return more


def swapped(mask: Mask) -> Mask:
    return np.array([0, 2, 1], dtype=np.uint8)[mask]


@pytest.mark.parametrize(
    "corrupt",
    [
        lambda mask: moved(mask, 0),
        lambda mask: moved(mask, 1),
        lambda mask: moved(mask, 2),
        one_more,
        swapped,
        lambda mask: mask[:, :, ::-1],
    ],
    ids=["moved_x", "moved_y", "moved_z", "one_more", "swapped", "flipped"],
)
def test_another_mask_is_a_mismatch(tmp_path: Path, volume: Volume, corrupt: Callable[[Mask], Mask]) -> None:
    mask = mask_for(volume)
    path = tmp_path / "seg.dcm"
    write_seg(path, mask, volume, LABELS, ALGORITHM)
    with pytest.raises(OutputMismatch):
        check(path, corrupt(mask), volume, LABELS)


def test_another_place_is_a_mismatch(tmp_path: Path, volume: Volume) -> None:
    path = tmp_path / "seg.dcm"
    write_seg(path, mask_for(volume), volume, LABELS, ALGORITHM)
    affine = volume.affine.copy()
    affine[:3, 3] += [0.02, 0, 0]
    with pytest.raises(OutputMismatch):
        check(path, mask_for(volume), replace(volume, affine=affine), LABELS)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("orientation", list(ORIENTATIONS))
def test_a_frame_is_compared_as_a_whole_or_pixel_by_pixel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, orientation: str, fast: bool
) -> None:
    """Both ways find the same: frames that cover their slices, as all here do, take the shorter one."""
    volume = series(tmp_path / "source", ORIENTATIONS[orientation])
    mask, covered, found = mask_for(volume), seg._covered, list[int | None]()

    def watched(*frame: Any) -> int | None:
        found.append(covered(*frame) if fast else None)
        return found[-1]

    monkeypatch.setattr(seg, "_covered", watched)
    write_seg(tmp_path / "seg.dcm", mask, volume, LABELS, ALGORITHM)
    assert found and all((slice_ is not None) == fast for slice_ in found)
    mask[-1, -1, 0] = 1
    with pytest.raises(OutputMismatch, match="lie elsewhere"):
        check(tmp_path / "seg.dcm", mask, volume, LABELS)


@pytest.mark.parametrize(
    ("moved_mm", "covers"), [((0, 0, 0), True), ((0.009, 0, 0), True), ((0.011, 0, 0), False), ((0.5, 0, 0), False)]
)
def test_a_frame_covers_the_slice_that_it_lies_on(volume: Volume, moved_mm: tuple[float, ...], covers: bool) -> None:
    to_ras = volume.affine.copy()
    to_ras[:3, 3] = (volume.affine @ [0, 0, 2, 1])[:3] + moved_mm
    x, y, _ = volume.shape
    assert seg._covered((y, x), to_ras, volume, 0.01) == (2 if covers else None)
    assert seg._covered((y, x - 1), to_ras, volume, 0.01) is None
    turned = to_ras[:, [1, 0, 2, 3]]
    assert seg._covered((y, x), turned, volume, 0.01) is None


def test_frames_of_other_instances_are_a_mismatch(tmp_path: Path, volume: Volume) -> None:
    path = tmp_path / "seg.dcm"
    write_seg(path, mask_for(volume), volume, LABELS, ALGORITHM)
    with pytest.raises(OutputMismatch, match="refer to other instances"):
        check(path, mask_for(volume), replace(volume, sources=volume.sources[::-1]), LABELS)


def test_another_number_of_segments_is_a_mismatch(tmp_path: Path, volume: Volume) -> None:
    path = tmp_path / "seg.dcm"
    write_seg(path, mask_for(volume), volume, LABELS, ALGORITHM)
    with pytest.raises(OutputMismatch):
        check(path, mask_for(volume), volume, [ANTERIOR])


def test_a_mask_of_equal_size_and_centre_but_another_shape_is_a_mismatch(tmp_path: Path, volume: Volume) -> None:
    mask, mirrored = np.zeros((2, *volume.shape), dtype=np.uint8)
    mask[[1, 5, 6], 2, 2] = 1
    mirrored[[2, 3, 7], 2, 2] = 1
    path = tmp_path / "seg.dcm"
    write_seg(path, mask, volume, [ANTERIOR], ALGORITHM)
    with pytest.raises(OutputMismatch):
        check(path, mirrored, volume, [ANTERIOR])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_seg_that_was_built_flipped_is_not_delivered(
    tmp_path: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch, axis: int
) -> None:
    write = seg._write

    def flip(stream: BinaryIO, header: Dataset, mask: Mask, *rest: Any) -> None:
        flipped = np.flip(mask, axis)
        write(stream, seg._build(flipped, rest[0], rest[1], ALGORITHM, "binary"), flipped, *rest)

    monkeypatch.setattr(seg, "_write", flip)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(OutputMismatch):
        write_seg(out / "seg.dcm", mask_for(volume), volume, LABELS, ALGORITHM)
    assert list(out.iterdir()) == []


def test_a_frame_on_the_wrong_slice_is_not_delivered(
    tmp_path: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = seg._build

    def displace(*arguments: Any) -> hd.seg.Segmentation:
        segmentation = build(*arguments)
        first, *_, last = segmentation.PerFrameFunctionalGroupsSequence
        first.PlanePositionSequence, last.PlanePositionSequence = (
            last.PlanePositionSequence,
            first.PlanePositionSequence,
        )
        return segmentation

    monkeypatch.setattr(seg, "_build", displace)
    with pytest.raises(OutputMismatch):
        write_seg(tmp_path / "seg.dcm", mask_for(volume), volume, LABELS, ALGORITHM)
    assert not (tmp_path / "seg.dcm").exists()


def test_a_full_disk_keeps_the_old_seg_and_is_named(
    tmp_path: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    out = tmp_path / "out"
    out.mkdir()
    (out / "seg.dcm").write_text("old")
    monkeypatch.setattr(os, "fsync", no_room)
    with pytest.raises(OutputNotWritable):
        write_seg(out / "seg.dcm", mask_for(volume), volume, LABELS, ALGORITHM)
    assert [path.read_text() for path in out.iterdir()] == ["old"]


def uids(path: Path) -> tuple[str, ...]:
    dataset = pydicom.dcmread(path)
    return (
        dataset.SOPInstanceUID,
        dataset.SeriesInstanceUID,
        dataset.DimensionOrganizationSequence[0].DimensionOrganizationUID,
    )


def test_uids_are_functions_of_the_content(tmp_path: Path, volume: Volume) -> None:
    mask = mask_for(volume)
    masks = {"one": mask, "again": np.asfortranarray(mask), "other": one_more(mask)}
    for name, content in masks.items():
        write_seg(tmp_path / f"{name}.dcm", content, volume, LABELS, ALGORITHM)
    one, again, other = (uids(tmp_path / f"{name}.dcm") for name in masks)
    assert one == again
    assert not set(one) & set(other)
    assert len(set(one)) == 3


@pytest.mark.parametrize("changed", ["version", "weights_sha256", "config_sha256", "software_version"])
def test_uids_depend_on_who_made_the_mask(tmp_path: Path, volume: Volume, changed: str) -> None:
    other = replace(ALGORITHM, **{changed: "9"})
    write_seg(tmp_path / "a.dcm", mask_for(volume), volume, LABELS, ALGORITHM)
    write_seg(tmp_path / "b.dcm", mask_for(volume), volume, LABELS, other)
    assert not set(uids(tmp_path / "a.dcm")) & set(uids(tmp_path / "b.dcm"))


def test_an_absent_label_gets_no_segment_and_leaves_no_hole(tmp_path: Path, volume: Volume) -> None:
    mask = mask_for(volume)
    mask[mask == 1] = 0
    write_seg(tmp_path / "seg.dcm", mask, volume, LABELS, ALGORITHM)
    assert segment_numbers(tmp_path / "seg.dcm") == [1]
    (segment,) = pydicom.dcmread(tmp_path / "seg.dcm").SegmentSequence
    assert segment.SegmentLabel == POSTERIOR.title
    check(tmp_path / "seg.dcm", mask, volume, [POSTERIOR])


def overlapping(volume: Volume) -> NDArray[np.bool_]:
    """Two structures, the second inside the first but for one voxel."""
    whole = mask_for(volume) > 0
    inside = mask_for(volume) == 2
    inside[3, 0, volume.shape[2] - 1] = True
    assert (whole & inside).any() and (inside & ~whole).any()
    return np.stack([whole, inside])


def test_structures_that_overlap_are_segments_that_overlap(tmp_path: Path, volume: Volume) -> None:
    regions, path = overlapping(volume), tmp_path / "seg.dcm"
    write_seg(path, regions, volume, LABELS, ALGORITHM)
    assert pydicom.dcmread(path).SegmentsOverlap == "YES"
    read = hd.seg.segread(path)
    for number, region in enumerate(regions, start=1):
        frames_ZYX1 = read.get_pixels_by_source_instance(
            [frame.sop_instance_uid for frame in volume.sources],
            segment_numbers=[number],
            assert_missing_frames_are_empty=True,
            ignore_spatial_locations=True,
        )
        np.testing.assert_array_equal(frames_ZYX1[..., 0].transpose(2, 1, 0), region)


def test_another_overlap_is_a_mismatch(tmp_path: Path, volume: Volume) -> None:
    regions, path = overlapping(volume), tmp_path / "seg.dcm"
    write_seg(path, regions, volume, LABELS, ALGORITHM)
    check(path, regions, volume, LABELS)
    with pytest.raises(OutputMismatch):
        check(path, np.stack([regions[0] & ~regions[1], regions[1]]), volume, LABELS)


def test_dciodvfy_finds_no_error_in_overlapping_segments(tmp_path: Path) -> None:
    volume = series(tmp_path / "source")
    write_seg(tmp_path / "seg.dcm", overlapping(volume), volume, LABELS, ALGORITHM)
    assert_valid(tmp_path / "seg.dcm")


@pytest.mark.parametrize("orientation", [AXIAL, OBLIQUE], ids=["axial", "oblique"])
def test_a_label_map_holds_the_same_mask_in_the_same_place(tmp_path: Path, orientation: Orientation) -> None:
    volume = series(tmp_path / "source", orientation)
    mask = mask_for(volume)
    write_seg(tmp_path / "seg.dcm", mask, volume, LABELS, ALGORITHM, seg_type="labelmap")
    dataset = pydicom.dcmread(tmp_path / "seg.dcm")
    assert dataset.SegmentationType == "LABELMAP" and dataset.SOPClassUID == "1.2.840.10008.5.1.4.1.1.66.7"
    read = hd.seg.segread(tmp_path / "seg.dcm").get_volume(combine_segments=True)
    assert sorted(np.unique(read.array, return_counts=True)[1].tolist()[1:]) == sorted(
        np.unique(mask, return_counts=True)[1].tolist()[1:]
    )
    assert_valid(tmp_path / "seg.dcm")


@pytest.mark.parametrize("corrupt", [one_more, swapped, lambda mask: moved(mask, 1)], ids=["more", "swapped", "moved"])
def test_another_label_map_is_a_mismatch(tmp_path: Path, volume: Volume, corrupt: Callable[[Mask], Mask]) -> None:
    mask = mask_for(volume)
    write_seg(tmp_path / "seg.dcm", mask, volume, LABELS, ALGORITHM, seg_type="labelmap")
    with pytest.raises(OutputMismatch):
        check(tmp_path / "seg.dcm", corrupt(mask), volume, LABELS)


def test_a_label_map_cannot_hold_structures_that_overlap(tmp_path: Path, volume: Volume) -> None:
    with pytest.raises(FormatNotApplicable, match="binary"):
        write_seg(tmp_path / "seg.dcm", overlapping(volume), volume, LABELS, ALGORITHM, seg_type="labelmap")
    assert not (tmp_path / "seg.dcm").exists()


def test_a_label_map_and_a_binary_seg_are_two_objects_that_track_the_same(tmp_path: Path, volume: Volume) -> None:
    for seg_type in ("binary", "labelmap"):
        write_seg(tmp_path / f"{seg_type}.dcm", mask_for(volume), volume, LABELS, ALGORITHM, seg_type=seg_type)
    one, two = (pydicom.dcmread(tmp_path / f"{seg_type}.dcm") for seg_type in ("binary", "labelmap"))
    assert one.SOPInstanceUID != two.SOPInstanceUID
    tracked = [[item.TrackingUID for item in seg.SegmentSequence if "TrackingUID" in item] for seg in (one, two)]
    assert tracked[0] == tracked[1] and len(tracked[0]) == 2


@pytest.mark.parametrize("name", ["Hong^Gildong=\u6d2a^\u5409\u6d1e=\ud64d^\uae38\ub3d9"])
def test_a_name_in_a_set_that_highdicom_does_not_know_is_kept(tmp_path: Path, name: str) -> None:
    def korean(dataset: Dataset, _: int) -> None:
        dataset.SpecificCharacterSet, dataset.PatientName = ["", "ISO 2022 IR 149"], name

    write_series(tmp_path / "source", rows=8, columns=11, slices=6, edit=korean)
    volume = load_series(tmp_path / "source")
    write_seg(tmp_path / "seg.dcm", mask_for(volume), volume, LABELS, ALGORITHM)
    assert str(pydicom.dcmread(tmp_path / "seg.dcm").PatientName) == name


def test_segments_carry_the_codes_of_their_labels(tmp_path: Path, volume: Volume) -> None:
    write_seg(tmp_path / "seg.dcm", mask_for(volume), volume, LABELS, ALGORITHM)
    first, second = pydicom.dcmread(tmp_path / "seg.dcm").SegmentSequence
    kind = first.SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodeValue, kind.CodingSchemeDesignator) == ("5366008", "SCT")
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeValue == "255549009"
    assert first.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "91723000"
    assert "SegmentedPropertyTypeModifierCodeSequence" not in second.SegmentedPropertyTypeCodeSequence[0]
    assert first.TrackingUID != second.TrackingUID


def test_the_seg_belongs_to_its_source(tmp_path: Path, volume: Volume) -> None:
    write_seg(tmp_path / "seg.dcm", mask_for(volume), volume, LABELS, ALGORITHM)
    dataset = pydicom.dcmread(tmp_path / "seg.dcm")
    assert dataset.StudyInstanceUID == volume.facts.study_uid
    assert dataset.FrameOfReferenceUID == volume.facts.frame_of_reference_uid
    assert dataset.PatientName == PATIENT_NAME
    (referenced,) = dataset.ReferencedSeriesSequence
    assert referenced.SeriesInstanceUID == volume.facts.series_uid
    instances = {item.ReferencedSOPInstanceUID for item in referenced.ReferencedInstanceSequence}
    assert instances <= {frame.sop_instance_uid for frame in volume.sources}


def test_the_source_may_lack_its_meta_header(tmp_path: Path) -> None:
    """As some senders leave their files; the reader takes them, and so must the result."""
    phantom = write_series(tmp_path / "source", rows=8, columns=11, slices=6)
    for path in phantom.paths:
        content = path.read_bytes()
        path.write_bytes(content[content.index(b"\x08\0\x05\0CS") :])
    volume = load_series(tmp_path / "source")
    assert [defect.code for defect in volume.defects] == ["no_meta_header"]
    path = tmp_path / "seg.dcm"
    write_seg(path, mask_for(volume), volume, LABELS, ALGORITHM)
    check(path, mask_for(volume), volume, LABELS)
    assert segment_numbers(path) == [1, 2]


def test_no_frame_of_reference_no_seg(tmp_path: Path) -> None:
    phantom = write_series(tmp_path / "source", rows=8, columns=11, slices=6)
    for path in phantom.paths:
        change(path, FrameOfReferenceUID=None)
    volume = load_series(phantom.folder)
    with pytest.raises(MissingAttribute) as caught:
        write_seg(tmp_path / "seg.dcm", mask_for(volume), volume, LABELS, ALGORITHM)
    assert "FrameOfReferenceUID" in caught.value.seen
    assert not (tmp_path / "seg.dcm").exists()


@pytest.mark.parametrize("others", [True, False], ids=["beside_known", "alone"])
def test_an_unknown_label_is_not_lost_in_silence(tmp_path: Path, volume: Volume, others: bool) -> None:
    mask = mask_for(volume) * np.uint8(others)
    mask[5, 5, 5] = 3
    with pytest.raises(ImagingError):
        write_seg(tmp_path / "seg.dcm", mask, volume, LABELS, ALGORITHM)


def test_invalid_header_values_do_not_get_into_the_logs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def edit(dataset: Dataset, _k: int) -> None:
        dataset.PatientBirthDate = "SECRET"
        dataset.PatientAge = "SECRET"

    write_series(tmp_path / "source", edit=edit, rows=8, columns=11, slices=6)
    volume = load_series(tmp_path / "source")
    caplog.set_level("DEBUG")
    caplog.clear()
    try:
        write_seg(tmp_path / "seg.dcm", mask_for(volume), volume, LABELS, ALGORITHM)
    except ImagingError as error:
        assert "SECRET" not in str(error)
    assert "SECRET" not in caplog.text


@pytest.mark.parametrize("modality", ["MR", "CT"])
def test_dciodvfy_finds_no_error_over_the_phantom(tmp_path: Path, modality: str) -> None:
    write_series(tmp_path / "source", modality=modality, orientation=OBLIQUE, rows=8, columns=11, slices=6)
    volume = load_series(tmp_path / "source")
    write_seg(tmp_path / "seg.dcm", mask_for(volume), volume, LABELS, ALGORITHM)
    assert_valid(tmp_path / "seg.dcm")


def test_dciodvfy_finds_no_error_over_a_real_series(tmp_path: Path, data: Path) -> None:
    volume = load_series(data / "hippocrop_study1")
    write_seg(tmp_path / "seg.dcm", mask_for(volume), volume, LABELS, ALGORITHM)
    assert_valid(tmp_path / "seg.dcm")
