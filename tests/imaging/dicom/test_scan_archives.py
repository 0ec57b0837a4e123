"""What an archive in a study holds: images are read as if they lay in a folder, the rest is told of the archive."""

from __future__ import annotations

import io
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from phantom import write_series

from imaging.dicom.scan import scan


def lay(path: Path, members: Sequence[tuple[str, bytes]], kind: str = "zip") -> Path:
    """Write an archive; names are a patient's, to see that none is told."""
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in members:
                archive.writestr(name, data)
        return path
    with tarfile.open(path, "w") as tape:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tape.addfile(info, io.BytesIO(data))
    return path


def refusals(path: Path) -> list[tuple[str, str, str]]:
    """What a scan refuses, all of it told of the archive and of nobody."""
    found = scan(path)
    assert all(error.path == path and "DOE" not in str(error) for error in found.refused)
    return [(error.code, error.seen, error.remedy) for error in found.refused]


@pytest.fixture
def slices(tmp_path: Path) -> list[tuple[str, bytes]]:
    """The four files of a series, as members of an archive."""
    return [(f"DOE/{path.name}", path.read_bytes()) for path in write_series(tmp_path / "series").paths]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_the_images_of_an_archive_are_a_series(tmp_path: Path, kind: str, slices: list[tuple[str, bytes]]) -> None:
    path = lay(tmp_path / "study", [*slices, ("Thumbs.db", b"x")], kind)
    found = scan(path)
    ((series,),) = [study.series for study in found.studies]
    assert {found.origin(instance.path) for instance in series.instances} == {path}
    assert len(series.instances) == 4
    assert not found.refused and not found.strays


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_all_that_is_no_dicom_in_an_archive_is_one_refusal(
    tmp_path: Path, kind: str, slices: list[tuple[str, bytes]]
) -> None:
    path = lay(tmp_path / "study", [*slices, *((f"DOE{i}.xml", b"text") for i in range(12))], kind)
    ((code, seen, remedy),) = refusals(path)
    assert code == "not_dicom"
    numbers = "5, 6, 7, 8, 9, 10, 11, 12, 13, 14, ..."
    assert seen == f"a ZIP or TAR archive in which 12 members ({numbers}) are not DICOM"
    assert remedy.startswith("Remove them")
    assert len(scan(path).studies[0].series[0].instances) == 4


def test_a_saved_array_is_one_refusal_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    np.savez(tmp_path / "a.npz", a=np.zeros(9), b=np.ones(9))
    found = scan(tmp_path / "a.npz")
    (error,) = found.refused
    assert (error.code, error.seen) == ("not_dicom", "a ZIP or TAR archive in which 2 members (1, 2) are not DICOM")
    assert not found.unpacked and not found.strays
    assert list(temporary.iterdir()) == []


def test_damaged_dicom_in_an_archive_is_told_file_by_file(tmp_path: Path, slices: list[tuple[str, bytes]]) -> None:
    short = [(name, data[:400]) for name, data in slices[:2]]
    path = lay(tmp_path / "a.zip", [*short, *slices[2:], ("DOE.txt", b"text")])
    told = refusals(path)
    assert [code for code, _, _ in told] == ["unreadable_dicom", "unreadable_dicom", "not_dicom"]
    assert [seen.partition(":")[0] for _, seen, _ in told[:2]] == ["its file 000001", "its file 000002"]
    assert told[2][1] == "a ZIP or TAR archive in which member 5 is not DICOM"


@pytest.mark.parametrize("name", ["DOE.nii", "DOE.NII.GZ", "DOE.zip"])
def test_nifti_and_archives_in_an_archive_are_to_be_unpacked(tmp_path: Path, name: str) -> None:
    inner = lay(tmp_path / "inner", [("a", b"a")]).read_bytes() if name == "DOE.zip" else b"data"
    ((code, seen, remedy),) = refusals(lay(tmp_path / "a.zip", [("DOE.txt", b"text"), (name, inner)]))
    assert code == "not_dicom"
    assert seen == (
        "a ZIP or TAR archive in which 2 members (1, 2) are not DICOM; of these member 2 is NIfTI or packed once more"
    )
    assert remedy.startswith("Unpack the archive")


def test_an_archive_of_nothing_but_strays_is_one(tmp_path: Path) -> None:
    path = lay(tmp_path / "a.zip", [("folder/", b""), ("folder/Thumbs.db", b"x")])
    found = scan(path)
    assert (found.strays, found.refused, found.studies) == ((path,), (), ())
