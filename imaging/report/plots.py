"""Plots as SVG that stands in a page by itself: no script, no font, no picture of text.

Invariant: whatever a plot shows is told in words, too, in its description, from the same numbers; nothing from outside
gets into the drawing unescaped. Colours are the page's variables, so that a plot is read in light and in dark.

A drawing is as wide as a phone, so that its text is read there; on a larger screen several stand side by side.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

Values = NDArray[np.float64] | Sequence[float]

_WIDTH, _HEIGHT = 350.0, 300.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 12.0, 10.0, 46.0
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Plot:
    """A drawing with its heading and, in words, what it shows; whoever cannot see it is told still more in it."""

    title: str
    told: str
    svg: Markup


@dataclass(frozen=True, slots=True)
class Axis:
    """What runs along an edge of a plot.

    Attributes
    ----------
    title
        With its unit, if it has one.
    low, high
        Where it begins and ends.
    """

    title: str
    low: float = 0.0
    high: float = 1.0

    def ticks(self) -> list[float]:
        """Some six round numbers."""
        return round_numbers(self.low, self.high)


def round_numbers(low: float, high: float, most: int = 6) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten from `low` to `high`, at most so many."""
    span = high - low
    if not span > 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(power * factor for factor in (1, 2, 5, 10, 20) if span / (power * factor) <= most - 1 + 1e-9)
    first = math.ceil(low / step - 1e-9)
    return [round(at * step, 12) + 0.0 for at in range(first, math.floor(high / step + 1e-9) + 1)]


def widened(values: Values, share: float = 0.05) -> tuple[float, float]:
    """The least and the greatest value with some room beyond them."""
    low, high = float(np.min(values)), float(np.max(values))
    room = (high - low) * share or abs(high) * share or 1.0
    return low - room, high + room


class Drawing:
    """A plot on two axes that grows mark by mark; positions are given in the units of the axes.

    Parameters
    ----------
    x, y
        The axes.
    height
        Of the whole, in the drawing's own units; it is 350 wide.
    """

    def __init__(self, x: Axis, y: Axis, *, height: float = _HEIGHT, left: float = _LEFT) -> None:
        self._x, self._y, self._height, self._left = x, y, height, left
        self._marks: list[Markup] = []

    def across(self, value: float) -> float:
        """Where a value of the x axis lies, in the drawing's own units."""
        share = (value - self._x.low) / (self._x.high - self._x.low)
        return self._left + share * (_WIDTH - self._left - _RIGHT)

    def down(self, value: float) -> float:
        """Where a value of the y axis lies, in the drawing's own units."""
        share = (value - self._y.low) / (self._y.high - self._y.low)
        return self._height - _BOTTOM - share * (self._height - _TOP - _BOTTOM)

    def line(self, xs: Values, ys: Values, kind: str = "curve") -> None:
        """Join some points; `kind` is a class of the style sheet: ``curve``, ``guide`` or ``mean``."""
        points = " ".join(f"{self.across(x):.1f},{self.down(y):.1f}" for x, y in _corners(xs, ys))
        self._marks.append(Markup('<polyline class="{}" points="{}"/>').format(kind, points))

    def dot(self, x: float, y: float, told: str, *, radius: float = 3.0, kind: str = "dot", colour: str = "") -> None:
        """A point, with what it is for whoever points at it."""
        style = Markup(' style="fill:{}"').format(colour) if colour else Markup()
        self._marks.append(
            Markup('<circle class="{}" cx="{}" cy="{}" r="{}"{}><title>{}</title></circle>').format(
                kind, f"{self.across(x):.1f}", f"{self.down(y):.1f}", f"{radius:g}", style, told
            )
        )

    def bar(self, left: float, right: float, low: float, high: float, kind: str = "bar") -> None:
        """A filled rectangle."""
        x, top = self.across(left), self.down(high)
        self._marks.append(
            Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}"/>').format(
                kind, f"{x:.1f}", f"{top:.1f}", f"{self.across(right) - x:.1f}", f"{max(self.down(low) - top, 0):.1f}"
            )
        )

    def word(self, x: float, y: float, text: str, *, anchor: str = "middle", dy: float = 0.0, kind: str = "") -> None:
        """Some text; `dy` moves it down by so many of the drawing's own units."""
        self._marks.append(
            Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>').format(
                kind, f"{self.across(x):.1f}", f"{self.down(y) + dy:.1f}", anchor, text
            )
        )

    def finished(self, title: str, told: str, *, more: str = "", y_ticks: bool = True) -> Plot:
        """The plot, with its axes behind its marks; `more` is told beside `told` to who cannot see it."""
        number = next(_numbers)
        frame = [self._x_axis(), self._y_axis(ticks=y_ticks)]
        svg = Markup(
            '<svg class="plot" viewBox="0 0 {w} {h}" role="img" aria-labelledby="plot{n}t plot{n}d">'
            '<title id="plot{n}t">{title}</title><desc id="plot{n}d">{told}</desc>{marks}</svg>'
        ).format(
            w=f"{_WIDTH:g}", h=f"{self._height:g}", n=number, title=title, told=f"{told} {more}".strip(),
            marks=Markup().join([*frame, *self._marks]),
        )  # fmt: skip
        return Plot(title, told, svg)

    def _x_axis(self) -> Markup:
        bottom = self._height - _BOTTOM
        parts = []
        for value in self._x.ticks():
            x = f"{self.across(value):.1f}"
            parts.append(Markup('<line class="grid" x1="{0}" x2="{0}" y1="{1:g}" y2="{2:g}"/>').format(x, _TOP, bottom))
            parts.append(
                Markup('<text x="{}" y="{:g}" text-anchor="middle">{}</text>').format(x, bottom + 16, _short(value))
            )
        middle = (self._left + _WIDTH - _RIGHT) / 2
        parts.append(
            Markup('<text class="name" x="{:g}" y="{:g}" text-anchor="middle">{}</text>').format(
                middle, self._height - 9, self._x.title
            )
        )
        return Markup().join(parts)

    def _y_axis(self, *, ticks: bool) -> Markup:
        parts = []
        for value in self._y.ticks() if ticks else ():
            y = self.down(value)
            parts.append(
                Markup('<line class="grid" x1="{0:g}" x2="{1:g}" y1="{2}" y2="{2}"/>').format(
                    self._left, _WIDTH - _RIGHT, f"{y:.1f}"
                )
            )
            parts.append(
                Markup('<text x="{:g}" y="{}" text-anchor="end">{}</text>').format(
                    self._left - 6, f"{y + 4:.1f}", _short(value)
                )
            )
        middle = (_TOP + self._height - _BOTTOM) / 2
        if self._y.title:
            parts.append(
                Markup('<text class="name" transform="translate(13 {:g}) rotate(-90)" text-anchor="middle">{}</text>')
                .format(middle, self._y.title)
            )  # fmt: skip
        return Markup().join(parts)


def _corners(xs: Values, ys: Values) -> list[tuple[float, float]]:
    """The points of a line without those that lie on the straight way between their neighbours."""
    points = list(zip(np.asarray(xs, dtype=float).tolist(), np.asarray(ys, dtype=float).tolist(), strict=True))
    kept = points[:1]
    for before, here, after in zip(points, points[1:], points[2:], strict=False):
        turn = (here[0] - before[0]) * (after[1] - here[1]) - (here[1] - before[1]) * (after[0] - here[0])
        if abs(turn) > 1e-12:
            kept.append(here)
    return kept + points[1:][-1:]


def _short(value: float) -> str:
    return f"{value:.6g}".replace("-", "\N{MINUS SIGN}")


def cell(share: float) -> Markup:
    """The style of a table's cell that holds this share of its row: the more, the fuller its colour."""
    return Markup('style="--share:{}%"').format(escape(f"{100 * min(max(share, 0.0), 1.0):.0f}"))
