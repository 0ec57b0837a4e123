"""A search tries what it was told to, remembers it, goes on where it stopped, and never opens a test case."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from classified import toy_config, write_config, write_pictures
from PIL import Image

from imaging.config import load_config
from imaging.errors import (
    ConfigInvalid,
    ConstantImage,
    DuplicateCases,
    ImagingError,
    JobLost,
    MissingPackage,
    NothingToResume,
    NoTrialComplete,
    ResumeMismatch,
    RunExists,
    StartUnusable,
    UnknownKey,
)
from pipelines import trials as room
from pipelines.sides import deal, list_for
from pipelines.train import train
from pipelines.trials import Trials
from pipelines.tune import Tuned, check_search, tune

SPACE = "tune={train.learning_rate: {low: 1e-3, high: 0.1, log: true}, train.batch_size: {choices: [4, 8]}}"
FAST = ("train.epochs=2", "train.augment=[]", "data.test_fraction=0.25")

Search = Callable[..., Tuned]


def write_toy(folder: Path) -> Path:
    """A classifier's config that says what to search, and its data."""
    manifest = write_pictures(folder, cases=32)
    return write_config(folder / "toy.yaml", f"data.root={manifest}", SPACE, *FAST)


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """The toy's config, with files of its own."""
    return write_toy(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    """A search of three trials that nothing stopped. Read only."""
    folder = tmp_path_factory.mktemp("whole")
    return tune(config=write_toy(folder), trials=3, out=folder / "search")


@pytest.fixture
def search(toy: Path, tmp_path: Path) -> Search:
    """Search the toy's keys in `tmp_path`/search."""

    def call(*overrides: str, trials: int = 1, resume: bool = False, jobs: int = 1, out: str = "search") -> Tuned:
        return tune(config=toy, overrides=overrides, trials=trials, resume=resume, jobs=jobs, out=tmp_path / out)

    return call


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that need not import everything again, and see what a test has put in the place of something."""
    context = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing, "get_context", lambda kind: context)


def tried(tuned: Tuned) -> list[dict[str, Any]]:
    return [dict(trial.values) for trial in tuned.trials if trial.state != "interrupted"]


def scores(tuned: Tuned) -> list[float | None]:
    return [trial.score for trial in tuned.trials if trial.state != "interrupted"]


# ------------------------------------------------------------------------------------------------------ what comes out


def test_search_gives_trials_within_the_ranges_and_the_best_of_them(whole: Tuned) -> None:
    assert [trial.state for trial in whole.trials] == ["complete"] * 3
    for values in tried(whole):
        assert 1e-3 <= values["train.learning_rate"] <= 0.1 and values["train.batch_size"] in (4, 8)
    assert len({values["train.learning_rate"] for values in tried(whole)}) == 3
    assert whole.monitor == "val_auc" and whole.best.score == max(scores(whole))
    assert all(trial.epochs == 2 for trial in whole.trials)


def test_score_is_what_a_training_with_these_values_reaches(whole: Tuned, tmp_path: Path) -> None:
    run = train(config=whole.folder / "best.yaml", out=tmp_path / "run", progress=False)
    reached = []
    for path in (run.folder / "log").glob("version_*/metrics.csv"):
        with path.open(newline="") as stream:
            reached += [float(row["val_auc"]) for row in csv.DictReader(stream) if row.get("val_auc")]
    assert max(reached) == pytest.approx(whole.best.score, abs=1e-6)


def test_best_config_is_the_searched_one_with_other_values(whole: Tuned) -> None:
    best, base = load_config(whole.folder / "best.yaml"), load_config(whole.folder / "config.yaml")
    assert best.train.learning_rate == whole.best.values["train.learning_rate"] and not best.tune
    assert best.train.batch_size == whole.best.values["train.batch_size"]
    assert best.data == base.data and best.network == base.network


def test_table_has_a_row_a_trial(whole: Tuned) -> None:
    with (whole.folder / "trials.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [float(row["score"]) for row in rows] == scores(whole)
    assert [float(row["train.learning_rate"]) for row in rows] == [v["train.learning_rate"] for v in tried(whole)]


def test_no_state_and_no_sample_is_left_behind(whole: Tuned) -> None:
    assert not [*whole.folder.rglob("*.ckpt"), *whole.folder.rglob("*.safetensors")]
    assert len(list(whole.folder.glob("trials/*/log/version_0/metrics.csv"))) == 3


def test_another_seed_tries_other_values(search: Search, whole: Tuned) -> None:
    assert tried(search("train.seed=1"))[0] != tried(whole)[0]


def test_a_search_ranges_over_lists_and_whole_numbers(search: Search) -> None:
    features, blocks = "{low: 2, high: 6, step: 2}", "{choices: [[1, 1], [1, 2]]}"
    space = f"tune={{network.options.init_features: {features}, network.options.block_config: {blocks}}}"
    found = search(space, trials=2)
    for values in tried(found):
        assert values["network.options.init_features"] in (2, 4, 6)
        assert values["network.options.block_config"] in ([1, 1], [1, 2])


def test_each_trial_begins_with_the_weights_that_the_config_names(search: Search, tmp_path: Path) -> None:
    with pytest.raises(StartUnusable):
        search(f"train.start={{weights: {tmp_path / 'missing'}}}")


def test_searching_a_key_changes_neither_digest_nor_what_is_published(toy: Path) -> None:
    with_search = load_config(toy)
    without = load_config(toy, ["tune={}"])
    assert with_search.tune and with_search.digest() == without.digest()
    assert with_search.without_paths() == without.without_paths()


# ----------------------------------------------------------------------------------------------------- the test cases


def poison(config: Path) -> list[str]:
    """Make the files of every test case unreadable."""
    resolved = load_config(config)
    tested = deal(resolved, list_for(resolved)).sides["test"]
    for case in tested:
        for path in [case.image] if hasattr(case, "image") else [*case.images, case.label]:
            path.write_bytes(b"poison")
    return [case.name for case in tested]


def test_a_search_opens_no_test_picture(search: Search, whole: Tuned, toy: Path, tmp_path: Path) -> None:
    assert len(poison(toy)) >= 4
    poisoned = search(trials=1)
    assert (tried(poisoned), scores(poisoned)) == (tried(whole)[:1], scores(whole)[:1])
    with pytest.raises(ImagingError):  # a training does open them
        train(config=toy, out=tmp_path / "run", progress=False)


def test_a_search_opens_no_test_mask(tiny: Path, data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / "hippocampus", tmp_path / "data")
    space = "tune={train.learning_rate: {choices: [0.01]}}"
    config = tmp_path / "tiny.yaml"
    config.write_text(load_config(tiny, [f"data.root={tmp_path / 'data'}", "train.epochs=1", "train.patch=[16, 16, 16]",
                                         "network.options.filters=[4, 8, 8]", space]).to_yaml())  # fmt: skip
    assert len(poison(config)) == 2
    found = tune(config=config, trials=1, out=tmp_path / "search")
    assert found.monitor == "val_dice" and found.best.score is not None


def test_copies_among_what_is_searched_are_refused(search: Search, toy: Path) -> None:
    resolved = load_config(toy)
    sides = deal(resolved, list_for(resolved)).sides
    shutil.copy(sides["train"][0].image, sides["validation"][0].image)
    with pytest.raises(DuplicateCases):
        search()


# --------------------------------------------------------------------------------------------------- stopped, resumed


def test_more_trials_are_added_to_a_search(search: Search, whole: Tuned) -> None:
    search(trials=2)
    resumed = search(trials=3, resume=True)
    assert (tried(resumed), scores(resumed)) == (tried(whole), scores(whole))


def killed_in_the_second_trial(config: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    true = room._Reporter.on_validation_end

    def killed(self: Any, trainer: Any, module: Any) -> None:
        if self._trial.number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        true(self, trainer, module)

    room._Reporter.on_validation_end = killed  # type: ignore[method-assign]
    tune(config=config, trials=3, out=folder)


def test_a_killed_search_that_is_resumed_is_the_one_that_was_not(
    search: Search, whole: Tuned, toy: Path, tmp_path: Path
) -> None:
    context = multiprocessing.get_context("fork")
    process = context.Process(target=killed_in_the_second_trial, args=(toy, tmp_path / "search"))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    resumed = search(trials=3, resume=True)
    assert [trial.state for trial in resumed.trials] == ["complete", "interrupted", "complete", "complete"]
    assert (tried(resumed), scores(resumed)) == (tried(whole), scores(whole))


def test_a_search_killed_while_it_was_resumed_is_the_one_that_was_not(
    search: Search, whole: Tuned, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search(trials=1)
    begun = Trials(tmp_path / "search", load_config(toy))
    begun._study.ask()
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(begun._study, "tell", MagicMock(side_effect=SystemExit))
        begun.begin_again()
    resumed = search(trials=2, resume=True)
    assert [trial.state for trial in resumed.trials] == ["complete", "interrupted", "complete"]
    assert tried(resumed) == tried(whole)[:2]


def test_a_finished_search_is_not_searched_again(search: Search) -> None:
    found = search()
    assert search(resume=True).trials == found.trials


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.weight_decay=0.5", "train.weight_decay"),
        ("train.keep=last", "train.keep"),
        (SPACE.replace("1e-3", "1e-4"), "tune.train.learning_rate.low"),
        (SPACE.replace("[4, 8]", "[4, 6]"), "tune.train.batch_size.choices"),
    ],
)
def test_another_search_is_refused_with_what_differs(search: Search, override: str, told: str) -> None:
    search(trials=1)
    with pytest.raises(ResumeMismatch) as caught:
        search(override, trials=2, resume=True)
    assert caught.value.seen == f"other values for {told}"


def test_where_the_cache_lies_is_no_other_search(search: Search, tmp_path: Path) -> None:
    search(trials=1)
    assert len(search(f"data.cache={tmp_path / 'cache'}", trials=2, resume=True).trials) == 2
    assert list((tmp_path / "cache").glob("samples-*/*/*"))


def test_other_cases_are_another_search(search: Search, tmp_path: Path) -> None:
    search(trials=1)
    write_pictures(tmp_path, cases=40)
    with pytest.raises(ResumeMismatch, match="cases have changed"):
        search(trials=2, resume=True)


def test_a_folder_with_something_in_it_is_not_searched_in(search: Search) -> None:
    search(trials=1)
    with pytest.raises(RunExists):
        search(trials=1)


def test_nothing_to_resume_is_told(search: Search) -> None:
    with pytest.raises(NothingToResume):
        search(resume=True)


def test_two_searches_do_not_share_a_folder(search: Search, tmp_path: Path) -> None:
    import fcntl

    search(trials=1)
    with (tmp_path / "search" / "search.lock").open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_SH)
        with pytest.raises(RunExists, match="at work"):
            search(trials=2, resume=True)


# -------------------------------------------------------------------------------------------------- pruned and failed


def test_a_trial_that_is_worse_than_most_is_stopped_early(
    search: Search, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(room, "STARTUP_WHOLE", 2)
    values = iter([0.05, 0.05, 1e-9, 1e-9])  # the last two hardly learn

    def suggested(trial: Any, key: str, searched: Any, *, whole: bool) -> Any:
        value = next(values)
        return trial.suggest_float(key, value, value)

    monkeypatch.setattr(room, "_suggested", suggested)
    found = search("tune={train.learning_rate: {low: 1e-9, high: 0.1, log: true}}", "train.epochs=6", trials=4)
    assert [trial.state for trial in found.trials][:2] == ["complete"] * 2
    pruned = [trial for trial in found.trials if trial.state == "pruned"]
    assert pruned and all(1 < trial.epochs < 6 for trial in pruned)


def test_a_trial_that_diverges_is_told_and_the_search_goes_on(search: Search) -> None:
    found = search("tune={train.learning_rate: {choices: [0.01, 1.0e+37]}}", trials=4)
    failed = [trial for trial in found.trials if trial.state == "failed"]
    assert failed and all("training_diverged" in trial.why for trial in failed)
    assert found.best.values == {"train.learning_rate": 0.01}


def test_without_a_complete_trial_there_is_no_best(search: Search, tmp_path: Path) -> None:
    with pytest.raises(NoTrialComplete, match="training_diverged"):
        search("tune={train.learning_rate: {choices: [1.0e+37]}}", trials=2)
    assert len((tmp_path / "search" / "trials.csv").read_text().splitlines()) == 3
    assert not (tmp_path / "search" / "best.yaml").exists()


# ---------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("space", "error", "told"),
    [
        ("{}", ConfigInvalid, "no key to search"),
        ("{train.learnig_rate: {low: 0.1, high: 0.2}}", UnknownKey, "did you mean 'train.learning_rate'"),
        ("{training.epochs: {low: 1, high: 2}}", UnknownKey, "training"),
        ("{train.epochs.more: {low: 1, high: 2}}", UnknownKey, "leads nowhere"),
        ("{train.learning_rate: {low: -1, high: 0.2}}", ConfigInvalid, "train.learning_rate"),
        ("{train.batch_size: {low: 1.5, high: 4}}", ConfigInvalid, "train.batch_size"),
        ("{train.batch_size: {low: 2, high: 4, step: 0.5}}", ConfigInvalid, "whole numbers"),
        ("{train.precision: {choices: ['32', 64]}}", ConfigInvalid, "train.precision"),
        ("{train.class_weights: {low: 1, high: 2}}", ConfigInvalid, "train.class_weights"),
        ("{network.name: {choices: [DenseNet, DenseNot]}}", ImagingError, "DenseNot"),
        ("{network.options.init_featurs: {low: 2, high: 4}}", ConfigInvalid, "init_featurs"),
        ("{train.seed: {low: 0, high: 9}}", ConfigInvalid, "train.seed"),
        ("{data.fold: {low: 0, high: 1}}", ConfigInvalid, "data.fold"),
        ("{data.test_fraction: {low: 0.1, high: 0.2}}", ConfigInvalid, "data.test_fraction"),
        ("{calibrate.sensitivity: {low: 0.5, high: 0.9}}", ConfigInvalid, "calibrate.sensitivity"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_anything_is_trained(
    search: Search, tmp_path: Path, space: str, error: type[ImagingError], told: str
) -> None:
    with pytest.raises(error) as caught:
        search(f"tune={space}")
    assert told in str(caught.value)
    assert not (tmp_path / "search").exists()


@pytest.mark.parametrize("space", ["{low: 2}", "{low: 2, high: 1}", "{low: 0, high: 1, log: true}", "{choices: []}",
                                   "{low: 1, high: 2, choices: [1]}", "{low: 1, high: 2, step: 5}", "{lo: 1, high: 2}",
                                   "3"])  # fmt: skip
def test_a_range_that_is_none_is_refused_as_the_config_is_read(toy: Path, space: str) -> None:
    with pytest.raises((ConfigInvalid, UnknownKey), match=r"tune\.train\.learning_rate"):
        load_config(toy, [f"tune={{train.learning_rate: {space}}}"])


def test_a_segmenters_preprocessing_is_not_searched(tiny: Path) -> None:
    config = load_config(tiny, ["tune={preprocess.spacing_mm: {choices: [[1, 1, 1], [2, 2, 2]]}}"])
    with pytest.raises(ConfigInvalid, match="preprocess"):
        check_search(config)


def test_a_patch_that_the_network_does_not_take_is_refused(tiny: Path) -> None:
    config = load_config(tiny, ["tune={train.patch: {choices: [[16, 16, 16], [17, 16, 16]]}}"])
    with pytest.raises(ConfigInvalid, match="17"):
        check_search(config)


def test_a_classifiers_preprocessing_is_searched(tmp_path: Path) -> None:
    check_search(toy_config(tmp_path, "tune={preprocess.size: {choices: [[16, 16], [24, 24]]}}"))


def test_without_optuna_the_command_says_what_to_install(search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingPackage, match=r"pip install 'imgpipe\[tune\]'"):
        search()


# --------------------------------------------------------------------------------------------- several processes, CLI


def test_several_jobs_share_a_search(search: Search) -> None:
    found = search("train.epochs=1", trials=2, jobs=2)
    assert [trial.state for trial in found.trials] == ["complete"] * 2
    assert len({values["train.learning_rate"] for values in tried(found)}) == 2


@pytest.mark.usefixtures("forked")
def test_a_refusal_in_a_job_comes_out_as_itself(search: Search, toy: Path) -> None:
    resolved = load_config(toy)
    Image.new("L", (16, 20), 7).save(deal(resolved, list_for(resolved)).sides["train"][0].image)
    with pytest.raises(ConstantImage) as caught:
        search(trials=2, jobs=2)
    assert caught.value.seen and caught.value.remedy


@pytest.mark.usefixtures("forked")
def test_a_killed_job_is_told_and_its_trial_is_measured_again(
    search: Search, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(room, "fit", killed)
        with pytest.raises(JobLost, match="-9"):
            search(trials=2, jobs=2)
    assert "running" in {trial.state for trial in Trials(tmp_path / "search", load_config(toy)).all()}
    resumed = search(trials=2, resume=True)
    assert [trial.state for trial in resumed.trials].count("complete") == 2
    # The other job is ended wherever it is: before its trial has drawn its values, too.
    drawn = [trial.values for trial in resumed.trials if "train.learning_rate" in trial.values]
    assert len({values["train.learning_rate"] for values in drawn}) == 2


def test_command_prints_a_table_and_json(toy: Path, tmp_path: Path, invoke: Callable[..., Any]) -> None:
    shown = invoke("tune", toy, "--trials", 1, "--out", tmp_path / "search")
    assert shown.exit_code == 0 and "val_auc" in shown.output and "best.yaml" in shown.output
    told = invoke("tune", toy, "--trials", 1, "--out", tmp_path / "search", "--resume", "--json")
    document = json.loads(told.stdout)
    assert document["exit_status"] == 0 and document["best"]["number"] == 0
    assert document["trials"][0]["values"].keys() == {"train.learning_rate", "train.batch_size"}


def test_command_without_a_search_is_wrong_usage(toy: Path, tmp_path: Path, invoke: Callable[..., Any]) -> None:
    assert invoke("tune", toy, "tune={}", "--trials", 1, "--out", tmp_path / "search").exit_code == 2
