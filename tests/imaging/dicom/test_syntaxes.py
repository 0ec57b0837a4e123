"""Every transfer syntax gives the same values, and pixels that are not as long as declared are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from phantom import Edit, change, write_series
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from imaging.dicom import Policy, load_series
from imaging.errors import ImagingError

POLICIES: tuple[Policy, ...] = ("strict", "repair")


def refusal(folder: Path, policy: Policy = "repair") -> ImagingError:
    with pytest.raises(ImagingError) as caught:
        load_series(folder, policy=policy)
    return caught.value


def to_syntax(syntax: str) -> Edit:
    def edit(dataset: Dataset, _k: int) -> None:
        if syntax == RLELossless:
            dataset.compress(RLELossless, generate_instance_uid=False)
        elif syntax == ExplicitVRBigEndian:
            dataset.PixelData = np.frombuffer(dataset.PixelData, "<i2").astype(">i2").tobytes()
        dataset.file_meta.TransferSyntaxUID = UID(syntax)

    return edit


@pytest.mark.parametrize(
    "syntax",
    [
        ExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
        RLELossless,
    ],
    ids=lambda syntax: syntax.keyword,
)
def test_transfer_syntaxes_give_the_same_values(tmp_path: Path, syntax: str) -> None:
    phantom = write_series(tmp_path, edit=to_syntax(syntax))
    assert pydicom.dcmread(phantom.paths[0]).file_meta.TransferSyntaxUID == syntax
    assert phantom.worst_error(load_series(tmp_path)) <= phantom.tolerance


def garbage(syntax: str) -> Edit:
    def edit(dataset: Dataset, _k: int) -> None:
        dataset.file_meta.TransferSyntaxUID = UID(syntax)
        dataset.PixelData = encapsulate([b"this is no code stream of any kind"])
        dataset["PixelData"].VR = "OB"

    return edit


@pytest.mark.parametrize(
    ("syntax", "code"),
    [
        (JPEG2000Lossless, "undecodable_pixels"),
        ("1.2.840.10008.1.2.4.100", "unsupported_transfer_syntax"),  # MPEG2
        ("1.2.840.113619.5.2", "unsupported_transfer_syntax"),  # GE private
    ],
)
def test_what_cannot_be_decoded_is_refused_by_name(tmp_path: Path, syntax: str, code: str) -> None:
    folder = tmp_path
    write_series(folder, edit=garbage(JPEG2000Lossless))
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes().replace(_padded(JPEG2000Lossless), _padded(syntax)))
    error = refusal(folder)
    assert error.code == code
    if code == "unsupported_transfer_syntax":
        assert syntax in error.seen


def _padded(uid: str) -> bytes:
    """The element (0002,0010) with a UID, as it stands in a file."""
    value = uid.encode() + b"\0" * (len(uid) % 2)
    return b"\x02\x00\x10\x00UI" + len(value).to_bytes(2, "little") + value


def test_a_deflated_data_set_that_inflates_beyond_its_bound_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def enlarge(dataset: Dataset, k: int) -> None:
        to_syntax(DeflatedExplicitVRLittleEndian)(dataset, k)
        dataset.add_new(0x00420011, "OB", bytes(4 * 2**20))

    phantom = write_series(tmp_path, slices=2, edit=enlarge)
    assert phantom.worst_error(load_series(tmp_path)) <= phantom.tolerance
    monkeypatch.setattr("imaging.dicom.header._LARGEST_INFLATED", 2**20)
    error = refusal(tmp_path)
    assert error.code == "unreadable_dicom"
    assert "larger than" in error.seen


def cut(count: int) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(path.read_bytes()[:-count])


def pad(path: Path) -> None:
    dataset = pydicom.dcmread(path)
    change(path, PixelData=dataset.PixelData + b"\0" * 32)


@pytest.mark.parametrize(
    "damage",
    [cut(1), cut(2), cut(40), cut(70), pad],
    ids=["one_byte", "one_pixel", "most", "all", "too_long"],
)
def test_pixels_of_another_length_are_refused(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    phantom = write_series(tmp_path)
    damage(phantom.paths[2])
    error = refusal(tmp_path)
    assert error.code == "truncated_pixels"
    assert error.subject == str(phantom.paths[2])


def test_an_image_without_pixels_is_refused(tmp_path: Path) -> None:
    phantom = write_series(tmp_path)
    change(phantom.paths[2], PixelData=None)
    assert refusal(tmp_path, "strict").code == "unreadable_dicom"
    assert any(defect.detail.startswith("unreadable_dicom: ") for defect in load_series(tmp_path).defects)


@pytest.mark.parametrize(
    "size",
    [{"Rows": 4}, {"Rows": 6}, {"Columns": 6}, {"Rows": 20_000, "Columns": 20_000}],
    ids=["fewer_rows", "more_rows", "fewer_columns", "enormous"],
)
def test_a_size_that_lies_is_refused(tmp_path: Path, size: dict[str, int]) -> None:
    phantom = write_series(tmp_path, slices=2)
    for path in phantom.paths:
        change(path, **size)
    assert refusal(tmp_path).code == "truncated_pixels"
