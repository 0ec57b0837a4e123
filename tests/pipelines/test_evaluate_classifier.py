"""What `evaluate` says of a classifier is what serving says of each case, by the checkpoint's own calibration."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from classified import picture, write_config, write_pictures
from click.testing import Result
from PIL import Image

from imaging.checkpoint import Checkpoint, open_checkpoint, save_checkpoint
from imaging.classifier import Classifier
from imaging.errors import ManifestInvalid, WrongTask
from imaging.png import read_png
from pipelines.evaluate import Evaluation, evaluate
from pipelines.result import PAGE, PREDICTIONS
from pipelines.train import Run, train

Invoke = Callable[..., Result]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A tiny classifier. Read only."""
    folder = tmp_path_factory.mktemp("toy")
    films = write_pictures(folder)
    config = write_config(folder / "toy.yaml", f"data.root={films}")
    return train(config=config, out=folder / "run", progress=False)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other pictures than it was trained on, with names of their own; some are labelled wrong. Read only."""
    folder = tmp_path_factory.mktemp("others")
    generator = np.random.default_rng(7)
    rows = ["image,label,case,patient,sex"]
    for number in range(60):
        odd, looks_odd = number % 2 == 1, number % 2 == 1 or number % 10 == 0
        Image.fromarray(picture(generator, odd=looks_odd)).save(folder / f"{number}.png")
        rows.append(f"{number}.png,{'odd' if odd else 'plain'},new{number},p{number // 2},{'FM'[number % 4 // 2]}")
    (folder / "films.csv").write_text("\n".join(rows) + "\n")
    return folder / "films.csv"


@pytest.fixture(scope="module")
def found(trained: Run, films: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """The evaluation of those. Read only."""
    out = tmp_path_factory.mktemp("evaluation") / "result"
    return evaluate(checkpoint=str(trained.checkpoint.folder), data=films, out=out)


def rows_of(found: Evaluation) -> list[dict[str, str]]:
    assert found.folder is not None
    with (found.folder / PREDICTIONS).open(newline="") as stream:
        return list(csv.DictReader(stream))


def page_of(found: Evaluation) -> str:
    assert found.folder is not None
    return (found.folder / PAGE).read_text()


def text_of(page: str) -> str:
    parser, parts = HTMLParser(), []
    parser.handle_data = parts.append  # type: ignore[method-assign]
    parser.feed(page)
    return " ".join("".join(parts).split())


def retold(trained: Run, folder: Path, **changes: Any) -> Checkpoint:
    """The same weights with other metrics."""
    metrics = {**trained.checkpoint.metrics, **changes}
    return save_checkpoint(folder, trained.checkpoint.config, trained.checkpoint.load_weights(), metrics)


def rewritten(films: Path, folder: Path, edit: Callable[[list[list[str]]], object], name: str = "edited.csv") -> Path:
    """The same cases with an edited manifest; paths become absolute."""
    rows = [line.split(",") for line in films.read_text().splitlines()]
    for row in rows[1:]:
        row[0] = str(films.parent / row[0])
    edit(rows)
    (folder / name).write_text("\n".join(",".join(row) for row in rows) + "\n")
    return folder / name


# ---------------------------------------------------------------------------------------------------------- the figures


def test_row_of_a_case_is_what_serving_says(found: Evaluation, trained: Run, films: Path) -> None:
    classifier = Classifier(open_checkpoint(trained.checkpoint.folder))
    for row in rows_of(found)[:8]:
        said = classifier(read_png(films.parent / f"{row['case'].removeprefix('new')}.png"))
        assert float(row["probability_odd"]) == pytest.approx(said.probability["odd"], abs=1e-5)
        assert row["assessment_odd"] == said.judgements[0].assessment
    assert list(row) == ["case", "label", "probability_plain", "probability_odd", "assessment_odd"]


def test_figures_are_those_of_the_rows(found: Evaluation, trained: Run) -> None:
    rows, metrics = rows_of(found), found.metrics
    assert len(rows) == metrics["cases"] == 60
    threshold = trained.checkpoint.metrics["calibration"]["thresholds"]["odd"]
    truth = np.array([row["label"] == "odd" for row in rows])
    called = np.array([float(row["probability_odd"]) >= threshold for row in rows])
    scores = metrics["scores"]["odd"]
    assert scores["true_cases"] == truth.sum() == 30
    assert scores["accuracy"]["mean"] == pytest.approx((truth == called).mean(), abs=1e-4)
    assert scores["sensitivity"]["mean"] == pytest.approx(called[truth].mean(), abs=1e-4)
    assert scores["ppv"]["mean"] == pytest.approx(truth[called].mean(), abs=1e-4)
    assert sum(metrics["confusion"]["odd"].values()) == 60
    assert metrics["confusion"]["odd"]["false_positive"] == (called & ~truth).sum() > 0
    undecided, share = (
        metrics["indeterminate"]["odd"],
        np.mean([row["assessment_odd"] == "indeterminate" for row in rows]),
    )
    assert undecided["low"] <= undecided["mean"] <= undecided["high"] and undecided["low"] < undecided["high"]
    assert undecided["mean"] == pytest.approx(share, abs=1e-4)
    assert sum(part["cases"] for part in metrics["reliability"]["odd"]) == 60
    assert sum(map(sum, metrics["likeliest"]["counts"])) == 60
    for figure in ("auc", "auprc", "accuracy", "sensitivity", "specificity", "ppv", "npv", "f1", "brier", "ece"):
        assert scores[figure]["low"] <= scores[figure]["mean"] <= scores[figure]["high"]


def test_nothing_is_fitted_on_the_cases(found: Evaluation, trained: Run, films: Path, tmp_path: Path) -> None:
    own = trained.checkpoint.metrics["calibration"]
    assert found.metrics["calibration"]["temperature"] == own["temperature"]
    assert found.metrics["calibration"]["thresholds"] == own["thresholds"]
    few = rewritten(films, tmp_path, lambda rows: rows.__setitem__(slice(21, None), []))
    other = evaluate(checkpoint=str(trained.checkpoint.folder), data=few, out=tmp_path / "out")
    assert rows_of(other) == rows_of(found)[:20], "a case is told the same whoever stands beside it"


def test_intervals_are_over_patients_and_groups_are_told(found: Evaluation) -> None:
    assert found.metrics["patients"] == 30
    assert set(found.metrics["subgroups"]) == {"sex=F", "sex=M"}
    for group in found.metrics["subgroups"].values():
        assert group["cases"] == 30
        assert 0 <= group["scores"]["odd"]["auc"]["low"] <= group["scores"]["odd"]["auc"]["mean"] <= 1


def test_evaluation_agrees_with_what_training_measured(trained: Run, tmp_path: Path) -> None:
    root = Path(json.loads(json.dumps(str(trained.folder.parent / "films.csv"))))
    whole = evaluate(checkpoint=str(trained.checkpoint.folder), data=root, out=tmp_path / "out").metrics
    for side in ("validation", "test"):
        for name, said in trained.checkpoint.metrics[side]["each"].items():
            assert whole["each"][name] == said
    assert set(whole["seen_in_training"]) == set(trained.checkpoint.metrics["training"]["names"])
    assert set(whole["seen_in_validation"]) == set(trained.checkpoint.metrics["validation"]["each"])


def test_new_cases_were_not_seen(found: Evaluation) -> None:
    assert found.metrics["seen_in_training"] == found.metrics["seen_in_validation"] == []


# -------------------------------------------------------------------------------------------------- what cannot be told


def test_class_that_no_case_has_gives_no_figure_and_is_told(trained: Run, films: Path, tmp_path: Path) -> None:
    def only_plain(rows: list[list[str]]) -> None:
        rows[1:] = [row for row in rows[1:] if row[1] == "plain"]

    plain = rewritten(films, tmp_path, only_plain)
    found = evaluate(checkpoint=str(trained.checkpoint.folder), data=plain, out=tmp_path / "out")
    scores = found.metrics["scores"]["odd"]
    assert [scores[name]["mean"] for name in ("auc", "auprc", "sensitivity")] == [None] * 3
    assert scores["specificity"]["mean"] is not None
    assert "no case has odd" in found.metrics["notes"][0]
    assert "no case has odd" in text_of(page_of(found))
    assert found.folder is not None
    json.loads((found.folder / "metrics.json").read_text(), parse_constant=pytest.fail)


def test_checkpoint_without_calibration_is_measured_as_far_as_it_goes(
    trained: Run, films: Path, tmp_path: Path
) -> None:
    bare = retold(trained, tmp_path / "bare", calibration=None)
    found = evaluate(checkpoint=str(bare.folder), data=films, out=tmp_path / "out")
    scores = found.metrics["scores"]["odd"]
    assert scores["auc"]["mean"] is not None
    assert scores["sensitivity"]["mean"] is scores["accuracy"]["mean"] is None
    undecided = found.metrics["indeterminate"]["odd"]
    assert undecided["mean"] == 1 > undecided["low"] > 0.8, "by Clopper and Pearson: no patient of 30 was decided"
    assert {row["assessment_odd"] for row in rows_of(found)} == {"indeterminate"}
    assert "no threshold for odd" in found.metrics["notes"][0]


def test_case_that_cannot_be_measured_is_told_and_left_out(
    invoke: Invoke, trained: Run, films: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    Image.new("L", (20, 16), 7).save(tmp_path / "flat.png")

    def broken(rows: list[list[str]]) -> None:
        rows[1][0], rows[2][0] = str(tmp_path / "broken.png"), str(tmp_path / "flat.png")

    manifest = rewritten(films, tmp_path, broken)
    result = invoke("evaluate", trained.checkpoint.folder, "--data", manifest, "--out", tmp_path / "out", "--json")
    content = json.loads(result.stdout)
    assert result.exit_code == content["exit_status"] == 3
    assert [error["code"] for error in content["metrics"]["refused"]] == ["unreadable_png", "constant_image"]
    assert content["metrics"]["cases"] == 58
    assert "new0" not in content["metrics"]["each"]


def test_nothing_is_written_where_nothing_could_be_measured(
    invoke: Invoke, trained: Run, films: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    (tmp_path / "cases.csv").write_text("image,label\na.png,odd\n")
    result = invoke("evaluate", trained.checkpoint.folder, "--data", tmp_path / "cases.csv", "--out", tmp_path / "out")
    assert (result.exit_code, (tmp_path / "out").exists()) == (3, False)
    assert "nothing was written" in result.stdout


def test_class_that_the_checkpoint_does_not_know_is_refused(trained: Run, films: Path, tmp_path: Path) -> None:
    manifest = rewritten(films, tmp_path, lambda rows: rows[3].__setitem__(1, "weird"))
    with pytest.raises(ManifestInvalid, match="weird"):
        evaluate(checkpoint=str(trained.checkpoint.folder), data=manifest)


def test_tolerance_is_for_masks(trained: Run, films: Path) -> None:
    with pytest.raises(WrongTask, match="tolerance"):
        evaluate(checkpoint=str(trained.checkpoint.folder), data=films, tolerance_mm=1)


# ------------------------------------------------------------------------------------------------------------- the page


def test_page_and_metrics_say_the_same(found: Evaluation) -> None:
    text = text_of(page_of(found))
    for name, figure in found.metrics["scores"]["odd"].items():
        if name != "true_cases":
            assert f"{figure['mean']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]" in text


def test_page_shows_the_surest_mistakes_first(found: Evaluation) -> None:
    page = page_of(found)
    threshold = found.metrics["calibration"]["thresholds"]["odd"]
    false = [row for row in rows_of(found) if row["label"] == "plain" and float(row["probability_odd"]) >= threshold]
    surest = sorted(false, key=lambda row: -float(row["probability_odd"]))[:4]
    section = page.split("False alarms, the surest first")[1].split("</section>")[0]
    assert re.findall(r"<figcaption>(\S+)<br>", section) == [row["case"] for row in surest]
    assert section.count("data:image/png;base64,") == len(surest) > 0


def test_page_runs_and_fetches_nothing_and_has_its_plots(found: Evaluation) -> None:
    page = page_of(found)
    assert not re.search(r"<(script|iframe|object|embed|link|img|form|a|base)\b", page)
    assert not re.search(r'(src|href|action)="(?!data:image/png;base64,)', page)
    assert page.count('<svg class="plot"') == 3
    assert "Confusion at the threshold" in page


def test_hostile_case_name_is_shown_and_not_obeyed(trained: Run, films: Path, tmp_path: Path) -> None:
    name = "<script>alert(1)</script>"
    manifest = rewritten(films, tmp_path, lambda rows: [row.__setitem__(2, name + row[2]) for row in rows[1:]])
    page = page_of(evaluate(checkpoint=str(trained.checkpoint.folder), data=manifest, out=tmp_path / "out"))
    assert "<script" not in page
    assert f"{name}new10" in text_of(page).replace("&lt;", "<").replace("&gt;", ">")


def test_training_leaves_a_page_of_each_held_out_side(trained: Run) -> None:
    for side in ("validation", "test"):
        page = (trained.folder / f"evaluation_{side}.html").read_text()
        auc = trained.checkpoint.metrics[side]["scores"]["odd"]["auc"]
        assert f"AUC {auc['mean']:.3f}" in text_of(page)
        assert str(trained.folder.parent) not in page
        assert trained.checkpoint.weights_sha256 in page
    assert "flatter" in (trained.folder / "evaluation_validation.html").read_text()


# ------------------------------------------------------------------------------------------------------ several classes


def test_several_classes_have_a_matrix_and_a_line_each(tmp_path: Path) -> None:
    films = write_pictures(tmp_path)
    code = {"value": "17621005", "meaning": "Normal"}
    classes = [
        {"id": n, "name": name, "title": name.title(), "category": code, "code": code, "abnormal": n > 0}
        for n, name in enumerate(("plain", "odd", "queer"))
    ]
    rows = films.read_text().splitlines()
    third = [row.replace(",odd,", ",queer,") if number % 8 > 5 else row for number, row in enumerate(rows)]
    films.write_text("\n".join(third) + "\n")
    config = write_config(
        tmp_path / "three.yaml", f"classes={json.dumps(classes)}", f"data.root={films}", "train.epochs=1"
    )
    run = train(config=config, out=tmp_path / "run", progress=False)
    found = evaluate(checkpoint=str(run.checkpoint.folder), data=films, out=tmp_path / "out")
    assert list(found.metrics["scores"]) == ["abnormal", "plain", "odd", "queer"]
    counts = np.array(found.metrics["likeliest"]["counts"])
    truths = [sum(f",{name}," in row for row in third) for name in ("plain", "odd", "queer")]
    assert counts.sum(axis=1).tolist() == truths
    assert list(rows_of(found)[0]) == [
        "case", "label", "probability_plain", "probability_odd", "probability_queer", "assessment_abnormal"
    ]  # fmt: skip
    page = page_of(found)
    assert "Which class is taken for which" in page
    assert all(f'<th scope="row">{name}</th>' in page for name in ("plain", "odd", "queer"))
