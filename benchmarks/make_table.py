"""Of all results in a folder one table (TABLE.md) and one picture (PLOT.svg); `docs/performance.md` quotes the table.

    python benchmarks/make_table.py FOLDER [PAGE]

PAGE is a Markdown file with the lines `<!-- figures -->` and `<!-- /figures -->`: what stands between them is replaced.
The picture has each ratio as a bar, how cost grows as lines on logarithmic axes, and the stages of a study.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from markupsafe import Markup
from results import Curve, Result, Row, kept, told

BEGIN, END = "<!-- figures -->", "<!-- /figures -->"
_WIDTH, _LINE = 1180.0, 19.0
_BARS = "How many times the peer takes (yellow, of a limit: how many times imgpipe does); orange: goal not reached"
# What a letter takes at most, on average over a line of text.
_LETTER = 6.6
# Okabe and Ito's colours, told apart by colour-blind eyes.
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#999999", "#000000")
# In the order of the way; before the first, a process starts.
_STAGES = ("start", "open", "scan", "read", "prepare", "network", "restore", "report", "write")
_STYLE = "text{font:12px sans-serif;fill:#222}.head{font-weight:bold}.thin{stroke:#bbb}rect.back{fill:#fff}"


def table(found: Sequence[tuple[dict[str, str], Result]]) -> str:
    """Every benchmark under its heading, its parts in one table, with machine, versions, date and how busy it was."""
    sections = []
    for _, group in groupby(found, key=lambda each: each[1].bench):
        parts = list(group)
        ran = [
            f"{f'`{result.part}`: ' if result.part else ''}{where['date']}; {where['machine']}; "
            f"load {where['load']} over the 15 minutes before; {where['versions']}"
            for where, result in parts
        ]
        sections.append("\n\n".join([told([result for _, result in parts]), *ran]) + "\n")
    return "\n".join(sections)


def bars(rows: Sequence[tuple[str, Row]], top: float) -> tuple[list[Markup], float]:
    """Each row's ratio on a logarithmic axis; the line is 1, where nobody is faster."""
    labels = [f"{_cut(row.case)}: {row.what}, {row.peer}" for _, row in rows]
    left, right = 16 + _LETTER * max(map(len, labels)), _WIDTH - 60
    greatest = max([2.0, *(row.ratio for _, row in rows)])
    least = min([0.5, *(row.ratio for _, row in rows)])

    def at(ratio: float) -> float:
        return left + (math.log(ratio) - math.log(least)) / (math.log(greatest) - math.log(least)) * (right - left)

    marks = [_text(10, top, _BARS, kind="head")]
    for number, (label, (_, row)) in enumerate(zip(labels, rows, strict=True), start=1):
        y = top + number * _LINE
        begin, end = sorted((at(1.0), at(row.ratio)))
        colour = _COLOURS[5] if row.verdict.startswith("NOT") else _COLOURS[1 if row.most is not None else 0]
        marks.append(_text(left - 8, y, label, anchor="end"))
        marks.append(_rect(begin, y - 10, max(end - begin, 1), colour, row.verdict))
        marks.append(_text(end + 4, y, f"{row.ratio:.2g}"))
    bottom = top + (len(rows) + 0.5) * _LINE
    marks.append(_line(at(1.0), top + 6, at(1.0), bottom))
    return marks, bottom + _LINE


def growth(curves: Sequence[Curve], top: float) -> tuple[list[Markup], float]:
    """A panel for each thing that there is more of and each unit; both axes logarithmic, and alike: a slope is one."""
    title = "How cost grows; a line's slope is its exponent, 1 (half a right angle) is in proportion"
    marks, height, width = [_text(10, top, title, kind="head")], 300.0, 300.0
    panels = sorted({(curve.of, curve.unit) for curve in curves})
    for number, (of, unit) in enumerate(panels):
        own = [curve for curve in curves if (curve.of, curve.unit) == (of, unit)]
        x0, y0 = 90 + (number % 2) * (width + 230), top + 20 + (number // 2) * (height + 60)
        xs = [x for curve in own for x, _ in curve.points]
        ys = [max(y, 1e-3) for curve in own for _, y in curve.points]
        x_low, y_low = min(xs), min(ys)
        times = max(max(xs) / x_low, max(ys) / y_low, 2.0)
        x_high, y_high = x_low * times, y_low * times
        for line, curve in enumerate(own):
            colour = _COLOURS[line % len(_COLOURS)]
            points = " ".join(
                f"{x0 + math.log(x / x_low, times) * width:.1f},"
                f"{y0 + height - math.log(max(y, 1e-3) / y_low, times) * height:.1f}"
                for x, y in curve.points
            )
            marks.append(Markup('<polyline points="{}" fill="none" stroke="{}" stroke-width="2"/>').format(
                points, colour))  # fmt: skip
            marks.append(
                _text(x0 + width + 8, y0 + 12 + 14 * line, f"{curve.name}: {curve.exponent:.2f}", colour=colour)
            )
        marks += [_line(x0, y0, x0, y0 + height), _line(x0, y0 + height, x0 + width, y0 + height)]
        marks += [_text(x0, y0 + height + 14, f"{x_low:g}"), _text(x0 + width, y0 + height + 14, f"{x_high:.3g} {of}",
                  anchor="end"), _text(x0 - 4, y0 + height, f"{y_low:.2g}", anchor="end"),
                  _text(x0 - 4, y0 + 10, f"{y_high:.3g} {unit}", anchor="end")]  # fmt: skip
    rows = -(-len(panels) // 2)
    return marks, top + 20 + rows * (height + 60)


def stages(found: dict[str, dict[str, float]], top: float) -> tuple[list[Markup], float]:
    """Where the time of one study goes: a bar a case, in the order of the way; a stage has one colour everywhere."""
    marks, y = [_text(10, top, "Where the time of one study goes", kind="head")], top
    names = [name for name in _STAGES if any(name in parts for parts in found.values())]
    for number, name in enumerate(names):
        marks.append(_rect(10 + 100 * number, top + 0.5 * _LINE, 13, _COLOURS[_STAGES.index(name)], name))
        marks.append(_text(28 + 100 * number, top + 0.5 * _LINE + 11, name))
    y += _LINE
    for case, parts in found.items():
        whole, x, y = sum(parts.values()), 10.0, y + 1.6 * _LINE
        marks.append(_text(10, y, f"{case}: {whole:.2f} s"))
        ordered = [(name, parts[name]) for name in names if name in parts]
        for name, seconds in ordered:
            width = seconds / whole * (_WIDTH - 20)
            colour = _COLOURS[_STAGES.index(name)]
            marks.append(_rect(x, y + 6, width, colour, f"{name} {seconds:.3f} s"))
            x += width
        told_of = ", ".join(f"{name} {100 * seconds / whole:.0f} %" for name, seconds in ordered)
        y += 2 * _LINE
        marks.append(_text(10, y, told_of))
    return marks, y + 2 * _LINE


def picture(found: Sequence[tuple[dict[str, str], Result]]) -> str:
    """The whole drawing."""
    rows = [(result.bench, row) for _, result in found for row in result.rows if "processors" not in row.what]
    curves = [curve for _, result in found for curve in result.curves]
    ways = {case: parts for _, result in found for case, parts in result.stages.items()}
    marks, y = list[Markup](), 24.0
    for given, draw in ((rows, lambda top: bars(rows, top)), (curves, lambda top: growth(curves, top)),
                        (ways, lambda top: stages(ways, top))):  # fmt: skip
        if given:
            more, y = draw(y)
            marks += more
    where = found[-1][0]
    marks.append(_text(10, y, f"{where['date']}; {where['machine']}"))
    return str(
        Markup('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {:g} {:g}" role="img"><title>Benchmarks</title>'
               '<style>{}</style><rect class="back" width="100%" height="100%"/>{}</svg>\n')
        .format(_WIDTH, y + _LINE, Markup(_STYLE), Markup("\n").join(marks))
    )  # fmt: skip


def _cut(text: str) -> str:
    """A case's name without what is in brackets."""
    return text.split(" (", maxsplit=1)[0].replace("synthetic ", "")


def _text(x: float, y: float, text: str, *, anchor: str = "start", kind: str = "", colour: str = "#222") -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}" class="{}" style="fill:{}">{}</text>').format(
        x, y, anchor, kind, colour, text
    )


def _rect(x: float, y: float, width: float, colour: str, told: str) -> Markup:
    return Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="13" fill="{}"><title>{}</title></rect>').format(
        x, y, width, colour, told
    )


def _line(x: float, y: float, to_x: float, to_y: float) -> Markup:
    return Markup('<line class="thin" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(x, y, to_x, to_y)


def quote(page: Path, figures: str) -> None:
    """Put the table between a page's marks."""
    content = page.read_text()
    before, after = content.split(BEGIN)[0], content.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n\n{figures}\n{END}{after}")


def main(folder: Path, page: Path | None) -> None:
    """Write the table and the picture."""
    found = kept(folder)
    if not found:
        sys.exit(f"no results in {folder}")
    figures = table(found)
    (folder / "TABLE.md").write_text(f"# Benchmarks\n\nWritten by `make bench`.\n\n{figures}")
    (folder / "PLOT.svg").write_text(picture(found))
    if page is not None:
        quote(page, figures)
    print(f"{folder / 'TABLE.md'}\n{folder / 'PLOT.svg'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
