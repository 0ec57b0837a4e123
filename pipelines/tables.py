"""What was found, as lines and tables that a person reads on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from imaging.interval import Interval

if TYPE_CHECKING:
    from imaging.report.report import Finding, Report
    from pipelines.tune import Tuned


def finding_line(finding: Finding) -> str:
    """One finding in one line."""
    structure, judged = finding.structure, finding.classification
    title = f"{finding.title} ({finding.volume})" if finding.volume else finding.title
    if judged is not None:
        return f"{title}: {finding.assessment}, probability {judged.probability:.3f}. {finding.assessment_reason}"
    if structure is None:
        return f"{title}: {finding.assessment}, no probability. {finding.assessment_reason}"
    parts = [f"{structure.volume_ml:.3f} mL"]
    if structure.interval:
        low, high = structure.interval.low_mm3 / 1000, structure.interval.high_mm3 / 1000
        parts.append(f"true volume likely {low:.3f} to {high:.3f} mL ({structure.interval.coverage:.0%} coverage)")
    elif structure.voxels:
        parts.append(f"no interval: {structure.interval_note}")
    if structure.mean_probability is not None:
        parts.append(f"mean probability {structure.mean_probability:.3f}")
    return f"{title}: {', '.join(parts)}"


def words_of(report: Report) -> list[str]:
    """What words add: where picture and report disagree, what both say together, and what a text says alone."""
    from imaging.report.conclusion import conclusion_of

    said = report.texts or report.fusion
    lines = conclusion_of(report.model_copy(update={"findings": (), "not_looked_at": ()})) if said else ()
    return [str(line) for line in lines if line.kind != "nothing"]


def unjudged_of(report: Report) -> list[dict[str, Any]]:
    """The texts that have no probability: which text it is, which checkpoint found it strange if one did, and why."""
    which = {"role", "source", "sha256", "model"}
    unjudged = [text for text in report.texts if text.probability is None]
    return [{**text.model_dump(include=which), "reason": text.assessment_reason} for text in unjudged]


def repairs_of(report: Report) -> list[str]:
    """A line for whatever makes a volume that was measured differ from what was sent."""
    return [
        f"measured on a repaired volume: {defect_line(defect.model_dump())}"
        for series in report.series
        if series.models
        for defect in series.defects
        if defect.action == "repaired"
    ]


def evaluation_lines(metrics: dict[str, Any]) -> list[str]:
    """What an evaluation found, a line a figure, and what makes it worth less than it seems."""
    from imaging import mask_scores, scores

    over = f"over {metrics['cases']} case(s)"
    lines = [
        f"{title} of {name}: {Interval(**value)} {over}"
        for score, title in mask_scores.TITLES.items()
        for name, value in metrics.get(score, {}).items()
    ]
    for name, found in metrics.get("spans", {}).items():
        lines.append(f"{name}, {found['mentions']} mention(s) in {metrics['sentences']} sentence(s):")
        lines += [f"  {title} {Interval(**found[key])}"
                  for key, title in (("precision", "precision"), ("recall", "recall"), ("f1", "F1"))]  # fmt: skip
    for name, figures in metrics.get("scores", {}).items():
        lines.append(f"{name}, in {figures['true_cases']} of {metrics['cases']} case(s):")
        lines += [f"  {title} {Interval(**figures[score])}" for score, title in scores.TITLES.items()]
    undecided = metrics.get("indeterminate", {})
    lines += [f"{name}: share indeterminate {Interval(**share)} {over}" for name, share in undecided.items()]
    if "likeliest_accuracy" in metrics:
        lines.append(f"likeliest class is the true one: {Interval(**metrics['likeliest_accuracy'])} {over}")
    lines += metrics.get("notes", [])
    for key, did in (("seen_in_training", "trained"), ("seen_in_validation", "chose the epoch or calibration of")):
        if metrics[key]:
            lines.append(f"{len(metrics[key])} of the cases have the names of cases that {did} this checkpoint")
    return lines


def print_inspection(found: dict[str, Any]) -> None:
    """Print studies, series, NIfTI files, what was wrong with each and what was refused.

    Parameters
    ----------
    found
        As `pipelines.inspect.inspect` returns it.
    """
    console = Console(soft_wrap=False, highlight=False)
    for study in found["studies"]:
        title = f"Study {study['uid']}" + (f" ({study['description']})" if study["description"] else "")
        _print_rows(console, title, study["series"], key="series_uid")
    if found["nifti"]:
        _print_rows(console, "NIfTI files", found["nifti"], key="path")
    if found["pictures"]:
        _print_rows(console, "Pictures", found["pictures"], key="path")
    for dataset in found["datasets"]:
        print_dataset(dataset)
    if found["refused"]:
        console.print("Refused", style="bold")
    for refusal in found["refused"]:
        line = f"{refusal['code']}: {refusal['subject']}: {refusal['seen']}. {refusal['remedy']}"
        console.print(Padding(escape(line), (0, 0, 0, 2)))
    if found["strays"]:
        count = len(found["strays"])
        console.print(
            f"{count} {'file holds' if count == 1 else 'files hold'} no image by design (DICOMDIR and the like)"
        )


def print_dataset(found: dict[str, Any]) -> None:
    """Print what is in a data set, what must be mended and what should be known.

    Parameters
    ----------
    found
        As `imaging.dataset_check.Survey.as_dict` or `ClassSurvey.as_dict` gives it.
    """
    console = Console(soft_wrap=True, highlight=False)
    console.print(escape(f"Data set {found['name']} ({found['path']})"), style="bold")
    modality = f", {found['modality']}" if found["modality"] else ""
    lines = [f"{found['cases']} cases of which {found['read']} are sound, {found['patients']} patients{modality}"]
    for key, title, unit in (
        ("size", "size R-L x A-P x S-I", "voxels"),
        ("spacing_mm", "spacing R-L x A-P x S-I", "mm"),
        ("pixels", "size X x Y x Z", "pixels"),
    ):
        if found.get(key):
            low, middle, high = (" x ".join(f"{v:.4g}" for v in found[key][k]) for k in ("least", "median", "greatest"))
            lines.append(f"{title}: {low} to {high}, median {middle} {unit}")
    lines += [f"{kind} files: {count}" for kind, count in found.get("kinds", {}).items()]
    sides = found.get("sides", {})
    for name, count in found["cases_with"].items():
        placed = ", ".join(f"{part['cases_with'][name]} of {part['cases']} for {side}" for side, part in sides.items())
        lines.append(f"{name!r} is in {count} cases" + (f": {placed}" if placed else ""))
    lines += [
        f"column {name!r}: filled in {told['filled']} of {found['cases']} cases, {told['values']} different values"
        for name, told in found.get("facts", {}).items()
    ]
    lines += [f"{note['code']} (noted): {note['detail']}" for note in found["notes"]]
    lines += [
        f"{problem['code']}: {problem['subject']}: {problem['seen']}; {problem['expected']}. {problem['remedy']}."
        for problem in found["problems"]
    ]
    lines.append(f"{len(found['problems'])} to mend" if found["problems"] else "nothing to mend")
    for line in lines:
        console.print(f"  {escape(line)}")


def print_trials(tuned: Tuned) -> None:
    """Print a search's trials, the best first, those without a score last."""
    table = Table(box=box.SIMPLE, pad_edge=False)
    for column in ("trial", "state", tuned.monitor, "epochs", *tuned.best.values):
        table.add_column(column, overflow="fold")
    complete_first = {"complete": 0, "pruned": 1}
    rows = sorted(tuned.trials, key=lambda trial: (complete_first.get(trial.state, 2), -(trial.score or 0.0)))
    for trial in rows:
        score = "" if trial.score is None else f"{trial.score:.4f}"
        values = [_figure(trial.values.get(key, "")) for key in tuned.best.values]
        table.add_row(str(trial.number), trial.state, score, str(trial.epochs), *map(escape, values))
    Console(highlight=False).print(table)


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _print_rows(console: Console, title: str, rows: list[dict[str, Any]], *, key: str) -> None:
    """A table with a line a volume, and below it, by the line's number, what was wrong and who would take it."""
    console.print(escape(title), style="bold", soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", justify="right")
    table.add_column("Series", overflow="fold", ratio=1)
    for column in ("Files", "Size", "Spacing, mm", "Axes"):
        table.add_column(column, no_wrap=True)
    for number, row in enumerate(rows, start=1):
        grid = row["grid"]
        number_told = f"#{row['number']}" if row["number"] else ""
        told = (row["modality"], number_told, row["description"] if key == "series_uid" else "")
        parts = (*told, _short(row[key]), row["volume"])
        table.add_row(
            str(number),
            escape(" ".join(part for part in parts if part)),
            str(row["instances"]),
            " x ".join(map(str, grid["shape"])) if grid else "not read",
            " x ".join(f"{value:.3g}" for value in grid["spacing_mm"]) if grid else "",
            grid["orientation"] if grid else "",
        )
    console.print(table)
    rows_of: dict[str, list[int]] = {}
    for number, row in enumerate(rows, start=1):
        for note in _notes(row):
            rows_of.setdefault(note, []).append(number)
    for note, numbers in rows_of.items():
        console.print(Padding(escape(f"{_ranges(numbers)}  {note}"), (0, 0, 0, 2)))
    console.print()


def _ranges(numbers: list[int]) -> str:
    """Ascending numbers in short: ``1-3, 5``."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def defect_line(defect: dict[str, Any]) -> str:
    """A defect in one line: its code, what was done, the error that is left, and what was seen."""
    error = f", up to {defect['error_mm']:.2f} mm" if defect["error_mm"] else ""
    return f"{defect['code']} ({defect['action']}{error}): {defect['detail']}"


def _notes(row: dict[str, Any]) -> list[str]:
    if row["refusal"]:
        return [f"{row['refusal']['code']}: {row['refusal']['seen']}"]
    notes = [defect_line(defect) for defect in row["defects"]]
    if row["taken_by"]:
        return [*notes, f"taken by {', '.join(row['taken_by'])}"]
    reasons = "; ".join(f"{name}: {reason['seen']}" for name, reason in row["declined_by"].items())
    return [*notes, f"taken by no checkpoint ({reasons})"]


def _short(name: str) -> str:
    """The end of a UID, enough to tell series apart in a table; `--json` has it whole."""
    return name if "/" in name or len(name) <= 20 else f"...{name[-8:]}"
