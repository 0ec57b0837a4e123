"""A SEG that is written frame by frame has the bytes that highdicom gives it whole, and takes no memory for them."""

from __future__ import annotations

import io
import tracemalloc
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from phantom import OBLIQUE, write_series

from imaging.config import Code, Label
from imaging.dicom import load_series, seg
from imaging.dicom.seg import Algorithm, write_seg
from imaging.dicom.seg_file import LONGEST
from imaging.errors import OutputNotBuilt
from imaging.volume import Volume

ALGORITHM = Algorithm("phantom_mr", "1.0", "ab" * 32, "cd" * 32, "0.1.0")
_ANATOMY = Code(value="91723000", meaning="Anatomical Structure")
_HIPPOCAMPUS = Code(value="5366008", meaning="Hippocampus")
# The moment, and the UID that highdicom makes at random.
_OF_ITS_OWN = ("ContentDate", "ContentTime", "InstanceCreationDate", "InstanceCreationTime",
               "DimensionOrganizationSequence", "DimensionIndexSequence",
               "ContributingEquipmentSequence")  # fmt: skip


def labels(count: int) -> list[Label]:
    return [
        Label(id=n, name=f"part_{n}", title=f"Part {n}", category=_ANATOMY, code=_HIPPOCAMPUS, colour="#e69f00")
        for n in range(1, count + 1)
    ]


def noise(shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Two labels everywhere but on the last slice, which is empty, and the first one, which has one of them."""
    mask = np.random.default_rng(0).integers(0, 3, shape).astype(np.uint8)
    mask[..., -1] = 0
    mask[..., 0] %= 2
    return mask


def by_highdicom(
    monkeypatch: pytest.MonkeyPatch, path: Path, mask: Any, volume: Volume, pixels_ZYX: Any, seg_type: Any = "binary"
) -> tuple[pydicom.Dataset, pydicom.Dataset]:
    """A mask as we write it, and as highdicom does that is given all of its pixels."""
    given: dict[str, Any] = {}
    whole = hd.seg.Segmentation

    def remember(**told: Any) -> hd.seg.Segmentation:
        given.update(told)
        return whole(**told)

    monkeypatch.setattr(seg.hd.seg, "Segmentation", remember)
    write_seg(path, mask, volume, labels(2), ALGORITHM, seg_type=seg_type)
    stream = io.BytesIO()
    whole(**(given | {"pixel_array": np.ascontiguousarray(pixels_ZYX)})).save_as(stream)
    stream.seek(0)
    ours, theirs = pydicom.dcmread(path), pydicom.dcmread(stream)
    for dataset in (ours, theirs):
        for keyword in _OF_ITS_OWN:
            delattr(dataset, keyword)
        # Where a byte is added to make them even, PS3.5 7.1.1 wants 0, and highdicom writes the digit.
        dataset.PixelData = dataset.PixelData[: -(-dataset.pixel_array.size * dataset.BitsAllocated // 8)]
    return ours, theirs


@pytest.mark.parametrize("seg_type", ["binary", "labelmap"])
@pytest.mark.parametrize("only", [(1, 2), (2,)], ids=["two_segments", "one_segment"])
def test_the_bytes_are_highdicoms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seg_type: str, only: tuple[int, ...]
) -> None:
    write_series(tmp_path / "source", orientation=OBLIQUE, numbering="scrambled", rows=7, columns=9, slices=5)
    volume = load_series(tmp_path / "source")
    mask = noise(volume.shape) * np.isin(noise(volume.shape), only).astype(np.uint8)
    shown_ZYX = np.searchsorted([0, *only], mask).transpose(2, 1, 0).astype(np.uint8)
    ours, theirs = by_highdicom(monkeypatch, tmp_path / "seg.dcm", mask, volume, shown_ZYX, seg_type=seg_type)
    assert [element for element in ours if element != theirs.get(element.tag)] == []
    assert list(ours.keys()) == list(theirs.keys())
    assert len(ours.PerFrameFunctionalGroupsSequence) == ours.NumberOfFrames > 1


def test_the_bytes_are_highdicoms_where_segments_overlap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_series(tmp_path / "source", rows=8, columns=9, slices=5)
    volume = load_series(tmp_path / "source")
    regions = np.stack([noise(volume.shape) > 0, noise(volume.shape) == 2])
    ours, theirs = by_highdicom(
        monkeypatch, tmp_path / "seg.dcm", regions, volume, regions.transpose(3, 2, 1, 0).astype(np.uint8)
    )
    assert [element for element in ours if element != theirs.get(element.tag)] == []
    assert list(ours.keys()) == list(theirs.keys())
    assert ours.SegmentsOverlap == "YES"


def test_frames_that_end_within_a_byte_are_packed_without_a_gap(tmp_path: Path) -> None:
    write_series(tmp_path / "source", rows=7, columns=9, slices=5)
    volume = load_series(tmp_path / "source")
    mask = np.random.default_rng(0).integers(0, 3, volume.shape).astype(np.uint8)
    write_seg(tmp_path / "seg.dcm", mask, volume, labels(2), ALGORITHM)
    dataset = pydicom.dcmread(tmp_path / "seg.dcm")
    assert len(dataset.PixelData) == 80  # 10 frames of 63 bits are 79 bytes, and a byte to make them even
    slices = [frame.sop_instance_uid for frame in volume.sources]
    for found_YX, group in zip(dataset.pixel_array, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        source = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        np.testing.assert_array_equal(found_YX, number == mask[..., slices.index(source)].T)


def test_what_is_longer_than_dicom_can_tell_is_refused_before_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_series(tmp_path / "source", rows=8, columns=9, slices=5)
    volume = load_series(tmp_path / "source")
    monkeypatch.setattr(seg, "pixel_bytes", lambda *_: LONGEST + 2)
    with pytest.raises(OutputNotBuilt, match="label map"):
        write_seg(tmp_path / "seg.dcm", noise(volume.shape), volume, labels(2), ALGORITHM)
    assert not (tmp_path / "seg.dcm").exists()


def test_writing_and_checking_take_no_memory_for_frames(tmp_path: Path) -> None:
    """30 labels on each of 4 slices of 512 x 512: 120 frames are 3.9 MB packed, 31 MB unpacked."""
    write_series(tmp_path / "source", rows=512, columns=512, slices=4, pixel_spacing=(0.2, 0.2))
    volume = load_series(tmp_path / "source")
    mask = np.zeros(volume.shape, dtype=np.uint8)
    for number in range(1, 31):
        mask[6 * number : 6 * number + 4, 9:90] = number
    # highdicom reads its tables once, which take more.
    write_seg(tmp_path / "first.dcm", np.minimum(mask, 1), volume, labels(1), ALGORITHM)
    tracemalloc.start()
    try:
        write_seg(tmp_path / "seg.dcm", mask, volume, labels(30), ALGORITHM)
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert pydicom.dcmread(tmp_path / "seg.dcm", stop_before_pixels=True).NumberOfFrames == 120
    assert taken < 3_000_000
