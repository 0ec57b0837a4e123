"""The command line: `imgpipe VERB`, each verb a keyword-only Python function of the same name in a file of its own.

Invariant: stdout carries the result only (with `--json` one JSON document), stderr carries logs and progress; the exit
status is 0 all done, 1 a fault of ours, 2 wrong usage or config, 3 some input was refused. Nothing heavy is imported
before a verb needs it.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from imaging.dicom.stack import Policy
    from imaging.errors import ImagingError
    from pipelines.infer import Inferred

PATH = click.Path(path_type=Path)

with_policy = click.option(
    "--policy",
    type=click.Choice(["strict", "repair"]),
    default="repair",
    show_default=True,
    help="Refuse what would have to be changed to be a volume, or change what can be, and tell it.",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--verbose", "-v", is_flag=True, help="Log more, with tracebacks of our own faults.")
@click.version_option(package_name="imgpipe")
def main(verbose: bool) -> None:
    """From a folder of DICOM or NIfTI to a report that can be checked line by line.

    For research use, not for diagnosis.

    Exit status: 0 all done, 1 a fault of imgpipe, 2 wrong usage or config, 3 some input was refused (it says
    which, and why).
    """
    # A container or a service manager stops with SIGTERM: clean up as for Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    level = logging.DEBUG if verbose else logging.WARNING
    logging.basicConfig(stream=sys.stderr, level=level, format="%(levelname)s %(name)s: %(message)s")
    if not verbose:
        logging.getLogger("pipelines").setLevel(logging.INFO)
    for noisy in ("PIL", "monai", "fsspec", "pydicom", "highdicom"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def _verb(function: Callable[..., int | None]) -> Callable[..., None]:
    """Turn our errors and the returned status into the exit status, and with `--json` into the document."""

    @wraps(function)
    def run(**options: Any) -> None:
        from imaging.errors import ImagingError, UnexpectedFault

        try:
            status = function(**options)
        except ImagingError as error:
            sys.exit(_fail(error, options))
        except Exception as error:  # its text may quote header values, so only its kind is told
            logging.getLogger(__name__).debug("traceback", exc_info=True)
            sys.exit(_fail(UnexpectedFault(function.__name__, seen=type(error).__name__), options))
        sys.exit(status or 0)

    return run


def _fail(error: ImagingError, options: dict[str, Any]) -> int:
    """Tell an error that ended a verb; gives the exit status."""
    status = _status([error])
    click.echo(f"imgpipe: {error}", err=True)
    if options.get("as_json"):
        _print_json({"error": error.as_dict(), "exit_status": status})
    return status


def _status(problems: Sequence[ImagingError]) -> int:
    """Whose turn it is: ours before the user's before the data's; what is set aside by design is nobody's."""
    from imaging.errors import InternalFault, SetAside, WrongUsage

    if any(isinstance(problem, InternalFault) for problem in problems):
        return 1
    if any(isinstance(problem, WrongUsage) for problem in problems):
        return 2
    return 3 if any(not isinstance(problem, SetAside) for problem in problems) else 0


def _print_json(document: dict[str, Any]) -> None:
    click.echo(json.dumps(document, indent=1))


# --------------------------------------------------------------------------------------------------------------- infer


@main.command(short_help="Report on every study under some paths.")
@click.argument("paths", nargs=-1, required=True, type=PATH)
@click.option("--model", "models", multiple=True, metavar="NAME", help="A shipped checkpoint, or a folder. Repeatable.")
@click.option("--out", type=PATH, default=Path("out"), show_default=True, help="One folder a study appears in here.")
@click.option("--formats", metavar="LIST", help="Some of html,seg,nifti; by default what fits the input.")
@with_policy
@as_json
@_verb
def infer(
    paths: tuple[Path, ...],
    models: tuple[str, ...],
    out: Path,
    formats: str | None,
    policy: Policy,
    as_json: bool,
) -> int:
    """Report on every study under PATHS (folders of DICOM, NIfTI files, PNG pictures).

    Writes OUT/<StudyInstanceUID>/ with report.json, report.html and the mask as DICOM SEG; for a NIfTI or
    PNG file OUT/<file name>/, with the mask as NIfTI. Without --model each shipped checkpoint takes the series
    it was made for.
    """
    chosen = tuple(part.strip() for part in formats.split(",")) if formats else None
    with _progress("Starting") as tell:
        from pipelines import infer as verb

        def on_study(name: str, number: int, total: int) -> None:
            tell(f"Study {number + 1} of {total}: {name}")

        inferred = verb.infer(paths=paths, models=models, out=out, formats=chosen, policy=policy, on_study=on_study)
    problems = [*inferred.refused, *(problem for study in inferred.studies for problem in study.problems)]
    # A study of nothing but what is set aside was asked for, and has no findings.
    nothing = any(not (study.report and study.report.findings) for study in inferred.studies)
    status = _status(problems) or (3 if nothing else 0)
    if as_json:
        _print_json(_inferred_as_dict(inferred, status))
    else:
        _print_inferred(inferred)
    return status


def _inferred_as_dict(inferred: Inferred, status: int) -> dict[str, Any]:
    return {
        "studies": [
            {
                "name": study.name,
                "folder": str(study.folder) if study.folder else None,
                "report": study.report.model_dump(mode="json") if study.report else None,
                "problems": [problem.as_dict() for problem in study.problems],
            }
            for study in inferred.studies
        ],
        "refused": [error.as_dict() for error in inferred.refused],
        "exit_status": status,
    }


def _print_inferred(inferred: Inferred) -> None:
    from pipelines.tables import finding_line, repairs_of

    told = set()
    for study in inferred.studies:
        click.echo(f"Study {study.name}")
        for finding in study.report.findings if study.report else ():
            click.echo(f"  {finding_line(finding)}")
        for line in repairs_of(study.report) if study.report else ():
            click.echo(f"  {line}")
        if study.report and not study.report.findings:
            click.echo("  nothing was measured")
        for problem in study.problems:
            told.add(str(problem))
            click.echo(f"  {problem}")
        if study.folder:
            page = study.folder / "report.html"
            click.echo(f"  report: {(page if page.exists() else study.folder / 'report.json').resolve()}")
    for error in inferred.refused:
        if str(error) not in told:
            click.echo(str(error))


# --------------------------------------------------------------------------------------------------------------- train


@main.command(short_help="Train a network and publish a checkpoint.")
@click.argument("config", type=PATH)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--fold", type=int, help="Which fold validates; overrides data.fold.")
@click.option("--resume", is_flag=True, help="Continue the run in --out from its last state.")
@click.option("--devices", type=click.IntRange(min=1), default=1, show_default=True, help="Number of devices.")
@click.option("--precision", type=click.Choice(["32", "bf16-mixed", "16-mixed"]), help="Overrides train.precision.")
@click.option("--out", type=PATH, help="The run folder; by default runs/<name>_fold<fold>.")
@as_json
@_verb
def train(
    config: Path,
    overrides: tuple[str, ...],
    fold: int | None,
    resume: bool,
    devices: int,
    precision: str | None,
    out: Path | None,
    as_json: bool,
) -> int:
    """Train the network of CONFIG and publish a checkpoint.

    CONFIG is a YAML file or the name of a shipped one; KEY=VALUE overrides one of its keys, as in data.root=PATH or
    train.epochs=20. The run folder holds the resolved config, the split, versions, log, states and the checkpoint with
    its metrics.
    """
    from pipelines import train as verb

    run = verb.train(
        config=config,
        overrides=overrides,
        fold=fold,
        resume=resume,
        devices=devices,
        precision=precision,
        out=out,
        progress=sys.stderr.isatty(),
    )
    metrics = run.checkpoint.metrics
    if as_json:
        folders = {"run": str(run.folder), "checkpoint": str(run.checkpoint.folder)}
        _print_json({**folders, "metrics": metrics, "exit_status": 0})
        return 0
    for side in ("validation", "test"):
        for name, value in metrics.get(side, {}).get("dice", {}).items():
            click.echo(f"{side} Dice of {name}: {_interval(value)} over {metrics[side]['cases']} case(s)")
        for name, figures in metrics.get(side, {}).get("scores", {}).items():
            told = ", ".join(f"{_TOLD[key]} {_interval(figures[key])}" for key in _TOLD)
            click.echo(f"{side}, {name}: {told} over {metrics[side]['cases']} case(s)")
    click.echo(f"checkpoint: {run.checkpoint.folder}")
    return 0


_TOLD = {"auc": "AUC", "sensitivity": "sensitivity", "specificity": "specificity"}


def _interval(value: dict[str, float | None]) -> str:
    from imaging.interval import Interval

    return str(Interval(**value))


# ------------------------------------------------------------------------------------------------------------ evaluate


@main.command(short_help="Measure a checkpoint on cases with manual masks.")
@click.argument("checkpoint")
@click.option("--data", type=PATH, required=True, metavar="MANIFEST", help="A CSV, a dataset.json, or its folder.")
@click.option("--out", type=PATH, help="The result's folder; by default evaluation/<checkpoint>.")
@click.option("--tolerance", "tolerance_mm", type=click.FloatRange(min=0), metavar="MM",
              help="Of the surface Dice; by default the longest edge of the network's voxels.")  # fmt: skip
@as_json
@_verb
def evaluate(checkpoint: str, data: Path, out: Path | None, tolerance_mm: float | None, as_json: bool) -> int:
    """Measure CHECKPOINT (a shipped one's name, or a folder) on the cases of a manifest.

    Writes metrics.json with 95 % intervals over patients, predictions.csv with a row a case, and evaluation.html with
    the worst cases' pictures.
    """
    with _progress("Reading") as tell:
        from pipelines import evaluation as verb

        found = verb.evaluate(
            checkpoint=checkpoint, data=data, out=out, tolerance_mm=tolerance_mm, on_case=_case_teller(tell)
        )
    # A mask that does not fit its image is a config's fault in training; here it is the data's.
    status = 1 if _status(found.refused) == 1 else 3 if found.refused else 0
    if as_json:
        folder = str(found.folder) if found.folder else None
        _print_json({"folder": folder, "metrics": found.metrics, "exit_status": status})
        return status
    for score, title in verb.TITLES.items():
        for name, value in found.metrics.get(score, {}).items():
            click.echo(f"{title} of {name}: {_interval(value)} over {found.metrics['cases']} case(s)")
    if found.metrics["seen_in_training"]:
        click.echo(f"{len(found.metrics['seen_in_training'])} of the cases took part in the checkpoint's training")
    for error in found.refused:
        click.echo(str(error))
    click.echo(f"report: {(found.folder / verb.PAGE).resolve()}" if found.folder else "nothing was written")
    return status


# ------------------------------------------------------------------------------------------------------------- inspect


@main.command(short_help="Show what lies under some paths.")
@click.argument("paths", nargs=-1, required=True, type=PATH)
@click.option("--model", "models", multiple=True, metavar="NAME", help="Ask this checkpoint only. Repeatable.")
@with_policy
@as_json
@_verb
def inspect(paths: tuple[Path, ...], models: tuple[str, ...], policy: Policy, as_json: bool) -> int:
    """Show what lies under PATHS: studies, series, geometry, defects, and which checkpoint would take each series.

    A CSV or a dataset.json among PATHS is taken as the manifest of a data set to train on: every case is read, and all
    that is wrong with it is told at once.
    """
    with _progress("Reading") as tell:
        from pipelines import inspect as verb

        found = verb.inspect(paths=paths, models=models, policy=policy, on_case=_case_teller(tell))
    series = [item for study in found["studies"] for item in study["series"]] + found["nifti"] + found["pictures"]
    broken = any(dataset["problems"] for dataset in found["datasets"])
    lost = any(item["refusal"] and not item["set_aside"] for item in series)
    status = 3 if found["refused"] or broken or lost else 0
    if as_json:
        _print_json({**found, "exit_status": status})
    else:
        from pipelines.tables import print_inspection

        print_inspection(found)
    return status


# ---------------------------------------------------------------------------------------------------------------- plan


@main.command(short_help="Propose a config for a data set.")
@click.argument("dataset", type=PATH)
@click.option("--out", type=PATH, default=Path("config.yaml"), show_default=True, help="The config; a new file.")
@click.option("--modality", default="", metavar="MR|CT|...", help="Where the data set does not tell it.")
@click.option("--memory", "memory_gib", type=click.FloatRange(min=0, min_open=True), default=8.0, show_default=True,
              metavar="GIB", help="What a training step may take.")  # fmt: skip
@click.option("--steps", type=click.IntRange(min=1), default=10_000, show_default=True, help="Steps of the whole run.")
@as_json
@_verb
def plan(dataset: Path, out: Path, modality: str, memory_gib: float, steps: int, as_json: bool) -> int:
    """Look DATASET through and write a config that `imgpipe train` takes, with the reason of each choice beside it.

    DATASET is a folder with a dataset.json, that file, or a CSV. Nothing is written while something of it must be
    mended: all that is wrong is told at once.
    """
    with _progress("Reading") as tell:
        from pipelines import plan as verb

        planned = verb.plan(dataset=dataset, out=out, modality=modality, memory_gib=memory_gib, steps=steps,
                            on_case=_case_teller(tell))  # fmt: skip
    status = 3 if planned.proposal is None else 0
    if as_json:
        proposal = planned.proposal
        document = {
            "dataset": planned.survey.as_dict(),
            "out": str(out) if proposal else None,
            "config": proposal.as_dict() if proposal else None,
            "reasons": {choice.key: choice.why for choice in proposal.choices if choice.why} if proposal else None,
        }
        _print_json({**document, "exit_status": status})
        return status
    from pipelines.tables import print_dataset

    print_dataset(planned.survey.as_dict())
    click.echo(f"config: {out}" if planned.proposal else "no config was written")
    return status


# ------------------------------------------------------------------------------------------------------------- convert


@main.command(short_help="Write DICOM series as NIfTI.")
@click.argument("path", type=PATH)
@click.argument("out", type=PATH)
@click.option("--series", metavar="UID", help="Only the series whose SeriesInstanceUID is this, or ends with it.")
@with_policy
@as_json
@_verb
def convert(path: Path, out: Path, series: str | None, policy: Policy, as_json: bool) -> int:
    """Write the volumes under PATH (a folder, file, ZIP or TAR of DICOM) as NIfTI.

    OUT is a file name that ends in .nii.gz or .nii for a single volume, or a folder, in which each volume is named by
    its SeriesInstanceUID. A .json beside each says where it came from, what was wrong with it and what was done.
    """
    with _progress(f"Reading {path}"):
        from pipelines import convert as verb

        converted = verb.convert(path=path, out=out, series=series, policy=policy)
    status = _status(converted.refused)
    if as_json:
        refused = [error.as_dict() for error in converted.refused]
        _print_json({"written": list(converted.written), "refused": refused, "exit_status": status})
        return status
    from pipelines.tables import defect_line

    for document in converted.written:
        size = " x ".join(map(str, document["shape"]))
        click.echo(f"{document['file']}: {size}, {document['orientation']}")
        for defect in document["defects"]:
            click.echo(f"  {defect_line(defect)}")
    for error in converted.refused:
        click.echo(str(error))
    return status


# -------------------------------------------------------------------------------------------------------------- models


@main.command(short_help="List the checkpoints that ship.")
@as_json
@_verb
def models(as_json: bool) -> int:
    """List the checkpoints that come with imgpipe, what each takes and how well it does."""
    from pipelines import models as verb

    found = verb.models()
    status = 3 if found["refused"] else 0
    if as_json:
        _print_json({**found, "exit_status": status})
        return status
    for model in found["models"]:
        rule = model["applies_to"]
        click.echo(f"{model['name']} {model['version']}: {model['title']} ({model['task']})")
        described = f", SeriesDescription matching {rule['description']!r}" if rule["description"] else ""
        click.echo(f"  takes {' or '.join(rule['modality'])}{described}{_range(rule)}")
        for name, value in (model["dice_on_test"] or {}).items():
            click.echo(f"  test Dice of {name}: {_interval(value)}")
        for name, figures in (model["scores_on_test"] or {}).items():
            told = ", ".join(f"{_TOLD[key]} {_interval(figures[key])}" for key in _TOLD)
            click.echo(f"  test, {name}: {told}")
        click.echo(f"  {model['licence']}")
        click.echo(f"  {model['folder']}")
    for refusal in found["refused"]:
        click.echo(f"{refusal['code']}: {refusal['subject']}: {refusal['seen']}. {refusal['remedy']}")
    return status


def _range(rule: dict[str, Any]) -> str:
    """The limits of what a checkpoint takes, as a clause."""
    if rule["extent_min_mm"] is None:
        pixels = f", at least {rule['pixels_min']} pixels along each axis" if "pixels_min" in rule else ""
        return f"{pixels}, proportions up to {rule['aspect_max']:g} to 1" if rule.get("aspect_max") else pixels
    low = " x ".join(f"{value:g}" for value in rule["extent_min_mm"])
    high = " x ".join(f"{value:g}" for value in rule["extent_max_mm"])
    return f", {low} to {high} mm (R-L x A-P x S-I), at most {rule['spacing_max_mm']:g} mm spacing"


# ------------------------------------------------------------------------------------------------------------ progress


class _progress:
    """A spinner with a changing text on stderr, where that is a terminal; elsewhere nothing."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._status: Any = None

    def __enter__(self) -> Callable[[str], None]:
        if sys.stderr.isatty():
            from rich.console import Console

            self._status = Console(stderr=True).status(self._text)
            self._status.start()
        return self._tell

    def _tell(self, text: str) -> None:
        if self._status is not None:
            self._status.update(text)

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()


def _case_teller(tell: Callable[[str], None]) -> Callable[[str, int, int], None]:
    def on_case(name: str, number: int, total: int) -> None:
        tell(f"Case {number + 1} of {total}: {name}")

    return on_case
