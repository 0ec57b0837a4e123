"""Where the figures of a training are told: names of a config -> Lightning's loggers.

Invariant: beside the run folder, only figures and the config go out: no case's name, no path, nothing of the machine or
of who is at it. A name whose package is not installed is refused before the run begins.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from imaging.config import NetworkConfig
from imaging.errors import LoggerMissing

_PROJECT = "imgpipe"


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of logger.

    Attributes
    ----------
    make
        Makes one for a run folder, a config and the number of the run's part.
    package
        What must be importable.
    """

    make: Callable[[Path, NetworkConfig, int], Logger]
    package: str | None = None


def _csv(folder: Path, config: NetworkConfig, part: int) -> Logger:
    return CSVLogger(folder, name="log", version=part)


def _tensorboard(folder: Path, config: NetworkConfig, part: int) -> Logger:
    return TensorBoardLogger(folder, name="log", version=part, default_hp_metric=False)


def _wandb(folder: Path, config: NetworkConfig, part: int) -> Logger:
    import wandb

    # Without these it would send the command line, the program's path, the host and the user.
    settings = wandb.Settings(
        console="off",
        disable_code=True,
        disable_git=True,
        host="",
        x_disable_machine_info=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )
    logger = WandbLogger(name=_name(config, part), project=_PROJECT, save_dir=folder, settings=settings)
    logger.log_hyperparams(config.without_paths().model_dump(mode="json"))
    return logger


def _mlflow(folder: Path, config: NetworkConfig, part: int) -> Logger:
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.resolve() / 'mlflow.db'}"
    # By default the first is the path of the program, the second the name of who is logged in.
    tags = {"mlflow.source.name": _PROJECT, "mlflow.user": _PROJECT}
    logger = MLFlowLogger(experiment_name=_PROJECT, run_name=_name(config, part), tracking_uri=uri, tags=tags)
    logger.log_hyperparams(config.without_paths().model_dump(mode="json"))
    return logger


def _name(config: NetworkConfig, part: int) -> str:
    """What the run is called there; a resumed run is a further part."""
    return f"{config.name}_fold{config.data.fold}" + (f"_part{part}" if part else "")


LOGGERS = {
    "csv": _Kind(_csv),
    "tensorboard": _Kind(_tensorboard),
    "wandb": _Kind(_wandb, "wandb"),
    "mlflow": _Kind(_mlflow, "mlflow"),
}


def check_loggers(names: Sequence[str]) -> None:
    """Refuse a logger whose package is not there.

    Raises
    ------
    LoggerMissing
        With the command that installs it.
    """
    for name in names:
        package = LOGGERS[name].package
        if package is not None and importlib.util.find_spec(package) is None:
            raise LoggerMissing(f"train.loggers: {name}", seen=f"the package {package} is not installed",
                                remedy=f"pip install 'imgpipe[{name}]', or take it out of train.loggers")  # fmt: skip


def loggers_for(folder: Path, config: NetworkConfig) -> list[Logger]:
    """The loggers that a config names; a resumed run logs beside its first part.

    Parameters
    ----------
    folder
        The run folder.
    config
        The run's.
    """
    parts = [path.name.removeprefix("version_") for path in (folder / "log").glob("version_*")]
    part = 1 + max((int(number) for number in parts if number.isdecimal()), default=-1)
    return [LOGGERS[name].make(folder, config, part) for name in config.train.loggers]


def close(loggers: Sequence[Logger]) -> None:
    """End what would go on for as long as the process does, so that the next run is another one there."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()
