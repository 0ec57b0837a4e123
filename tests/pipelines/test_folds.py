"""A cross-validation measures every case once, by a network and by thresholds that have never met it."""

from __future__ import annotations

import csv
import dataclasses
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from classified import write_config, write_pictures
from click.testing import Result
from safetensors.torch import load_file

from imaging.calibrate import probability_of
from imaging.checkpoint import open_checkpoint
from imaging.classifier import Classifier
from imaging.config import load_config
from imaging.errors import (
    ConfigInvalid,
    ImagingError,
    NothingToResume,
    PatientLeak,
    ResumeMismatch,
    RunExists,
    StartUnusable,
    TooFewCases,
)
from imaging.foreign import read_foreign
from imaging.interval import Interval
from imaging.scores import auc, auc_within
from imaging.tasks.classify import ClassifyTask
from imaging.tasks.segment import SegmentTask
from pipelines import folds as verb
from pipelines.facts_alone import by_facts
from pipelines.folds import CrossValidation, cross_validate
from pipelines.measure_classifier import ask
from pipelines.out_of_fold import Fold, measure_classes
from pipelines.result import provenance
from pipelines.sides import Classified, deal, list_for
from pipelines.train import train

N = 3
SHORT = ("train.epochs=2", "train.validate_every=1")
MICRO = (
    "network.options.filters=[4, 8, 8]",
    "train.patch=[16, 16, 16]",
    "train.epochs=2",
    "data.test_fraction=0",
)


class Stopped(Exception):
    """What stops a cross-validation in these tests."""


def rows_of(found: CrossValidation) -> list[dict[str, str]]:
    with (found.folder / "predictions.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


# ---------------------------------------------------------------------------------------------------------- classifiers


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("films"))


@pytest.fixture(scope="module")
def toy(films: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "toy.yaml"
    return write_config(path, f"data.root={films}", "data.test_fraction=0.2", *SHORT)


@pytest.fixture(scope="module")
def classified(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> CrossValidation:
    """A whole cross-validation of the toy classifier. Read only."""
    return cross_validate(config=toy, folds=N, out=tmp_path_factory.mktemp("folds") / "toy", progress=False)


@pytest.fixture(scope="module")
def done(classified: CrossValidation, toy: Path) -> list[Fold[Classified]]:
    """The folds that it left."""
    found = []
    for number in range(N):
        config = load_config(toy, [f"data.folds={N}", f"data.fold={number}", "train.keep=last"])
        cases = deal(config, list_for(config))
        assert isinstance(cases, Classified)
        found.append(Fold(open_checkpoint(classified.folder / f"fold_{number}" / "checkpoint"), cases))
    return found


def splits_of(found: CrossValidation) -> list[dict[str, list[str]]]:
    return [json.loads((found.folder / f"fold_{number}" / "split.json").read_text()) for number in range(N)]


def test_every_case_that_is_no_test_case_is_measured_once(classified: CrossValidation, films: Path) -> None:
    told = {row["case"]: int(row["fold"]) for row in rows_of(classified)}
    splits = splits_of(classified)
    everyone = {row["image"].removesuffix(".png") for row in csv.DictReader(films.open(newline=""))}
    assert len(told) == len(rows_of(classified)) == classified.metrics["cross_validation"]["cases"]
    assert set(told) == everyone - set(splits[0]["test"])
    assert splits[0]["test"] and all(split["test"] == splits[0]["test"] for split in splits)
    for name, fold in told.items():
        assert name in splits[fold]["validation"] and name not in splits[fold]["train"]


def test_page_of_a_classifier_is_of_no_one_checkpoint(classified: CrossValidation) -> None:
    page = (classified.folder / "cross_validation.html").read_text()
    auc = classified.metrics["cross_validation"]["scores"]["odd"]["auc"]["mean"]
    assert f"AUC {auc:.3f}" in page
    assert "one a fold: 3" in page
    assert "weights SHA-256" not in page
    assert "the threshold that the cases of the other folds chose" in page
    assert {"assessment_odd", "fold"} <= set(rows_of(classified)[0])


def test_fold_is_the_run_that_fold_k_makes(classified: CrossValidation, toy: Path, tmp_path: Path) -> None:
    overrides = [f"data.folds={N}", "train.keep=last"]
    alone = train(config=toy, overrides=overrides, fold=1, out=tmp_path / "fold_1", progress=False)
    inside = open_checkpoint(classified.folder / "fold_1" / "checkpoint")
    assert alone.checkpoint.weights_sha256 == inside.weights_sha256
    assert alone.checkpoint.metrics == inside.metrics


def test_validation_chooses_no_epoch(classified: CrossValidation) -> None:
    for number in range(N):
        folder = classified.folder / f"fold_{number}"
        state = torch.load(folder / "state" / "last.ckpt", weights_only=True)["state_dict"]
        weights = load_file(folder / "checkpoint" / "weights.safetensors")
        assert all(torch.equal(tensor, state[f"network.{name}"]) for name, tensor in weights.items())


def test_held_out_cases_do_not_say_when_a_training_ends(
    classified: CrossValidation, toy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shutil.copytree(classified.folder, tmp_path / "cv")
    with caplog.at_level(logging.INFO, "pipelines"):
        found = cross_validate(
            config=toy, folds=N, overrides=["train.early_stopping=1"], resume=True, out=folder, progress=False
        )
    assert found.metrics == classified.metrics
    assert found.checkpoint.config.train.early_stopping is None
    assert "train.early_stopping is off" in caplog.text


def test_probabilities_are_those_of_the_folds_network_by_the_other_folds_temperature(
    classified: CrossValidation, done: list[Fold[Classified]]
) -> None:
    each = classified.metrics["cross_validation"]["each"]
    for fold, told in zip(done, classified.metrics["cross_validation"]["folds"], strict=True):
        said = ask(Classifier(fold.checkpoint), fold.cases.sides["validation"])
        probability = probability_of(said.logits_NK, softmax=True, temperature=told["temperature"])
        assert [case.name for case in said.cases] == told["names"]
        assert probability == pytest.approx(np.array([each[name]["probability"] for name in told["names"]]), abs=1e-5)
        assert told["calibrated_on"] == classified.metrics["cross_validation"]["cases"] - told["cases"]


def test_wrong_labels_of_a_fold_change_its_own_figures_and_none_of_its_thresholds(
    done: list[Fold[Classified]],
) -> None:
    """Would its cases' thresholds come from themselves, wrong labels would move them."""
    sides = done[0].cases.sides
    swapped = {"odd": ("plain",), "plain": ("odd",)}
    wrong = [dataclasses.replace(case, classes=swapped[case.classes[0]]) for case in sides["validation"]]
    poisoned = dataclasses.replace(done[0].cases, sides={**sides, "validation": wrong})
    clean = measure_classes(done).metrics["cross_validation"]["folds"]
    found = measure_classes([Fold(done[0].checkpoint, poisoned), *done[1:]]).metrics["cross_validation"]["folds"]
    for key in ("temperature", "thresholds"):
        assert found[0][key] == clean[0][key]
        assert found[1][key] != clean[1][key] and found[2][key] != clean[2][key]
    assert found[0]["scores"]["odd"]["auc"] == pytest.approx(1 - clean[0]["scores"]["odd"]["auc"])
    for number in (1, 2):
        assert found[number]["scores"]["odd"]["auc"] == clean[number]["scores"]["odd"]["auc"]


def test_means_over_folds_and_over_all_cases_are_both_told(classified: CrossValidation) -> None:
    measured = classified.metrics["cross_validation"]
    areas = [fold["scores"]["odd"]["auc"] for fold in measured["folds"]]
    assert measured["over_folds"]["odd"]["auc"] == {
        "mean": pytest.approx(np.mean(areas), abs=1e-5), "sd": pytest.approx(np.std(areas, ddof=1), abs=1e-5)
    }  # fmt: skip
    assert measured["scores"]["odd"]["auc"]["low"] is not None
    assert "age=20 to under 40" in measured["subgroups"] or "age=40 to under 60" in measured["subgroups"]
    assert classified.metrics["calibration"]["cases"] == measured["cases"]


def test_facts_alone_are_asked_as_the_networks_are(classified: CrossValidation, done: list[Fold[Classified]]) -> None:
    """Of each fold by a regression on the facts of the other folds' cases; of the test cases by one on all of these."""
    measured = classified.metrics["cross_validation"]
    found = measured["facts_alone"]
    parts = [by_facts(fold.cases.config, fold.cases.sides["train"], fold.cases.sides["validation"]) for fold in done]
    cases = [case for fold in done for case in fold.cases.sides["validation"]]
    odd_N = np.array(["odd" in case.classes for case in cases])
    assert found["facts"] == ["age", "sex"]
    fold_N = np.repeat(range(len(parts)), [len(fold.cases.sides["validation"]) for fold in done])
    alone = auc_within(odd_N, np.concatenate([part.probability["odd"] for part in parts]), fold_N)
    assert found["scores"]["odd"]["auc"]["mean"] == pytest.approx(alone, abs=1e-5)
    network_N = np.array([measured["each"][case.name]["probability"][1] for case in cases])
    network = auc_within(odd_N, network_N, fold_N)
    assert found["scores"]["odd"]["network"]["mean"] == pytest.approx(network, abs=1e-5)
    assert found["scores"]["odd"]["gain"]["mean"] == pytest.approx(network - alone, abs=2e-5)
    tested = classified.checkpoint.metrics["test"]["facts_alone"]["scores"]["odd"]
    said = by_facts(done[0].cases.config, sorted(cases, key=lambda case: case.name), done[0].cases.sides["test"])
    truth_N = np.array(["odd" in case.classes for case in done[0].cases.sides["test"]])
    assert tested["auc"]["mean"] == pytest.approx(auc(truth_N, said.probability["odd"]), abs=1e-5)
    card = (classified.checkpoint.folder / "README.md").read_text()
    page = (classified.folder / "cross_validation.html").read_text()
    gain = Interval(**found["scores"]["odd"]["gain"])
    assert "facts alone: age, sex" in card and f"| {gain} |" in card
    assert "AUC of age, sex alone" in page and f">{gain}<" in page


def test_network_that_has_seen_a_case_is_not_measured_on_it(done: list[Fold[Classified]]) -> None:
    with pytest.raises(PatientLeak, match="fold 0"):
        measure_classes([dataclasses.replace(done[0], checkpoint=done[1].checkpoint), *done[1:]])


def test_ensemble_of_the_folds_is_published_and_measured_itself_on_the_test_cases(
    classified: CrossValidation, done: list[Fold[Classified]]
) -> None:
    checkpoint = classified.checkpoint
    members = [fold.checkpoint.load_weights() for fold in done]
    assert checkpoint.config.members == N == len(checkpoint.load_members())
    for own, member in zip(checkpoint.load_members(), members, strict=True):
        assert own.keys() == member.keys() and all(torch.equal(own[name], member[name]) for name in own)
    tested = done[0].cases.sides["test"]
    alone = [ask(Classifier(fold.checkpoint), tested).logits_NK for fold in done]
    calibration = checkpoint.metrics["calibration"]
    assert calibration == classified.metrics["calibration"]
    mean = probability_of(np.mean(alone, axis=0), softmax=True, temperature=calibration["temperature"])
    told = checkpoint.metrics["test"]["each"]
    assert np.array([told[case.name]["probability"] for case in tested]) == pytest.approx(mean, abs=1e-4)


def test_ensemble_tells_whose_figures_it_has(classified: CrossValidation) -> None:
    training = classified.checkpoint.metrics["training"]
    assert (training["folds"], training["members"], training["last_epoch"]) == (N, N, 2)
    assert training["cases"] == classified.metrics["cross_validation"]["cases"], "each case trained some of the members"
    card = " ".join((classified.checkpoint.folder / "README.md").read_text().split())
    assert f"c --folds {N}" in card and f"the mean of these {N} networks" in card
    assert "no held-out case chose an epoch" in card and "validation cases chose" not in card
    for side, called in (("cross_validation", "cross-validation"), ("test", "test")):
        area = classified.checkpoint.metrics[side]["scores"]["odd"]["auc"]
        assert f"{called}, {classified.checkpoint.metrics[side]['cases']} cases" in card
        assert f"{area['mean']:.3f} [{area['low']:.3f}, {area['high']:.3f}]" in card


def test_first_network_alone_is_published_where_one_is_asked_for(
    classified: CrossValidation, toy: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(classified.folder, tmp_path / "cv")
    found = cross_validate(config=toy, folds=N, form="single", resume=True, out=folder, progress=False)
    first = open_checkpoint(folder / "fold_0" / "checkpoint")
    assert found.checkpoint.config.members == 1
    assert found.checkpoint.weights_sha256 == first.weights_sha256
    assert found.checkpoint.metrics["training"]["names"] == first.metrics["training"]["names"]
    assert found.checkpoint.metrics["cross_validation"] == classified.checkpoint.metrics["cross_validation"]
    split = splits_of(found)[0]
    held_out = split["validation"]
    about = provenance(found.checkpoint, "films", [*held_out, *split["train"], "new"])
    assert about["seen_in_validation"] == held_out, "they have calibrated it"
    assert about["seen_in_training"] == split["train"]
    card = (found.checkpoint.folder / "README.md").read_text()
    assert "--publish single" in card and "not chosen by its figures" in " ".join(card.split())
    assert "the mean of these" not in card


def test_report_says_how_many_networks_answered(
    classified: CrossValidation, films: Path, tmp_path: Path, invoke: Callable[..., Result]
) -> None:
    model = classified.checkpoint.folder
    assert invoke("infer", films.parent / "film000.png", "--model", model, "--out", tmp_path).exit_code == 0
    entry = json.loads((tmp_path / "film000" / "report.json").read_text())["models"][0]
    assert entry["members"] == N
    assert entry["cross_validated_cases"] == classified.metrics["cross_validation"]["cases"]
    told = entry["scores_cross_validated"]["odd"]["auc"]
    assert told == classified.metrics["cross_validation"]["scores"]["odd"]["auc"]
    page = (tmp_path / "film000" / "report.html").read_text()
    assert f"The mean of {N} networks" in page and "not of their mean" in page


def test_cases_that_trained_the_weights_to_begin_with_are_told(
    classified: CrossValidation, done: list[Fold[Classified]], toy: Path, tmp_path: Path
) -> None:
    start = f"train.start.weights={classified.folder / 'fold_1' / 'checkpoint'}"
    overrides = [start, f"data.folds={N}", "train.epochs=1"]
    run = train(config=toy, overrides=overrides, fold=0, out=tmp_path / "run", progress=False)
    held_out = [case.name for case in done[0].cases.sides["validation"]]
    assert run.checkpoint.metrics["training"]["start"]["held_out_seen"] == held_out
    assert provenance(run.checkpoint, "films", [*held_out, "new"])["seen_in_training"] == held_out
    assert set(held_out) <= set(read_foreign(str(run.checkpoint.folder)).trained_on), "and to whoever begins with it"
    card = " ".join((run.checkpoint.folder / "README.md").read_text().split())
    assert f"{len(held_out)} of the held-out cases have the names of cases that trained it" in card
    ensemble = [f"train.start.weights={classified.checkpoint.folder}"]
    with pytest.raises(StartUnusable, match=f"ensemble of {N}"):
        train(config=toy, overrides=ensemble, out=tmp_path / "other", progress=False)


def test_ensemble_is_not_trained_as_one(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="--folds"):
        train(config=toy, overrides=["members=3"], out=tmp_path / "run", progress=False)


def test_stopped_in_a_later_fold_it_ends_as_if_it_had_not_been(
    classified: CrossValidation, toy: Path, tmp_path: Path
) -> None:
    step = ClassifyTask.training_step
    steps: list[int] = []

    def counted(self: ClassifyTask, *batch: Any) -> torch.Tensor:
        steps.append(self.config.data.fold)
        if steps.count(1) == 2 and steps[-1] == 1:
            raise Stopped
        return step(self, *batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClassifyTask, "training_step", counted)
        with pytest.raises(Stopped):
            cross_validate(config=toy, folds=N, out=tmp_path / "cv", progress=False)
        assert not (tmp_path / "cv" / verb.RESULT).exists()
        before = len(steps)
        again = cross_validate(config=toy, folds=N, out=tmp_path / "cv", resume=True, progress=False)
    assert 0 not in steps[before:] and 2 in steps[before:], "the first fold is done, the third has not begun"
    assert again.metrics == classified.metrics


def test_it_is_asked_for_on_the_command_line(
    classified: CrossValidation, toy: Path, tmp_path: Path, invoke: Callable[..., Result]
) -> None:
    folder = shutil.copytree(classified.folder, tmp_path / "cv")
    (folder / verb.RESULT).unlink()
    result = invoke("train", toy, "--folds", N, "--resume", "--out", folder, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["metrics"] == json.loads((folder / verb.RESULT).read_text()) == classified.metrics
    told = invoke("train", toy, "--folds", N, "--resume", "--out", folder).stdout
    assert "cross-validated, odd: AUC" in told and "over folds" in told


@pytest.mark.parametrize(
    ("error", "match", "options"),
    [
        (TooFewCases, "fold 0, class", {"folds": 30}),
        (ConfigInvalid, "given", {"overrides": ["data.split=given"]}),
        (NothingToResume, "fold", {"resume": True}),
    ],
)
def test_what_cannot_be_cross_validated_is_refused_before_any_training(
    toy: Path, tmp_path: Path, error: type[ImagingError], match: str, options: dict[str, Any]
) -> None:
    with pytest.raises(error, match=match):
        cross_validate(**{"config": toy, "folds": N, "out": tmp_path / "cv", "progress": False, **options})
    assert not (tmp_path / "cv").exists()


@pytest.mark.parametrize("options", [("--folds", 3, "--fold", 1), ("--publish", "single")])
def test_options_that_mean_nothing_together_are_refused(
    toy: Path, invoke: Callable[..., Result], options: tuple[object, ...]
) -> None:
    result = invoke("train", toy, *options)
    assert result.exit_code == 2 and "--folds" in result.stderr


def test_folder_of_something_else_is_left_alone(classified: CrossValidation, toy: Path) -> None:
    with pytest.raises(RunExists):
        cross_validate(config=toy, folds=N, out=classified.folder, progress=False)
    with pytest.raises(ResumeMismatch, match=r"fold_0.*learning_rate"):
        other = ["train.learning_rate=0.5"]
        cross_validate(config=toy, overrides=other, folds=N, out=classified.folder, resume=True, progress=False)


# ----------------------------------------------------------------------------------------------------------- segmenters


@pytest.fixture(scope="module")
def masked(tiny: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config of four real cases, with their files beside it."""
    folder = tmp_path_factory.mktemp("masked")
    rows = ["case,image,label"]
    for number in ("001", "003", "006", "007"):
        for kind in ("images", "labels"):
            source = data / "hippocampus" / f"{kind}Tr" / f"hippocampus_{number}.nii.gz"
            shutil.copy(source, folder / f"{kind}_{number}.nii.gz")
        rows.append(f"c{number},images_{number}.nii.gz,labels_{number}.nii.gz")
    (folder / "cases.csv").write_text("\n".join(rows))
    config = load_config(tiny, [*MICRO, f"data.root={folder / 'cases.csv'}"])
    (folder / "micro.yaml").write_text(config.to_yaml())
    return folder / "micro.yaml"


@pytest.fixture(scope="module")
def segmented(masked: Path, tmp_path_factory: pytest.TempPathFactory) -> CrossValidation:
    """A whole cross-validation of the smallest segmenter. Read only."""
    return cross_validate(config=masked, folds=2, out=tmp_path_factory.mktemp("folds") / "micro", progress=False)


def test_masks_of_all_cases_are_scored_on_their_own_fold(segmented: CrossValidation) -> None:
    rows = rows_of(segmented)
    measured = segmented.metrics["cross_validation"]
    assert sorted(row["case"] for row in rows) == ["c001", "c003", "c006", "c007"]
    for row in rows:
        checkpoint = open_checkpoint(segmented.folder / f"fold_{row['fold']}" / "checkpoint")
        alone = checkpoint.metrics["validation"]["each"][row["case"]]
        assert [float(row[f"dice_{label.name}"]) for label in checkpoint.config.labels] == alone
    for score in ("dice", "hd95_mm", "surface_dice", "volume_error_percent"):
        for name, interval in measured[score].items():
            assert interval["mean"] == pytest.approx(np.mean([float(row[f"{score}_{name}"]) for row in rows]), abs=1e-4)
            by_fold = [fold[score][name] for fold in measured["folds"]]
            assert measured["over_folds"][score][name]["mean"] == pytest.approx(np.mean(by_fold), abs=1e-5)


def test_ensemble_of_segmenters_has_the_figures_and_factors_of_its_members(segmented: CrossValidation) -> None:
    checkpoint = segmented.checkpoint
    assert checkpoint.config.members == 2 and "test" not in checkpoint.metrics
    held_out = checkpoint.metrics["cross_validation"]
    assert held_out["each"] == segmented.metrics["cross_validation"]["each"]
    card = " ".join((checkpoint.folder / "README.md").read_text().split())
    for label in checkpoint.config.labels:
        over, mean = held_out["over_folds"]["dice"][label.name], held_out["dice"][label.name]
        assert f"over the folds: {over['mean']:.3f} ± {over['sd']:.3f}" in card
        assert f"{mean['mean']:.3f} [{mean['low']:.3f}, {mean['high']:.3f}]" in card
        assert f"{held_out['hd95_mm'][label.name]['mean']:.3f}" in card
    assert checkpoint.metrics["volume_interval"] == {label.name: None for label in checkpoint.config.labels}, "too few"


def test_page_tells_the_folds(segmented: CrossValidation) -> None:
    page = (segmented.folder / verb.PAGE).read_text()
    assert "cross-validation" in page and "no held-out case chose an epoch" in page and "Mean of each fold" in page
    assert all(name in page for name in ("c001", "c003", "c006", "c007"))


def test_runs_that_were_made_one_by_one_are_taken_with_their_last_weights(
    masked: Path, segmented: CrossValidation, tmp_path: Path
) -> None:
    """As an earlier version left them: no `train.keep`, the best epoch published, a state that is Lightning's alone."""
    for number in range(2):
        run = train(config=masked, overrides=["data.folds=2"], fold=number, out=tmp_path / f"fold_{number}",
                    progress=False)  # fmt: skip
        (run.folder / "config.yaml").write_text((run.folder / "config.yaml").read_text().replace("  keep: best\n", ""))
        assert "best_epoch" in run.checkpoint.metrics["training"]
        state = torch.load(run.folder / "state" / "last.ckpt", weights_only=True)
        kept = ("epoch", "global_step", "pytorch-lightning_version", "state_dict", "loops")
        torch.save({key: state[key] for key in kept}, run.folder / "state" / "last.ckpt")

    def never(*_: Any) -> None:
        raise AssertionError("a finished fold is not trained")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SegmentTask, "training_step", never)
        found = cross_validate(config=masked, folds=2, out=tmp_path, resume=True, progress=False)
    assert found.metrics["cross_validation"] == segmented.metrics["cross_validation"]


def test_structure_that_a_fold_lacks_is_refused_by_name(masked: Path, tmp_path: Path) -> None:
    for file in masked.parent.iterdir():
        shutil.copy(file, tmp_path)
    for number in ("001", "003", "006"):
        path = tmp_path / f"labels_{number}.nii.gz"
        image = nib.load(path)
        voxels = np.asarray(image.dataobj)
        nib.save(nib.Nifti1Image(np.where(voxels == 2, 0, voxels), image.affine), path)
    with pytest.raises(TooFewCases, match=r"fold \d, structure hippocampus_posterior"):
        cross_validate(config=masked, overrides=[f"data.root={tmp_path / 'cases.csv'}"], folds=2,
                       out=tmp_path / "cv", progress=False)  # fmt: skip
    assert not (tmp_path / "cv").exists()
