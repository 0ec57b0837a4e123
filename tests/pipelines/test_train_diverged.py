"""A training that diverges stops by name, and what it leaves behind can be used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from classified import write_config, write_pictures

from imaging.errors import TrainingDiverged
from imaging.tasks.classify import ClassifyTask
from pipelines.train import Run, train


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    return write_config(folder / "toy.yaml", f"data.root={write_pictures(folder)}", "train.epochs=3")


@pytest.fixture
def run(config: Path, tmp_path: Path) -> Callable[..., Run]:
    def call(*overrides: str, resume: bool = False) -> Run:
        return train(config=config, overrides=overrides, out=tmp_path / "run", resume=resume, progress=False)

    return call


def state_of(folder: Path, name: str) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(folder / "state" / f"{name}.ckpt", weights_only=True)
    return state


def broken_from(epoch: int, spoil: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
    """The task's loss, spoilt in the last step of an epoch and after."""
    loss = ClassifyTask.loss

    def spoilt(self: ClassifyTask, logits: torch.Tensor, batch: Any) -> torch.Tensor:
        value = loss(self, logits, batch)
        return spoil(value) if self.global_step >= 2 * epoch + 1 else value

    return spoilt


def infinite_gradient(loss: torch.Tensor) -> torch.Tensor:
    return loss + torch.sqrt(loss * 0)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [(lambda loss: loss * float("nan"), "the loss is nan"), (infinite_gradient, "the gradient's norm is nan")],
    ids=["loss", "gradient"],
)
def test_last_good_state_stays_and_the_run_goes_on_from_it(
    run: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[..., Any], told: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(ClassifyTask, "loss", broken_from(1, spoil))
        with pytest.raises(TrainingDiverged, match=r"cases film\d{3}, film\d{3}") as caught:
            run()
    assert told in caught.value.seen
    assert not (tmp_path / "run" / "checkpoint").exists()
    for name in ("last", "best"):
        state = state_of(tmp_path / "run", name)
        assert state["epoch"] == 0
        for weights in (state["state_dict"], state["current_model_state"]):
            assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    assert run(resume=True).checkpoint.metrics["training"]["epochs"] == 3


def test_a_state_that_is_not_finite_is_never_written(
    run: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflow(self: ClassifyTask, *_: object) -> None:
        next(self.network.parameters()).data.view(-1)[0] = float("inf")

    monkeypatch.setattr(ClassifyTask, "on_train_batch_end", overflow)
    with pytest.raises(TrainingDiverged, match="weights of"):
        run("train.batch_size=64")
    state = state_of(tmp_path / "run", "last")
    assert state["global_step"] == 0, "the one from before the first step"
    assert all(torch.isfinite(tensor).all() for tensor in state["state_dict"].values())
