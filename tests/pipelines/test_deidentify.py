"""The verb: folders appear whole, what is refused is told, the crosswalk lies apart."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pydicom
import pytest
from click.testing import CliRunner

from imaging.dicom.deidentify import make_key
from imaging.errors import KeyInvalid, NothingFound, OutputNotWritable
from pipelines import deidentify as verb
from pipelines.cli import main

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "Quiltsworthy"
    folder.mkdir()
    for number in (1, 2, 3):
        shutil.copy(DATA / "hippocrop_study1" / f"{number}.dcm", folder)
    shutil.copy(DATA / "hippocrop_study2" / "1.dcm", folder / "other.dcm")
    return folder


@pytest.fixture
def key(tmp_path: Path) -> Path:
    make_key(tmp_path / "key")
    return tmp_path / "key"


def test_each_study_has_a_folder_by_pseudonym(source: Path, key: Path, tmp_path: Path) -> None:
    out, crosswalk = tmp_path / "out", tmp_path / "crosswalk.csv"
    done = verb.deidentify(source=source, out=out, key=key, crosswalk=crosswalk)
    assert [study.instances for study in done.studies] in ([3, 1], [1, 3])
    assert not done.refused
    for path in out.rglob("*.dcm"):
        dataset = pydicom.dcmread(path)
        assert path == out / dataset.PatientID / dataset.StudyInstanceUID / f"{dataset.SOPInstanceUID}.dcm"
    assert crosswalk.stat().st_mode & 0o777 == 0o600
    assert not list(tmp_path.rglob("*.partial"))
    again = verb.deidentify(source=source, out=tmp_path / "again", key=key)
    assert {path.relative_to(out): path.read_bytes() for path in out.rglob("*.dcm")} == {
        path.relative_to(tmp_path / "again"): path.read_bytes() for path in (tmp_path / "again").rglob("*.dcm")
    }
    assert again.gone == done.gone


def test_what_is_refused_is_told_and_the_rest_is_written(source: Path, key: Path, tmp_path: Path) -> None:
    (source / "notes.txt").write_text("not DICOM")
    burnt = pydicom.dcmread(source / "1.dcm")
    burnt.BurnedInAnnotation, burnt.SOPInstanceUID = "YES", "1.2.3"
    burnt.save_as(source / "burnt.dcm")
    twin = pydicom.dcmread(source / "2.dcm")
    twin.InstanceNumber = 77
    twin.save_as(source / "twin.dcm")
    shutil.copy(source / "3.dcm", source / "copy.dcm")
    done = verb.deidentify(source=source, out=tmp_path / "out", key=key)
    assert sorted(error.code for error in done.refused) == ["burned_in", "not_dicom", "shared_instance_uid"]
    assert sum(study.instances for study in done.studies) == 4
    assert len(list((tmp_path / "out").rglob("*.dcm"))) == 4


def test_nothing_appears_when_it_is_interrupted(
    source: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def stop(number: int, total: int) -> None:
        seen.append(number)
        if number == total - 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verb.deidentify(source=source, out=tmp_path / "out", key=key, on_file=stop)
    assert len(seen) == 4
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_secrets_and_places_are_kept_apart(source: Path, key: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyInvalid):
        verb.deidentify(source=source, out=out, key=key, crosswalk=out / "crosswalk.csv")
    with pytest.raises(KeyInvalid):
        verb.deidentify(source=source, out=out, key=out / "key", new_key=True)
    for inside in (source, source / "out", tmp_path):
        with pytest.raises(OutputNotWritable):
            verb.deidentify(source=source, out=inside, key=key)
    with pytest.raises(NothingFound):
        (tmp_path / "empty").mkdir()
        verb.deidentify(source=tmp_path / "empty", out=out, key=key)
    assert not out.exists()


def test_command_line(source: Path, tmp_path: Path) -> None:
    arguments = ["deidentify", str(source), str(tmp_path / "out"), "--key", str(tmp_path / "k"), "--json"]
    missing = CliRunner().invoke(main, arguments)
    assert missing.exit_code == 2
    assert json.loads(missing.stdout)["error"]["code"] == "key_invalid"
    assert json.loads(missing.stdout)["error"]["seen"] == "there is no such file"
    done = CliRunner().invoke(main, [*arguments, "--make-key", "--modified-dates"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert sum(study["instances"] for study in document["studies"]) == 4
    assert document["gone"]["StudyDescription"] == 4
    (source / "notes.txt").write_text("not DICOM")
    again = CliRunner().invoke(main, arguments[:-1])
    assert again.exit_code == 3
    assert "not_dicom" in again.output
