"""How long the headers of a folder of CT files take to read, and what that takes of memory, beside pydicom's loop.

    python benchmarks/bench_scan.py [--files N,...] [--repeats N] [--readers NAME,...]

The files are synthetic: series of 250, each file with about 110 elements and as large as one with 512 x 512 int16 (its
pixels are a hole in the file, which takes no room on the disk; nothing reads them). Every reading runs in a fresh
process that imports first, in turn with the others, after one round that warms the cache. What is read of a file by the
peers' loops is what tells series, order and size apart, and the data set is let go. Memory is the peak above what the
imports took.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from measuring import machine, peak_memory, versions

A_SERIES = 250
SIZE = 512
TIMES = 5.0
OURS, THEIRS = "imgpipe scan", "pydicom, stop_before_pixels"
# What a loop needs of each file; for pydicom's own way of reading no more than that.
KEYWORDS = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Modality",
    "ImageType", "PatientID", "SeriesDescription", "Rows", "Columns", "PixelSpacing", "ImageOrientationPatient",
    "ImagePositionPatient", "InstanceNumber", "RescaleSlope", "RescaleIntercept", "PhotometricInterpretation",
)  # fmt: skip


def template() -> bytes:
    """One file up to its pixels, with marks of one length where files differ."""
    from pydicom import datadict
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = UID("2.25.500.1.1000000.2000000")
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "2.25.500.1", "2.25.500.1.1000000"
    dataset.FrameOfReferenceUID = "2.25.500.2"
    dataset.ImageType, dataset.Modality = ["ORIGINAL", "PRIMARY", "AXIAL"], "CT"
    dataset.PatientID, dataset.PatientName, dataset.SeriesDescription = "SYNTHETIC", "Synthetic", "Scan benchmark"
    dataset.Rows = dataset.Columns = SIZE
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.PixelSpacing, dataset.ImageOrientationPatient = [0.703125, 0.703125], [1, 0, 0, 0, 1, 0]
    dataset.ImagePositionPatient = ["-180", "-180", "2000000.00"]
    dataset.InstanceNumber, dataset.RescaleSlope, dataset.RescaleIntercept = 2000000, 1, -1024
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "CT", "99TEST", "Synthetic procedure"
    dataset.ProcedureCodeSequence = [code, code]
    dataset.RequestAttributesSequence = [code]
    block = dataset.private_block(0x0009, "SYNTHETIC 1", create=True)
    for number in range(30):
        block.add_new(number, "LO", f"private value {number}")
    for tag in _texts(45, dataset):
        dataset.add_new(tag, datadict.dictionary_VR(tag), "as sent")
    dataset.add_new(0x7FE00010, "OW", b"")
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()[:-4] + (SIZE * SIZE * 2).to_bytes(4, "little")


def _texts(count: int, dataset: Any) -> list[int]:
    """Tags of short texts that the data set does not have, of the groups that images have."""
    from pydicom import datadict

    known = [tag for tag in sorted(datadict.DicomDictionary) if 0x00080000 < tag < 0x00400000 and tag not in dataset]
    texts = [tag for tag in known if datadict.dictionary_VR(tag) in ("LO", "SH")]
    current = [tag for tag in texts if not datadict.dictionary_is_retired(tag)]
    return current[:: len(current) // count][:count]


def write(folder: Path, files: int) -> None:
    """A folder for each series, file names in no order."""
    content = template()
    for number in range(files):
        series = 1_000_000 + number // A_SERIES
        target = folder / f"{series}"
        target.mkdir(exist_ok=True)
        header = content.replace(b"1000000", b"%d" % series).replace(b"2000000", b"%d" % (2_000_000 + number))
        path = target / f"{number * 7919 % A_SERIES:03d}.dcm"
        path.write_bytes(header)
        os.truncate(path, len(header) + SIZE * SIZE * 2)


# The readers: each imports, and gives what reads a folder and returns something that holds what it learned ------------


def ours() -> Callable[[Path], Any]:
    """The project's scan, with all that it checks."""
    from imaging.dicom import scan

    def read(folder: Path) -> Any:
        found = scan(folder)
        count = sum(len(series.instances) for study in found.studies for series in study.series)
        return found, count

    return read


def loop(**options: Any) -> Callable[[Path], Any]:
    """Pydicom's dcmread on each file."""
    import pydicom

    def read(folder: Path) -> Any:
        found = []
        for path in sorted(folder.rglob("*.dcm")):
            dataset = pydicom.dcmread(path, stop_before_pixels=True, **options)
            found.append([dataset.get(keyword) for keyword in KEYWORDS])
        return found, len(found)

    return read


READERS: dict[str, Callable[[], Callable[[Path], Any]]] = {
    OURS: ours,
    THEIRS: loop,
    "pydicom, chosen tags only": lambda: loop(specific_tags=list(KEYWORDS)),
}


def work(name: str, folder: Path) -> None:
    """Read once, and print how long it took and how much memory."""
    read = READERS[name]()
    before = peak_memory()
    start = time.perf_counter()
    _found, count = read(folder)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "memory": peak_memory() - before, "files": count}))


def ask(name: str, folder: Path) -> dict[str, float]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--worker", name, "--folder", str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    answer: dict[str, float] = json.loads(done.stdout)
    return answer


def measure(files: int, repeats: int, readers: Sequence[str]) -> dict[str, list[dict[str, float]]]:
    """Each reader in turn, `repeats` times after a round that warms the cache."""
    answers: dict[str, list[dict[str, float]]] = {name: [] for name in readers}
    with tempfile.TemporaryDirectory(prefix="bench_scan_") as temporary:
        write(Path(temporary), files)
        for number in range(repeats + 1):
            for name in readers:
                answer = ask(name, Path(temporary))
                assert answer["files"] == files, f"{name} found {answer['files']} of {files} files"
                if number:
                    answers[name].append(answer)
    return answers


def main() -> None:
    """Write the files, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", default="1000,5000,10000", help="how many, with commas between")
    parser.add_argument("--readers", default=";".join(READERS), help="readers, with semicolons between")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        work(given.worker, given.folder)
        return
    readers = given.readers.split(";")
    print(f"{datetime.date.today()}; {machine()}; Python {platform.python_version()}  ")
    print(f"{versions(['imgpipe', 'pydicom'])}; synthetic files with {len(template())} bytes of header")
    print("\n| files | reader | median s | min - max | x imgpipe | MiB above imports | KiB a file | target |")
    print("| ---: | --- | ---: | ---: | ---: | ---: | ---: | --- |")
    for files in (int(part) for part in given.files.split(",")):
        answers = measure(files, given.repeats, readers)
        for name in readers:
            print(f"| {files} | {name} | {' | '.join(row(name, answers, files))} |", flush=True)


def row(name: str, answers: dict[str, list[dict[str, float]]], files: int) -> list[str]:
    """What the table says of one reader."""
    seconds = [item["seconds"] for item in answers[name]]
    median, times, target = statistics.median(seconds), "", ""
    if OURS in answers:
        ratio = median / statistics.median(item["seconds"] for item in answers[OURS])
        times = f"{ratio:.1f}"
        if name == THEIRS:
            target = f"{'reached' if ratio >= TIMES else 'NOT reached'}: imgpipe at least {TIMES:g} x as fast"
    memory = statistics.median(item["memory"] for item in answers[name])
    cells = [f"{median:.3f}", f"{min(seconds):.3f} - {max(seconds):.3f}", times]
    return [*cells, f"{memory / 2**20:.1f}", f"{memory / files / 1024:.2f}", target]


if __name__ == "__main__":
    main()
