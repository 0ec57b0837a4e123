"""What a benchmark found, kept as JSON: rows of figures beside a peer's, curves of growth, stages.

A row's ratio is how many times the peer takes what imgpipe takes; of a limit, how many times imgpipe takes what the
limit takes. `make_table.py` makes one table and one picture of all that lie in a folder.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from measuring import machine, versions


@dataclass(frozen=True)
class Row:
    """One figure beside a peer's.

    Attributes
    ----------
    case, what
        On what it was measured, and what was.
    unit
        ``s``, ``MiB`` or ``ms``.
    ours, peer, theirs
        Medians.
    least, most
        The goal: the least ratio that a peer must have, or the most times what a limit takes.
    """

    case: str
    what: str
    unit: str
    ours: float
    peer: str
    theirs: float
    least: float | None = None
    most: float | None = None

    @property
    def ratio(self) -> float:
        """See the module."""
        return self.ours / self.theirs if self.most is not None else self.theirs / self.ours

    @property
    def verdict(self) -> str:
        """The goal, and whether it was reached; empty where there is none."""
        if self.least is not None:
            return f"{'reached' if self.ratio >= self.least else 'NOT reached'}: at least {self.least:g}"
        if self.most is not None:
            return f"{'reached' if self.ratio <= self.most else 'NOT reached'}: at most {self.most:g} x the limit"
        return ""


@dataclass(frozen=True)
class Curve:
    """How a cost grows.

    Attributes
    ----------
    name, of
        What it costs, and of what there is more and more.
    unit
        Of the costs.
    points
        How many, and the cost: a median.
    """

    name: str
    of: str
    unit: str
    points: tuple[tuple[float, float], ...]

    @property
    def exponent(self) -> float:
        """Slope of the straight line through the points' logarithms (least squares): 1 is in proportion."""
        return float(np.polyfit(*np.log(np.array(self.points)).T, 1)[0])


@dataclass(frozen=True)
class Result:
    """All that one benchmark found.

    Attributes
    ----------
    bench, note
        Its name, and what a reader has to know of the figures.
    packages
        Those whose versions matter.
    rows, curves
        What was found.
    stages
        For a case, seconds by stage.
    part
        Which part of it this is, where it can be run part by part; each has a file of its own.
    """

    bench: str
    note: str
    packages: tuple[str, ...]
    rows: tuple[Row, ...] = ()
    curves: tuple[Curve, ...] = ()
    stages: dict[str, dict[str, float]] = field(default_factory=dict)
    part: str = ""

    @property
    def name(self) -> str:
        """What its file is called."""
        return f"{self.bench}_{self.part}" if self.part else self.bench

    def told(self) -> str:
        """As Markdown."""
        return told([self])

    def keep(self, folder: Path | None) -> None:
        """Print it, and write it into a folder, with machine, versions and date."""
        print(f"\n{self.told()}\n", flush=True)
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        found = {
            "date": datetime.date.today().isoformat(),
            "machine": machine(),
            "versions": versions(("imgpipe", *self.packages)),
            "load": round(os.getloadavg()[2], 1),
            **asdict(self),
        }
        (folder / f"{self.name}.json").write_text(json.dumps(found, indent=1) + "\n")


def kept(folder: Path) -> list[tuple[dict[str, str], Result]]:
    """The results in a folder, each with where and when it was measured."""
    found = []
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text())
        result = Result(
            content["bench"], content["note"], tuple(content["packages"]),
            tuple(Row(**row) for row in content["rows"]),
            tuple(Curve(**{**curve, "points": tuple(map(tuple, curve["points"]))}) for curve in content["curves"]),
            content["stages"], content["part"],
        )  # fmt: skip
        found.append(({key: str(content[key]) for key in ("date", "machine", "versions", "load")}, result))
    return found


def told(parts: Sequence[Result]) -> str:
    """The parts of one benchmark as Markdown: one table of all their rows, and one of all their curves."""
    lines = [f"### {parts[0].bench}", ""]
    for result in parts:
        lines += [f"`{result.part}`: {result.note}" if result.part else result.note, ""]
    rows, curves = [row for result in parts for row in result.rows], [c for result in parts for c in result.curves]
    if rows:
        lines += ["| case | what | imgpipe | peer | its figure | ratio | goal |",
                  "| --- | --- | ---: | --- | ---: | ---: | --- |"]  # fmt: skip
    for row in rows:
        lines.append(f"| {row.case} | {row.what} | {_short(row.ours)} {row.unit} | {row.peer} | "
                     f"{_short(row.theirs)} {row.unit} | {row.ratio:.2f} | {row.verdict} |")  # fmt: skip
    if curves:
        lines += ["", "| cost | grows with | from - to | cost there | exponent |", "| --- | --- | --- | --- | ---: |"]
    for curve in curves:
        (low, least), (high, most) = curve.points[0], curve.points[-1]
        lines.append(f"| {curve.name} | {curve.of} | {low:g} - {high:g} | {_short(least)} - {_short(most)} "
                     f"{curve.unit} | {curve.exponent:.2f} |")  # fmt: skip
    return "\n".join(lines)


def _short(value: float) -> str:
    """Three digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def median_of(answers: Sequence[dict[str, float]], key: str) -> float:
    """The middle one of what several answers say."""
    return float(np.median([answer[key] for answer in answers]))
