"""Two processes train what one does, the first alone writes, and whatever ends one of them ends the run by name."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import ranks
import torch
from classified import write_config, write_pictures
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.fabric.utilities.rank_zero import rank_zero_only as lightning_rank_zero_only
from lightning_utilities.core.rank_zero import rank_zero_only
from safetensors.torch import load_file

from imaging.checkpoint import open_checkpoint
from imaging.config import load_config
from imaging.errors import ConfigInvalid, DevicesInvalid, NothingToResume, ProcessLost, TooFewCases, TrainingDiverged
from imaging.tasks.classify import ClassifyTask
from pipelines.devices import LogSettings, World, check_precision, launch, open_world
from pipelines.fitting import trainer_for
from pipelines.sides import deal, list_for
from pipelines.train import run, train

# Of each process: which files it opened to write, and which rank it was. Found by every new interpreter.
WITNESS = """
import os, sys

def witness(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
        path = os.fsdecode(arguments[0])
        if os.path.abspath(path).startswith(os.environ["WITNESSED"]):
            line = os.environ.get("LOCAL_RANK", "none") + " " + path + "\\n"
            log = os.open(os.environ["WITNESS_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(log, line.encode())
            os.close(log)

sys.addaudithook(witness)
"""


def differences(one: Path, other: Path) -> torch.Tensor:
    """Of all weights of two runs, in one row.

    Where a gradient is nothing but rounding, AdamW makes a step of a noise's sign: single weights may differ by more.
    """
    weights, others = (load_file(folder / "checkpoint" / "weights.safetensors") for folder in (one, other))
    assert weights.keys() == others.keys()
    return torch.cat([(weights[name].float() - others[name].float()).abs().flatten() for name in weights])


def losses(folder: Path) -> list[float]:
    lines = (folder / "log" / "version_0" / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("train_loss")
    return [float(line.split(",")[column]) for line in lines[1:] if line.split(",")[column]]


@pytest.fixture(scope="module", autouse=True)
def no_gpu() -> Iterator[None]:
    """The processes are those of a CPU, wherever the tests run: a machine with one GPU would refuse two of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setattr(torch.cuda, "device_count", lambda: 0)
        yield


# ------------------------------------------------------------------------------------------------------- as one process


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy config whose network has batch norms, with its pictures."""
    folder = tmp_path_factory.mktemp("films")
    return write_config(folder / "toy.yaml", f"data.root={write_pictures(folder)}", "train.class_weights=balanced",
                        "train.epochs=2", "predict.batch_size=5")  # fmt: skip


@pytest.fixture(scope="module")
def shared(films: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run of two processes by the command line, and what they opened to write."""
    folder = tmp_path_factory.mktemp("shared")
    (folder / "sitecustomize.py").write_text(WITNESS)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]),
        "WITNESSED": str(folder / "run"),
        "WITNESS_LOG": str(folder / "opened"),
    }
    command = [str(Path(sys.executable).parent / "imgpipe"), "train", str(films), "--devices", "2", "--json",
               "--out", str(folder / "run")]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=600)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["checkpoint"] == str(folder / "run" / "checkpoint")
    return folder / "run", folder / "opened"


@pytest.fixture(scope="module")
def alone(films: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    train(config=films, out=folder, progress=False)
    return folder


def test_two_processes_give_the_classifier_of_one(shared: tuple[Path, Path], alone: Path) -> None:
    folder, _ = shared
    difference = differences(folder, alone)
    assert difference.max() < 5e-3, "a quarter of one step"
    assert difference.mean() < 1e-5
    assert losses(folder) == pytest.approx(losses(alone), rel=1e-4)
    measured, expected = (open_checkpoint(f / "checkpoint").metrics for f in (folder, alone))
    assert measured["training"]["names"] == expected["training"]["names"]


def test_first_rank_alone_writes_and_each_file_once(shared: tuple[Path, Path]) -> None:
    folder, opened = shared
    lines = [line.split(" ", 1) for line in opened.read_text().splitlines()]
    assert {rank for rank, _ in lines} == {"0"}
    written = Counter(Path(path).relative_to(folder).as_posix() for _, path in lines)
    for name in ("config.yaml", "split.json", "versions.json", "metrics.json", "checkpoint/metrics.json"):
        assert sum(count for path, count in written.items() if path.startswith(name)) <= 1, name
    assert (folder / "checkpoint" / "SHA256SUMS").is_file()


def test_two_processes_give_the_segmenter_of_one(tiny: Path, tmp_path: Path) -> None:
    """Dice over a batch is no mean over cases, deep supervision has several, and four cases are validated by two."""
    overrides = ["network.options.filters=[4, 8, 8]", "train.patch=[16, 16, 16]", "train.epochs=2", "data.folds=2",
                 "data.test_fraction=0"]  # fmt: skip
    one, two = (
        train(config=tiny, overrides=overrides, devices=n, out=tmp_path / str(n), progress=False) for n in (1, 2)
    )
    difference = differences(tmp_path / "1", tmp_path / "2")
    assert difference.max() < 5e-3 and difference.mean() < 1e-5
    assert losses(tmp_path / "2") == pytest.approx(losses(tmp_path / "1"), rel=1e-4)
    for name, dice in one.checkpoint.metrics["validation"]["dice"].items():
        assert two.checkpoint.metrics["validation"]["dice"][name]["mean"] == pytest.approx(dice["mean"], abs=1e-2)


def of_node(number: int, port: int, launcher: str, command: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """How one of two machines starts its one process, by torchrun or as SLURM's srun would; with its environment."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "MASTER"))}
    if launcher == "torchrun":
        starter = [str(Path(sys.executable).parent / "torchrun"), "--nnodes", "2", "--nproc-per-node", "1",
                   "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--no-python"]  # fmt: skip
        return [*starter, *command], environment
    slurm = {
        "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "2", "SLURM_PROCID": str(number),
        "SLURM_LOCALID": "0", "SLURM_NODEID": str(number), "SLURM_STEP_ID": "0", "SLURM_JOB_ID": "7",
        "SLURM_JOB_NAME": "job", "SLURM_NODELIST": "127.0.0.1,127.0.0.2", "MASTER_PORT": str(port),
    }  # fmt: skip
    return list(command), environment | slurm


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["torchrun", "srun"])
def test_two_machines_give_the_classifier_of_one(launcher: str, alone: Path, films: Path, tmp_path: Path) -> None:
    """Each is told that it is one of two; they meet at a port. The second one does not see the run folder."""
    port, calls, logs = find_free_network_port(), [], []
    for number in range(2):
        command = [str(Path(sys.executable).parent / "imgpipe"), "train", str(films), "--devices", "1", "--nodes", "2",
                   "--out", str(tmp_path / f"machine{number}" / "run")]  # fmt: skip
        started, environment = of_node(number, port, launcher, command)
        logs.append((tmp_path / f"log{number}").open("w"))
        calls.append(subprocess.Popen(started, env=environment, stdout=logs[-1], stderr=logs[-1]))
    try:
        statuses = [call.wait(600) for call in calls]
    finally:
        for call, log in zip(calls, logs, strict=True):
            call.kill()
            log.close()
    assert statuses == [0, 0], [Path(log.name).read_text() for log in logs]
    # Which of the two is the first is torchrun's to say.
    (folder,) = tmp_path.glob("machine*/run")
    difference = differences(folder, alone)
    assert difference.max() < 5e-3 and difference.mean() < 1e-5
    assert losses(folder) == pytest.approx(losses(alone), rel=1e-4)


# --------------------------------------------------------------------------------------------------------- what ends it


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment in which nobody has started several processes."""
    for key in os.environ:
        if key.startswith(("SLURM", "TORCHELASTIC")) or key in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "NODE_RANK"):
            monkeypatch.delenv(key)
    # Lightning keeps the rank of the last Trainer for the whole process.
    for keeper in (rank_zero_only, lightning_rank_zero_only):
        monkeypatch.setattr(keeper, "rank", 0, raising=False)
    return monkeypatch


def test_an_error_of_one_process_is_the_error_of_all(nobody: object, tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(TrainingDiverged) as caught:
        launch(ranks.refuse_on_rank_one, World(2, 1, None), {"folder": tmp_path})
    assert (caught.value.path, caught.value.seen) == (tmp_path / "case", "nothing good")
    assert time.monotonic() - start < 100, "the other process does not wait for it"


def test_a_process_that_is_killed_ends_the_run(nobody: object) -> None:
    with pytest.raises(ProcessLost, match="SIGKILL") as caught:
        launch(ranks.die_on_rank_one, World(2, 1, None), {})
    assert caught.value.subject == "process 1"


def test_divergence_names_the_cases_of_all_ranks(nobody: object, films: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingDiverged) as caught:
        train(config=films, overrides=["train.learning_rate=1.0e+30"], devices=2, out=tmp_path / "run", progress=False)
    assert caught.value.subject.count("film") == 8
    assert not (tmp_path / "run" / "checkpoint").exists()


# ------------------------------------------------------------------------------------------------------ who starts them


def world_under(monkeypatch: pytest.MonkeyPatch, **environment: str) -> World:
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    return open_world(devices=2, nodes=2, batch_size=8)


TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "x", "RANK": "3", "LOCAL_RANK": "1", "GROUP_RANK": "1", "WORLD_SIZE": "4",
    "MASTER_ADDR": "node0", "MASTER_PORT": "29500",
}  # fmt: skip
SRUN = {
    "SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "2", "SLURM_PROCID": "3", "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1", "SLURM_STEP_ID": "0", "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "job", "SLURM_NODELIST": "n[0-1]",
}  # fmt: skip


@pytest.mark.parametrize(
    ("environment", "name"),
    [(TORCHRUN, "TorchElasticEnvironment"), (SRUN, "SLURMEnvironment")],
    ids=["torchrun", "srun"],
)
def test_trainer_takes_the_processes_that_are_there(
    nobody: pytest.MonkeyPatch, films: Path, tmp_path: Path, environment: dict[str, str], name: str
) -> None:
    world = world_under(nobody, **environment)
    assert world.complete and (world.size, world.rank) == (4, 3)
    trainer = trainer_for(ClassifyTask(load_config(films), ["a"], (1, 1)), tmp_path, world, [], progress=False)
    cluster = trainer.strategy.cluster_environment
    assert type(cluster).__name__ == name
    assert cluster.creates_processes_externally
    assert (trainer.num_nodes, trainer.num_devices, trainer.world_size) == (2, 2, 4)
    assert (cluster.node_rank(), cluster.local_rank()) == (1, 1)


def test_batch_script_without_srun_starts_its_own(nobody: pytest.MonkeyPatch) -> None:
    for key, value in SRUN.items():
        if key != "SLURM_STEP_ID":
            nobody.setenv(key, value)
    assert not open_world(devices=2, nodes=1, batch_size=8).complete


@pytest.mark.parametrize(
    ("settings", "environment", "told"),
    [
        ({"devices": 3}, {}, "8, to be shared by 3"),
        ({"devices": 2, "nodes": 2}, {}, "neither torchrun nor srun"),
        ({"devices": 2}, TORCHRUN, "4 were started"),
        ({"devices": 1}, SRUN, "4 were started"),
    ],
)
def test_devices_that_do_not_fit_are_refused(
    nobody: pytest.MonkeyPatch, settings: dict[str, int], environment: dict[str, str], told: str
) -> None:
    for key, value in environment.items():
        nobody.setenv(key, value)
    with pytest.raises(DevicesInvalid, match=told):
        open_world(**({"nodes": 1, "batch_size": 8} | settings))


def test_more_gpus_than_there_are_are_refused(nobody: pytest.MonkeyPatch) -> None:
    nobody.setattr(torch.cuda, "is_available", lambda: True)
    nobody.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(DevicesInvalid, match="1 GPU"):
        open_world(devices=2, nodes=1, batch_size=8)


def test_half_precision_on_a_cpu_is_refused_and_not_replaced(nobody: pytest.MonkeyPatch) -> None:
    nobody.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigInvalid, match="bf16-mixed"):
        check_precision("16-mixed")
    check_precision("bf16-mixed")


def test_a_device_without_a_case_is_refused(nobody: pytest.MonkeyPatch, films: Path, tmp_path: Path) -> None:
    nobody.setenv("LOCAL_RANK", "0")
    config = load_config(films, ["train.batch_size=32"])
    cases = deal(config, list_for(config))
    with pytest.raises(TooFewCases, match="18 cases for 32 devices"):
        run(cases, tmp_path / "run", devices=32, resume=False, progress=False, state_minutes=10)
    assert not (tmp_path / "run").exists()


def test_a_machine_that_does_not_see_the_state_is_told(nobody: pytest.MonkeyPatch, films: Path, tmp_path: Path) -> None:
    nobody.setenv("LOCAL_RANK", "0")
    nobody.setenv("NODE_RANK", "1")
    config = load_config(films)
    with pytest.raises(NothingToResume, match="elsewhere"):
        run(deal(config, list_for(config)), tmp_path / "elsewhere", nodes=2, resume=True, progress=False,
            state_minutes=10)  # fmt: skip


def test_another_process_logs_as_this_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which loggers tell how much is decided once, by the command line, and holds in every process."""
    chosen, plain = logging.getLogger("imaging.transfer"), logging.getLogger("imaging.data")
    monkeypatch.setattr(chosen, "level", logging.INFO)
    settings = LogSettings.of_this_process()
    assert plain.name not in settings.levels
    chosen.level = logging.ERROR
    settings.apply()
    assert chosen.level == logging.INFO
