"""What `inspect` tells is what `infer` would do, without a pixel read or a patient named."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from classified import write_config
from click.testing import Result
from phantom import STUDY_UID, change, write_series
from PIL import Image
from pydicom.dataset import Dataset
from segmented import write_pictures as write_masked_pictures

from imaging.errors import UnknownCheckpoint
from pipelines.inspect import inspect

Invoke = Callable[..., Result]


def test_study_is_described(study1: Path, model: str) -> None:
    found = inspect(paths=[study1], models=[model])
    ((series,),) = [study["series"] for study in found["studies"]]
    assert (series["modality"], series["description"], series["instances"]) == ("MR", "HippoCrop", 32)
    assert tuple(series["grid"]["shape"]) == (35, 51, 32)
    assert series["grid"]["spacing_mm"] == [1, 1, 1]
    assert series["grid"]["orientation"] == "LPS"
    assert (series["refusal"], series["taken_by"], series["declined_by"]) == (None, ["hippocampus_mr"], {})
    assert (found["refused"], found["nifti"], found["strays"]) == ([], [], [])


def test_affine_is_that_of_the_headers(study1: Path) -> None:
    ((series,),) = [study["series"] for study in inspect(paths=[study1])["studies"]]
    assert series["grid"]["affine_ras_mm"] == [[-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1]]


def test_reason_of_each_checkpoint_is_told(data: Path, model: str) -> None:
    found = inspect(paths=[data / "philips_localiser"], models=[model])
    ((series,),) = [study["series"] for study in found["studies"]]
    assert series["refusal"]["code"] == "localizer"
    assert series["taken_by"] == []
    assert [Path(path).name for path in found["strays"]] == ["DIRFILE"]


def test_each_volume_of_a_series_is_listed_with_what_was_done(study1: Path, model: str, tmp_path: Path) -> None:
    folder = shutil.copytree(study1, tmp_path / "study")
    for path in study1.iterdir():
        change(folder / path.name, EchoTime=3)
        uid = f"1.2.3.4.{path.stem}"
        if path.stem != "10":
            shutil.copy(path, folder / f"second_{path.name}")
            change(folder / f"second_{path.name}", EchoTime=9, SOPInstanceUID=uid)
    found = inspect(paths=[folder], models=[model])
    ((first, second),) = [study["series"] for study in found["studies"]]
    assert (first["volume"], second["volume"]) == ("EchoTime=3", "EchoTime=9")
    assert first["series_uid"] == second["series_uid"]
    assert first["taken_by"] == ["hippocampus_mr"]
    assert [(d["code"], d["action"]) for d in first["defects"]] == [("duplicate_slices", "noted")]
    assert [(d["code"], d["action"]) for d in second["defects"]] == [
        ("duplicate_slices", "noted"),
        ("missing_slices", "repaired"),
    ]
    assert second["instances"] < 31
    strict = inspect(paths=[folder], models=[model], policy="strict")
    views = [(view["volume"], view["refusal"] and view["refusal"]["code"]) for view in strict["studies"][0]["series"]]
    assert views == [("EchoTime=3", None), ("", "missing_slices")]


def test_a_colour_series_is_described_and_taken_by_none(model: str, tmp_path: Path) -> None:
    def edit(dataset: Dataset, _k: int) -> None:
        dataset.SamplesPerPixel, dataset.PlanarConfiguration, dataset.PhotometricInterpretation = 3, 0, "RGB"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
        dataset.PixelData = bytes(106)
        dataset.Rows, dataset.Columns = 5, 7

    write_series(tmp_path, edit=edit)
    ((series,),) = [study["series"] for study in inspect(paths=[tmp_path], models=[model])["studies"]]
    assert (series["grid"]["channels"], series["taken_by"]) == (3, [])
    assert series["declined_by"]["hippocampus_mr"]["seen"] == "a colour image"


def test_nifti_is_taken_where_the_checkpoint_is_named(image: Path, model: str) -> None:
    (named,) = inspect(paths=[image], models=[model])["nifti"]
    (unnamed,) = inspect(paths=[image])["nifti"]
    assert named["taken_by"] == ["hippocampus_mr"]
    assert unnamed["taken_by"] == []
    assert all(reason["code"] == "not_applicable" for reason in unnamed["declined_by"].values())


def test_nothing_goes_unmentioned(both_studies: Path, image: Path, tmp_path: Path) -> None:
    (both_studies / "notes.txt").write_text("hello")
    (both_studies / "DICOMDIR").write_text("")
    shutil.copy(image, both_studies / "deep.nii.gz")
    found = inspect(paths=[both_studies, tmp_path / "missing"])
    assert [len(study["series"]) for study in found["studies"]] == [1, 1]
    assert {error["code"] for error in found["refused"]} == {"not_dicom", "nothing_found"}
    assert len(found["nifti"]) == len(found["strays"]) == 1
    mentioned = sum(series["instances"] for study in found["studies"] for series in study["series"]) + 3
    assert mentioned == len(list(both_studies.iterdir()))


def test_unknown_checkpoint_is_refused(study1: Path) -> None:
    with pytest.raises(UnknownCheckpoint):
        inspect(paths=[study1], models=["nothing"])


@pytest.mark.parametrize("flags", [["--json"], []], ids=["json", "table"])
def test_no_patient_is_named(invoke: Invoke, both_studies: Path, flags: list[str]) -> None:
    result = invoke("inspect", both_studies, *flags)
    assert not [secret for secret in ("PGBM", "Avasarala", "Thanos") if secret in result.output]


@pytest.mark.parametrize(("path", "status"), [("hippocrop_study1", 0), ("philips_localiser", 0), ("nothing", 3)])
def test_json_tells_the_exit_status(invoke: Invoke, data: Path, path: str, status: int) -> None:
    result = invoke("inspect", data / path, "--json")
    assert result.exit_code == json.loads(result.stdout)["exit_status"] == status
    assert result.stderr == ""


def test_table_tells_series_geometry_and_reasons(
    invoke: Invoke, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    result = invoke("inspect", data / "hippocrop_study1", data / "philips_localiser", tmp_path / "missing")
    for told in ("HippoCrop", "35 x 51 x 32", "LPS", "localizer", "nothing_found", "1.3.46.670589.33.1"):
        assert told in result.stdout
    assert result.exit_code == 3


def test_hostile_description_is_shown_as_it_is(
    invoke: Invoke, study1: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rich reads [red] as markup where it is not escaped."""
    monkeypatch.setenv("COLUMNS", "300")
    folder = shutil.copytree(study1, tmp_path / "study")
    for path in folder.iterdir():
        change(path, SeriesDescription="[red]<b>[/nothing]")
    result = invoke("inspect", folder)
    assert "[red]<b>[/nothing]" in result.stdout


# ------------------------------------------------------------------------------------------------------------ data sets


def test_data_set_is_described_by_its_manifest(invoke: Invoke, data: Path) -> None:
    result = invoke("inspect", data / "hippocampus" / "dataset.json", "--json")
    content = json.loads(result.stdout)
    (dataset,) = content["datasets"]
    assert (result.exit_code, dataset["cases"], dataset["problems"]) == (0, 8, [])
    assert (content["studies"], content["nifti"], content["refused"]) == ([], [], [])


def test_all_that_is_wrong_with_a_data_set_is_listed_at_once(
    invoke: Invoke, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    shutil.copytree(data / "hippocampus", tmp_path / "set")
    rows = [f"set/imagesTr/hippocampus_{n}.nii.gz,set/labelsTr/hippocampus_{m}.nii.gz"
            for n, m in (("001", "001"), ("003", "999"), ("006", "007"))]  # fmt: skip
    (tmp_path / "cases.csv").write_text("\n".join(["image,label", *rows]))
    result = invoke("inspect", tmp_path / "cases.csv")
    assert result.exit_code == 3
    assert "missing_file" in result.stdout and "label_mismatch" in result.stdout
    assert "2 to mend" in result.stdout


def test_folder_of_a_data_set_is_still_shown_file_by_file(data: Path) -> None:
    found = inspect(paths=[data / "hippocampus" / "imagesTr"])
    assert len(found["nifti"]) == 8
    assert found["datasets"] == []


def test_manifest_that_lists_nothing_is_wrong_usage(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "cases.csv").write_text("image,label\n")
    result = invoke("inspect", tmp_path / "cases.csv", "--json")
    assert (result.exit_code, json.loads(result.stdout)["error"]["code"]) == (2, "manifest_invalid")


# ------------------------------------------------------------------------------------------------ data sets of classes


def test_manifest_of_classes_is_looked_through(invoke: Invoke, data: Path) -> None:
    result = invoke("inspect", data / "pneumoniamnist" / "cases.csv", "--json")
    content = json.loads(result.stdout)
    (found,) = content["datasets"]
    assert (result.exit_code, found["problems"], found["cases_with"]) == (0, [], {"normal": 4, "pneumonia": 4})
    assert found["kinds"] == {"PNG": 8}


def test_what_is_wrong_with_classes_is_told_with_status_3(invoke: Invoke, data: Path, tmp_path: Path) -> None:
    for path in (data / "pneumoniamnist" / "images").iterdir():
        shutil.copy(path, tmp_path)
    shutil.copy(tmp_path / "normal_1.png", tmp_path / "copy.png")
    rows = ["image,label", "normal_1.png,normal", "copy.png,pneumonia", "pneumonia_1.png,pneumonia"]
    (tmp_path / "films.csv").write_text("\n".join(rows))
    result = invoke("inspect", tmp_path / "films.csv")
    assert result.exit_code == 3
    for told in ("label_conflict", "'normal' is in 1 cases", "patients_not_told", "1 to mend"):
        assert told in result.stdout


def test_config_is_what_classes_are_held_against(invoke: Invoke, data: Path, tmp_path: Path) -> None:
    rows = ["image,label", *(f"{data}/pneumoniamnist/images/normal_{n}.png,healthy" for n in range(1, 5))]
    (tmp_path / "films.csv").write_text("\n".join(rows))
    result = invoke("inspect", tmp_path / "films.csv", "--config", "chest_xray", "--json")
    (found,) = json.loads(result.stdout)["datasets"]
    assert {problem["code"] for problem in found["problems"]} == {"manifest_invalid", "empty_class"}
    assert found["cases_with"] == {"normal": 0, "pneumonia": 0}


def renamed(folder: Path, data: Path, *, label: str) -> Path:
    """Eight cases whose columns have other names, and a config that knows these."""
    images = data / "pneumoniamnist" / "images"
    rows = ["Image Index,Finding Labels,Patient ID"]
    rows += [f"{images}/normal_{n}.png,{label},p{n}" for n in range(1, 5)]
    rows += [f"{images}/pneumonia_{n}.png,odd,q{n}" for n in range(1, 5)]
    (folder / "films.csv").write_text("\n".join(rows))
    columns = "{image: Image Index, label: Finding Labels, patient: Patient ID}"
    return write_config(folder / "toy.yaml", f"data.columns={columns}")


def test_columns_by_other_names_are_those_of_the_config(invoke: Invoke, data: Path, tmp_path: Path) -> None:
    config = renamed(tmp_path, data, label="plain")
    result = invoke("inspect", tmp_path / "films.csv", "--config", config, "--json")
    (found,) = json.loads(result.stdout)["datasets"]
    assert (result.exit_code, found["problems"], found["cases_with"]) == (0, [], {"plain": 4, "odd": 4})
    assert (found["patients"], found["facts"]) == (8, {})
    without = invoke("inspect", tmp_path / "films.csv", "--json")
    assert without.exit_code == 2 and "no column" in without.stdout


def test_word_that_is_no_class_is_told_under_another_heading_too(invoke: Invoke, data: Path, tmp_path: Path) -> None:
    config = renamed(tmp_path, data, label="healthy")
    result = invoke("inspect", tmp_path / "films.csv", "--config", config, "--json")
    (found,) = json.loads(result.stdout)["datasets"]
    assert result.exit_code == 3
    assert sum("'healthy'" in problem["seen"] for problem in found["problems"]) == 4


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Four patients with an MR study each, of which the first has a CT as well."""
    for n in range(4):
        study = {"study_uid": f"{STUDY_UID}.{n}", "patient_id": f"SECRET{n}", "origin": (9.0 * n, 0.0, 0.0)}
        write_series(tmp_path / "archive", series=n, **study)
    write_series(tmp_path / "archive", study_uid=f"{STUDY_UID}.0", series=9, patient_id="SECRET0", modality="CT")
    return tmp_path / "archive"


@pytest.mark.parametrize("key", ["StudyInstanceUID", "PatientID"])
def test_folder_of_studies_is_looked_through_by_its_table(
    invoke: Invoke, archive: Path, tmp_path: Path, key: str
) -> None:
    names = [f"{STUDY_UID}.{n}" if key == "StudyInstanceUID" else f"SECRET{n}" for n in range(4)]
    rows = [f"{name},{('plain', 'odd')[n % 2]}" for n, name in enumerate(names)]
    (tmp_path / "labels.csv").write_text("\n".join([f"{key},label", *rows]))
    settings = ("applies_to.modality=[MR]", "preprocess.size=[4, 4, 4]", "data.test_fraction=0")
    config = write_config(tmp_path / "toy.yaml", f"data.labels={tmp_path / 'labels.csv'}", *settings)
    result = invoke("inspect", archive, "--config", config, "--json")
    content = json.loads(result.stdout)
    (found,) = content["datasets"]
    assert (result.exit_code, found["problems"], found["cases_with"]) == (0, [], {"plain": 2, "odd": 2})
    assert (found["cases"], found["kinds"], found["patients"], content["studies"]) == (4, {"DICOM": 4}, 4, [])
    (tmp_path / "labels.csv").write_text("\n".join([f"{key},label", *rows[:3], "7.7,odd"]))
    broken = invoke("inspect", archive, "--config", config, "--json")
    (found,) = json.loads(broken.stdout)["datasets"]
    assert broken.exit_code == 3
    assert any("row 5 names" in problem["seen"] for problem in found["problems"])
    assert "SECRET" not in broken.output


# ------------------------------------------------------------------------------------------------ pictures with masks


def test_pictures_with_masks_are_looked_through(invoke: Invoke, tmp_path: Path) -> None:
    manifest = write_masked_pictures(tmp_path)
    result = invoke("inspect", manifest, "--json")
    (found,) = json.loads(result.stdout)["datasets"]
    assert (result.exit_code, found["problems"], found["cases"]) == (0, [], 8)
    assert found["cases_with"] == {"label 1": 8, "label 2": 8}
    assert found["pixels"]["median"] == [26, 24, 1]
    assert (found["size"], found["spacing_mm"]) == (None, None), "a picture does not tell the size of its pixels"
    assert "26 x 24 x 1 pixels" in invoke("inspect", manifest).stdout


def test_what_is_wrong_with_masks_of_pictures_is_told(invoke: Invoke, tmp_path: Path) -> None:
    manifest = write_masked_pictures(tmp_path)
    Image.fromarray(np.full((5, 5), 1, np.uint8)).save(tmp_path / "a_mask.png")
    (tmp_path / "b_mask.png").unlink()
    shutil.copy(tmp_path / "c.png", tmp_path / "d.png")
    Image.fromarray(np.full((24, 26), 7, np.uint8)).save(tmp_path / "e.png")
    result = invoke("inspect", manifest, "--json")
    (found,) = json.loads(result.stdout)["datasets"]
    told = Counter(problem["code"] for problem in found["problems"])
    assert result.exit_code == 3
    assert told == {"label_mismatch": 1, "missing_file": 1, "duplicate_image": 1, "constant_image": 1}


def test_medmnist_file_is_a_manifest(invoke: Invoke, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (12, 8, 8), np.uint8)
    labels = np.arange(12, dtype=np.uint8)[:, None] % 2
    np.savez(
        tmp_path / "toy.npz", train_images=images, train_labels=labels, val_images=images[:4], val_labels=labels[:4]
    )
    (found,) = json.loads(invoke("inspect", tmp_path / "toy.npz", "--json").stdout)["datasets"]
    assert found["sides"]["validation"]["cases_with"] == {"0": 2, "1": 2}
    assert [problem["code"] for problem in found["problems"]] == ["duplicate_image"] * 4
