"""Whoever shares a patient, a picture or a text stays on one side; what cannot be is told by its row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fused import fuse_config
from PIL import Image

from imaging.config import FuseConfig
from imaging.errors import LearntCases, ManifestInvalid, PatientLeak
from imaging.fusion_cases import check_unlearnt, read_fusion_cases, split_fusion
from imaging.manifest import cases_of

HEADING = "case,patient,label,logit_toy,logit_text,age,sex"


def write(folder: Path, *rows: str, heading: str = HEADING) -> Path:
    path = folder / "cases.csv"
    path.write_text("\n".join([heading, *rows]) + "\n")
    return path


@pytest.fixture
def config(tmp_path: Path) -> FuseConfig:
    return fuse_config(tmp_path)


def test_rows_are_read_and_empty_cells_are_parts_that_are_not_there(config: FuseConfig, tmp_path: Path) -> None:
    path = write(tmp_path, "a,p1,abnormal,1.5,-2,50,F", "b,p2,normal,,0.5,,", "c,p3,0,2,,,M")
    first, second, third = read_fusion_cases(path, config)
    assert (first.name, first.owner, first.abnormal) == ("a", "p1", True)
    assert first.case.logits == {"toy": 1.5, "text": -2.0}
    assert first.case.facts == {"age": "50", "sex": "F"}
    assert (second.abnormal, second.case.logits) == (False, {"text": 0.5})
    assert (third.abnormal, third.case.logits) == (False, {"toy": 2.0})


def test_a_chain_of_shared_patients_pictures_and_texts_is_one_group(config: FuseConfig, tmp_path: Path) -> None:
    for name, value in (("x", 1), ("y", 2), ("copy_of_x", 1), ("z", 3), ("w", 4)):
        Image.fromarray(np.full((4, 4), value, np.uint8)).save(tmp_path / f"{name}.png")
    for name, words in (("one", "Cough and  fever"), ("two", "pain"), ("same", "cough AND fever\n"), ("own", "fall")):
        (tmp_path / f"{name}.txt").write_text(words)
    rows = [
        "a,p1,1,x.png,one.txt,,", "b,p1,1,y.png,two.txt,,", "c,p2,0,copy_of_x.png,,,", "d,p3,0,z.png,same.txt,,",
        "e,p4,0,w.png,own.txt,,",
    ]  # fmt: skip
    path = write(tmp_path, *rows, heading="case,patient,label,image,text,age,sex")
    cases = {case.name: case for case in read_fusion_cases(path, config)}
    assert {cases[name].patient for name in "abcd"} == {cases["a"].patient}
    assert cases["e"].patient != cases["a"].patient
    assert cases["d"].owner == "p3"


def test_groups_stay_on_one_side(config: FuseConfig, tmp_path: Path) -> None:
    path = write(tmp_path, *(f"c{n},p{n // 3},{n % 2},{n},{n},50,F" for n in range(120)))
    cases = read_fusion_cases(path, config)
    sides = cases_of(split_fusion(cases, config), cases)
    owners = [{case.owner for case in members} for members in sides.values()]
    assert all(owners)
    assert len(set.union(*owners)) == sum(map(len, owners)) == 40


def test_a_given_split_with_a_patient_on_two_sides_is_refused(tmp_path: Path) -> None:
    config = fuse_config(tmp_path, "data.split=given")
    rows = ["a,p1,1,1,1,,,train", "b,p1,0,1,1,,,test", "c,p2,0,1,1,,,val"]
    cases = read_fusion_cases(write(tmp_path, *rows, heading=HEADING + ",split"), config)
    assert [case.side for case in cases] == ["train", "test", "validation"]
    with pytest.raises(PatientLeak):
        cases_of(split_fusion(cases, config), cases)


@pytest.mark.parametrize(
    ("rows", "heading", "told"),
    [
        ([], HEADING, "no case"),
        (["a,p,1,x,1,,"], HEADING, "row 2: logit_toy is no finite number"),
        (["a,p,1,inf,1,,"], HEADING, "row 2: logit_toy is no finite number"),
        (["a,p,1,1,1,,", "a,p,1,1,1,,"], HEADING, "'a' is there more than once"),
        (["a,p,1,1,50,F"], "case,patient,label,logit_toy,age,sex", "no column 'logit_text'"),
        (["a,p,1,1,1,F"], "case,patient,label,logit_toy,logit_text,sex", "no column 'age'"),
        (["a,p,1,1,50,F"], "case,patient,logit_toy,logit_text,age,sex", "no column 'label'"),
        (["a,p,1,gone.png,1,50,F"], "case,patient,label,image,logit_text,age,sex", "row 2 names a file under image"),
        (["a,p,1,1,1,,", "b,,1,1,1,,"], HEADING, "rows without a patient"),
    ],
)
def test_what_cannot_be_is_told(config: FuseConfig, tmp_path: Path, rows: list[str], heading: str, told: str) -> None:
    with pytest.raises(ManifestInvalid, match=told):
        read_fusion_cases(write(tmp_path, *rows, heading=heading), config)


def test_a_split_that_is_none_is_told(tmp_path: Path) -> None:
    path = write(tmp_path, "a,p1,1,1,1,,,tomorrow", heading=HEADING + ",split")
    with pytest.raises(ManifestInvalid, match="the split 'tomorrow'"):
        read_fusion_cases(path, fuse_config(tmp_path, "data.split=given"))


def test_cases_that_trained_a_checkpoint_are_refused(config: FuseConfig, tmp_path: Path) -> None:
    cases = read_fusion_cases(write(tmp_path, "a,p1,1,1,1,,", "b,p2,0,1,1,,"), config)
    check_unlearnt(cases, "toy", ["c"])
    with pytest.raises(LearntCases, match="1 cases have the names of its training cases: b"):
        check_unlearnt(cases, "toy", ["b", "c"])
