"""What else lies in a folder, how a study is packed, and headers and files that are broken or lie."""

from __future__ import annotations

import tarfile
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from phantom import AXIAL, Edit, Orientation
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.fileset import FileSet
from pydicom.filewriter import write_dataset
from pydicom.uid import UID

from torture_rows.truth import Plane, Truth, both, expect
from torture_rows.writing import Row, Writer, Written, nothing, put_on, write

FILES = Row("files and archives")
BROKEN = Row("broken or lying")


def beside(name: str, content: bytes) -> Writer:
    """A good series with a foreign file."""

    def make(folder: Path) -> Truth:
        made = write(folder)
        (folder / name).write_bytes(content)
        return both(expect(made.planes, made.tolerance))

    return make


FILES.add("thumbs_db", beside("Thumbs.db", b"\xd0\xcf\x11\xe0" + bytes(600)))
FILES.add("ds_store", beside(".DS_Store", b"\0\0\0\1Bud1" + bytes(600)))
FILES.add("apple_double", beside("._1_000.dcm", b"\0\5\x16\7" + bytes(600)))
FILES.add("dirfile", beside("DIRFILE", b"\0" * 600))
FILES.refused("text_file", beside("readme.txt", b"Open viewer.exe\r\n"), "not_dicom")
FILES.refused("empty_file", beside("empty.dcm", b""), "not_dicom")
FILES.refused("zeros", beside("zeros.dcm", bytes(4096)), "not_dicom")
FILES.refused("noise", beside("noise.dcm", np.random.default_rng(1).bytes(4096)), "not_dicom")


def _medium(folder: Path) -> Truth:
    """A CD: files without extension in folders, and a real DICOMDIR."""
    made = write(folder / "raw")
    medium = FileSet()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in made.paths:
            medium.add(path)
        medium.write(folder / "cd")
    for path in made.paths:
        path.unlink()
    return both(expect(made.planes, made.tolerance))


def _deep(folder: Path) -> Truth:
    made = write(folder)
    for number, path in enumerate(made.paths):
        below = folder / f"a{number}" / "b"
        below.mkdir(parents=True)
        path.rename(below / "IM")
    return both(expect(made.planes, made.tolerance))


FILES.add("dicomdir", _medium)
FILES.add("files_in_many_folders", _deep)


def _rewritten(rewrite: Callable[[bytes, Dataset], bytes], *codes: str) -> Writer:
    """A series whose files were changed as bytes."""

    def make(folder: Path) -> Truth:
        made = write(folder)
        for path in made.paths:
            path.write_bytes(rewrite(path.read_bytes(), pydicom.dcmread(path)))
        return both(expect(made.planes, made.tolerance, codes=codes))

    return make


def _bare_data_set(_content: bytes, dataset: Dataset, *, implicit: bool) -> bytes:
    stream = DicomBytesIO()
    stream.is_little_endian, stream.is_implicit_VR = True, implicit
    del dataset.file_meta
    write_dataset(stream, dataset)
    return bytes(stream.getvalue())


FILES.add("no_preamble", _rewritten(lambda content, _: content[132:]))
FILES.add("preamble_of_a_tiff", _rewritten(lambda content, _: b"II*\0" + content[4:]))
FILES.add("no_meta_header_implicit", _rewritten(partial(_bare_data_set, implicit=True), "no_meta_header"))
FILES.add("no_meta_header_explicit", _rewritten(partial(_bare_data_set, implicit=False), "no_meta_header"))


def _packed(pack: Callable[[Path, Written], None]) -> Writer:
    """A study that lies in an archive alone."""

    def make(folder: Path) -> Truth:
        made = write(folder / "raw")
        pack(folder, made)
        for path in made.paths:
            path.unlink()
        return both(expect(made.planes, made.tolerance))

    return make


def _zip(folder: Path, made: Written, *, prefix: str = "CD/DICOM/") -> None:
    with zipfile.ZipFile(folder / "study.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in made.paths:
            archive.write(path, f"{prefix}{path.name}")


def _tar(folder: Path, made: Written, *, mode: Any = "w:gz") -> None:
    with tarfile.open(folder / "study.archive", mode) as archive:
        for path in made.paths:
            archive.add(path, f"./study/{path.name}")


def _zip_and_folder(folder: Path) -> Truth:
    """The same study packed and beside it unpacked, as downloads leave it."""
    made = write(folder / "raw")
    _zip(folder, made)
    return both(expect(made.planes, made.tolerance, codes=["duplicate_slices"]))


def _zip_with_strays(folder: Path, made: Written) -> None:
    _zip(folder, made)
    with zipfile.ZipFile(folder / "study.zip", "a") as archive:
        archive.writestr("CD/Thumbs.db", bytes(300))
        archive.writestr("__MACOSX/._x.dcm", bytes(300))


FILES.add("zip", _packed(_zip))
FILES.add("zip_with_strays", _packed(_zip_with_strays))
FILES.add("zip_whose_names_lead_elsewhere", _packed(partial(_zip, prefix="../../../tmp/")))
FILES.add("zip_beside_what_it_holds", _zip_and_folder)
for _mode in ("w", "w:gz", "w:bz2", "w:xz"):
    FILES.add(f"tar{_mode[1:].replace(':', '_')}", _packed(partial(_tar, mode=_mode)))


def _cut_zip(folder: Path) -> Truth:
    """A ZIP that was not sent to its end has lost its directory; what its parts are is a guess."""
    made = write(folder / "raw")
    _zip(folder, made)
    for path in made.paths:
        path.unlink()
    packed = folder / "study.zip"
    packed.write_bytes(packed.read_bytes()[: packed.stat().st_size * 4 // 5])
    return Truth()


FILES.refused("zip_that_breaks_off", _cut_zip, "archive_refused")


# --------------------------------------------------------------------------------------------------------- broken files


def lying(edit: Edit, **phantom: Any) -> Writer:
    """A series of which nothing can be read."""

    def make(folder: Path) -> Truth:
        write(folder, edit=edit, **phantom)
        return Truth()

    return make


def patched(old: bytes, new: bytes, **phantom: Any) -> Writer:
    """A series in whose files some bytes were replaced by as many others, so that nothing of it can be read."""
    assert len(old) == len(new)

    def make(folder: Path) -> Truth:
        for path in write(folder, **phantom).paths:
            content = path.read_bytes()
            assert content.count(old) == 1
            path.write_bytes(content.replace(old, new))
        return Truth()

    return make


def last_lost(damage: Callable[[Path], None]) -> Writer:
    """The last slice's file is damaged; the others are a volume."""

    def make(folder: Path) -> Truth:
        made = write(folder, slices=5)
        damage(made.paths[4])
        return both(expect(made.planes[:4], made.tolerance))

    return make


def _cut_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:700])


def _cut_before_pixels(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"\xe0\x7f\x10\x00")])


def _cut_pixels(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _four_gigabytes(path: Path) -> None:
    """A comment of 4 GB in a file of 1 KB."""
    content = path.read_bytes()
    at = content.index(b"\x20\x00\x0d\x00UI")
    path.write_bytes(content[:at] + b"\x18\x00\x00\x41UT\0\0\xf0\xff\xff\xff" + content[at:])


def _four_gigabytes_of_pixels(path: Path) -> None:
    content = path.read_bytes()
    at = content.index(b"\xe0\x7f\x10\x00")
    path.write_bytes(content[: at + 8] + b"\xf0\xff\xff\xff" + content[at + 12 :])


def _cut_slice(folder: Path) -> Truth:
    """Pixels that break off are not known before they are read; then the series is refused."""
    made = write(folder, slices=5)
    _cut_pixels(made.paths[2])
    return Truth()


def _declared_slice(folder: Path) -> Truth:
    made = write(folder, slices=5)
    _four_gigabytes_of_pixels(made.paths[2])
    return Truth()


def _pixels(change: Callable[[bytes], bytes]) -> Edit:
    return lambda dataset, _: setattr(dataset, "PixelData", change(dataset.PixelData))


BROKEN.refused("cut_inside_the_header", last_lost(_cut_header), "unreadable_dicom")
BROKEN.refused("cut_before_the_pixels", last_lost(_cut_before_pixels), "unreadable_dicom")
BROKEN.refused("four_gigabytes_declared", last_lost(_four_gigabytes), "unreadable_dicom")
BROKEN.refused("cut_inside_the_pixels", _cut_slice, "truncated_pixels")
BROKEN.refused("four_gigabytes_of_pixels_declared", _declared_slice, "truncated_pixels")
BROKEN.refused("pixels_short", lying(_pixels(lambda data: data[:-14])), "truncated_pixels")
BROKEN.refused("pixels_long", lying(_pixels(lambda data: data + bytes(14))), "truncated_pixels")
BROKEN.refused("pixels_empty", lying(_pixels(lambda _: b"")), "truncated_pixels")
BROKEN.refused("more_rows_than_there_are", lying(put_on(None, Rows=6)), "truncated_pixels")
BROKEN.refused("fewer_rows_than_there_are", lying(put_on(None, Rows=4)), "truncated_pixels")
BROKEN.refused("fewer_columns_than_there_are", lying(put_on(None, Columns=5)), "truncated_pixels")
BROKEN.refused("declares_16_gigapixels", lying(put_on(None, Rows=65535, Columns=65535)), "truncated_pixels")
BROKEN.refused("declares_100_megapixels", lying(put_on(None, Rows=10000, Columns=10000)), "truncated_pixels")
BROKEN.refused("no_rows", lying(put_on(None, Rows=0)), "not_an_image")


def _one_lies(folder: Path) -> Truth:
    """Another size than the rest makes the slice none of theirs."""
    made = write(folder, slices=5, edit=put_on(4, Rows=4))
    return both(expect(made.planes[:4], made.tolerance, codes=["mixed_slices"]))


BROKEN.refused("rows_of_one_slice_lie", _one_lies, "too_few_slices")


# ----------------------------------------------------------------------------------------------------------------- UIDs


def _unnamed(**values: object) -> Writer:
    def make(folder: Path) -> Truth:
        made = write(folder, edit=put_on(None, **values))
        return Truth((), (expect(made.planes, made.tolerance, codes=["missing_uid"]),))

    return make


def _nameless(dataset: Dataset, _k: int) -> None:
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = UID("")


def _one_nameless(folder: Path) -> Truth:
    def edit(dataset: Dataset, k: int) -> None:
        if k == 4:
            _nameless(dataset, k)

    made = write(folder, slices=5, edit=edit)
    return both(expect(made.planes[:4], made.tolerance))


def _classless(dataset: Dataset, _k: int) -> None:
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = UID("")


BROKEN.add("empty_study_uid", _unnamed(StudyInstanceUID=""), strict=["missing_attribute"])
BROKEN.add("empty_series_uid", _unnamed(SeriesInstanceUID=""), strict=["missing_attribute"])
BROKEN.add("no_series_uid", _unnamed(SeriesInstanceUID=None), strict=["missing_attribute"])
BROKEN.refused("empty_instance_uids", lying(_nameless), "missing_attribute")
BROKEN.refused("empty_instance_uid_of_one", _one_nameless, "missing_attribute")
BROKEN.refused("empty_class_uid", lying(_classless), "missing_attribute")
BROKEN.refused("uid_that_is_a_path", lying(put_on(None, SeriesInstanceUID="../../etc")), "invalid_uid")
BROKEN.refused("uid_too_long", lying(put_on(None, StudyInstanceUID="1." + "2" * 80)), "invalid_uid")


# ------------------------------------------------------------------------------------------------------------- geometry

_GEOMETRY: dict[str, dict[str, object]] = {
    "spacing_nan": {"PixelSpacing": ["NaN", "0.7"]},
    "spacing_zero": {"PixelSpacing": [0, 0.7]},
    "spacing_negative": {"PixelSpacing": [1.3, -0.7]},
    "spacing_infinite": {"PixelSpacing": ["inf", "0.7"]},
    "spacing_huge": {"PixelSpacing": ["1e6", "0.7"]},
    "spacing_tiny": {"PixelSpacing": ["1e-9", "1e-9"]},
    "cosines_not_unit": {"ImageOrientationPatient": [2, 0, 0, 0, 1, 0]},
    "cosines_zero": {"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]},
    "cosines_not_orthogonal": {"ImageOrientationPatient": [1, 0, 0, 0.1, 0.995, 0]},
    "cosines_parallel": {"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]},
    "cosines_nan": {"ImageOrientationPatient": ["NaN", 0, 0, 0, 1, 0]},
    "position_nan": {"ImagePositionPatient": ["NaN", 0, 0]},
    "position_infinite": {"ImagePositionPatient": [0, 0, "inf"]},
}
for _name, _values in _GEOMETRY.items():
    BROKEN.refused(_name, lying(put_on(None, **_values)), "invalid_geometry")
BROKEN.refused("position_nan_of_one", lying(put_on(2, ImagePositionPatient=["NaN", 0, 0])), "invalid_geometry")
BROKEN.refused("position_huge_of_one", lying(put_on(2, ImagePositionPatient=[0, 0, "1e9"])), "invalid_geometry")
BROKEN.refused("slices_5_metres_apart", lying(nothing, slice_spacing=5000.0), "invalid_geometry")
BROKEN.refused("no_position", lying(put_on(None, ImagePositionPatient=None), modality="CT"), "missing_attribute")
BROKEN.refused("no_orientation", lying(put_on(None, ImageOrientationPatient=None)), "missing_attribute")
BROKEN.refused("no_spacing", lying(put_on(None, PixelSpacing=None)), "missing_attribute")
BROKEN.refused("two_of_three_coordinates", lying(put_on(None, ImagePositionPatient=[1, 2])), "missing_attribute")
BROKEN.refused("spacing_with_commas", patched(b"1.3\\0.7", b"1,3\\0,7"), "missing_attribute")
BROKEN.refused("slope_with_a_comma", patched(b"DS\x04\x000.1 ", b"DS\x04\x000,1 "), "missing_attribute")
BROKEN.refused("compressed_and_not_encapsulated", patched(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0"),
               "unreadable_dicom")  # fmt: skip
BROKEN.refused("one_slice_alone", lying(nothing, slices=1), "too_few_slices")


def _rounded(folder: Path) -> Truth:
    """Cosines with three digits and twice the sloppiness that is common: within tolerance, and told in mm."""
    turn = 0.0008
    skewed: Orientation = ((1.0, turn, 0.0), AXIAL[1])
    made = write(folder, edit=put_on(None, ImageOrientationPatient=[1, turn, 0, 0, 1, 0]))
    row = np.array(skewed[0])
    planes = [Plane(p.names, p.position, row, p.column, p.spacing, p.rows, p.columns) for p in made.planes]
    # The pixels were made for upright cosines; what the header turns them by is within the tolerance told.
    return both(expect(planes, made.tolerance + 0.1, codes=["uneven_positions"]))


BROKEN.add("cosines_nearly_orthogonal", _rounded)

ROWS = (FILES, BROKEN)
