"""What Lightning costs over a loop written by hand, and bf16 beside fp32: one network, one order of the data, in turn.

    python benchmarks/bench_training.py [--epochs N] [--repeats R] [--cases N] [--device cpu|cuda]

Both fit the network of hippocampus_mr with its own loss, optimizer, schedule and clipping, on the same samples from
memory in the same order; Lightning goes through the Trainer that `imgpipe train` uses, without its files, the loop
through nothing. They end with the same weights, which is checked. Repeats alternate; medians are printed. Goal:
Lightning takes at most 5 % more than the loop.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import Checkpoint, LambdaCallback
from measuring import machine, versions
from torch.utils.data import DataLoader, Dataset

from imaging.config import SegmentConfig, load_config
from imaging.data import EpochSampler
from imaging.files import shipped
from imaging.tasks.schedule import adamw
from imaging.tasks.segment import SegmentTask
from imaging.transforms import IMAGE, LABEL
from pipelines.devices import World
from pipelines.fitting import trainer_for

PRECISIONS = ("32", "bf16-mixed")


class Samples(Dataset[dict[str, Any]]):
    """Patches of noise with a structure in them, made once: what is measured is the loop, not the data."""

    def __init__(self, config: SegmentConfig, cases: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self._image = torch.randn(cases, 1, *config.train.patch, generator=generator)
        self._label = (self._image > 1).to(torch.uint8)

    def __len__(self) -> int:
        return len(self._image)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        _, index = key
        return {IMAGE: self._image[index], LABEL: self._label[index], "index": index}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cases", type=int, default=16)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    for noisy in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    print(machine())
    print(versions(["torch", "lightning", "monai"]), f"{torch.get_num_threads()} threads, {given.device}")
    torch.use_deterministic_algorithms(True, warn_only=True)  # the loop's too, or the weights could not be compared
    seconds: dict[tuple[str, str], list[float]] = {}
    for repeat in range(given.repeats + 1):  # the first warms up
        weights: dict[tuple[str, str], torch.Tensor] = {}
        for precision in PRECISIONS:
            for way in ("loop", "lightning"):
                took, weights[way, precision] = run(way, precision, given)
                if repeat:
                    seconds.setdefault((way, precision), []).append(took)
        for precision in PRECISIONS:
            difference = float((weights["loop", precision] - weights["lightning", precision]).abs().max())
            assert difference < 1e-4, f"{precision}: the weights differ by {difference}"
    report(seconds, steps=given.epochs * (given.cases // config_for("32", given.epochs).train.batch_size))


def config_for(precision: str, epochs: int) -> SegmentConfig:
    """The shipped segmenter's config, without what Lightning alone would do: the moving average."""
    overrides = [f"train.precision={precision!r}", f"train.epochs={epochs}", "train.ema_decay=0", "train.loggers=[]"]
    config = load_config(shipped("configs") / "hippocampus_mr.yaml", overrides)
    assert isinstance(config, SegmentConfig)
    return config


def run(way: str, precision: str, given: argparse.Namespace) -> tuple[float, torch.Tensor]:
    """Seconds of the epochs, and the weights at their end in one row."""
    config = config_for(precision, given.epochs)
    seed_everything(0, verbose=False)
    task = SegmentTask(config, [str(number) for number in range(given.cases)])
    sampler = EpochSampler(given.cases, seed=0, shuffle=True, batch_size=config.train.batch_size)
    loader = DataLoader(Samples(config, given.cases), batch_size=config.train.batch_size, sampler=sampler)
    took = by_lightning(task, loader) if way == "lightning" else by_hand(task, loader, sampler, given.device)
    return took, torch.cat([parameter.detach().cpu().flatten() for parameter in task.network.parameters()])


def by_lightning(task: SegmentTask, loader: DataLoader[Any]) -> float:
    """The Trainer of a training, without a folder to write to."""
    with tempfile.TemporaryDirectory() as folder:
        trainer: Trainer = trainer_for(task, Path(folder), World(1, 1, None), [], progress=False)
        trainer.limit_val_batches = 0
        clock = Clock()
        # Lightning adds a writer of states where there is none.
        trainer.callbacks = [item for item in trainer.callbacks if not isinstance(item, Checkpoint)] + [clock.callback]
        trainer.fit(task, train_dataloaders=loader)
        return clock.seconds


class Clock:
    """The time from the start of the first epoch to the end of the last, as the loop by hand measures it."""

    def __init__(self) -> None:
        self._begun = self.seconds = 0.0
        self.callback = LambdaCallback(on_train_start=self._begin, on_train_end=self._end)

    def _begin(self, *_: object) -> None:
        self._begun = time.perf_counter()

    def _end(self, *_: object) -> None:
        synchronise()
        self.seconds = time.perf_counter() - self._begun


def by_hand(task: SegmentTask, loader: DataLoader[Any], sampler: EpochSampler, device: str) -> float:
    """The same steps, as one would write them: the same checks, nothing else."""
    settings = task.config.train
    task.to(device).train()
    made = adamw(task.network, settings, steps=settings.epochs * len(loader))
    optimizer, scheduler = made["optimizer"], made["lr_scheduler"]["scheduler"]
    synchronise()
    begun = time.perf_counter()
    for epoch in range(settings.epochs):
        sampler.set_epoch(epoch)
        for batch in loader:
            moved = {key: value.to(device) for key, value in batch.items()}
            with torch.autocast(device, torch.bfloat16, enabled=settings.precision == "bf16-mixed"):
                loss = task.loss(task(moved[IMAGE]), moved)
            assert torch.isfinite(loss)
            optimizer.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(task.network.parameters(), settings.gradient_clip)
            assert torch.isfinite(norm)
            optimizer.step()
            scheduler.step()
    synchronise()
    return time.perf_counter() - begun


def synchronise() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def report(seconds: dict[tuple[str, str], list[float]], *, steps: int) -> None:
    """Medians a step, Lightning's over the loop's, and bf16's beside fp32's."""
    middle = {key: statistics.median(values) / steps for key, values in seconds.items()}
    for precision in PRECISIONS:
        loop, lightning = middle["loop", precision], middle["lightning", precision]
        pairs = zip(seconds["lightning", precision], seconds["loop", precision], strict=True)
        ratio = statistics.median(one / other for one, other in pairs)
        print(f"{precision:11} loop {1e3 * loop:8.1f} ms a step, Lightning {1e3 * lightning:8.1f} ms: "
              f"{100 * (ratio - 1):+.1f} % (median of the pairs)")  # fmt: skip
    for way in ("loop", "lightning"):
        print(f"{way:11} fp32 / bf16: {middle[way, '32'] / middle[way, 'bf16-mixed']:.2f}")


if __name__ == "__main__":
    main()
