"""What `evaluate` says of a checkpoint is what its masks are worth, on a page that runs nothing."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from click.testing import Result

from imaging.checkpoint import open_checkpoint
from imaging.errors import ManifestInvalid, UnknownCheckpoint
from imaging.manifest import Case
from imaging.metrics import dice
from imaging.nifti import read_nifti
from imaging.predict import Predictor
from imaging.samples import load_case
from pipelines.evaluate import Evaluation, evaluate
from pipelines.result import PAGE
from pipelines.train import Run

Invoke = Callable[..., Result]
NAMES = ("001", "003", "006")


@pytest.fixture(scope="module")
def evaluated(model: str, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """The tiny checkpoint on all eight cases. Read only."""
    out = tmp_path_factory.mktemp("evaluation") / "result"
    return evaluate(checkpoint=model, data=data / "hippocampus", out=out)


@pytest.fixture
def cases(data: Path, tmp_path: Path) -> Path:
    """A folder with a CSV of three real cases, two of one patient."""
    rows = ["case,image,label,patient"]
    for number, patient in zip(NAMES, ("p", "p", "q"), strict=True):
        for kind in ("images", "labels"):
            source = data / "hippocampus" / f"{kind}Tr" / f"hippocampus_{number}.nii.gz"
            shutil.copy(source, tmp_path / f"{kind}_{number}.nii.gz")
        rows.append(f"new_{number},images_{number}.nii.gz,labels_{number}.nii.gz,{patient}")
    (tmp_path / "cases.csv").write_text("\n".join(rows))
    return tmp_path


def rows_of(found: Evaluation) -> list[dict[str, str]]:
    assert found.folder is not None
    with (found.folder / "predictions.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_result_is_a_row_a_case_and_the_mean_of_the_rows(evaluated: Evaluation) -> None:
    rows = rows_of(evaluated)
    assert [row["case"] for row in rows] == list(evaluated.metrics["each"])
    assert len(rows) == evaluated.metrics["cases"] == evaluated.metrics["patients"] == 8
    for score in ("dice", "hd95_mm", "surface_dice", "volume_error_percent"):
        for name, interval in evaluated.metrics[score].items():
            values = [float(row[f"{score}_{name}"]) for row in rows if row[f"{score}_{name}"]]
            assert interval["mean"] == pytest.approx(np.mean(values), abs=1e-4)
            assert interval["low"] <= interval["mean"] <= interval["high"]


def test_first_columns_are_the_case_and_its_dice(evaluated: Evaluation) -> None:
    assert list(rows_of(evaluated)[0])[:3] == ["case", "dice_hippocampus_anterior", "dice_hippocampus_posterior"]


def test_scores_are_those_of_the_masks_that_a_user_gets(evaluated: Evaluation, model: str, data: Path) -> None:
    row = rows_of(evaluated)[0]
    files = [data / "hippocampus" / kind / f"{row['case']}.nii.gz" for kind in ("imagesTr", "labelsTr")]
    image, truth = load_case(Case(row["case"], (files[0],), files[1], patient="p"), values=(1, 2))
    found = Predictor(open_checkpoint(Path(model)))(image).mask_XYZ
    assert float(row["dice_hippocampus_anterior"]) == pytest.approx(dice(found, truth.array[0], 1), abs=1e-5)


def test_metrics_agree_with_those_of_training(evaluated: Evaluation, trained: Run) -> None:
    for side in ("validation", "test"):
        for name, scores in trained.checkpoint.metrics[side]["each"].items():
            assert evaluated.metrics["each"][name] == scores


def test_cases_that_trained_the_checkpoint_are_told(evaluated: Evaluation, trained: Run) -> None:
    assert set(evaluated.metrics["seen_in_training"]) == set(trained.checkpoint.metrics["training"]["names"])
    assert evaluated.folder is not None
    page = (evaluated.folder / PAGE).read_text()
    assert f"{len(evaluated.metrics['seen_in_training'])} of the 8 cases" in page


def test_metrics_name_the_checkpoint_and_are_what_was_returned(evaluated: Evaluation, trained: Run) -> None:
    assert evaluated.folder is not None
    saved = json.loads((evaluated.folder / "metrics.json").read_text())
    assert saved == evaluated.metrics
    assert saved["checkpoint"]["weights_sha256"] == trained.checkpoint.weights_sha256


# ------------------------------------------------------------------------------------------------------------- the page


class Page(HTMLParser):
    """What a browser would be told."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_runs_and_fetches_nothing(evaluated: Evaluation) -> None:
    assert evaluated.folder is not None
    page = Page((evaluated.folder / PAGE).read_text())
    assert not {"script", "iframe", "object", "embed", "link", "img", "form", "a", "base"} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on") and name not in ("src", "action", "srcset")
        assert name != "href" or value.startswith("data:image/png;base64,")


def test_page_shows_the_four_worst_cases_with_both_masks(evaluated: Evaluation) -> None:
    assert evaluated.folder is not None
    page = (evaluated.folder / PAGE).read_text()
    means = {name: np.mean(scores) for name, scores in evaluated.metrics["each"].items()}
    worst = sorted(means, key=lambda name: means[name])[:4]
    shown = page.split("<h2>Worst cases</h2>")[1].split("</section>")[0]
    assert re.findall(r"<h3>(.*?)</h3>", shown) == worst
    assert page.count("data:image/png;base64,") == 8
    assert page.count("<circle") == 4 * 8, "each structure's Dice and volume in eight cases"


def test_page_and_metrics_say_the_same(evaluated: Evaluation) -> None:
    assert evaluated.folder is not None
    text = Page((evaluated.folder / PAGE).read_text()).text
    for score in ("dice", "hd95_mm", "surface_dice", "volume_error_percent"):
        for interval in evaluated.metrics[score].values():
            assert f"{interval['mean']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]" in text


def test_hostile_case_name_is_shown_and_not_obeyed(model: str, cases: Path) -> None:
    name = "<script>alert(1)</script>\"'&"
    lines = (cases / "cases.csv").read_text().splitlines()
    lines[1] = f'"{name.replace(chr(34), chr(34) * 2)}",' + lines[1].partition(",")[2]
    (cases / "cases.csv").write_text("\n".join(lines))
    found = evaluate(checkpoint=model, data=cases / "cases.csv", out=cases / "out")
    page = (cases / "out" / PAGE).read_text()
    assert "<script" not in page
    assert name in Page(page).text
    assert name in [row["case"] for row in rows_of(found)]


# ------------------------------------------------------------------------------------------------ patients and refusals


def test_intervals_are_over_patients(model: str, cases: Path) -> None:
    found = evaluate(checkpoint=model, data=cases / "cases.csv", out=cases / "out")
    assert (found.metrics["cases"], found.metrics["patients"], found.metrics["seen_in_training"]) == (3, 2, [])
    scores = [row[0] for row in found.metrics["each"].values()]
    interval = found.metrics["dice"]["hippocampus_anterior"]
    bounds = sorted([np.mean(scores[:2]), scores[2]])
    assert (interval["low"], interval["high"]) == pytest.approx(tuple(bounds), abs=1e-4)


def test_case_that_cannot_be_measured_is_told_and_left_out(invoke: Invoke, model: str, cases: Path) -> None:
    path = cases / "labels_003.nii.gz"
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[1:], image.affine), path)
    large = read_nifti(cases / "images_006.nii.gz").array[0].repeat(3, axis=0)
    for kind in ("images", "labels"):
        nib.save(nib.Nifti1Image((large > 500).astype(np.float32) if kind == "labels" else large, image.affine),
                 cases / f"{kind}_006.nii.gz")  # fmt: skip
    result = invoke("evaluate", model, "--data", cases / "cases.csv", "--out", cases / "out", "--json")
    content = json.loads(result.stdout)
    assert result.exit_code == content["exit_status"] == 3
    assert [error["code"] for error in content["metrics"]["refused"]] == ["label_mismatch", "not_applicable"]
    assert content["metrics"]["cases"] == 1
    assert content["metrics"]["dice"]["hippocampus_anterior"]["low"] is None
    assert "not_applicable" in (cases / "out" / PAGE).read_text()


def test_nothing_is_written_where_nothing_could_be_measured(invoke: Invoke, model: str, cases: Path) -> None:
    for number in NAMES:
        (cases / f"images_{number}.nii.gz").write_bytes(b"no image")
    result = invoke("evaluate", model, "--data", cases / "cases.csv", "--out", cases / "out")
    assert result.exit_code == 3
    assert "unreadable_nifti" in result.stdout and "nothing was written" in result.stdout
    assert not (cases / "out").exists()


def test_structure_that_no_case_has_is_no_number(model: str, cases: Path) -> None:
    for number in NAMES:
        path = cases / f"labels_{number}.nii.gz"
        image = nib.load(path)
        nib.save(nib.Nifti1Image(np.zeros(image.shape, np.float32), image.affine), path)
    found = evaluate(checkpoint=model, data=cases / "cases.csv", out=cases / "out")
    assert found.metrics["volume_error_percent"]["hippocampus_anterior"]["mean"] is None
    assert rows_of(found)[0]["volume_error_percent_hippocampus_anterior"] == ""
    assert (cases / "out" / PAGE).exists()
    json.loads((cases / "out" / "metrics.json").read_text(), parse_constant=pytest.fail)


def test_tolerance_is_taken_and_told(model: str, cases: Path) -> None:
    strict, lax = (
        evaluate(checkpoint=model, data=cases / "cases.csv", out=cases / f"out{mm}", tolerance_mm=mm).metrics
        for mm in (0, 5)
    )
    assert (strict["tolerance_mm"], lax["tolerance_mm"]) == (0, 5)
    assert strict["surface_dice"]["hippocampus_anterior"]["mean"] < lax["surface_dice"]["hippocampus_anterior"]["mean"]


def test_second_result_replaces_the_first_and_leaves_other_files(model: str, cases: Path) -> None:
    for _ in range(2):
        evaluate(checkpoint=model, data=cases / "cases.csv", out=cases / "out")
        (cases / "out" / "notes.txt").write_text("mine")
    names = sorted(path.name for path in (cases / "out").iterdir())
    assert names == ["evaluation.html", "metrics.json", "notes.txt", "predictions.csv"]


def test_command_line_tells_each_score(invoke: Invoke, model: str, cases: Path) -> None:
    result = invoke("evaluate", model, "--data", cases / "cases.csv", "--out", cases / "out")
    assert result.exit_code == 0
    for told in ("Dice of hippocampus_anterior", "HD95, mm of", "Surface Dice of", "Volume error, % of", PAGE):
        assert told in result.stdout


def test_unknown_checkpoint_and_missing_data_are_refused(model: str, tmp_path: Path) -> None:
    with pytest.raises(UnknownCheckpoint):
        evaluate(checkpoint="nothing", data=tmp_path)
    with pytest.raises(ManifestInvalid):
        evaluate(checkpoint=model, data=tmp_path / "missing.csv")
