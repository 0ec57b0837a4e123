"""A classifier's run explains itself, learns what there is to learn, can be repeated, and continues bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from classified import CODE, write_config, write_pictures
from PIL import Image
from safetensors.torch import load_file

from imaging.checkpoint import open_checkpoint
from imaging.classifier import Classifier
from imaging.config import load_config
from imaging.errors import DuplicateCases, ManifestInvalid, NotApplicable, TooFewCases, TrainingDiverged, UnknownName
from imaging.png import read_png
from imaging.tasks.classify import ClassifyTask
from imaging.transforms import LABEL
from pipelines.train import Run, train


class Stopped(Exception):
    """What stops a run in these tests."""


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("films"))


@pytest.fixture(scope="module")
def config(films: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("config") / "toy.yaml", f"data.root={films}")


@pytest.fixture(scope="module")
def trained(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(config=config, out=tmp_path_factory.mktemp("runs") / "toy", progress=False)


@pytest.fixture
def micro(config: Path, tmp_path: Path) -> Callable[..., Run]:
    """Train the smallest thing that trains."""

    def call(*overrides: str, out: str = "run") -> Run:
        return train(config=config, overrides=["train.epochs=1", *overrides], out=tmp_path / out, progress=False)

    return call


# ------------------------------------------------------------------------------------------------------- the run folder


def test_run_folder_holds_a_checkpoint_that_a_user_can_ask(trained: Run, films: Path) -> None:
    metrics = trained.checkpoint.metrics
    name, said = next(iter(metrics["test"]["each"].items()))
    found = Classifier(open_checkpoint(trained.checkpoint.folder))(read_png(films.parent / f"{name}.png"))
    assert list(found.probability.values()) == pytest.approx(said["probability"], abs=1e-4)


def test_it_learns_what_there_is_to_learn(trained: Run) -> None:
    assert trained.checkpoint.metrics["validation"]["scores"]["odd"]["auc"]["mean"] > 0.9


def test_metrics_tell_the_classes_of_the_training_cases(trained: Run) -> None:
    training = trained.checkpoint.metrics["training"]
    assert sum(training["cases_by_class"].values()) == training["cases"] == len(training["names"])
    assert training["copies_left_out"] == 0


def test_published_weights_are_those_of_the_epoch_with_the_best_auc(trained: Run) -> None:
    state = torch.load(trained.folder / "state" / "best.ckpt", weights_only=True)
    for name, tensor in load_file(trained.checkpoint.folder / "weights.safetensors").items():
        assert torch.equal(tensor, state["state_dict"][f"network.{name}"])
    assert state["epoch"] + 1 == trained.checkpoint.metrics["training"]["best_epoch"]


def test_no_patient_is_on_two_sides(trained: Run) -> None:
    split = json.loads((trained.folder / "split.json").read_text())
    patients = [{int(name.removeprefix("film")) // 2 for name in names} for names in split.values()]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 24


def test_published_config_names_no_path_of_this_machine(trained: Run, films: Path) -> None:
    assert not [f for f in trained.checkpoint.folder.iterdir() if str(films.parent).encode() in f.read_bytes()]


# -------------------------------------------------------------------------------------------------- repeat and continue


def test_same_seed_gives_the_same_bits_and_another_does_not(micro: Callable[..., Run]) -> None:
    first, second, other = micro(out="a"), micro(out="b"), micro("train.seed=1", out="c")
    assert first.checkpoint.weights_sha256 == second.checkpoint.weights_sha256
    assert first.checkpoint.weights_sha256 != other.checkpoint.weights_sha256


def test_resumed_run_ends_as_an_uninterrupted_one(trained: Run, config: Path, tmp_path: Path) -> None:
    step = ClassifyTask.training_step
    steps: list[tuple[int, int]] = []

    def counted(self: ClassifyTask, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        steps.append((self.current_epoch, batch_idx))
        if len(steps) == 6:
            raise Stopped
        return step(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClassifyTask, "training_step", counted)
        with pytest.raises(Stopped):
            train(config=config, out=tmp_path / "run", progress=False)
        run = train(config=config, out=tmp_path / "run", resume=True, progress=False)
    assert steps[5:8] == [(2, 1), (2, 0), (2, 1)], "the third epoch begins again, the first two do not"
    weights, expected = (load_file(r.checkpoint.folder / "weights.safetensors") for r in (run, trained))
    assert [name for name in expected if not torch.equal(weights[name], expected[name])] == []
    assert run.checkpoint.metrics == trained.checkpoint.metrics


# ----------------------------------------------------------------------------------------------------- loss and options


@pytest.mark.parametrize(
    "override",
    [
        "train.class_weights=balanced",
        "train.label_smoothing=0.3",
        "output=sigmoid",
        "preprocess.aspect=crop",
        "preprocess={size: [12, 12], normalise: range, range: [0, 255]}",
        "predict.flip_axes=[0]",
        "network={name: ResNet10, options: {widen_factor: 0.0625}}",
        "network={name: EfficientNetBN, options: {model_name: efficientnet-b0}}",
    ],
)
def test_option_trains(micro: Callable[..., Run], override: str) -> None:
    metrics = micro(
        override, "preprocess.size=[32, 32]" if "Efficient" in override else "data.seed=0"
    ).checkpoint.metrics
    assert metrics["validation"]["scores"]["odd"]["auc"]["mean"] is not None


def task_of(config: Path, counts: tuple[int, int], *overrides: str) -> ClassifyTask:
    return ClassifyTask(load_config(config, overrides), ["a"] * sum(counts), counts)


def test_balanced_weights_let_each_class_weigh_the_same(config: Path) -> None:
    task = task_of(config, (30, 10), "train.class_weights=balanced")
    logits = torch.zeros(40, 2)
    label = torch.eye(2)[[0] * 30 + [1] * 10]
    assert float(task.loss(logits, {LABEL: label})) == pytest.approx(np.log(2))
    leaning = torch.tensor([[2.0, 0.0]]).expand(40, 2)
    mean = (np.log1p(np.exp(-2)) + np.log1p(np.exp(2))) / 2
    assert float(task.loss(leaning, {LABEL: label})) == pytest.approx(mean, rel=1e-5)


def test_label_smoothing_forbids_certainty(config: Path) -> None:
    label = torch.eye(2)
    for output in ("softmax", "sigmoid"):
        plain, smooth = (task_of(config, (1, 1), f"output={output}", f"train.label_smoothing={s}") for s in (0, 0.2))
        sure = 20 * (2 * label - 1)
        assert float(plain.loss(sure, {LABEL: label})) < 1e-6
        assert float(smooth.loss(sure, {LABEL: label})) > 1


def test_three_dimensions(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(24, dtype=np.uint8)[:, None] % 2
    images = np.clip(generator.normal(80 + 60 * labels[:, :, None, None], 20, (24, 9, 8, 7)), 0, 255).astype(np.uint8)
    arrays = {"train_images": images[:16], "train_labels": labels[:16], "val_images": images[16:]}
    np.savez(tmp_path / "toy.npz", **arrays, val_labels=labels[16:])
    config = write_config(
        tmp_path / "toy.yaml", "preprocess.size=[8, 8, 8]", "data.split=given", f"data.root={tmp_path / 'toy.npz'}"
    )
    assert "odd" in train(config=config, out=tmp_path / "run", progress=False).checkpoint.metrics["test"]["scores"]


def test_three_classes_and_several_a_case(config: Path, films: Path, tmp_path: Path) -> None:
    rows = films.read_text().splitlines()
    told = [
        "|".join([*(["odd"] if "odd" in row else []), *(["third"] if n % 3 else [])]) for n, row in enumerate(rows[1:])
    ]
    (films.parent / "several.csv").write_text(
        "image,label,patient\n"
        + "\n".join(
            f"{row.split(',')[0]},{label},{row.split(',')[2]}" for row, label in zip(rows[1:], told, strict=True)
        )
    )
    third = (
        f"{{id: 1, name: third, title: Third, category: {json.dumps(CODE)}, code: {json.dumps(CODE)}, abnormal: false}}"
    )
    odd = f"{{id: 0, name: odd, title: Odd, category: {json.dumps(CODE)}, code: {json.dumps(CODE)}, abnormal: true}}"
    run = train(
        config=config,
        overrides=[f"classes=[{odd}, {third}]", "output=sigmoid", f"data.root={films.parent / 'several.csv'}"],
        out=tmp_path / "run",
        progress=False,
    )
    scores = run.checkpoint.metrics["validation"]["scores"]
    assert list(scores) == ["odd", "third"]
    found = Classifier(run.checkpoint)(read_png(films.parent / "film000.png"))
    assert [judgement.assessment for judgement in found.judgements][1] == "indeterminate", "third is neither"


# ------------------------------------------------------------------------------------------------------ what is refused


def test_diverged_training_names_its_cases(micro: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: ClassifyTask, image: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network(image)
        return logits * float("nan")

    monkeypatch.setattr(ClassifyTask, "forward", broken)
    with pytest.raises(TrainingDiverged, match=r"cases film\d{3}, film\d{3}"):
        micro()


def test_unknown_network_lists_the_classifiers(micro: Callable[..., Run], tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match=r"DenseNet121.*ResNet18"):
        micro("network={name: ResNet}")
    assert not (tmp_path / "run").exists(), "the same command can be given again"


def test_copy_is_refused(micro: Callable[..., Run], films: Path) -> None:
    (films.parent / "copied.csv").write_text(films.read_text() + "copy.png,odd,p99,F,3\n")
    (films.parent / "copy.png").write_bytes((films.parent / "film002.png").read_bytes())
    with pytest.raises(DuplicateCases, match="film002"):
        micro(f"data.root={films.parent / 'copied.csv'}")


def test_stack_among_the_pictures_is_refused_by_name(micro: Callable[..., Run], films: Path, data: Path) -> None:
    image = data / "hippocampus" / "imagesTr" / "hippocampus_001.nii.gz"
    (films.parent / "mixed.csv").write_text(films.read_text() + f"{image},odd,p99,F,3\n")
    with pytest.raises(NotApplicable, match=r"hippocampus_001.*slices"):
        micro(f"data.root={films.parent / 'mixed.csv'}")


def test_picture_that_is_none_is_refused_by_name(micro: Callable[..., Run], films: Path) -> None:
    (films.parent / "broken.csv").write_text(films.read_text() + "missing.png,odd,p99,F,3\n")
    with pytest.raises(ManifestInvalid, match=r"missing"):
        micro(f"data.root={films.parent / 'broken.csv'}")


def test_too_few_patients_are_refused(micro: Callable[..., Run], tmp_path: Path) -> None:
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "a.png")
    (tmp_path / "one.csv").write_text("image,label\na.png,odd\n")
    with pytest.raises(TooFewCases):
        micro(f"data.root={tmp_path / 'one.csv'}")
