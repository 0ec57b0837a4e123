"""What was found, as lines and tables that a person reads on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from imaging.report.findings import Finding


def finding_line(finding: Finding) -> str:
    """One finding in one line."""
    structure = finding.structure
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
    """Print studies, series, NIfTI files and what was refused.

    Parameters
    ----------
    found
        As `pipelines.inspect.inspect` returns it.
    """
    console = Console(soft_wrap=False)
    for study in found["studies"]:
        title = f"Study {study['uid']}" + (f" ({study['description']})" if study["description"] else "")
        console.print(_table(title, study["series"], key="series_uid"))
    if found["nifti"]:
        console.print(_table("NIfTI files", found["nifti"], key="path"))
    for refusal in found["refused"]:
        console.print(escape(f"{refusal['code']}: {refusal['subject']}: {refusal['seen']}. {refusal['remedy']}."))
    if found["strays"]:
        console.print(f"{len(found['strays'])} files hold no image by design (DICOMDIR and the like)")


def _table(title: str, rows: list[dict[str, Any]], *, key: str) -> Table:
    table = Table(title=escape(title), title_justify="left", show_lines=True)
    table.add_column("Series", overflow="fold", ratio=3)
    table.add_column("Images", no_wrap=True)
    for column in ("Size", "Spacing, mm", "What was seen", "Taken by"):
        table.add_column(column, overflow="fold", ratio=2)
    for row in rows:
        grid = row["grid"]
        name = " ".join(part for part in (row["modality"], row["description"] if key == "series_uid" else "") if part)
        table.add_row(
            escape(f"{name}\n{_short(row[key])}".strip()),
            str(row["instances"]),
            " x ".join(map(str, grid["shape"])) + f" {grid['orientation']}" if grid else "",
            " x ".join(f"{value:.3g}" for value in grid["spacing_mm"]) if grid else "",
            escape(_seen(row)),
            escape(_taken(row)),
        )
    return table


def _short(name: str) -> str:
    """The end of a UID, enough to tell series apart in a table; `--json` has it whole."""
    return name if "/" in name or len(name) <= 20 else f"...{name[-12:]}"


def _seen(row: dict[str, Any]) -> str:
    if row["refusal"]:
        return f"{row['refusal']['code']}: {row['refusal']['seen']}"
    return "\n".join(f"{d['code']} ({d['action']}): {d['detail']}" for d in row["defects"]) or "regular"


def _taken(row: dict[str, Any]) -> str:
    if row["taken_by"]:
        return ", ".join(row["taken_by"])
    return "none\n" + "\n".join(f"{name}: {reason['seen']}" for name, reason in row["declined_by"].items())
