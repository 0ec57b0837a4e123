"""A real PACS beside the tests: Orthanc and dcmtk's tools on loopback, and instances to send.

The tests that need them fail in continuous integration where they are missing, and are skipped elsewhere.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, RLELossless

INSTALL = "apt-get install -y --no-install-recommends orthanc orthanc-dicomweb dcmtk chromium"
DICOMWEB_PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


def required(*files: str) -> None:
    """Go on only where these programs or libraries are there."""
    missing = [file for file in files if not Path(file).exists()]
    if not missing:
        return
    why = f"{', '.join(missing)} missing: {INSTALL}"
    if os.environ.get("CI") or os.environ.get("IMGPIPE_REQUIRE_TOOLS"):
        pytest.fail(why)
    pytest.skip(why)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Orthanc:
    """One that runs; `process` may be stopped and started again by whoever tests that."""

    folder: Path
    dicom_port: int
    http_port: int

    @property
    def web(self) -> str:
        return f"http://127.0.0.1:{self.http_port}/dicom-web"

    def get(self, path: str) -> Any:
        return json.loads(self.raw(path))

    def raw(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=20) as answer:
            return bytes(answer.read())

    def post(self, path: str, content: Any) -> Any:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.http_port}{path}", data=data, method="POST")
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    def instances(self) -> dict[str, str]:
        """Orthanc's name of each instance by its SOPInstanceUID."""
        found = [self.get(f"/instances/{name}") for name in self.get("/instances")]
        return {item["MainDicomTags"]["SOPInstanceUID"]: item["ID"] for item in found}


@contextmanager
def orthanc(folder: Path, *, modalities: dict[str, Sequence[Any]] | None = None, **more: Any) -> Iterator[Orthanc]:
    """Run one on free ports, with everything of its own below `folder`.

    Parameters
    ----------
    modalities
        By Orthanc's name, AE title, host and port of those that it calls.
    more
        Further keys of its configuration.
    """
    required("/usr/sbin/Orthanc", str(DICOMWEB_PLUGIN))
    folder.mkdir(parents=True, exist_ok=True)
    server = Orthanc(folder, free_port(), free_port())
    config = {
        "Name": "test", "StorageDirectory": str(folder / "db"), "IndexDirectory": str(folder / "db"),
        "Plugins": [str(DICOMWEB_PLUGIN)], "HttpPort": server.http_port, "DicomPort": server.dicom_port,
        "DicomAet": "ORTHANC", "RemoteAccessAllowed": False, "AuthenticationEnabled": False,
        "DicomModalities": modalities or {}, "DicomAlwaysAllowFind": True, "DicomScpTimeout": 10,
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"}, **more,
    }  # fmt: skip
    (folder / "orthanc.json").write_text(json.dumps(config))
    with started(server):
        yield server


@contextmanager
def started(server: Orthanc) -> Iterator[None]:
    """The process of an Orthanc, from the moment when it answers."""
    with (server.folder / "log").open("ab") as log:
        # dcmtk, which Orthanc is built with, lets Nagle wait unless told otherwise.
        process = subprocess.Popen(["/usr/sbin/Orthanc", str(server.folder / "orthanc.json")], stdout=log, stderr=log,
                                   env={**os.environ, "TCP_NODELAY": "1"})  # fmt: skip
    try:
        _await(server, process)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await(server: Orthanc, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        try:
            server.get("/system")
            return
        except OSError:
            time.sleep(0.05)
    pytest.fail(f"Orthanc did not start:\n{(server.folder / 'log').read_text()[-2000:]}")


def storescu(*arguments: str | Path, port: int, aec: str = "IMGPIPE") -> subprocess.CompletedProcess[str]:
    """dcmtk's; the one in a virtual environment is pynetdicom's and ends with 0 whatever the answers."""
    required("/usr/bin/storescu")
    command = ["/usr/bin/storescu", "-aec", aec, *map(str, arguments[:-1]), "127.0.0.1", str(port), str(arguments[-1])]
    environment = {**os.environ, "TCP_NODELAY": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment)


def ct(number: int, *, study: str = "2.25.601", series: str = "1", rle: bool = False, size: int = 32) -> Dataset:
    """One small CT slice; the same numbers give the same bytes."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = UID(f"{study}.{series}.{number}")
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, f"{study}.{series}"
    dataset.StudyDate, dataset.StudyTime, dataset.AccessionNumber, dataset.StudyID = "20260101", "101500", "A1", "1"
    dataset.PatientID, dataset.PatientName, dataset.Modality = "TEST", "Test^Only", "CT"
    dataset.PatientBirthDate, dataset.PatientSex, dataset.ReferringPhysicianName = "", "", ""
    dataset.SeriesNumber, dataset.InstanceNumber = series, number
    dataset.Rows = dataset.Columns = size
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.PixelSpacing, dataset.ImageOrientationPatient = [0.7, 0.7], [1, 0, 0, 0, 1, 0]
    dataset.ImagePositionPatient = [0, 0, number]
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    pixels = np.random.default_rng(number).integers(0, 4096, (size, size), dtype=np.uint16)
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OW"
    if rle:
        dataset.compress(RLELossless, pixels, encoding_plugin="pydicom")
    return dataset


def written(folder: Path, datasets: Sequence[Dataset]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, dataset in enumerate(datasets):
        paths.append(folder / f"{number:05d}.dcm")
        dataset.save_as(paths[-1], enforce_file_format=True)
    return paths


def data_set(content: bytes) -> bytes:
    """The bytes of a file behind preamble and meta header."""
    from imaging.dicom.header import data_set_start

    return content[data_set_start(content) :]
