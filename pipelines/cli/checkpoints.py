"""The verbs for checkpoints that are there: models, evaluate, calibrate, accept, export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipelines.cli.verb import (
    PATH,
    TOLD,
    TRIED,
    as_json,
    case_teller,
    interval,
    print_json,
    progress,
    status_of,
    verb_of,
    with_engine,
)

if TYPE_CHECKING:
    from imaging.engines import Wanted
    from imaging.engines.accepted import Trial
    from pipelines.export import Target


@click.command(short_help="Calibrate a checkpoint anew, without training it.")
@click.argument("checkpoint")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--data", type=PATH, required=True, metavar="MANIFEST", help="What it was trained on.")
@click.option("--out", type=PATH, required=True, help="The folder of the copy; a new one.")
@click.option("--config", type=PATH, help="How it shall be calibrated; by default as its own config says.")
@as_json
@verb_of
def calibrate(
    checkpoint: str, overrides: tuple[str, ...], data: Path, out: Path, config: Path | None, as_json: bool
) -> int:
    """Write a copy of CHECKPOINT with another calibration, such as calibrate.error_rate=0.05.

    The weights stay as they are. Temperature, thresholds, error rate and what strange cases are known by are chosen
    anew on the cases that validated it, which are found in MANIFEST by the names that its metrics have. KEY=VALUE may
    change `calibrate`, `applies_to`, `explain`, `card`, `title` and `version`. Of a cross-validation an error rate and
    novelty can be chosen anew. One that segments is refused.
    """
    with progress("Reading") as tell:
        from pipelines import calibrate as verb

        made = verb.calibrate(checkpoint=checkpoint, data=data, out=out, config=config, overrides=overrides,
                              on_case=case_teller(tell))  # fmt: skip
    told: dict[str, Any] = {key: made.metrics[key] for key in ("calibration", "novelty") if key in made.metrics}
    told["calibration"] = {key: value for key, value in told["calibration"].items() if key != "familiar"}
    if as_json:
        print_json({"checkpoint": str(made.folder), **told, "exit_status": 0})
        return 0
    for side, figures in ((side, made.metrics.get(side) or {}) for side in ("cross_validation", "validation", "test")):
        for name, share in figures.get("indeterminate", {}).items():
            wrong = figures["wrong"][name]["all"]
            click.echo(f"{side}, {name}: indeterminate {interval(share)}, called what it is not {interval(wrong)}")
    for side, share in told.get("novelty", {}).get("flagged", {}).items():
        click.echo(f"{side}, flagged as strange: {interval(share)} over {told['novelty']['cases'][side]} case(s)")
    click.echo(f"checkpoint: {made.folder}")
    return 0


@click.command(short_help="Compare the engines of this machine with torch.")
@click.argument("checkpoint")
@click.option("--data", type=PATH, required=True, metavar="MANIFEST", help="What it was trained on, or other cases.")
@click.option("--out", type=PATH, required=True, help="The folder of the copy; a new one.")
@click.option("--int8", is_flag=True, help="Make it in int8, too, on its training cases, and compare that.")
@as_json
@verb_of
def accept(checkpoint: str, data: Path, out: Path, int8: bool, as_json: bool) -> int:
    """Write a copy of CHECKPOINT that says which engines may answer for it.

    OpenVINO is asked in bf16, where the processor has it, and in fp32, and compared with torch in fp32 on the cases of
    MANIFEST that validated CHECKPOINT; where none did, on all that did not train it. docs/engines.md says what is good
    enough. Config and weights stay as they are. With --int8 the cases of MANIFEST that trained CHECKPOINT choose the
    scales of int8 and the layers that it leaves alone; the copy holds it where it is good enough.
    """
    with progress("Reading") as tell:
        from pipelines.accept import accept as compare

        made, trials = compare(
            checkpoint=checkpoint, data=data, out=out, int8=int8, on_case=case_teller(tell), on_step=tell
        )
    if as_json:
        print_json({"checkpoint": str(made.folder), **trials.model_dump(mode="json"), "exit_status": 0})
        return 0
    for trial in trials.trials:
        _tell_trial(trial)
    click.echo(f"{trials.trials[-1].cases} case(s); checkpoint: {made.folder}")
    return 0


def _tell_trial(trial: Trial) -> None:
    reason, speed = trial.why_not(), f", {trial.speed:g} times as fast as torch in fp32" if trial.speed else ""
    but = f", never seen: {', '.join(trial.unseen)}" if trial.unseen else ""
    verdict = f"not accepted: {reason}" if reason else f"accepted{but}"
    click.echo(f"{trial.engine} in {trial.precision}{speed}: {verdict}")
    for name, found in trial.compared.items():
        figures = found.model_dump(exclude_none=True, exclude={"seen"})
        told = [f"{TRIED[key]} {value:.4f}" for key, value in figures.items()]
        click.echo(f"  {name}: {', '.join(told) or 'not seen in any case'}")
    if any(trial.spared):
        click.echo(f"  layers that are not in int8: {', '.join(name for each in trial.spared for name in each)}")


@click.command(short_help="Write a checkpoint's networks for other programs.")
@click.argument("checkpoint")
@click.option("--to", type=click.Choice(["openvino", "onnx", "monai-bundle"]), required=True, help="For which program.")
@click.option("--out", type=PATH, required=True, help="A new folder.")
@click.option("--int8", is_flag=True, help="OpenVINO's models in int8: the checkpoint's own, or with --data new ones.")
@click.option("--data", type=PATH, metavar="MANIFEST", help="What it was trained on, for int8.")
@as_json
@verb_of
def export(checkpoint: str, to: Target, out: Path, int8: bool, data: Path | None, as_json: bool) -> int:
    """Write the networks of CHECKPOINT for OpenVINO, for what reads ONNX, or as a bundle that MONAI runs.

    A model is read back and held against torch before it is delivered. The checkpoint's config, which says what comes
    before a network, goes with it; a bundle has that as MONAI's transforms. int8 is compared as `imgpipe accept` does,
    and written whether or not it is good enough, with its figures.
    """
    with progress("Exporting") as tell:
        from pipelines import export as verb

        made = verb.export(
            checkpoint=checkpoint, to=to, out=out, int8=int8, data=data, on_case=case_teller(tell), on_step=tell
        )
    if as_json:
        compared = made.int8.model_dump(mode="json", exclude_none=True) if made.int8 else None
        print_json({"folder": str(made.folder), "files": list(made.files), "difference": made.difference,
                    "int8": compared, "exit_status": 0})  # fmt: skip
        return 0
    for name in made.files:
        click.echo(made.folder / name)
    if made.int8 is not None:
        _tell_trial(made.int8)
    if made.difference is not None:
        click.echo(f"greatest difference from torch: {made.difference:.1e} of the greatest logit")
    return 0


@click.command(short_help="Measure a checkpoint on cases whose truth is known.")
@click.argument("checkpoint")
@click.option(
    "--data", type=PATH, required=True, metavar="MANIFEST", help="A CSV, a dataset.json or its folder, a MedMNIST file."
)
@click.option("--out", type=PATH, help="The result's folder; by default evaluation/<checkpoint>.")
@click.option("--tolerance", "tolerance_mm", type=click.FloatRange(min=0), metavar="MM",
              help="Of a segmenter's surface Dice; by default the longest edge of the network's voxels.")  # fmt: skip
@with_engine
@as_json
@verb_of
def evaluate(
    checkpoint: str, data: Path, out: Path | None, tolerance_mm: float | None, engine: Wanted, as_json: bool
) -> int:
    """Measure CHECKPOINT (a shipped one's name, or a folder) on the cases of a manifest.

    MANIFEST has manual masks for a segmenter, classes for a classifier (a CSV or a MedMNIST file) or a text model (a
    CSV), or marked sentences (a folder or file in CoNLL's layout). Nothing is fitted on the cases: temperature and
    thresholds are the checkpoint's own.

    Writes metrics.json with 95 % intervals over patients, predictions.csv with a row a case, and evaluation.html with
    plots and the worst cases' pictures.
    """
    with progress("Reading") as tell:
        from pipelines import evaluate as verb

        found = verb.evaluate(
            checkpoint=checkpoint,
            data=data,
            out=out,
            tolerance_mm=tolerance_mm,
            engine=engine,
            on_case=case_teller(tell),
        )
    # A mask that does not fit its image is a config's fault in training; here it is the data's.
    status = 1 if status_of(found.refused) == 1 else 3 if found.refused else 0
    if as_json:
        folder = str(found.folder) if found.folder else None
        print_json({"folder": folder, "metrics": found.metrics, "exit_status": status})
        return status
    from pipelines.result import PAGE
    from pipelines.tables import evaluation_lines

    for line in evaluation_lines(found.metrics):
        click.echo(line)
    for error in found.refused:
        click.echo(str(error))
    click.echo(f"report: {(found.folder / PAGE).resolve()}" if found.folder else "nothing was written")
    return status


@click.command(short_help="List the checkpoints that ship.")
@as_json
@verb_of
def models(as_json: bool) -> int:
    """List the checkpoints that come with imgpipe, what each takes and how well it does."""
    from pipelines import models as verb

    found = verb.models()
    status = 3 if found["refused"] else 0
    if as_json:
        print_json({**found, "exit_status": status})
        return status
    for model in found["models"]:
        rule = model["applies_to"]
        click.echo(f"{model['name']} {model['version']}: {model['title']} ({model['task']})")
        click.echo(f"  takes {_taken(rule)}")
        if model["members"] > 1:
            click.echo(f"  the mean of {model['members']} networks")
        for side, called in (("on_test", "test"), ("cross_validated", "cross-validated")):
            for name, value in (model[f"dice_{side}"] or {}).items():
                click.echo(f"  {called} Dice of {name}: {interval(value)}")
            for name, figures in (model[f"scores_{side}"] or {}).items():
                told = ", ".join(f"{TOLD[key]} {interval(figures[key])}" for key in TOLD)
                click.echo(f"  {called}, {name}: {told}")
        if not (model["scores_on_test"] or model["scores_cross_validated"]):
            for name, figures in (model["scores_on_validation"] or {}).items():
                told = ", ".join(f"{TOLD[key]} {interval(figures[key])}" for key in TOLD)
                click.echo(f"  validation, which also chose its threshold, {name}: {told}")
        for name, figures in (model["spans_on_test"] or {}).items():
            click.echo(f"  test, mentions of {name}: F1 {interval(figures['f1'])}")
        click.echo(f"  {model['licence']}")
        click.echo(f"  {model['folder']}")
    for refusal in found["refused"]:
        click.echo(f"{refusal['code']}: {refusal['subject']}: {refusal['seen']}. {refusal['remedy']}")
    return status


def _taken(rule: dict[str, Any]) -> str:
    """What a checkpoint takes: texts of some roles, or series."""
    if "roles" in rule:
        of_part = f" of {' or '.join(rule['body_part'])}" if rule["body_part"] else ""
        beside = f", beside {' or '.join(rule['modality'])}{of_part}" if rule["modality"] else ""
        return f"a {' or a '.join(rule['roles'])} in {' or '.join(rule['languages'])}{beside}"
    described = f", SeriesDescription matching {rule['description']!r}" if rule["description"] else ""
    return f"{' or '.join(rule['modality'])}{described}{_range(rule)}"


def _range(rule: dict[str, Any]) -> str:
    """The limits of what a checkpoint takes, as a clause."""
    if rule["extent_min_mm"] is None:
        pixels = f", at least {rule['pixels_min']} pixels along each axis" if "pixels_min" in rule else ""
        return f"{pixels}, proportions up to {rule['aspect_max']:g} to 1" if rule.get("aspect_max") else pixels
    low = " x ".join(f"{value:g}" for value in rule["extent_min_mm"])
    high = " x ".join(f"{value:g}" for value in rule["extent_max_mm"])
    return f", {low} to {high} mm (R-L x A-P x S-I), at most {rule['spacing_max_mm']:g} mm spacing"
