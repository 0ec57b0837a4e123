"""What was found, as lines and tables that a person reads on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

if TYPE_CHECKING:
    from imaging.report.findings import Finding


def finding_line(finding: Finding) -> str:
    """One finding in one line."""
    structure, judged = finding.structure, finding.classification
    if judged is not None:
        return (
            f"{finding.title}: {finding.assessment}, probability {judged.probability:.3f}. {finding.assessment_reason}"
        )
    if structure is None:
        return f"{finding.title}: {finding.assessment}"
    parts = [f"{structure.volume_ml:.3f} mL"]
    if structure.interval:
        low, high = structure.interval.low_mm3 / 1000, structure.interval.high_mm3 / 1000
        parts.append(f"true volume likely {low:.3f} to {high:.3f} mL ({structure.interval.coverage:.0%} coverage)")
    elif structure.voxels:
        parts.append(f"no interval: {structure.interval_note}")
    if structure.mean_probability is not None:
        parts.append(f"mean probability {structure.mean_probability:.3f}")
    return f"{finding.title}: {', '.join(parts)}"


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
    if found["refused"]:
        console.print("Refused", style="bold")
    for refusal in found["refused"]:
        console.print(Padding(escape(f"{refusal['code']}: {refusal['subject']}: {refusal['seen']}"), (0, 0, 0, 2)))
    if found["strays"]:
        console.print(f"{len(found['strays'])} files hold no image by design (DICOMDIR and the like)")


def _print_rows(console: Console, title: str, rows: list[dict[str, Any]], *, key: str) -> None:
    """A table with a line a volume, and below it, by the line's number, what was wrong and who would take it."""
    table = Table(title=escape(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", justify="right")
    table.add_column("Series", overflow="fold", ratio=1)
    for column in ("Images", "Size", "Spacing, mm", "Axes"):
        table.add_column(column, no_wrap=True)
    for number, row in enumerate(rows, start=1):
        grid = row["grid"]
        parts = (row["modality"], row["description"] if key == "series_uid" else "", _short(row[key]), row["volume"])
        table.add_row(
            str(number),
            escape(" ".join(part for part in parts if part)),
            str(row["instances"]),
            " x ".join(map(str, grid["shape"])) if grid else "not read",
            " x ".join(f"{value:.3g}" for value in grid["spacing_mm"]) if grid else "",
            grid["orientation"] if grid else "",
        )
    console.print(table)
    for number, row in enumerate(rows, start=1):
        for note in _notes(row):
            console.print(Padding(escape(f"{number}  {note}"), (0, 0, 0, 2)))
    console.print()


def _notes(row: dict[str, Any]) -> list[str]:
    if row["refusal"]:
        return [f"{row['refusal']['code']}: {row['refusal']['seen']}"]
    notes = []
    for defect in row["defects"]:
        error = f", up to {defect['error_mm']:.2f} mm" if defect["error_mm"] else ""
        notes.append(f"{defect['code']} ({defect['action']}{error}): {defect['detail']}")
    if row["taken_by"]:
        return [*notes, f"taken by {', '.join(row['taken_by'])}"]
    reasons = "; ".join(f"{name}: {reason['seen']}" for name, reason in row["declined_by"].items())
    return [*notes, f"taken by no checkpoint ({reasons})"]


def _short(name: str) -> str:
    """The end of a UID, enough to tell series apart in a table; `--json` has it whole."""
    return name if "/" in name or len(name) <= 20 else f"...{name[-8:]}"
