"""A table of classes is taken as the config calls its columns, or refused by its row; no word is guessed at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from classified import CODE, CONTENT, picture
from PIL import Image

from imaging.cases import ClassifiedCase, read_cases, split_cases
from imaging.config import ClassifyConfig, load_config
from imaging.errors import ConfigInvalid, ManifestInvalid, TooFewCases, UnknownKey
from imaging.files import shipped
from imaging.label_table import age_in_years

CLASSES = [
    {"id": 0, "name": "abnormal", "title": "Any", "told_as": ["Effusion", "Pleural_Thickening"], "abnormal": True},
    {"id": 1, "name": "effusion", "title": "Effusion", "abnormal": True},
    {"id": 2, "name": "thickening", "title": "Pleural", "told_as": ["Pleural_Thickening"], "abnormal": True},
]
NIH = {
    "image": "Image Index",
    "label": "Finding Labels",
    "patient": "Patient ID",
    "none": ["No Finding"],
    "facts": {"age": "Patient Age", "sex": "Patient Gender"},
}
HEADINGS = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"
Make = Callable[..., list[ClassifiedCase]]


def config_with(folder: Path, **data: object) -> ClassifyConfig:
    classes = [{**item, "category": CODE, "code": CODE} for item in CLASSES]
    content = {**CONTENT, "output": "sigmoid", "classes": classes, "data": {**CONTENT["data"], **data}}
    (folder / "toy.yaml").write_text(yaml.safe_dump(content))
    config = load_config(folder / "toy.yaml")
    assert isinstance(config, ClassifyConfig)
    return config


@pytest.fixture
def cases(tmp_path: Path) -> Make:
    """The cases of a CSV of some rows, with pictures beside it."""

    def call(*rows: str, images: str = ".", **data: object) -> list[ClassifiedCase]:
        (tmp_path / images).mkdir(exist_ok=True)
        for name in "abc":
            path = tmp_path / images / f"{name}.png"
            Image.fromarray(picture(np.random.default_rng(ord(name)), odd=False)).save(path)
        (tmp_path / "labels.csv").write_text("\n".join(rows))
        return read_cases(tmp_path / "labels.csv", config_with(tmp_path, images=images, **data))

    return call


# -------------------------------------------------------------------------------------------- columns by another name


def test_table_of_the_nih_is_taken_as_it_is(cases: Make, tmp_path: Path) -> None:
    one, two, three = cases(
        HEADINGS,
        "a.png,Effusion|Pleural_Thickening,0,7,058Y,M,PA",
        "b.png,No Finding,1,7,61,F,AP",
        "c.png,Effusion,2,9,,F,AP",
        images="images",
        columns=NIH,
    )
    assert one.image == tmp_path / "images" / "a.png"
    assert [case.classes for case in (one, two, three)] == [
        ("abnormal", "effusion", "thickening"), (), ("abnormal", "effusion")
    ]  # fmt: skip
    assert [case.patient for case in (one, two, three)] == ["7", "7", "9"]
    assert [dict(case.facts) for case in (one, two, three)] == [
        {"age": "58", "sex": "M"}, {"age": "61", "sex": "F"}, {"age": "", "sex": "F"}
    ]  # fmt: skip


def test_without_named_facts_every_other_column_is_one(cases: Make) -> None:
    columns = {**NIH, "facts": None}
    (case,) = cases(HEADINGS, "a.png,Effusion,0,7,58,M,PA", columns=columns)
    assert set(case.facts) == {"Follow-up #", "Patient Age", "Patient Gender", "View Position"}


def test_column_that_the_config_names_must_be_there(cases: Make) -> None:
    with pytest.raises(ManifestInvalid, match="no column 'Patient ID'"):
        cases("Image Index,Finding Labels,Patient Age,Patient Gender", "a.png,Effusion,58,M", columns=NIH)
    with pytest.raises(ManifestInvalid, match="no column 'Weight'"):
        cases(HEADINGS, "a.png,Effusion,0,7,58,M,PA", columns={**NIH, "facts": {"weight": "Weight"}})


def test_column_of_patients_is_not_overlooked_under_another_name(cases: Make) -> None:
    columns = {key: value for key, value in NIH.items() if key != "patient"}
    with pytest.raises(ManifestInvalid, match="'Patient ID' and none called 'patient'"):
        cases(HEADINGS, "a.png,Effusion,0,7,58,M,PA", columns=columns)


@pytest.mark.parametrize(
    ("cell", "match"),
    [
        ("Efusion", "'Efusion'.*known: abnormal, effusion, thickening.*told_as"),
        ("No Finding|Effusion", "'No Finding'"),
        ("Effusion|Effusion", "twice"),
        ("effusion|Cardiomegaly", "'Cardiomegaly'"),
    ],
)
def test_word_that_names_no_class_is_refused_by_row(cases: Make, cell: str, match: str) -> None:
    with pytest.raises(ManifestInvalid, match=rf"row 2: .*{match}"):
        cases(HEADINGS, f"a.png,{cell},0,7,58,M,PA", columns=NIH)


def test_unknown_key_of_columns_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownKey, match=r"data\.columns\.labels.*data\.columns\.label"):
        config_with(tmp_path, columns={"labels": "Finding Labels"})
    with pytest.raises(ConfigInvalid):
        config_with(tmp_path, columns={"facts": {"age": 3}})


@pytest.mark.parametrize(
    ("told", "years"),
    [
        ("058Y", "58"),
        ("006M", "0.5"),
        ("010W", "0.1916"),
        ("000D", "0"),
        ("58", "58"),
        ("", ""),
        ("old", "old"),
        ("34Y", "34"),
        ("6M ", "0.5"),
        ("034y", "34"),
    ],
)
def test_age_is_told_in_years(told: str, years: str) -> None:
    assert age_in_years(told) == years


# -------------------------------------------------------------------------------------------- a column for each class


def test_columns_of_zeros_and_ones_tell_the_classes(cases: Make) -> None:
    found = cases(
        "image,label_abnormal,label_Effusion,label_thickening,sex",
        "a.png,0,0.0,0,F",
        "b.png,1,1,0,M",
        "c.png,1,0,1.0,M",
    )
    assert [case.classes for case in found] == [(), ("abnormal", "effusion"), ("abnormal", "thickening")]
    assert dict(found[0].facts) == {"sex": "F"}


@pytest.mark.parametrize("cell", ["-1", "", "0.5", "yes", "nan"])
def test_cell_that_is_neither_0_nor_1_is_refused(cases: Make, cell: str) -> None:
    with pytest.raises(ManifestInvalid, match=r"row 3: .*'label_effusion'.*0 or 1"):
        cases("image,label_abnormal,label_effusion,label_thickening", "a.png,1,1,0", f"b.png,1,{cell},0")


@pytest.mark.parametrize(
    ("headings", "match"),
    [
        ("image,label_abnormal,label_effusion", "no column for the class 'thickening'"),
        ("image,label_abnormal,label_effusion,label_thickening,label_mass", "'label_mass', whose name names no class"),
        ("image,label,label_abnormal,label_effusion,label_thickening", "'label' and a column 'label_abnormal'"),
        ("image,finding", "no column 'label'"),
    ],
)
def test_columns_that_do_not_tell_each_class_once_are_refused(cases: Make, headings: str, match: str) -> None:
    with pytest.raises(ManifestInvalid, match=match):
        cases(headings, "a.png" + ",1" * headings.count(","))


# ---------------------------------------------------------------------------------------------------- rare classes


def rare(folder: Path, patients: int = 40, **data: object) -> tuple[list[ClassifiedCase], ClassifyConfig]:
    """Many with an effusion, four with a thickening, the rest without either."""
    cases = []
    for number in range(patients):
        words = ("abnormal", "thickening") if number < 4 else ("abnormal", "effusion") if number < 24 else ()
        cases.append(ClassifiedCase(f"c{number}", folder / f"{number}.png", words, f"p{number}"))
    return cases, config_with(folder, **data)


@pytest.mark.parametrize("seed", range(5))
def test_rare_class_is_dealt_to_every_side(tmp_path: Path, seed: int) -> None:
    cases, config = rare(tmp_path, folds=3, test_fraction=0.25, seed=seed)
    split = split_cases(cases, config)
    having = {case.name for case in cases if "thickening" in case.classes}
    assert [len(having & set(side)) for side in (split.train, split.validation, split.test)] == [2, 1, 1]


def test_class_that_a_side_lacks_is_refused_or_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cases, config = rare(tmp_path)
    few = [case for case in cases if "thickening" not in case.classes] + cases[:2]
    with pytest.raises(TooFewCases, match=r"class thickening.*data\.absent=tell"):
        split_cases(few, config)
    _, telling = rare(tmp_path, absent="tell")
    split = split_cases(few, telling)
    assert {cases[0].name, cases[1].name} <= {*split.train, *split.validation}
    assert "class thickening: no case among the 9 for test; nothing is measured" in caplog.text


def test_class_that_nothing_could_be_learnt_of_is_refused(tmp_path: Path) -> None:
    cases, config = rare(tmp_path, absent="tell")
    with pytest.raises(TooFewCases, match=r"class thickening.*for train"):
        split_cases([case for case in cases if "thickening" not in case.classes], config)


# ------------------------------------------------------------------------------------------------ the shipped config

FINDINGS = ("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax",
            "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia")  # fmt: skip


def test_shipped_config_knows_every_word_of_the_nih(tmp_path: Path) -> None:
    config = load_config(shipped("configs") / "nih_findings.yaml")
    assert isinstance(config, ClassifyConfig)
    (tmp_path / "images").mkdir()
    rows = [HEADINGS]
    for number, word in enumerate((*FINDINGS, "No Finding")):
        Image.fromarray(picture(np.random.default_rng(number), odd=False)).save(tmp_path / "images" / f"{number}.png")
        rows.append(f"{number}.png,{word},0,{number},58,M,PA")
    (tmp_path / "Data_Entry.csv").write_text("\n".join(rows))
    *ill, normal = read_cases(tmp_path / "Data_Entry.csv", config)
    assert [case.classes for case in ill] == [("abnormal", word.lower()) for word in FINDINGS]
    assert normal.classes == () and dict(normal.facts) == {"age": "58", "sex": "M", "view": "PA"}
