"""Order, holes, distances, tilt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from phantom import AXIAL, OBLIQUE, Orientation

from torture_rows.truth import Truth, both, expect
from torture_rows.writing import Row, Writer, write

ORDER = Row("InstanceNumber")
MISSING = Row("missing slices")
SPACING = Row("variable spacing")
TILT = Row("gantry tilt")

_ORIENTATIONS: dict[str, Orientation] = {"axial": AXIAL, "oblique": OBLIQUE}
Shift = Callable[[int], tuple[float, float, float]]


def right(**phantom: Any) -> Writer:
    """A series that is one volume under both policies, with nothing to tell."""

    def make(folder: Path) -> Truth:
        made = write(folder, **phantom)
        return both(expect(made.planes, made.tolerance))

    return make


def repaired(codes: Sequence[str], *, kept: slice = slice(None), regridded: bool = False, **phantom: Any) -> Writer:
    """A series that strict refuses and repair makes a volume of, from some of its slices."""

    def make(folder: Path) -> Truth:
        made = write(folder, **phantom)
        return Truth((), (expect(made.planes[kept], made.tolerance, codes=codes, regridded=regridded),))

    return make


for _numbering in ("scrambled", "equal", "missing", "reversed"):
    for _name, _orientation in _ORIENTATIONS.items():
        _make = right(numbering=_numbering, orientation=_orientation, rescale="per_slice", slices=6)
        ORDER.add(f"instance_number_{_numbering}_{_name}", _make)


_HOLES: dict[str, tuple[list[int], slice]] = {
    "middle": ([0, 1, 2, 4, 5, 6, 7], slice(3, 7)),
    "several_in_the_middle": ([0, 1, 2, 3, 8, 9], slice(0, 4)),
    "near_the_end": ([0, 1, 2, 3, 4, 5, 7], slice(0, 6)),
    "second": ([0, 2, 3, 4, 5], slice(1, 5)),
    "two_gaps": ([0, 1, 3, 4, 5, 6, 8, 9], slice(2, 6)),
    "two_gaps_of_different_width": ([0, 1, 4, 5, 6, 8, 9], slice(2, 5)),
    "of_three": ([0, 1, 3], slice(0, 2)),
}
for _name, _orientation in _ORIENTATIONS.items():
    for _where, (_keep, _kept) in _HOLES.items():
        _make = repaired(["missing_slices"], kept=_kept, keep=_keep, orientation=_orientation, numbering="scrambled")
        MISSING.add(f"missing_{_where}_{_name}", _make, strict=["missing_slices"])


def _jittered_with_a_gap(folder: Path) -> Truth:
    shift: Shift = lambda k: (0.0, 0.0, (0.0, 0.02, 0.0, 0.03)[k % 4])  # noqa: E731
    made = write(folder, keep=[0, 1, 2, 3, 5, 6], shift=shift)
    return Truth((), (expect(made.planes[:4], made.tolerance, codes=["missing_slices", "uneven_positions"]),))


MISSING.add("missing_with_jitter", _jittered_with_a_gap, strict=["missing_slices"])


def _along(*distances: float) -> Shift:
    return lambda k: (0.0, 0.0, distances[k])


_UNEVEN: dict[str, tuple[float, ...]] = {
    "alternating": (0, 0.8, 0, 0.8, 0, 0.8),
    "last": (0, 0, 0, 0, 0, 1.2),
    "drift": (0, 0.1, 0.3, 0.6, 1.0, 1.5),
    "random": (0, 0.4, -0.5, 0.9, 0.2, -0.3),
}
for _name, _orientation in _ORIENTATIONS.items():
    for _how, _distances in _UNEVEN.items():
        _make = repaired(["variable_spacing"], regridded=True, slices=6, shift=_along(*_distances),
                         orientation=_orientation, rescale="per_slice", numbering="scrambled")  # fmt: skip
        SPACING.add(f"spacing_{_how}_{_name}", _make, strict=["variable_spacing"])


def _interleaved(offset: float) -> Shift:
    """Two stacks with twice the distance, the second moved by `offset`."""
    return lambda k: (0.0, 0.0, 0.0 if k % 2 == 0 else offset)


def _with_a_chasm(folder: Path) -> Truth:
    shift = _along(0, 0.6, 0, 0.6, 0, 0, 23.0, 23.7, 23.0)
    made = write(folder, keep=[0, 1, 2, 3, 4, 6, 7, 8], shift=shift)
    codes = ["missing_slices", "variable_spacing"]
    return Truth((), (expect(made.planes[:5], made.tolerance, codes=codes, regridded=True),))


def _jitter(folder: Path) -> Truth:
    made = write(folder, slices=6, shift=_along(0, 0.02, -0.01, 0.03, 0, 0.01))
    return both(expect(made.planes, made.tolerance, codes=["uneven_positions"]))


def _sideways_jitter(folder: Path) -> Truth:
    made = write(folder, slices=6, shift=lambda k: (0.02 * (k % 2), -0.015 * (k % 3), 0.0))
    return both(expect(made.planes, made.tolerance, codes=["uneven_positions"]))


def _overlapping(folder: Path) -> Truth:
    made = write(folder, slices=6, edit=lambda dataset, _: setattr(dataset, "SliceThickness", 5))
    return both(expect(made.planes, made.tolerance))


SPACING.add(
    "interleaved_unevenly",
    repaired(["variable_spacing"], regridded=True, slices=6, shift=_interleaved(-0.9)),
    strict=["variable_spacing"],
)
SPACING.add(
    "interleaved_evenly",
    right(slices=6, edit=lambda dataset, k: setattr(dataset, "AcquisitionNumber", 1 + k % 2)),
)
SPACING.add("spacing_with_a_chasm", _with_a_chasm, strict=["variable_spacing"])
SPACING.add("jitter_is_told_in_mm", _jitter)
SPACING.add("sideways_jitter_is_told_in_mm", _sideways_jitter)
SPACING.add("overlapping_thick_slices", _overlapping)


def _sheared(column: float, row: float, *normal: float) -> Shift:
    """Each slice moved by so many mm along a row and down a column more than the one before."""
    return lambda k: (column * k, row * k, normal[k] if normal else 0.0)


_TILTED = ["gantry_tilt", "beyond_acquired"]
_TILTS: dict[str, tuple[float, float]] = {
    "down": (0.0, 0.55),
    "down_backwards": (0.0, -0.55),
    "across": (0.4, 0.0),
    "both": (-0.37, 0.61),
}
for _name, _orientation in _ORIENTATIONS.items():
    for _how, _shear in _TILTS.items():
        _make = repaired(_TILTED, regridded=True, slices=5, shift=_sheared(*_shear), orientation=_orientation,
                         modality="CT", rows=8, columns=10, numbering="reversed")  # fmt: skip
        TILT.add(f"tilt_{_how}_{_name}", _make, strict=["gantry_tilt"])
    _make = repaired([*_TILTED, "variable_spacing"], regridded=True, slices=5, rows=8, columns=10,
                     shift=_sheared(0.2, 0.5, 0, 0.5, 0, 0.7, 0), orientation=_orientation)  # fmt: skip
    TILT.add(f"tilt_and_variable_spacing_{_name}", _make, strict=["variable_spacing"])
    _make = repaired([*_TILTED, "missing_slices"], regridded=True, kept=slice(0, 4), keep=[0, 1, 2, 3, 6, 7],
                     shift=_sheared(0.0, 0.5), orientation=_orientation, rows=8, columns=10)  # fmt: skip
    TILT.add(f"tilt_and_missing_slices_{_name}", _make, strict=["missing_slices"])
TILT.add(
    "one_slice_pushed_aside",
    repaired(_TILTED, regridded=True, slices=5, shift=lambda k: (1.1, 0.0, 0.0) if k == 2 else (0.0, 0.0, 0.0)),
    strict=["gantry_tilt"],
)
ROWS = (ORDER, MISSING, SPACING, TILT)
