"""Everything that is wrong with a list of classified pictures is told at once, and a sound one by its own figures."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from classified import picture, toy_config, write_pictures
from phantom import write_series
from PIL import Image
from pydicom.dataset import Dataset

from imaging.cases import ClassifiedCase
from imaging.dataset_check import ClassSurvey, survey_classes
from imaging.dataset_check.shortcuts import shortcuts

Films = Callable[..., Path]


@pytest.fixture
def films(tmp_path: Path) -> Films:
    """Write eight pictures 0.png to 7.png, every second one odd, and a CSV of rows; by default a sound one."""

    def call(*rows: str, heading: str = "image,label,patient") -> Path:
        generator = np.random.default_rng(0)
        for number in range(8):
            Image.fromarray(picture(generator, odd=number % 2 == 1)).save(tmp_path / f"{number}.png")
        sound = [f"{n}.png,{'odd' if n % 2 else 'plain'},p{n}" for n in range(8)]
        (tmp_path / "films.csv").write_text("\n".join([heading, *(rows or sound)]) + "\n")
        return tmp_path / "films.csv"

    return call


def codes(found: ClassSurvey) -> list[str]:
    return [problem.code for problem in found.problems]


def notes(found: ClassSurvey) -> dict[str, str]:
    return {note.code: note.detail for note in found.notes}


# --------------------------------------------------------------------------------------------------------- sound ones


def test_sound_list_is_described(tmp_path: Path) -> None:
    found = survey_classes(write_pictures(tmp_path, cases=24))
    told = found.as_dict()
    assert (found.problems, list(notes(found))) == ((), ["patient_in_several_rows"])
    assert (told["cases"], told["read"], told["patients"]) == (24, 24, 12)
    assert told["cases_with"] == {"odd": 12, "plain": 12}
    assert told["kinds"] == {"PNG": 24}
    assert told["pixels"]["median"] == [16, 20, 1]
    assert told["facts"] == {"age": {"filled": 24, "values": 24}, "sex": {"filled": 24, "values": 2}}
    json.dumps(told)


def test_config_that_it_fits_finds_nothing(tmp_path: Path) -> None:
    found = survey_classes(write_pictures(tmp_path), config=toy_config(tmp_path))
    assert found.problems == ()
    assert found.classes == ("plain", "odd")


def test_sides_are_counted(films: Films) -> None:
    rows = [f"{n}.png,{'odd' if n % 2 else 'plain'},{'val' if n > 5 else 'train'}" for n in range(8)]
    told = survey_classes(films(*rows, heading="image,label,split")).as_dict()
    assert told["sides"] == {
        "train": {"cases": 6, "cases_with": {"odd": 3, "plain": 3}},
        "validation": {"cases": 2, "cases_with": {"odd": 1, "plain": 1}},
    }


# ---------------------------------------------------------------------------------------------------------- one by one


def test_every_kind_of_bad_file_is_told_at_once(films: Films, tmp_path: Path) -> None:
    Image.new("L", (20, 16), 7).save(tmp_path / "flat.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    holes = np.ones((4, 4, 4), np.float32)
    holes[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(holes, np.eye(4)), tmp_path / "holes.nii.gz")
    rows = ("gone.png,odd,a", "flat.png,odd,b", "broken.png,plain,c", "holes.nii.gz,odd,d", "0.png,plain,e", ",odd,f")
    found = survey_classes(films(*rows))
    assert codes(found) == ["manifest_invalid", "missing_file", "constant_image", "unreadable_png", "not_finite"]
    assert found.as_dict()["read"] == 1


def test_colour_series_is_told(films: Films, tmp_path: Path) -> None:
    def coloured(dataset: Dataset, _k: int) -> None:
        dataset.SamplesPerPixel, dataset.PlanarConfiguration, dataset.PhotometricInterpretation = 3, 0, "RGB"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
        dataset.Rows, dataset.Columns = 5, 7
        dataset.PixelData = bytes(range(105)) + b"\0"

    write_series(tmp_path / "colour", edit=coloured)
    assert codes(survey_classes(films("colour,odd,a", "0.png,plain,b"))) == ["not_applicable"]


def test_listed_twice(films: Films) -> None:
    found = survey_classes(
        films("0.png,plain,a,x", "0.png,plain,a,y", "1.png,odd,b,x", heading="image,label,patient,case")
    )
    assert codes(found) == ["manifest_invalid"] * 2
    assert {problem.seen for problem in found.problems} == {
        "the case 'x' is there more than once", "the image '0.png' is listed 2 times"
    }  # fmt: skip


def test_copies_are_told_the_worst_first(films: Films, tmp_path: Path) -> None:
    path = films(
        *("0.png,plain,a,train", "1.png,odd,b,train", "2.png,plain,c,train", "3.png,odd,d,val", "4.png,plain,e,val"),
        *("within.png,plain,f,train", "across.png,odd,g,val", "lying.png,odd,h,train", "same.png,plain,e,val"),
        heading="image,label,patient,split",
    )
    for name, source in (("within", 0), ("across", 1), ("lying", 2), ("same", 4)):
        (tmp_path / f"{name}.png").write_bytes((tmp_path / f"{source}.png").read_bytes())
    found = survey_classes(path)
    assert codes(found) == ["label_conflict", "duplicate_image", "duplicate_image"]
    worst, across, within = (problem.seen for problem in found.problems)
    assert "'2' in train: plain; 'lying' in train: odd" in worst
    assert "'1' in train has the same pixels as 'across' in validation" in across
    assert "'within' in train" in within
    assert notes(found)["same_image_of_one_patient"] == "4, same have the same pixels"


def test_patient_on_two_sides_is_told_without_a_name(films: Films) -> None:
    rows = [f"{n}.png,{'odd' if n % 2 else 'plain'},secret{n // 3},{'val' if n > 3 else 'train'}" for n in range(8)]
    found = survey_classes(films(*rows, heading="image,label,patient,split"))
    assert codes(found) == ["patient_leak"]
    assert "1 of 3 patients" in found.problems[0].seen
    assert "secret" not in json.dumps(found.as_dict())


def test_class_that_a_side_lacks_is_told(films: Films) -> None:
    rows = [f"{n}.png,{'odd' if n in (1, 3) else 'plain'},{'val' if n > 5 else 'train'}" for n in range(8)]
    found = survey_classes(films(*rows, heading="image,label,split"))
    assert [problem.seen for problem in found.problems] == ["none of the 2 cases for validation has 'odd'"]


def test_only_one_class_is_told(films: Films) -> None:
    assert codes(survey_classes(films(*[f"{n}.png,odd,p{n}" for n in range(8)]))) == ["empty_class"]


def test_config_tells_unknown_classes_and_what_a_split_would_lack(films: Films, tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    found = survey_classes(films("0.png,plain,a", "1.png,weird,b", "2.png,plain,c", "3.png,,d"), config=config)
    assert codes(found) == ["manifest_invalid", "manifest_invalid", "empty_class"]
    few = survey_classes(films("0.png,plain,a", "1.png,odd,b", "2.png,plain,c"), config=config)
    assert codes(few) == ["too_few_cases"]


def test_config_tells_what_its_checkpoint_would_not_take(films: Films, tmp_path: Path) -> None:
    config = toy_config(tmp_path, "applies_to.pixels_min=18", "data.test_fraction=0")
    found = survey_classes(films(), config=config)
    assert set(codes(found)) == {"not_applicable"}
    assert len(found.problems) == 8


def test_what_is_only_odd_is_noted(films: Films) -> None:
    found = survey_classes(
        films("0.png,Odd one", "1.png,odd-one", "2.png,", "3.png,plain|odd-one", heading="image,label")
    )
    told = notes(found)
    assert {"patients_not_told", "no_class", "several_classes", "similar_classes"} <= set(told)
    assert told["similar_classes"] == "'Odd one', 'odd-one' may be meant as one class"
    assert found.problems == ()


# ----------------------------------------------------------------------------------------------------------- shortcuts


def asked(values: Sequence[str], truth: Sequence[bool], *, patients: int = 0) -> list[str]:
    """What is said of a trait with these values."""
    names = [f"p{n % patients if patients else n}" for n in range(len(values))]
    cases = [
        ClassifiedCase(f"c{n}", Path("x.png"), ("ill",) if there else ("well",), names[n])
        for n, there in enumerate(truth)
    ]
    told = [{"trait": value} for value in values]
    return [note.detail for note in shortcuts(list(zip(cases, told, strict=True)), ("ill", "well"))]


TRUTH = [n % 2 == 0 for n in range(100)]


def test_size_that_goes_with_the_class_is_told_with_its_auc() -> None:
    generator = np.random.default_rng(0)
    widths = [str(int(value)) for value in generator.normal(500 + 60 * np.array(TRUTH), 40)]
    (detail,) = asked(widths, TRUTH)
    assert detail.startswith("trait alone predicts 'well' with an AUC of 0.8")
    assert asked(widths[::-1], TRUTH[::-1]) != []


def test_less_is_as_telling_as_more() -> None:
    assert asked([str(n) for n in range(100)], [n < 50 for n in range(100)])
    assert asked([str(n) for n in range(100)], [n >= 50 for n in range(100)])


def test_manufacturer_that_goes_with_the_class_is_told() -> None:
    makers = ["Acme" if there == (n % 10 > 0) else "Bolt" for n, there in enumerate(TRUTH)]
    (detail,) = asked(makers, TRUTH)
    assert "'well' with an AUC of 0.900" in detail


@pytest.mark.parametrize("seed", range(10))
def test_chance_is_not_told(seed: int) -> None:
    generator = np.random.default_rng(seed)
    for values in (generator.normal(size=100).astype(str), generator.choice(list("abcdefghij"), 100)):
        assert asked(values.tolist(), TRUTH) == []


def test_word_of_one_patient_does_not_predict_itself() -> None:
    sites = [f"site{n % 10}" for n in range(100)]
    assert asked(sites, [n % 10 < 5 for n in range(100)], patients=10) == []


def test_one_value_and_few_cases_tell_nothing() -> None:
    assert asked(["PNG"] * 100, TRUTH) == []
    assert asked(["a", "b"] * 5, TRUTH[:10]) == []
    assert asked([""] * 90 + ["1", "2"] * 5, TRUTH) == []
