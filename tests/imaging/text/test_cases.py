"""Which texts there are to learn from, and whose they are."""

from __future__ import annotations

from pathlib import Path

import pytest
from texts import toy_config, write_reports

from imaging.cases import split_cases
from imaging.config import TextConfig
from imaging.errors import ManifestInvalid
from imaging.text.cases import read_spans, read_texts

ENCODER = {"folder": "x", "package": None, "sha256": "0" * 64, "tokenizer_sha256": "0" * 64}


def config_for(folder: Path, *overrides: str) -> TextConfig:
    return toy_config(folder, ENCODER, *overrides)


def table(folder: Path, *rows: str, heading: str = "uid,findings,impression,Problems") -> Path:
    path = folder / "reports.csv"
    path.write_text("\n".join([heading, *rows]) + "\n")
    return path


def test_the_parts_are_joined_and_a_label_that_names_no_class_is_the_other_one(tmp_path: Path) -> None:
    path = table(tmp_path, "a,Clear lungs.,No disease.,normal", "b,,An opacity.,Opacity;Effusion")
    cases, empty = read_texts(path, config_for(tmp_path))
    assert [(case.name, case.text, case.classes) for case in cases] == [
        ("a", "Clear lungs. No disease.", ("normal",)),
        ("b", "An opacity.", ("abnormal",)),
    ]
    assert empty == 0


def test_texts_without_a_word_are_left_out_and_counted(tmp_path: Path) -> None:
    cases, empty = read_texts(table(tmp_path, "a,Clear.,,normal", "b, ,,normal"), config_for(tmp_path))
    assert [case.name for case in cases] == ["a"]
    assert empty == 1


def test_a_label_that_means_nothing_is_refused_without_being_told(tmp_path: Path) -> None:
    path = table(tmp_path, "a,Clear.,,Secret disease")
    with pytest.raises(ManifestInvalid, match="means 0 classes") as refused:
        read_texts(path, config_for(tmp_path, "data.otherwise=null"))
    assert "Secret" not in str(refused.value)
    with pytest.raises(ManifestInvalid, match="means 0 classes"):
        read_texts(table(tmp_path, "a,Clear.,,"), config_for(tmp_path))


@pytest.mark.parametrize(
    ("rows", "heading", "seen"),
    [
        (["a,x,y"], "uid,findings,Problems", "no column 'impression'"),
        (["a,x,y,normal", "a,x,z,normal"], "uid,findings,impression,Problems", "the case 'a'"),
        ([], "uid,findings,impression,Problems", "no column"),
        (["a,x,y,normal,dev"], "uid,findings,impression,Problems,split", "an unknown split"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused(tmp_path: Path, rows: list[str], heading: str, seen: str) -> None:
    with pytest.raises(ManifestInvalid, match=seen):
        read_texts(table(tmp_path, *rows, heading=heading), config_for(tmp_path))


LONG = "the lungs are clear and the heart is of normal size with no effusion and no fracture of any rib that we see"


def test_texts_that_are_nearly_equal_or_of_one_patient_have_one_owner(tmp_path: Path) -> None:
    path = table(
        tmp_path,
        f"c,{LONG},,normal,",
        f"b,{LONG} today,,normal,p1",
        "d,quite another thing is said here by somebody else,,Opacity,p1",
        "e,and this one stands all alone in the whole list,,normal,p2",
        heading="uid,findings,impression,Problems,patient",
    )
    with pytest.raises(ManifestInvalid, match="without a patient"):
        read_texts(path, config_for(tmp_path))
    path.write_text(path.read_text().replace(",normal,\n", ",normal,p0\n"))
    cases, _ = read_texts(path, config_for(tmp_path))
    assert {case.name: case.patient for case in cases} == {"c": "b", "b": "b", "d": "b", "e": "e"}


def test_a_split_keeps_copies_on_one_side_and_every_class_on_each(tmp_path: Path) -> None:
    reports = write_reports(tmp_path / "reports.csv")
    copies = [line.replace("r0", "s0", 1).replace(".", "!") for line in reports.read_text().splitlines()[1:]]
    reports.write_text(reports.read_text() + "\n".join(copies) + "\n")
    config = config_for(tmp_path)
    cases, _ = read_texts(reports, config)
    split = split_cases(cases, config)
    side = {name: place for place in ("train", "validation", "test") for name in getattr(split, place)}
    assert len(side) == 192
    assert all(side[f"r{number:03d}"] == side[f"s{number:03d}"] for number in range(96))


def test_no_text_is_in_a_repr(tmp_path: Path) -> None:
    cases, _ = read_texts(table(tmp_path, "a,Unheard of,,normal"), config_for(tmp_path))
    assert "Unheard" not in repr(cases)
    assert "Unheard" in cases[0].text


def spans_config(folder: Path) -> TextConfig:
    return config_for(
        folder, "classes=[]", "data.otherwise=null", "kinds=[{name: disease, title: Disease, told_as: [Disease]}]"
    )


def test_marked_sentences_of_ncbi_are_read_with_their_sides(tmp_path: Path, data: Path) -> None:
    cases = read_spans(data / "ner_ncbi_disease", spans_config(tmp_path))
    assert {side: sum(case.side == side for case in cases) for side in ("train", "validation", "test")} == {
        "train": 10, "validation": 3, "test": 3,
    }  # fmt: skip
    for case in cases:
        lines = [case.text[m.start : m.end] for m in case.mentions or ()]
        assert lines
        assert all(text.strip() == text != "" for text in lines)


def test_tags_of_other_kinds_count_as_none_and_a_kind_that_changes_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "devel.tsv"
    path.write_text("-DOCSTART-\tO\n\nold\tI-Disease\nflu\tI-Disease\nzinc\tB-Chemical\nflu\tI-Disease\n.\tO\n")
    (case,) = read_spans(path, spans_config(tmp_path))
    assert case.text == "old flu zinc flu ."
    assert [case.text[m.start : m.end] for m in case.mentions or ()] == ["old flu", "flu"]
    assert case.side == "validation"


def test_a_line_that_is_no_word_and_tag_is_refused_without_its_words(tmp_path: Path) -> None:
    path = tmp_path / "train.tsv"
    path.write_text("fine\tO\nsecret words\n")
    with pytest.raises(ManifestInvalid, match="line 2") as refused:
        read_spans(path, spans_config(tmp_path))
    assert "secret" not in str(refused.value)
    with pytest.raises(ManifestInvalid, match=r"no train\.tsv"):
        read_spans(tmp_path / "nowhere", spans_config(tmp_path))
