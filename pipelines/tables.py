"""What `inspect` found, as a table that a person reads."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table


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
    for column in ("Series", "Images", "Size", "Spacing, mm", "What was seen", "Taken by"):
        table.add_column(column, overflow="fold")
    for row in rows:
        grid = row["grid"]
        name = " ".join(part for part in (row["modality"], row["description"] if key == "series_uid" else "") if part)
        table.add_row(
            escape(f"{name}\n{row[key]}".strip()),
            str(row["instances"]),
            " x ".join(map(str, grid["shape"])) + f" {grid['orientation']}" if grid else "",
            " x ".join(f"{value:.3g}" for value in grid["spacing_mm"]) if grid else "",
            escape(_seen(row)),
            escape(_taken(row)),
        )
    return table


def _seen(row: dict[str, Any]) -> str:
    if row["refusal"]:
        return f"{row['refusal']['code']}: {row['refusal']['seen']}"
    return "\n".join(f"{d['code']} ({d['action']}): {d['detail']}" for d in row["defects"]) or "regular"


def _taken(row: dict[str, Any]) -> str:
    if row["taken_by"]:
        return ", ".join(row["taken_by"])
    return "nobody\n" + "\n".join(f"{name}: {reason['seen']}" for name, reason in row["declined_by"].items())
