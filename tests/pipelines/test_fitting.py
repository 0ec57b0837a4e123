"""The options of a training do what their names say, and the log tells what the time went by with."""

from __future__ import annotations

import csv
import json
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from classified import write_config, write_pictures
from safetensors.torch import load_file

from imaging.config import load_config
from imaging.samples import CachedPictures
from imaging.tasks.classify import ClassifyTask
from imaging.tasks.schedule import adamw
from pipelines.busy import StepTimes
from pipelines.train import Run, train

# A network without batch norms, for which a step of two batches is that of both together.
PLAIN = "network.options={init_features: 4, growth_rate: 4, block_config: [1, 1], norm: instance}"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    return write_config(folder / "toy.yaml", f"data.root={write_pictures(folder)}", "train.epochs=1")


@pytest.fixture
def fitted(config: Path, tmp_path: Path) -> Callable[..., Run]:
    def call(*overrides: str, out: str = "run", resume: bool = False) -> Run:
        run = train(config=config, overrides=overrides, out=tmp_path / out, resume=resume, progress=False)
        assert run is not None
        return run

    return call


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.checkpoint.folder / "weights.safetensors")


def farthest(one: Run, other: Run) -> float:
    assert weights(one).keys() == weights(other).keys()
    return max(float((tensor - weights(other)[name]).abs().max()) for name, tensor in weights(one).items())


def logged(run: Run, column: str) -> list[float]:
    with (run.folder / "log" / "version_0" / "metrics.csv").open(newline="") as stream:
        return [float(row[column]) for row in csv.DictReader(stream) if row.get(column)]


# ------------------------------------------------------------------------------------------------------------- the step


def test_two_batches_make_the_step_of_one_twice_as_large(
    fitted: Callable[..., Run], caplog: pytest.LogCaptureFixture
) -> None:
    whole = fitted(PLAIN, "train.epochs=2", out="whole")
    with caplog.at_level(logging.INFO, "pipelines"):
        halves = fitted(PLAIN, "train.epochs=2", "train.batch_size=4", "train.accumulate=2", out="halves")
    assert farthest(whole, halves) < 1e-4
    assert "each step takes 8 cases" in caplog.text
    other = fitted(PLAIN, "train.epochs=2", "train.batch_size=4", out="other")
    assert farthest(whole, other) > 1e-3, "twice as many steps end elsewhere"


def test_step_is_the_mean_of_its_batches_where_the_epoch_ends_within_it(
    fitted: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """18 cases are four batches of four: one step of three batches, and one of the last alone."""
    steps: list[torch.Tensor] = []

    def seen(self: ClassifyTask, optimizer: torch.optim.Optimizer, **_: Any) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        steps.append(torch.cat([gradient.flatten() for gradient in gradients if gradient is not None]))

    monkeypatch.setattr(ClassifyTask, "configure_gradient_clipping", seen)
    still = (PLAIN, "train.batch_size=4", "train.learning_rate=1.0e-12")
    fitted(*still, out="each")
    each, steps = steps, []
    fitted(*still, "train.accumulate=3", out="three")
    assert (len(each), len(steps)) == (4, 2)
    for step, expected in zip(steps, (torch.stack(each[:3]).mean(0), each[3]), strict=True):
        assert float((step - expected).norm() / expected.norm()) < 1e-3


def test_channels_last_changes_rounding_only(fitted: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    plain = fitted(PLAIN, out="plain")
    layouts: list[bool] = []
    loss = ClassifyTask.loss

    def seen(self: ClassifyTask, logits: torch.Tensor, batch: Any) -> torch.Tensor:
        first = next(p for p in self.network.parameters() if p.ndim == 4 and min(p.shape) > 1)
        layouts.append(first.is_contiguous(memory_format=torch.channels_last) and not first.is_contiguous())
        return loss(self, logits, batch)

    monkeypatch.setattr(ClassifyTask, "loss", seen)
    last = fitted(PLAIN, "train.channels_last=true", out="last")
    assert layouts and all(layouts)
    assert farthest(plain, last) < 1e-4


def test_compiled_network_keeps_the_names_of_its_weights(
    fitted: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = fitted(out="plain")
    compiled: list[object] = []

    def counting(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counting))
    fast = fitted("train.compile=true", out="fast")
    assert compiled
    assert farthest(plain, fast) < 1e-4
    state = torch.load(fast.folder / "state" / "last.ckpt", weights_only=True)["state_dict"]
    assert set(state) == {f"network.{name}" for name in weights(plain)}


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("cosine", [1.0, 0.8536, 0.5, 0.1464, 0.0]), ("poly", [1.0, 0.7719, 0.5359, 0.2872, 0.0])],
)
def test_schedule(config: Path, schedule: str, expected: list[float]) -> None:
    settings = load_config(config, ["train.warmup_steps=0", f"train.schedule={schedule}"]).train
    made = adamw(torch.nn.Linear(1, 1), settings, steps=4)
    optimizer, scheduler = made["optimizer"], made["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(5):
        rates.append(optimizer.param_groups[0]["lr"] / settings.learning_rate)
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx(expected, abs=1e-4)


def test_run_without_progress_ends_early(fitted: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    rising = iter([0.5, 0.6, 0.6, 0.55, 0.9, 0.9])
    monkeypatch.setattr(ClassifyTask, "scores", lambda self, kept: {"val_auc": next(rising)})
    run = fitted("train.epochs=6", "train.early_stopping=2")
    assert logged(run, "val_auc") == pytest.approx([0.5, 0.6, 0.6, 0.55])
    assert run.checkpoint.metrics["training"]["best_epoch"] == 2
    last = fitted("train.epochs=6", "train.early_stopping=2", "train.keep=last", resume=True)
    assert last.checkpoint.metrics["training"]["last_epoch"] == 4
    card = " ".join((last.checkpoint.folder / "README.md").read_text().split())
    assert "epoch 4 of 6, the last: validation said when to end" in card and "chose the epoch" in card


# ---------------------------------------------------------------------------------------------------- busy and waiting


def test_log_tells_the_time_in_waiting_and_in_computing(
    fitted: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    augmented = CachedPictures._augmented

    def slow(self: CachedPictures, *arguments: Any) -> Any:
        time.sleep(0.1)
        return augmented(self, *arguments)

    monkeypatch.setattr(CachedPictures, "_augmented", slow)
    with caplog.at_level(logging.INFO, "pipelines"):
        run = fitted("train.epochs=2")
    for wait, compute in zip(logged(run, "data_wait_share"), logged(run, "compute_share"), strict=True):
        assert 0.3 < wait < 1 and 0 < compute < 1 and wait + compute <= 1 + 1e-6
    told = [record.getMessage() for record in caplog.records if "waiting for data" in record.getMessage()]
    assert len(told) == 2 and told[0].startswith("epoch 1: ") and "data.workers is 0" in told[0]


def test_log_is_silent_where_nothing_waits(
    fitted: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(StepTimes, "clear", lambda self: (4.0, 96.0))
    with caplog.at_level(logging.INFO, "pipelines"):
        run = fitted()
    assert logged(run, "data_wait_share") == pytest.approx([0.04])
    assert logged(run, "compute_share") == pytest.approx([0.96])
    assert "waiting for data" not in caplog.text


def test_run_folder_tells_how_it_was_started(fitted: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["imgpipe", "train", "toy.yaml"])
    run = fitted("train.seed=7", "data.seed=3")
    told = json.loads((run.folder / "environment.json").read_text())
    assert told["command"] == ["imgpipe", "train", "toy.yaml"]
    assert told["seeds"] == {"split": 3, "training": 7}
    assert told["threads"] == torch.get_num_threads() and told["cores"] >= 1
    assert not (run.checkpoint.folder / "environment.json").exists()
