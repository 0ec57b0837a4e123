import re
from pathlib import Path

import pytest
from pydicom.sr.codedict import codes as dicom

from imaging.checkpoint import CONFIG, shipped_checkpoints
from imaging.codes import check_config, code_of, codes_with, is_snomed_id, read_codes, shipped_codes
from imaging.config import Code, load_any, load_config
from imaging.errors import CodesInvalid, UnknownCode
from imaging.files import shipped
from pipelines.train import resolve

HIPPOCAMPUS = shipped("configs") / "hippocampus_mr.yaml"
CHEST = shipped("configs") / "chest_xray.yaml"
HEAD = "name,synonyms,scheme,value,meaning,source\n"
SOURCES = {"PS3.16", "HPO", "FHIR", "HL7-GENOMICS", "OMOP", "UMLS", "SNOMED-AU"}
# The findings of NIH ChestX-ray14 as its own table writes them. Pleural_Thickening has no code that could be verified.
NIH = ["Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia",
       "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax"]  # fmt: skip


def plain(meaning: str) -> str:
    return re.sub(r"\s*\([^()]*\)$", "", meaning).casefold()


def dictionary(scheme: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for code in getattr(dicom, scheme).concepts.values():
        found.setdefault(code.value, set()).add(plain(code.meaning))
    return found


def test_each_row_is_what_dicoms_dictionary_says_or_names_another_source():
    of = {scheme: dictionary(scheme) for scheme in {entry.code.scheme for entry in shipped_codes().entries}}
    for entry in shipped_codes().entries:
        theirs = of[entry.code.scheme].get(entry.code.value)
        assert entry.source in SOURCES
        assert (theirs is not None) == (entry.source == "PS3.16"), entry
        assert theirs is None or plain(entry.code.meaning) in theirs, entry


def test_every_snomed_code_has_its_check_digit_and_one_changed_digit_is_noticed():
    values = [entry.code.value for entry in shipped_codes().entries if entry.code.scheme == "SCT"]
    assert len(values) > 30 and all(is_snomed_id(value) for value in values)
    for value in values:
        wrong = value[:2] + str((int(value[2]) + 1) % 10) + value[3:]
        swapped = value[:-2] + value[-1] + value[-2]
        assert not is_snomed_id(wrong) and (swapped == value or not is_snomed_id(swapped))


def test_two_names_never_share_a_code_and_a_synonym_means_one_thing():
    entries = shipped_codes().entries
    assert len({(entry.code.scheme, entry.code.value) for entry in entries}) == len(entries)
    words = [word for entry in entries for word in (entry.name.replace("_", " "), *entry.synonyms)]
    assert sorted(words) == sorted(set(words))


@pytest.mark.parametrize("name", NIH)
def test_findings_of_nih_have_a_code(name):
    entry = shipped_codes().find(name)
    assert entry is not None and entry.category == "finding" and entry.code.scheme == "SCT"


def test_a_name_is_found_however_it_is_written_and_an_unknown_one_is_refused():
    assert code_of("Pleural_Effusion") == code_of("pleural effusion") == code_of("Effusion")
    assert code_of("normal").value == "17621005"
    assert shipped_codes().find("dragon") is None
    with pytest.raises(UnknownCode, match="dragon"):
        code_of("dragon")


@pytest.mark.parametrize("path", sorted(shipped("configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_configs_that_ship_have_known_codes(path):
    config = load_any(path)
    if config.task in {"segment", "classify", "text"}:
        check_config(config)


@pytest.mark.parametrize("folder", shipped_checkpoints(), ids=lambda folder: folder.name)
def test_the_checkpoints_that_ship_have_known_codes(folder):
    config = load_any(folder / CONFIG)
    if config.task in {"segment", "classify", "text"}:
        check_config(config)


@pytest.mark.parametrize(
    ("override", "seen"),
    [
        ("classes.1.code={value: '233604008', meaning: Pneumonia}", "neither the table nor DICOM"),
        ("classes.1.code={value: '233604007', meaning: Pneumothorax}", "means 'Pneumonia'"),
        ("classes.1.code={value: '46621007', meaning: Atelectasis}", "'Pneumonia' was expected"),
        ("classes.0.category={value: '1', meaning: Something}", "class normal"),
    ],
)
def test_a_training_with_a_code_that_is_not_known_is_refused_before_it_begins(override, seen):
    with pytest.raises(UnknownCode, match=seen):
        resolve(CHEST, [override], precision=None)


def test_a_modifier_is_checked_too():
    with pytest.raises(UnknownCode, match="label hippocampus_anterior"):
        resolve(HIPPOCAMPUS, ["labels.0.modifier={value: '255549009', meaning: Posterior}"], precision=None)


def test_a_structure_may_be_called_as_another_one_is():
    resolve(HIPPOCAMPUS, ["labels.0.name=head", "labels.1.name=left"], precision=None)


def test_what_dicom_has_is_known_without_a_row():
    codes_with(None).check("label liver", Code(value="10200004", meaning="Liver"))


def test_a_table_of_ones_own_adds_codes_and_says_what_a_name_means(tmp_path: Path):
    own = tmp_path / "codes.csv"
    own.write_text(HEAD + "edema,,SCT,79654002,Edema,PS3.16\ngadget,,99CLINIC,G1,Gadget in place,our own\n")
    one = (
        "classes.1={id: 1, name: edema, title: Edema, abnormal: true, category: {value: '404684003', meaning: Finding},"
    )
    one += " code: {value: '79654002', meaning: Edema}}"
    two = (
        one.replace("edema", "gadget").replace("Edema", "Gadget in place").replace("'79654002'", "G1, scheme: 99CLINIC")
    )
    for override in (one, two):
        with pytest.raises(UnknownCode):
            resolve(CHEST, [override], precision=None)
        config = resolve(CHEST, [override, f"data.codes={own}"], precision=None)
        assert str(own) not in config.without_paths().to_yaml()
        assert config.digest() == load_config(CHEST, [override]).digest()


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("", "columns none"),
        ("name,value\na,1\n", "columns name, value"),
        (HEAD + "a,,SCT,233604007,,HPO\n", "row 2: meaning is empty"),
        (HEAD + "a,,SCT,233604008,Pneumonia,HPO\n", "check digit"),
        (HEAD + "a,,ICD,J18,Pneumonia,WHO\n", "row 2: scheme"),
        (HEAD + "a,,SCT,233604007,Pneumonia,HPO\na,,SCT,8186001,Cardiomegaly,HPO\n", "there twice"),
        (HEAD.replace("\n", ",colour\n") + "a,,SCT,233604007,Pneumonia,HPO,red\n", "columns"),
        (HEAD + "a,,SCT,233604007,Pneumonia,HPO,surplus\n", "columns"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(tmp_path: Path, text, seen):
    path = tmp_path / "codes.csv"
    path.write_text(text)
    with pytest.raises(CodesInvalid, match=seen):
        read_codes(path)


def test_a_table_that_is_not_there_or_not_text_is_refused(tmp_path: Path):
    with pytest.raises(CodesInvalid):
        read_codes(tmp_path / "absent.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CodesInvalid):
        read_codes(tmp_path / "binary.csv")
