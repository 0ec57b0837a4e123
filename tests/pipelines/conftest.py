"""One tiny checkpoint, really trained on eight real cases, and the ways in which the tests call imgpipe."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from classified import FALSE_FLAGS, write_config, write_pictures
from click.testing import CliRunner, Result

from imaging.config import load_config
from imaging.files import shipped
from pipelines.cli import main
from pipelines.train import Run, train

CONSOLE_SCRIPT = Path(sys.executable).parent / "imgpipe"
TINY = (
    "network.options.filters=[8, 16, 32]",
    "network.options.kernel_size=[3, 3, 3]",
    "network.options.strides=[1, 2, 2]",
    "network.options.upsample_kernel_size=[2, 2]",
    "network.options.deep_supr_num=1",
    "train.patch=[32, 40, 32]",
    "train.epochs=4",
    "train.batch_size=2",
    "train.keep=best",
    "train.validate_every=1",
    "train.learning_rate=0.01",
    "train.ema_decay=0.5",
    "train.precision='32'",
    "predict.patch=[40, 56, 40]",
    "predict.precision='32'",
    "predict.flip_axes=[]",
    "data.folds=3",
    "data.test_fraction=0.3",
)

Invoke = Callable[..., Result]
Console = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Networks this small are faster on one thread, and far faster on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped config made tiny, as a file that names its data."""
    overrides = [*TINY, f"data.root={data / 'hippocampus'}"]
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(load_config(shipped("configs") / "hippocampus_mr.yaml", overrides).to_yaml())
    return path


@pytest.fixture(scope="session")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A whole run of the tiny config. Read only."""
    return train(config=tiny, out=tmp_path_factory.mktemp("runs") / "tiny", progress=False)


@pytest.fixture(scope="session")
def model(trained: Run) -> str:
    """The trained checkpoint, as ``--model`` takes it. Read only."""
    return str(trained.checkpoint.folder)


@pytest.fixture(scope="session")
def many_films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of 96 films, half of them odd. Read only."""
    return write_pictures(tmp_path_factory.mktemp("films"), cases=96)


@pytest.fixture(scope="session")
def knowing(many_films: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A classifier that knows which pictures are strange to it. Read only."""
    folder = tmp_path_factory.mktemp("run")
    overrides = [f"data.root={many_films}", f"calibrate.novelty={{false_flags: {FALSE_FLAGS}}}"]
    run = train(config=write_config(folder / "toy.yaml", *overrides), out=folder / "run", progress=False)
    assert run is not None
    return run


@pytest.fixture(scope="session")
def unknowing(many_films: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same without. Read only."""
    folder = tmp_path_factory.mktemp("plain")
    run = train(config=write_config(folder / "toy.yaml", f"data.root={many_films}"), out=folder / "run", progress=False)
    assert run is not None
    return run


@pytest.fixture
def study1(data: Path) -> Path:
    """A real DICOM study, MR. Read only."""
    return data / "hippocrop_study1"


@pytest.fixture
def study2(data: Path) -> Path:
    """A real DICOM study of another patient. Read only."""
    return data / "hippocrop_study2"


@pytest.fixture
def image(data: Path) -> Path:
    """A real NIfTI image. Read only."""
    return data / "hippocampus" / "imagesTr" / "hippocampus_001.nii.gz"


@pytest.fixture
def both_studies(study1: Path, study2: Path, tmp_path: Path) -> Path:
    """One flat folder with the files of two patients."""
    folder = tmp_path / "both"
    folder.mkdir()
    for study in (study1, study2):
        for file in study.iterdir():
            shutil.copy(file, folder / f"{study.name}_{file.name}")
    return folder


@pytest.fixture
def invoke() -> Invoke:
    """Call the command line in this process; what is no refusal of ours is raised."""

    def call(*arguments: object) -> Result:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


@pytest.fixture
def console() -> Console:
    """Call the installed console script."""

    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [str(CONSOLE_SCRIPT), *map(str, arguments)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)

    return call
