"""A run that is killed or stopped continues as if it had not been: the same weights, figures and log, bit for bit."""

from __future__ import annotations

import csv
import io
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from classified import write_config, write_pictures
from killed import Moment, train_until_killed
from safetensors.torch import load_file

from imaging.config import ClassifyConfig, load_config
from imaging.errors import CaseChanged, DataWorkerDied, OutputNotWritable, StateCorrupt, TrainingDiverged
from imaging.files import PARTIAL
from imaging.samples import Sample
from imaging.tasks.classify import ClassifyTask
from pipelines.run_folder import identity
from pipelines.sides import deal, list_for
from pipelines.states import BEST, LAST, STATES, LastState, read_state
from pipelines.train import Run, publish, train

CONSOLE_SCRIPT = Path(sys.executable).parent / "imgpipe"

EPOCHS = 3
# Four batches an epoch, chance in the network, and a moving average of the weights.
CLASSIFIER = (
    "train.batch_size=4",
    "train.learning_rate=0.1",
    "network.options.dropout_prob=0.3",
    "train.ema_decay=0.8",
)
SEGMENTER = ("train.batch_size=1", "network.options.dropout=0.2", "train.ema_decay=0.8", "train.patch=[16, 16, 16]",
             "train.patches_per_case=2")  # fmt: skip


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier's config."""
    folder = tmp_path_factory.mktemp("films")
    return write_config(
        folder / "toy.yaml", f"data.root={write_pictures(folder)}", f"train.epochs={EPOCHS}", *CLASSIFIER
    )


@pytest.fixture(scope="module")
def segmenter(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A segmenter's config; what decides is validated in every second epoch alone."""
    path = tmp_path_factory.mktemp("segmenter") / "tiny.yaml"
    path.write_text(load_config(tiny, [f"train.epochs={EPOCHS}", "train.validate_every=2", *SEGMENTER]).to_yaml())
    return path


@pytest.fixture(scope="module")
def whole(classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The classifier's run that nothing stopped. Read only."""
    return train(config=classifier, out=tmp_path_factory.mktemp("whole") / "run", progress=False)


def position(folder: Path, config: Path) -> tuple[int, int]:
    """The epoch, from 0, and the batches of it that the last state has seen."""
    state = read_state(folder / STATES / LAST, identity=identity(load_config(config)))
    return state["imgpipe"]["epoch"], state["imgpipe"]["batches"]


def logged(folder: Path) -> dict[tuple[str, int], set[str]]:
    """Every value but times that any part of the run logged, by column and epoch."""
    values: dict[tuple[str, int], set[str]] = {}
    for file in sorted(folder.glob("log/version_*/metrics.csv")):
        with file.open(newline="") as stream:
            for row in csv.DictReader(stream):
                for column in row.keys() - {"epoch"}:
                    if row[column] and not column.endswith("_share"):
                        values.setdefault((column, int(row["epoch"])), set()).add(row[column])
    return values


def assert_same(run: Run, expected: Run) -> None:
    """The same published weights, to the bit, the same figures, and the same log."""
    weights, wanted = (load_file(item.checkpoint.folder / "weights.safetensors") for item in (run, expected))
    assert weights.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(weights[name], wanted[name])] == []
    assert run.checkpoint.metrics == expected.checkpoint.metrics
    assert logged(run.folder) == logged(expected.folder)


# ---------------------------------------------------------------------------------------------------------------- kill


@pytest.mark.parametrize(
    ("moment", "number", "continues_at"),
    [
        ("step", 7, (1, 2)),  # in the third batch of the second epoch
        ("step", 1, (0, 0)),
        ("step", 9, (2, 0)),  # at once after an epoch's end
        ("validation", 2, (1, 3)),  # the validation of the second epoch; 18 cases are one batch
        ("writing", 4, (0, 2)),
        ("writing", 6, (0, 3)),  # the last state at the end of the first epoch, after the best one
    ],
)
def test_killed_run_continues_as_if_it_had_not_been(
    classifier: Path, whole: Run, tmp_path: Path, moment: Moment, number: int, continues_at: tuple[int, int]
) -> None:
    folder = tmp_path / "run"
    train_until_killed(moment, number, config=classifier, out=folder, state_minutes=0)
    assert position(folder, classifier) == continues_at
    assert bool([*folder.rglob(f"*{PARTIAL}")]) == (moment == "writing")
    run = train(config=classifier, out=folder, resume=True, progress=False)
    assert_same(run, whole)
    assert not [*folder.rglob(f"*{PARTIAL}")]


def test_killed_segmenter_continues_as_if_it_had_not_been(segmenter: Path, tmp_path: Path) -> None:
    expected = train(config=segmenter, out=tmp_path / "whole", progress=False)
    train_until_killed("step", 11, config=segmenter, out=tmp_path / "run", state_minutes=0)
    assert position(tmp_path / "run", segmenter) == (1, 2)
    assert_same(train(config=segmenter, out=tmp_path / "run", resume=True, progress=False), expected)
    with (tmp_path / "run" / "log" / "version_1" / "metrics.csv").open(newline="") as stream:
        shares = [float(row["compute_share"]) for row in csv.DictReader(stream) if row["compute_share"]]
    assert all(0.01 < share < 1 for share in shares), "of the epoch's time since it was continued"


def test_run_folder_may_be_moved_and_its_best_epoch_is_still_known(
    classifier: Path, whole: Run, tmp_path: Path
) -> None:
    """Lightning forgets the best score so far where the folder has another name; a worse epoch would replace it."""
    best = whole.checkpoint.metrics["training"]["best_epoch"]
    assert best < EPOCHS, "else the test shows nothing"
    train_until_killed("step", 9, config=classifier, out=tmp_path / "run")
    folder = (tmp_path / "run").rename(tmp_path / "moved")
    assert_same(train(config=classifier, out=folder, resume=True, progress=False), whole)


def test_run_continues_from_its_best_state_too(classifier: Path, whole: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole.folder / STATES, folder / STATES)
    for name in ("config.yaml", "split.json", "versions.json", "data.json"):
        shutil.copy(whole.folder / name, folder)
    shutil.copy(folder / STATES / BEST, folder / STATES / LAST)  # as `state_corrupt` tells to
    assert position(folder, classifier) == (whole.checkpoint.metrics["training"]["best_epoch"], 0)
    run = train(config=classifier, out=folder, resume=True, progress=False)
    weights, wanted = (load_file(item.checkpoint.folder / "weights.safetensors") for item in (run, whole))
    assert [name for name in wanted if not torch.equal(weights[name], wanted[name])] == []
    assert run.checkpoint.metrics == whole.checkpoint.metrics


# ---------------------------------------------------------------------------------------------------------------- stop


@pytest.mark.long
@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_run_that_is_told_to_stop_leaves_a_state(
    classifier: Path, whole: Run, tmp_path: Path, signum: signal.Signals, status: int
) -> None:
    folder = tmp_path / "run"
    command = [str(CONSOLE_SCRIPT), "train", str(classifier), "--out", str(folder)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while process.poll() is None and not (folder / STATES / LAST).is_file():
        time.sleep(0.01)
    process.send_signal(signum)
    _, told = process.communicate(timeout=120)
    assert process.returncode == status, told
    assert "--resume" in told
    assert not (folder / "checkpoint").exists()
    assert_same(train(config=classifier, out=folder, resume=True, progress=False), whole)


def test_signal_stops_after_the_batch_at_hand(classifier: Path, whole: Run, tmp_path: Path) -> None:
    step = ClassifyTask.training_step
    steps: list[int] = []

    def signalled(self: ClassifyTask, batch: Sample, batch_idx: int) -> torch.Tensor:
        steps.append(batch_idx)
        if len(steps) == 6:
            signal.raise_signal(signal.SIGTERM)
        return step(self, batch, batch_idx)

    handler = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClassifyTask, "training_step", signalled)
        with pytest.raises(SystemExit) as caught:
            train(config=classifier, out=tmp_path / "run", progress=False)
    assert caught.value.code == 128 + signal.SIGTERM
    assert len(steps) == 6
    assert signal.getsignal(signal.SIGTERM) is handler
    assert position(tmp_path / "run", classifier) == (1, 2)
    assert_same(train(config=classifier, out=tmp_path / "run", resume=True, progress=False), whole)


@pytest.mark.parametrize(
    ("where", "number", "signals", "stays_at"),
    [
        ("training_step", 6, 2, (1, 0)),  # whoever asks twice is not kept waiting for the batch
        ("training_step", 4, 1, (0, 0)),  # the last batch of an epoch: in its validation
        ("validation_step", 2, 1, (1, 0)),
        ("on_validation_epoch_end", 3, 1, (3, 0)),  # in the last one, when all is trained and nothing published
    ],
)
def test_signal_keeps_the_state_before_where_there_is_none_to_write(
    classifier: Path, whole: Run, tmp_path: Path, where: str, number: int, signals: int, stays_at: tuple[int, int]
) -> None:
    original = getattr(ClassifyTask, where)
    calls = 0

    def signalled(self: ClassifyTask, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        for _ in range(signals if calls == number else 0):
            signal.raise_signal(signal.SIGINT)
        return original(self, *arguments)

    folder = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClassifyTask, where, signalled)
        with pytest.raises(KeyboardInterrupt):
            train(config=classifier, out=folder, progress=False)
    assert not (folder / "checkpoint").exists()
    assert position(folder, classifier) == stays_at
    assert_same(train(config=classifier, out=folder, resume=True, progress=False), whole)


def test_ranks_do_not_ask_each_other_within_a_validation(tmp_path: Path) -> None:
    """They validate different numbers of cases: who asks once more than the others waits for ever."""
    trainer = MagicMock(world_size=2)
    LastState(tmp_path, "", minutes=1).on_validation_batch_end(trainer, MagicMock(), None, None, 0)
    trainer.strategy.broadcast.assert_not_called()


def test_run_that_ended_early_does_not_go_on(classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Lightning's early stopping does; the wish to stop is no part of its states."""
    scored = ClassifyTask.on_validation_epoch_end

    def enough(self: ClassifyTask) -> None:
        scored(self)
        self.trainer.should_stop = self.current_epoch == 1

    with monkeypatch.context() as patch:
        patch.setattr(ClassifyTask, "on_validation_epoch_end", enough)
        ended = train(config=classifier, out=tmp_path / "run", progress=False)
    assert position(tmp_path / "run", classifier) == (2, 0)
    monkeypatch.setattr(ClassifyTask, "training_step", at_step(1, pytest.fail))
    assert_same(train(config=classifier, out=tmp_path / "run", resume=True, progress=False), ended)


# ------------------------------------------------------------------------------------------------------- damaged states


class Bomb:
    """What runs a command where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._mark,)


def flipped(content: bytes) -> bytes:
    """With one bit of a tensor changed."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        tensor = archive.read(max(archive.infolist(), key=lambda part: "/data/" in part.filename and part.file_size))
    assert tensor in content
    return content.replace(tensor, bytes([tensor[0] ^ 1]) + tensor[1:])


@pytest.mark.parametrize(
    "damage",
    [
        lambda content, mark: content[:-100],
        lambda content, mark: content[:1000],
        lambda content, mark: b"",
        lambda content, mark: b"garbage" * 1000,
        lambda content, mark: flipped(content),
        lambda content, mark: saved({"state_dict": {}}),
        lambda content, mark: saved([1, 2]),
        lambda content, mark: saved({**torch.load(io.BytesIO(content)), "more": Bomb(mark)}),
        lambda content, mark: pickle.dumps(Bomb(mark)),
        lambda content, mark: saved({**torch.load(io.BytesIO(content)), "imgpipe": {"identity": "0" * 64}}),
    ],
    ids=["cut", "cut_short", "empty", "garbage", "one_bit", "lacks", "list", "bomb", "bare_bomb", "other_run"],
)
def test_damaged_state_is_named_and_nothing_in_it_runs(
    classifier: Path, whole: Run, tmp_path: Path, damage: Callable[[bytes, Path], bytes]
) -> None:
    folder = shutil.copytree(whole.folder, tmp_path / "run")
    last, mark = folder / STATES / LAST, tmp_path / "exploded"
    last.write_bytes(damage(last.read_bytes(), mark))
    with pytest.raises(StateCorrupt, match="Copy state/best"):
        train(config=classifier, out=folder, resume=True, progress=False)
    assert not mark.exists()


def test_run_is_known_by_what_decides_its_steps(classifier: Path) -> None:
    here = identity(load_config(classifier))
    for same in ("data.workers=3", "data.root=/elsewhere", "train.keep=last", "data.memory_gib=1"):
        assert identity(load_config(classifier, [same])) == here
    assert identity(load_config(classifier, ["train.seed=9"])) != here
    content = load_config(classifier).model_dump(mode="json")
    later = [key for key in ("keep", "loss") if content["train"].pop(key, None) is not None]
    assert later, "a key that joined later, as a config of an earlier version lacks it"
    assert identity(ClassifyConfig.model_validate(content)) == here


def test_state_of_an_earlier_version_is_published_and_not_continued(
    classifier: Path, whole: Run, tmp_path: Path
) -> None:
    folder = shutil.copytree(whole.folder, tmp_path / "run")
    for name in (LAST, BEST):
        state = torch.load(folder / STATES / name, weights_only=True)
        del state["imgpipe"]
        torch.save(state, folder / STATES / name)
    with pytest.raises(StateCorrupt, match="earlier version"):
        train(config=classifier, out=folder, resume=True, progress=False)
    published = publish(deal(load_config(classifier), list_for(load_config(classifier))), folder)
    assert published.weights_sha256 == whole.checkpoint.weights_sha256


def saved(content: Any) -> bytes:
    """As torch writes it."""
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


# ------------------------------------------------------------------------------------------------------------ full disk


def test_full_disk_leaves_the_state_before(classifier: Path, whole: Run, tmp_path: Path) -> None:
    """As long as no file may grow beyond a limit, states cannot be written: the kernel says so as of a full disk."""
    folder = tmp_path / "run"
    train_until_killed("step", 7, config=classifier, out=folder, state_minutes=0)
    before = (folder / STATES / LAST).read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with pytest.raises(OutputNotWritable, match="--resume"):
            train(config=classifier, out=folder, resume=True, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (folder / STATES / LAST).read_bytes() == before
    assert not [*folder.rglob(f"*{PARTIAL}")]
    assert_same(train(config=classifier, out=folder, resume=True, progress=False), whole)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a small file system")
def test_full_file_system_leaves_the_state_before(classifier: Path, whole: Run, tmp_path: Path) -> None:
    """The same on a file system that is really full; the log cannot be written there either."""
    folder, mount = tmp_path / "run", tmp_path / "mount"
    train_until_killed("step", 7, config=classifier, out=folder, state_minutes=0)
    mount.mkdir()
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) + 60_000
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", mount], check=False).returncode != 0:
        pytest.skip("no file system can be mounted here")
    try:
        shutil.copytree(folder, mount / "run")
        before = (mount / "run" / STATES / LAST).read_bytes()
        with pytest.raises(OutputNotWritable, match="No space left on device"):
            train(config=classifier, out=mount / "run", resume=True, progress=False)
        assert (mount / "run" / STATES / LAST).read_bytes() == before
        subprocess.run(["mount", "-o", "remount,size=100m", mount], check=True)
        assert_same(train(config=classifier, out=mount / "run", resume=True, progress=False), whole)
    finally:
        subprocess.run(["umount", mount], check=True)


# -------------------------------------------------------------------------------------------------- workers and sources


def at_step(number: int, happens: Callable[[], None]) -> Callable[..., torch.Tensor]:
    """A training step, before whose call of this number (from 1) something happens."""
    step = ClassifyTask.training_step
    calls = 0

    def counted(self: ClassifyTask, batch: Sample, batch_idx: int) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == number:
            happens()
        return step(self, batch, batch_idx)

    return counted


def kill_a_worker() -> None:
    """As the OOM killer does it."""
    os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
    time.sleep(1)  # the kernel tells PyTorch


def test_killed_worker_is_named_and_the_run_continues(
    classifier: Path, whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes make the batches, and the weights are those of one."""
    settings: dict[str, Any] = {"config": classifier, "out": tmp_path / "run", "progress": False, "state_minutes": 0}
    with monkeypatch.context() as patch:
        patch.setattr(ClassifyTask, "training_step", at_step(7, kill_a_worker))
        with pytest.raises(DataWorkerDied, match=r"process \d+: is killed by signal: Killed"):
            train(**settings, overrides=["data.workers=2"])
    assert position(tmp_path / "run", classifier) == (1, 2)
    assert_same(train(**settings, overrides=["data.workers=2"], resume=True), whole)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("vanishes", "told"), [(True, "is gone"), (False, "changed")])
def test_case_that_changes_in_the_midst_of_a_run_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, vanishes: bool, told: str
) -> None:
    films = write_pictures(tmp_path)
    overrides = (*CLASSIFIER, f"data.root={films}", "data.memory_gib=0", f"data.workers={workers}")
    config = write_config(tmp_path / "toy.yaml", *overrides)

    def change() -> None:
        for number, file in enumerate(sorted(tmp_path.glob("*.png"))):
            if vanishes:
                file.unlink()
            else:
                os.utime(file, (number, number))

    monkeypatch.setattr(ClassifyTask, "training_step", at_step(2, change))
    with pytest.raises(CaseChanged, match=rf"film\d+\.png: {told} \(case film\d+\)"):
        train(config=config, out=tmp_path / "run", progress=False)


# ------------------------------------------------------------------------------------------------------------------ NaN


def test_run_that_diverges_leaves_a_sound_state(classifier: Path, whole: Run, tmp_path: Path) -> None:
    loss = ClassifyTask.loss

    def poisoned(self: ClassifyTask, logits: torch.Tensor, batch: Sample) -> torch.Tensor:
        return loss(self, logits, batch) * (float("nan") if self.global_step == 6 else 1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClassifyTask, "loss", poisoned)
        with pytest.raises(TrainingDiverged, match=r"cases film\d{3}"):
            train(config=classifier, out=tmp_path / "run", progress=False, state_minutes=0)
    assert position(tmp_path / "run", classifier) == (1, 2)
    assert_same(train(config=classifier, out=tmp_path / "run", resume=True, progress=False), whole)


# ---------------------------------------------------------------------------------------------------------------- long


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 8))])
def test_run_killed_again_and_again_ends_as_if_it_had_not_been(
    classifier: Path, whole: Run, tmp_path: Path, seed: int
) -> None:
    """Each part of the run is killed at a random moment of a random kind."""
    generator = random.Random(seed)
    settings: dict[str, Any] = {"config": classifier, "out": tmp_path / "run", "state_minutes": 0}
    for _ in range(3):
        moment = generator.choice(("step", "validation", "writing"))
        resume = (tmp_path / "run" / STATES / LAST).is_file()
        if not resume:
            shutil.rmtree(tmp_path / "run", ignore_errors=True)
        if not train_until_killed(moment, generator.randint(1, 5), resume=resume, or_ends=True, **settings):
            break
    resume = (tmp_path / "run" / STATES / LAST).is_file()
    if not resume:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
    run = train(**settings, resume=resume, progress=False)
    weights, wanted = (load_file(item.checkpoint.folder / "weights.safetensors") for item in (run, whole))
    assert [name for name in wanted if not torch.equal(weights[name], wanted[name])] == []
    assert run.checkpoint.metrics == whole.checkpoint.metrics
