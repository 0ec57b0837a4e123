"""A run knows what its cases held when it began, and is not continued on others."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from classified import write_config, write_pictures
from PIL import Image

from imaging.config import load_config
from imaging.errors import ResumeMismatch
from pipelines.run_folder import check_same, data_digest, open_run
from pipelines.sides import Classified, deal, list_for


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """A folder with pictures and their manifest."""
    folder = tmp_path / "films"
    folder.mkdir()
    write_pictures(folder, cases=16)
    return folder


def dealt(films: Path) -> Classified:
    """The sides of a run on a folder's pictures, as its files are now."""
    manifest = next(films.glob("*.csv"))
    config = load_config(write_config(films.parent / "toy.yaml", f"data.root={manifest}"))
    cases = deal(config, list_for(config))
    assert isinstance(cases, Classified)
    return cases


@pytest.fixture
def begun(films: Path, tmp_path: Path) -> Path:
    """A run folder as it is before the first step."""
    folder, cases = tmp_path / "run", dealt(films)
    open_run(folder, cases.config, cases.split, cases.contents(), resume=False)
    return folder


def check(folder: Path, cases: Classified) -> None:
    check_same(folder, cases.config, cases.split, cases.contents())


def brighten(path: Path) -> None:
    pixels = np.asarray(Image.open(path)).copy()
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(path)


def test_other_versions_are_told(begun: Path, films: Path, caplog: pytest.LogCaptureFixture) -> None:
    check(begun, dealt(films))
    assert caplog.text == ""
    versions = json.loads((begun / "versions.json").read_text())
    (begun / "versions.json").write_text(json.dumps(versions | {"torch": "1.0"}))
    check(begun, dealt(films))
    assert f"began with other versions (torch 1.0, now {versions['torch']})" in caplog.text


def test_same_files_elsewhere_are_the_same_data(begun: Path, films: Path, tmp_path: Path) -> None:
    moved = Path(shutil.move(films, tmp_path / "moved"))
    check(begun, dealt(moved))


@pytest.mark.parametrize("side", ["train", "validation"])
def test_one_pixel_of_a_case_is_another_data_set(begun: Path, films: Path, side: str) -> None:
    case = dealt(films).sides[side][0]
    brighten(case.image)
    with pytest.raises(ResumeMismatch) as caught:
        check(begun, dealt(films))
    assert caught.value.seen == f"files or classes of 1 case(s) have changed: {case.name}"


def test_many_changed_cases_are_counted_and_some_are_named(begun: Path, films: Path) -> None:
    changed = dealt(films).sides["train"]
    assert len(changed) > 5
    for case in changed:
        brighten(case.image)
    with pytest.raises(ResumeMismatch, match=rf"of {len(changed)} case\(s\).*, \.\.\.") as caught:
        check(begun, dealt(films))
    assert changed[5].name not in caught.value.seen


def test_another_class_is_another_data_set(begun: Path, films: Path) -> None:
    cases = dealt(films)
    first, *others = cases.sides["validation"]
    flipped = replace(first, classes=("odd",) if first.classes == ("plain",) else ("plain",))
    with pytest.raises(ResumeMismatch, match=first.name):
        check(begun, replace(cases, sides={**cases.sides, "validation": [flipped, *others]}))


def test_test_cases_are_no_part_of_it(begun: Path, films: Path) -> None:
    cases = dealt(films)
    assert cases.sides["test"]
    for case in cases.sides["test"]:
        case.image.unlink()
    check(begun, cases)
    told = json.loads((begun / "data.json").read_text())
    assert set(told["cases"]) == {case.name for side in ("train", "validation") for case in cases.sides[side]}
    assert data_digest(begun) == {"data_sha256": told["sha256"]}


def test_digest_is_of_the_content(begun: Path, films: Path, tmp_path: Path) -> None:
    brighten(dealt(films).sides["train"][0].image)
    cases = dealt(films)
    open_run(tmp_path / "other", cases.config, cases.split, cases.contents(), resume=False)
    assert data_digest(tmp_path / "other") != data_digest(begun)


def test_run_of_an_earlier_version_goes_on_and_it_is_told(
    begun: Path, films: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (begun / "data.json").unlink()
    brighten(dealt(films).sides["train"][0].image)
    check(begun, dealt(films))
    assert "is not known" in caplog.text
    assert data_digest(begun) == {}
