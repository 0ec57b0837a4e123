"""The verbs on the way to a checkpoint: plan, tune, train."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import click

from pipelines.cli.verb import (
    PATH,
    TOLD,
    as_json,
    case_teller,
    interval,
    print_json,
    progress,
    verb_of,
)


@click.command(short_help="Propose a config for a data set.")
@click.argument("dataset", type=PATH)
@click.option("--out", type=PATH, default=Path("config.yaml"), show_default=True, help="The config; a new file.")
@click.option(
    "--modality", default="", metavar="MR|CT|...", help="What the images are, where the data set does not tell it."
)
@click.option("--memory", "memory_gib", type=click.FloatRange(min=0, min_open=True), default=8.0, show_default=True,
              metavar="GIB", help="Memory that a training step may take.")  # fmt: skip
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=10_000,
    show_default=True,
    help="Steps of the training, which become epochs.",
)
@as_json
@verb_of
def plan(dataset: Path, out: Path, modality: str, memory_gib: float, steps: int, as_json: bool) -> int:
    """Look DATASET through and write a config that `imgpipe train` takes, with the reason of each choice beside it.

    DATASET is a folder with a dataset.json, that file, or a CSV. Nothing is written while something of it must be
    mended: all that is wrong is told at once.
    """
    with progress("Reading") as tell:
        from pipelines import plan as verb

        planned = verb.plan(dataset=dataset, out=out, modality=modality, memory_gib=memory_gib, steps=steps,
                            on_case=case_teller(tell))  # fmt: skip
    status = 3 if planned.proposal is None else 0
    if as_json:
        proposal = planned.proposal
        document = {
            "dataset": planned.survey.as_dict(),
            "out": str(out) if proposal else None,
            "config": proposal.as_dict() if proposal else None,
            "reasons": {choice.key: choice.why for choice in proposal.choices if choice.why} if proposal else None,
        }
        print_json({**document, "exit_status": status})
        return status
    from pipelines.tables import print_dataset

    print_dataset(planned.survey.as_dict())
    click.echo(f"config: {out}" if planned.proposal else "no config was written")
    return status


@click.command(short_help="Train a network and publish a checkpoint.")
@click.argument("config", type=PATH)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--fold", type=int, help="Which fold validates, from 0; overrides data.fold.")
@click.option("--folds", type=click.IntRange(min=2), metavar="N", help="Cross-validate: train N networks, each "
              "measured on the part of the patients that it has not seen; overrides data.folds.")  # fmt: skip
@click.option("--publish", "form", type=click.Choice(["ensemble", "single"]), help="With --folds: the mean of the N "
              "networks, which is the default, or the first fold's network alone.")  # fmt: skip
@click.option("--resume", is_flag=True, help="Continue the run in --out from its last state.")
@click.option("--devices", type=click.IntRange(min=1), default=1, show_default=True,
              help="GPUs, or processes on the CPU, of each machine; they share each batch.")  # fmt: skip
@click.option("--nodes", type=click.IntRange(min=1), default=1, show_default=True,
              help="Machines; start imgpipe on them with torchrun or srun.")  # fmt: skip
@click.option("--precision", type=click.Choice(["32", "bf16-mixed", "16-mixed"]), help="Overrides train.precision.")
@click.option("--state-minutes", type=click.FloatRange(min=0), default=10, show_default=True,
              help="Minutes between two states within an epoch; 0: after each step.")  # fmt: skip
@click.option(
    "--out", type=PATH, help="The run folder; by default runs/<name>_fold<fold>, with --folds runs/<name>_<N>folds."
)
@as_json
@verb_of
def train(
    config: Path,
    overrides: tuple[str, ...],
    fold: int | None,
    folds: int | None,
    form: Literal["ensemble", "single"] | None,
    resume: bool,
    devices: int,
    nodes: int,
    precision: str | None,
    state_minutes: float,
    out: Path | None,
    as_json: bool,
) -> int:
    """Train the network of CONFIG and publish a checkpoint.

    CONFIG is a YAML file or the name of a shipped one; KEY=VALUE overrides one of its keys, as in data.root=PATH or
    train.epochs=20. The run folder holds the resolved config, the split, versions, log, states and the checkpoint with
    its metrics.
    """
    from imaging.errors import ConfigInvalid, DevicesInvalid

    if fold is not None and folds is not None:
        raise ConfigInvalid("--fold", seen="given together with --folds", expected="one of them was expected",
                            remedy="--folds trains every fold, --fold one of them")  # fmt: skip
    if folds is not None and nodes != 1:
        raise DevicesInvalid("--nodes", seen="given together with --folds", expected="one machine was expected",
                             remedy="Train each fold by itself with --fold")  # fmt: skip
    if form is not None and folds is None:
        raise ConfigInvalid("--publish", seen="given without --folds", remedy="Leave it out, or add --folds N")
    if folds is not None:
        return _cross_validate(config=config, overrides=overrides, folds=folds, form=form or "ensemble",
                               resume=resume, devices=devices, precision=precision, state_minutes=state_minutes,
                               out=out, as_json=as_json)  # fmt: skip
    from imaging.config import find_config, load_any

    if load_any(find_config(config), overrides).task == "fuse":
        given = {"--resume": resume, "--devices": devices != 1, "--nodes": nodes != 1, "--precision": precision}
        return _fuse(config, overrides, fold, out, [name for name, there in given.items() if there], as_json)
    from pipelines import train as verb

    run = verb.train(
        config=config,
        overrides=overrides,
        fold=fold,
        resume=resume,
        devices=devices,
        nodes=nodes,
        precision=precision,
        out=out,
        state_minutes=state_minutes,
        progress=sys.stderr.isatty(),
    )
    if run is None:
        return 0  # the first rank tells
    return _tell_run(run.folder, run.checkpoint.folder, run.checkpoint.metrics, _tell, as_json=as_json)


def _tell_run(
    folder: Path, checkpoint: Path, metrics: dict[str, Any], tell: Callable[..., None], *, as_json: bool
) -> int:
    """What a training left behind; `tell` is given a side and its figures."""
    if as_json:
        folders = {"run": str(folder), "checkpoint": str(checkpoint)}
        print_json({**folders, "metrics": metrics, "exit_status": 0})
        return 0
    for side in ("validation", "test"):
        tell(side, metrics.get(side, {}))
    click.echo(f"checkpoint: {checkpoint}")
    return 0


def _fuse(
    config: Path, overrides: tuple[str, ...], fold: int | None, out: Path | None, given: list[str], as_json: bool
) -> int:
    """The part of `train` that ``task: fuse`` asks for."""
    from imaging.errors import ConfigInvalid
    from pipelines import fusing as verb

    if given:
        raise ConfigInvalid(given[0], seen="given for a fusion, which is trained in seconds", remedy="Leave it out")
    run = verb.train_fusion(config=config, overrides=overrides, fold=fold, out=out)
    return _tell_run(run.folder, run.checkpoint.folder, run.checkpoint.metrics, _tell_fused, as_json=as_json)


def _tell_fused(side: str, measured: dict[str, Any]) -> None:
    """The figures of one side's cases, a line a set of parts."""
    for pattern, found in measured.get("patterns", {}).items():
        told = ", ".join(f"{TOLD[key]} {interval(found['scores'][key])}" for key in TOLD)
        undecided = f"indeterminate {interval(found['indeterminate'])}"
        click.echo(f"{side}, {pattern}: {told}, {undecided} over {found['cases']} case(s)")


def _cross_validate(*, as_json: bool, **options: Any) -> int:
    """The part of `train` that `--folds` asks for."""
    from pipelines import folds as verb

    found = verb.cross_validate(**options, progress=sys.stderr.isatty())
    if as_json:
        folders = {"run": str(found.folder), "checkpoint": str(found.checkpoint.folder)}
        print_json({**folders, "metrics": found.metrics, "exit_status": 0})
        return 0
    measured = found.metrics["cross_validation"]
    _tell("cross-validated", measured)
    _tell("test", found.checkpoint.metrics.get("test", {}))
    for score, by_name in measured["over_folds"].items():
        for name, over in by_name.items():
            if score == "dice" or name == "auc":
                told = (name, "Dice") if score == "dice" else (score, "AUC")
                click.echo(f"{told[1]} of {told[0]} over folds: {over['mean']} (standard deviation {over['sd']})")
    click.echo(f"result: {found.folder / verb.RESULT}")
    click.echo(f"checkpoint: {found.checkpoint.folder}")
    return 0


def _tell(side: str, measured: dict[str, Any]) -> None:
    """The figures of one side's cases, a line each."""
    for name, value in measured.get("dice", {}).items():
        click.echo(f"{side} Dice of {name}: {interval(value)} over {measured['cases']} case(s)")
        if "hd95_mm" in measured:
            click.echo(f"{side} HD95 of {name}: {interval(measured['hd95_mm'][name])} mm")
    for name, found in measured.get("spans", {}).items():
        click.echo(f"{side}, mentions of {name}: F1 {interval(found['f1'])} over {measured['sentences']} sentence(s)")
    for name, figures in measured.get("scores", {}).items():
        told = ", ".join(f"{TOLD[key]} {interval(figures[key])}" for key in TOLD)
        click.echo(f"{side}, {name}: {told} over {measured['cases']} case(s)")


@click.command(short_help="Search the values of some of a config's keys.")
@click.argument("config", type=PATH)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--trials",
    type=click.IntRange(min=1),
    required=True,
    help="How many trials there are in the end, earlier ones of a resumed search included.",
)
@click.option("--out", type=PATH, help="The search's folder; by default runs/<name>_tune.")
@click.option("--resume", is_flag=True, help="Go on with the search in --out.")
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Trials that are trained at a time, each in a process.",
)
@as_json
@verb_of
def tune(
    config: Path, overrides: tuple[str, ...], trials: int, out: Path | None, resume: bool, jobs: int, as_json: bool
) -> int:
    """Try values of the keys that CONFIG's section tune names, and write the config that does best on validation.

    The test cases take no part. The folder holds best.yaml, which `imgpipe train` takes, trials.csv with a row a trial,
    and study.db, from which --resume goes on.
    """
    from pipelines import tune as verb

    tuned = verb.tune(config=config, overrides=overrides, trials=trials, out=out, resume=resume, jobs=jobs)
    best = tuned.folder / verb.BEST
    if as_json:
        every = [asdict(trial) for trial in tuned.trials]
        files = {"folder": str(tuned.folder), "best_config": str(best)}
        print_json({**files, "monitor": tuned.monitor, "best": asdict(tuned.best), "trials": every, "exit_status": 0})
        return 0
    from pipelines.tables import print_trials

    print_trials(tuned)
    click.echo(f"best config: {best}")
    return 0
