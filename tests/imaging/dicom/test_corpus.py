"""Every file that `pydicom` and `pydicom-data` carry is read or refused by name, and its pixels equal pydicom's.

What is refused is listed here with its code, so that a change shows; what is not listed is read.
"""

from __future__ import annotations

import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from fnmatch import fnmatch
from pathlib import Path
from threading import Barrier

import numpy as np
import pydicom
import pytest
from corpus import as_slice, corpus
from mutations import layout
from numpy.typing import NDArray
from phantom import write_series
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.pixels import apply_color_lut, pixel_array
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from imaging.dicom import Scan, Series, header, load_series, read_stack, scan, stacks
from imaging.dicom.attributes import Instance, read_facts
from imaging.dicom.stored import FrameReader, check_stored
from imaging.errors import ImagingError, InputRefused

FILES = corpus()

# Why, for each code and the files that get it; * stands for any characters.
REFUSED: dict[str, str] = {
    # Texts, dumps and a colour profile; a gzip that is no tar; `no_meta` lost the first byte of its first element, and
    # `meta_missing_tsyntax` has neither a syntax nor a data set that begins with group 0008.
    "not_dicom": """
        charset_files/FileInfo.txt test_files/README.txt test_files/crayons.icc test_files/dicomdirtests/README.txt
        test_files/dicomdirtests/TINY_ALPHA/README test_files/rtplan.dump test_files/rtstruct.dump
        test_files/test1.json test_files/test_PN.json test_files/zipMR.gz test_files/no_meta.dcm
        test_files/meta_missing_tsyntax.dcm""",
    # Cut off, or of an image class without pixels (what tests of character sets and sequences are made of); the data
    # set of `SC_rgb_jpeg` is written in another VR than its meta header names.
    "unreadable_dicom": """
        charset_files/chrJapMulti.dcm charset_files/chrJapMultiExplicitIR6.dcm charset_files/chrKoreanMulti.dcm
        charset_files/chrSQEncoding.dcm charset_files/chrSQEncoding1.dcm test_files/SC_rgb_jpeg.dcm
        test_files/UN_sequence.dcm test_files/no_meta_group_length.dcm test_files/priv_SQ.dcm
        test_files/rtplan_truncated.dcm test_files/dicomdirtests/TINY_ALPHA/PT000000/*""",
    # No SOPClassUID.
    "missing_attribute": "test_files/empty_charset_LEI.dcm test_files/nested_priv_SQ.dcm",
    # SOPInstanceUID is text.
    "invalid_uid": "data/bad_sequence.dcm",
    # By their SOP class.
    "secondary_capture": """
        charset_files/chr[AFGHRX]* charset_files/chrI2.dcm data/JPEG-LL.dcm data/JPEG2000_UNC.dcm
        data/OT-PAL-8-face.dcm data/SC_* data/?lut_*.dcm test_files/GDCMJ2K_TextGBR.dcm test_files/JP*
        test_files/SC_rgb_dcmtk_* test_files/SC_rgb_gdcm_KY.dcm test_files/SC_rgb_jls_* test_files/SC_rgb_jpeg_*
        test_files/SC_rgb_rle* test_files/SC_rgb_small_* test_files/SC_ybr_* test_files/SC_jpeg_*
        test_files/image_dfl.dcm""",
    # Reports, plans, structures, waveforms; segmentations and doses, which are results.
    "not_an_image": """
        data/liver* test_files/liver_* test_files/ExplVR_*NoMeta.dcm test_files/badVR.dcm test_files/reportsi*
        test_files/rtdose* test_files/rtplan.dcm test_files/rtstruct.dcm test_files/test-SR.dcm
        test_files/waveform_ecg.dcm""",
    # Several frames and no place for any: cines, and enhanced MR from which the groups were taken.
    "multi_frame": "data/OBXXXX1A*_2frame.dcm data/color3d* data/emri_small* test_files/examples_ybr_color.dcm",
    "localizer": "test_files/dicomdirtests/98892001/CT2N/*",
    # Slices of CT or MR that are alone here; a truncated or padded one is not looked into before that is known.
    "too_few_slices": """
        data/693_* data/MR* data/explicit_VR-UN.dcm test_files/693_J2KI.dcm test_files/CT_small.dcm
        test_files/J2K_pixelrep_mismatch.dcm test_files/MR_* test_files/examples_overlay.dcm
        test_files/dicomdirtests/77654033/CT2/* test_files/dicomdirtests/98892001/CT5N/*
        test_files/dicomdirtests/98892003/*""",
    # A Pixel Spacing of 0.
    "invalid_geometry": "data/RG1_*",
}
# Indices of media: a file by itself is known and set aside, `DICOMDIR` stands for its folder.
INDICES = "test_files/dicomdirtests/DICOMDIR-* test_files/dicomdirtests/TINY_ALPHA/DICOMDIR"
FOLDERS = [name for name in FILES if name.endswith("/DICOMDIR")]
# Frames that are refused although pydicom gives an array, or neither does.
PIXELS_REFUSED: dict[str, str] = {
    "unsupported_pixels": "data/liver* test_files/liver_*",  # one bit a pixel
    # 128 bytes too many; 62 too few; a Number of Frames of 1A.
    "truncated_pixels": "test_files/MR_small_padded.dcm test_files/MR_truncated.dcm test_files/badVR.dcm "
    # A byte of its codestream was changed, so that it declares another size.
    "test_files/JPEG2000-embedded-sequence-delimiter.dcm",
}


def matches(name: str, patterns: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns.split())


def series_of(found: Scan) -> list[Series]:
    return [series for study in found.studies for series in study.series]


def read_all(found: Scan) -> tuple[int, set[str]]:
    """How many volumes come out, and the codes of all refusals."""
    volumes, codes = 0, {error.code for error in found.refused}
    for series in series_of(found):
        whole, refused = stacks(series)
        codes |= {error.code for error in refused}
        for stack in whole:
            try:
                volume = read_stack(series, stack)
            except InputRefused as error:
                codes.add(error.code)
                continue
            assert np.isfinite(volume.array).all()
            assert np.linalg.det(volume.affine[:3, :3]) != 0
            volumes += 1
    return volumes, codes


def test_the_corpus_is_whole() -> None:
    assert len(FILES) >= 250
    assert all(path.is_file() for path in FILES.values())
    patterns = [
        pattern for group in (*REFUSED.values(), *PIXELS_REFUSED.values(), INDICES) for pattern in group.split()
    ]
    assert [pattern for pattern in patterns if not any(fnmatch(name, pattern) for name in FILES)] == []


@pytest.mark.parametrize("name", [name for name in FILES if name not in FOLDERS])
def test_a_file_is_read_or_refused_by_name(name: str) -> None:
    found = scan(FILES[name])
    volumes, codes = read_all(found)
    assert codes == {code for code, patterns in REFUSED.items() if matches(name, patterns)}
    assert len(found.strays) == matches(name, INDICES)
    # Each of these is one object, so that it is a volume or it is refused.
    assert volumes == (not codes and not found.strays)


def test_what_lies_under_a_dicomdir_is_read() -> None:
    """The folders of its series are volumes, with what the reader tells of each."""
    found = scan(FILES["test_files/dicomdirtests/DICOMDIR"])
    volumes, codes = read_all(found)
    assert len(found.studies) == 6
    # Three radiographs, and two CT of several slices; the MR are single planes and projections.
    assert volumes == 5
    assert codes == {"localizer", "not_dicom", "too_few_slices", "unreadable_dicom"}
    assert len(found.strays) == 8


# ------------------------------------------------------------------------------------------------------------- pixels


def dataset_of(path: Path, instance: Instance) -> FileDataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the corpus is made of what pydicom warns of
        dataset = pydicom.dcmread(path, force=True)
    if "TransferSyntaxUID" not in dataset.file_meta:
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = UID(instance.pixels.transfer_syntax)
    return dataset


def by_pydicom(path: Path, instance: Instance) -> list[NDArray[np.generic]]:
    """pydicom's own decoding of every frame: YBR as RGB, palettes looked up.

    Skips the test where none of pydicom's plugins that are installed decodes the file.
    """
    dataset = dataset_of(path, instance)
    # From the file it finds the pixels of one that breaks off; it cannot where it is deflated or has no meta header.
    is_odd = instance.pixels.transfer_syntax == DeflatedExplicitVRLittleEndian or not instance.has_meta
    source = dataset if is_odd else path
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            # One by one: iter_pixels has a bug of its own where it has to correct a sign.
            frames = [pixel_array(source, index=index) for index in range(instance.frames)]
        except RuntimeError as error:
            if "all available plugins" in str(error):
                pytest.skip("none of pydicom's plugins here decodes it")
            raise
        if instance.photometric == "PALETTE COLOR":
            frames = [apply_color_lut(frame, dataset)[..., :3] for frame in frames]
    return frames


def pixels_of(name: str) -> Instance | None:
    """The instance of a file, if it has pixels at all."""
    if name in FOLDERS:
        return None
    instances = [instance for series in series_of(scan(FILES[name])) for instance in series.instances]
    return next((item for item in instances if item.rows and item.columns and item.pixels.tag), None)


WITH_PIXELS = {name: instance for name in FILES if (instance := pixels_of(name)) is not None}


@pytest.mark.parametrize("name", WITH_PIXELS)
def test_frames_equal_pydicoms_own_decoding(name: str) -> None:
    """Of every file, also of what the reader sets aside as no slice of a volume."""
    instance, reader = WITH_PIXELS[name], FrameReader()
    refused = [code for code, patterns in PIXELS_REFUSED.items() if matches(name, patterns)]
    if refused:
        with pytest.raises(ImagingError) as caught:
            check_stored(as_slice(instance, 1))
            reader(as_slice(instance, 1))
        assert [caught.value.code] == refused
        return
    theirs = by_pydicom(FILES[name], instance)
    assert len(theirs) == instance.frames >= 1
    for number, expected in enumerate(theirs, start=1):
        item = as_slice(instance, number)
        check_stored(item)
        samples = reader(item)
        assert samples.shape == expected.shape
        # Both give the same library's integers where the codec is lossy, too; another build may round elsewhere.
        apart = np.abs(samples.astype(np.float64) - expected.astype(np.float64)).max()
        assert apart <= (2 if is_lossy(instance) else 0)


def is_lossy(instance: Instance) -> bool:
    """Whether two right decoders may round differently: DCT and the irreversible wavelet; JPEG-LS never."""
    return instance.pixels.transfer_syntax.removeprefix("1.2.840.10008.1.2.4.") in ("50", "51", "91", "203")


def test_every_way_of_storing_pixels_is_met() -> None:
    """What the comparison above stands for; without a file of each it would say nothing of it."""
    syntaxes = {instance.pixels.transfer_syntax.removeprefix("1.2.840.10008.1.2") for instance in WITH_PIXELS.values()}
    assert syntaxes >= {"", ".1", ".1.99", ".2", ".5", ".4.50", ".4.51", ".4.70", ".4.80", ".4.81", ".4.90", ".4.91"}
    photometric = {instance.photometric for instance in WITH_PIXELS.values()}
    assert photometric >= {"MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT"}


# ---------------------------------------------------------------------------- what the corpus showed to be read wrongly


def test_frames_of_an_odd_size_in_big_endian_words(tmp_path: Path) -> None:
    """8 bits in OW, big endian: each two bytes are swapped, and the second frame begins in the middle of a word."""
    name = "test_files/SC_rgb_small_odd_big_endian.dcm"
    dataset = pydicom.dcmread(FILES[name])
    meant = np.random.default_rng(5).integers(0, 256, (2, 3, 3, 3), np.uint8)
    stored = meant.tobytes()
    assert len(stored) == 54
    dataset.NumberOfFrames = 2
    dataset["PixelData"].VR = "OW"
    dataset.PixelData = b"".join(stored[at + 1 : at + 2] + stored[at : at + 1] for at in range(0, 54, 2))
    dataset.save_as(tmp_path / "two.dcm")
    ((instance,),) = [series.instances for series in series_of(scan(tmp_path))]
    for number in (1, 2):
        item, reader = as_slice(instance, number), FrameReader()
        check_stored(item)
        assert (reader(item) == meant[number - 1]).all()
        assert (pixel_array(tmp_path / "two.dcm", index=number - 1) == meant[number - 1]).all()


def without_meta(source: Path, target: Path) -> None:
    """The data set alone, as some senders leave it: no preamble, no meta header."""
    content = source.read_bytes()
    target.write_bytes(content[next(element.start for element in layout(content) if element.tag >> 16 != 2) :])


def test_functional_groups_are_read_without_a_meta_header(data: Path, tmp_path: Path) -> None:
    source = data / "philips_mr_enhanced" / "IM_0027_fMAP.dcm"
    without_meta(source, tmp_path / "bare.dcm")
    whole, bare = (
        [read_stack(series, stack) for series in series_of(scan(path)) for stack in stacks(series)[0]]
        for path in (source, tmp_path / "bare.dcm")
    )
    assert len(whole) == len(bare) == 2
    for one, other in zip(whole, bare, strict=True):
        assert (one.array == other.array).all()
        assert (one.affine == other.affine).all()
        notes = [{note.code for note in volume.defects} for volume in (one, other)]
        assert notes[1] - notes[0] == {"no_meta_header"}


def test_a_modality_lut_is_applied_without_a_meta_header(tmp_path: Path) -> None:
    table = np.arange(256)[::-1] * 7

    def edit(dataset: Dataset, k: int) -> None:
        del dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType
        dataset.BitsAllocated = dataset.BitsStored = 8
        dataset.HighBit, dataset.PixelRepresentation = 7, 0
        dataset.PixelData = bytes((k + 11 * number) % 256 for number in range(dataset.Rows * dataset.Columns + 1))[:-1]
        dataset["PixelData"].VR = "OB"
        dataset.PixelData += b"\0" * (len(dataset.PixelData) % 2)
        lut = Dataset()
        lut.add_new("LUTDescriptor", "US", [256, 0, 16])
        lut.ModalityLUTType = "US"
        lut.add_new("LUTData", "OW", table.astype("<u2").tobytes())
        dataset.ModalityLUTSequence = [lut]

    written = write_series(tmp_path / "whole", slices=4, edit=edit)
    (tmp_path / "bare").mkdir()
    for path in written.paths:
        without_meta(path, tmp_path / "bare" / path.name)
    for folder in ("whole", "bare"):
        volume = load_series(tmp_path / folder)
        width, height, depth = volume.shape
        k, row, column = np.meshgrid(range(depth), range(height), range(width), indexing="ij")
        meant = table[(k + 11 * (row * width + column)) % 256]
        assert (volume.array[0].transpose(2, 1, 0) == meant).all()


def test_deflated_data_sets_are_inflated_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a few KB that inflate to the bound would together take it as many times as there are threads.

    Scanned by threads that start together, for a scan of its own would read so few files in one.
    """
    inflate, at_once, most, count = header._inflate, [0], [0], 8

    def counted(data: bytes) -> bytes:
        at_once[0] += 1
        most[0] = max(most[0], at_once[0])
        time.sleep(0.02)  # the others come to the door
        try:
            return inflate(data)
        finally:
            at_once[0] -= 1

    monkeypatch.setattr(header, "_inflate", counted)
    paths = [tmp_path / f"{number}.dcm" for number in range(count)]
    for path in paths:
        path.write_bytes(FILES["test_files/image_dfl.dcm"].read_bytes())
    together = Barrier(count)

    def read(path: Path) -> NDArray[np.generic]:
        together.wait()
        instance = read_facts(path).instance
        together.wait()
        return FrameReader()(as_slice(instance, 1)).copy()

    with ThreadPoolExecutor(count) as threads:
        frames = list(threads.map(read, paths))
    assert most == [1]
    assert all((frame == frames[0]).all() and frame.any() for frame in frames)
    # Without the lock they do meet, so that the count above can be another than one.
    monkeypatch.setattr(header, "INFLATING", nullcontext())
    with ThreadPoolExecutor(count) as threads:
        list(threads.map(lambda path: (together.wait(), read_facts(path)), paths))
    assert most[0] > 1


def test_a_refusal_keeps_nothing_of_its_file_in_memory() -> None:
    """A scan keeps the refusals of thousands of files; each once held the bytes that were looked at."""
    (error,) = scan(FILES["test_files/rtplan_truncated.dcm"]).refused
    assert (error.__traceback__, error.__cause__, error.__context__) == (None, None, None)
