"""Figures are told where the config says, and nothing else leaves the run folder."""

from __future__ import annotations

import importlib.util
import socket
import sqlite3
from pathlib import Path
from typing import get_args

import pytest
from classified import write_config, write_pictures
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from imaging.config import Fit
from imaging.errors import ConfigInvalid, LoggerMissing
from pipelines.loggers import LOGGERS, check_loggers
from pipelines.train import Run, train


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("secret")
    return write_config(folder / "toy.yaml", f"data.root={write_pictures(folder)}", "train.epochs=2")


@pytest.fixture(scope="module")
def told(films: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that told its figures to every logger there is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setattr("sys.argv", ["imgpipe", "train", f"data.root={films.parent}"])
        run = train(config=films, overrides=[f"train.loggers=[{', '.join(LOGGERS)}]"],
                    out=tmp_path_factory.mktemp("runs") / "run", progress=False)  # fmt: skip
    assert run is not None
    return run


def test_registry_is_what_a_config_may_name() -> None:
    annotation = Fit.model_fields["loggers"].annotation
    assert set(get_args(get_args(annotation)[0])) == set(LOGGERS)


def test_tensorboard_has_a_figure_an_epoch(told: Run) -> None:
    events = EventAccumulator(str(told.folder / "log" / "version_0")).Reload()
    assert {"train_loss", "val_auc", "data_wait_share"} <= set(events.Tags()["scalars"])
    assert len(events.Scalars("val_auc")) == 2


def test_mlflow_has_figures_and_config(told: Run) -> None:
    with sqlite3.connect(told.folder / "mlflow.db") as database:
        assert database.execute("select count(*) from metrics where key = 'val_auc'").fetchone() == (2,)
        params = dict(database.execute("select key, value from params").fetchall())
        tags = dict(database.execute("select key, value from tags").fetchall())
    assert params["train/learning_rate"] == "0.02"
    assert params["data/root"] == "None"
    assert (tags["mlflow.source.name"], tags["mlflow.user"]) == ("imgpipe", "imgpipe")


def test_wandb_has_a_run(told: Run) -> None:
    (file,) = (told.folder / "wandb").glob("offline-run-*/*.wandb")
    content = file.read_bytes()
    assert b"val_auc" in content and b"learning_rate" in content


def test_neither_cases_nor_paths_go_out(told: Run, films: Path) -> None:
    sent = [told.folder / "mlflow.db", *(f for f in (told.folder / "wandb").glob("offline-run-*/**/*") if f.is_file())]
    assert len(sent) >= 2
    secrets = ("film0", "film1", str(films.parent), socket.gethostname(), "data.root=")
    for file in (path for path in sent if "logs" not in path.parts):
        found = [secret for secret in secrets if secret.encode() in file.read_bytes()]
        assert not found, file


def test_missing_package_is_refused_with_the_command_that_brings_it(
    films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LoggerMissing, match=r"pip install 'imgpipe\[wandb\]'"):
        train(config=films, overrides=["train.loggers=[csv, wandb]"], out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    check_loggers(["csv", "tensorboard"])


def test_unknown_logger_lists_the_known_ones(films: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="'csv', 'tensorboard', 'wandb' or 'mlflow'"):
        train(config=films, overrides=["train.loggers=[neptune]"], out=tmp_path / "run", progress=False)
