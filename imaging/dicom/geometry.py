"""Slices -> volumes: what belongs together, in which order, on which grid, with every defect named.

Invariant: position along the slices' normal decides the order, InstanceNumber never does. What leaves here is either a
regular grid, or a plan that makes one without inventing anatomy, or a refusal by name; the affine is true for every
voxel to within the error that is told. Imports no torch.

Frames: DICOM positions and cosines are in LPS mm (PS3.3 C.7.6.2.1.1); the affine that leaves here is in RAS mm.
Shapes: N slices; ``positions_N3`` is LPS mm of each slice's first pixel, ``along_N`` its place along the normal in mm.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from imaging.dicom.frames import Slice, slices_of
from imaging.dicom.phases import SAME_PLACE_MM, split_by_moment
from imaging.dicom.planar import is_planar, planar_stack
from imaging.dicom.reading import check_reading, reading_notes
from imaging.dicom.scan import Series
from imaging.dicom.split import (
    COSINE_TOLERANCE,
    SPACING_TOLERANCE_MM,
    Group,
    split_by_attributes,
    split_by_protocol,
)
from imaging.dicom.stack import LARGEST_MM, ROUNDING_MM, SMALLEST_MM, Floats, Policy, Regrid, Stack, check_policy
from imaging.errors import (
    GantryTilt,
    InputRefused,
    InvalidGeometry,
    MissingAttribute,
    MissingSlices,
    SharedInstanceUid,
    TooFewSlices,
    VariableSpacing,
)
from imaging.volume import Affine, Defect, lps_to_ras

# A slice may lie this share of the spacing from its place on the regular grid and still be told as jitter, not as
# another geometry; what is found is told in mm.
JITTER_SHARE = 0.02
_TRY_REPAIR = "Read it with --policy repair, or correct it at its source"
# Values of neighbours within the tolerance may differ by this many times as much from end to end.
_MOST_SPREAD = 10.0
# As many wider gaps side by side are another spacing, fewer are missing slices.
_ANOTHER_SPACING = 3
# In repair a gap of more than this many typical distances is never bridged: what lies in it was not seen.
LARGEST_BRIDGED = 2.0
# As many distances between slices are told one by one.
_FEW_DISTANCES = 5
# A repair may not make a volume this many times larger than what was sent.
LARGEST_GROWTH = 4.0


def stacks(series: Series, *, policy: Policy = "repair") -> tuple[list[Stack], list[InputRefused]]:
    """Find the volumes of a series.

    Parameters
    ----------
    series
        The instances of one series in any order.
    policy
        ``strict`` refuses whatever would have to be changed; ``repair`` changes what it can without inventing anatomy.

    Returns
    -------
    stacks
        The volumes. Slices that differ in what a volume has once, or lie at one place at different moments, are
        separate volumes under either policy; each says so in its defects and its name.
    refused
        What was set aside or cannot be a volume, by name.
    """
    check_policy(policy)
    slices, aside = slices_of(series)
    subject = series.facts.subject
    refused: list[InputRefused] = list(aside)
    found: list[Stack] = []
    if policy == "strict" and series.defects:
        return [], [*refused, MissingAttribute(subject, seen=series.defects[0].detail, remedy=_TRY_REPAIR)]
    lacking = _lacking_parts(series)
    if policy == "strict" and lacking:
        return [], [*refused, MissingSlices(subject, seen=lacking[0].detail)]
    for make in _candidates(slices, subject, policy, refused):
        try:
            stack = make()
            check_reading(stack, subject, policy)
            found.append(replace(stack, defects=(*series.defects, *lacking, *stack.defects, *reading_notes(stack))))
        except InputRefused as error:
            refused.append(error)
    return _with_own_identity(found, refused, subject), _gathered(refused, subject)


def _lacking_parts(series: Series) -> tuple[Defect, ...]:
    """Tell where parts of a concatenation, a multi-frame object that was cut for transfer, did not come."""
    parts: dict[str, set[int]] = {}
    totals: dict[str, int] = {}
    for instance in series.instances:
        if instance.concatenation is not None:
            uid, number, total = instance.concatenation
            parts.setdefault(uid, set()).add(number)
            totals[uid] = max(totals.get(uid, 0), total, number)
    came, meant = sum(map(len, parts.values())), sum(totals.values())
    if came >= meant:
        return ()
    return (Defect("missing_slices", "noted", f"{came} of {meant} parts of a concatenated multi-frame object came"),)


def _with_own_identity(found: list[Stack], refused: list[InputRefused], subject: str) -> list[Stack]:
    """Leave out volumes that share an instance with another: no result could say which of them it means."""
    users = Counter((item.instance.sop_instance_uid, item.number) for stack in found for item in stack.slices)
    own = [s for s in found if all(users[i.instance.sop_instance_uid, i.number] == 1 for i in s.slices)]
    if len(own) < len(found):
        seen = f"{len(found) - len(own)} volumes whose slices share their SOPInstanceUIDs"
        refused.append(SharedInstanceUid(subject, seen=seen))
    return own


def _gathered(refused: list[InputRefused], subject: str) -> list[InputRefused]:
    """One refusal for all the single slices of a series."""
    single = [error for error in refused if isinstance(error, TooFewSlices)]
    if len(single) < 2:
        return refused
    others = [error for error in refused if not isinstance(error, TooFewSlices)]
    return [*others, TooFewSlices(subject, seen=f"{len(single)} slices that are alone of their kind")]


def _candidates(
    slices: Sequence[Slice], subject: str, policy: Policy, refused: list[InputRefused]
) -> Iterator[Callable[[], Stack]]:
    """What may be a volume, each as the call that makes it; what cannot be told apart goes to `refused`."""
    planar = [item for item in slices if is_planar(item)]
    for item in planar:
        yield partial(planar_stack, item, subject, policy, alone=len(slices) == 1)
    spatial = [item for item in slices if not is_planar(item)]
    for kind in split_by_attributes(spatial) if spatial else ():
        try:
            groups = split_by_moment(kind, subject)
        except InputRefused as error:
            refused.append(error)
            continue
        for group in groups:
            yield from (partial(_stack, part, subject, policy) for part in split_by_protocol(group))


def _check_identity(group: Group, subject: str) -> None:
    """Refuse slices that no result could tell apart."""
    identities = {(item.instance.sop_instance_uid, item.number) for item in group.slices}
    if len(identities) < len(group.slices):
        seen = f"{len(group.slices)} slices with {len(identities)} SOPInstanceUIDs"
        raise SharedInstanceUid(subject, seen=seen)


@dataclass(frozen=True, slots=True, eq=False)
class _Grid:
    """Ordered slices with what is needed to judge them, in LPS mm."""

    subject: str
    slices: tuple[Slice, ...]
    row: Floats
    column: Floats
    normal: Floats
    positions_N3: Floats
    spacing_rows: float
    spacing_columns: float

    @property
    def along_N(self) -> Floats:
        along_N: Floats = (self.positions_N3 - self.positions_N3[0]) @ self.normal
        return along_N

    @property
    def beside_N2(self) -> Floats:
        """How far each first pixel lies beside the first slice's, along a row and down a column."""
        beside_N2: Floats = (self.positions_N3 - self.positions_N3[0]) @ np.stack([self.row, self.column], axis=1)
        return beside_N2

    def part(self, first: int, last: int) -> _Grid:
        """The slices from `first` up to and with `last`."""
        chosen = slice(first, last + 1)
        return replace(self, slices=self.slices[chosen], positions_N3=self.positions_N3[chosen])


def _stack(group: Group, subject: str, policy: Policy) -> Stack:
    """One group -> one regular grid, or a refusal."""
    _check_identity(group, subject)
    grid = _ordered(group, subject)
    if len(grid.slices) < 2:
        raise TooFewSlices(subject, seen="one slice")
    if float(np.diff(grid.along_N).min()) < SAME_PLACE_MM:
        raise InvalidGeometry(subject, seen="slices beside each other in one plane, not above each other")
    defects = list(group.defects)
    grid = _without_gaps(grid, policy, defects)
    uneven = _is_uneven(grid)
    if uneven:
        if policy == "strict":
            raise VariableSpacing(
                subject, seen="; ".join([_distances(grid), *([_tilt(grid)] if _is_tilted(grid) else [])])
            )
        grid = _without_chasms(grid, defects)
    tilted = _is_tilted(grid)
    if tilted and policy == "strict":
        raise GantryTilt(subject, seen=_tilt(grid))
    if not uneven and not tilted:
        return _regular(grid, group.name, defects)
    return _regridded(grid, group.name, defects)


_KEYWORDS = {
    "orientation": "ImageOrientationPatient",
    "spacing": "PixelSpacing",
    "position": "ImagePositionPatient",
}


def _ordered(group: Group, subject: str) -> _Grid:
    """Slices along their normal; refuses what has no geometry or one that means nothing."""
    for keyword, attribute in _KEYWORDS.items():
        values = [getattr(item, keyword) for item in group.slices]
        if None in values:
            seen = f"{attribute} is missing or malformed in {values.count(None)} slices"
            raise MissingAttribute(subject, seen=seen)
        if not np.isfinite(np.array(values)).all():
            raise InvalidGeometry(subject, seen=f"{keyword} that is not finite")
    _check_spread(group, subject)
    cosines = np.array([item.orientation for item in group.slices], dtype=np.float64).mean(axis=0)
    row, column = cosines[:3], cosines[3:]
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if max(abs(length - 1) for length in lengths) > COSINE_TOLERANCE:
        raise InvalidGeometry(subject, seen="direction cosines that are not unit vectors")
    if abs(row @ column) > COSINE_TOLERANCE:
        raise InvalidGeometry(subject, seen="direction cosines that are not orthogonal")
    row = row / lengths[0]
    # What rounding left of the row in the column is taken out, so that the grid is exactly orthogonal.
    column = column - (column @ row) * row
    column = column / np.linalg.norm(column)
    rows, columns = np.array([item.spacing for item in group.slices], dtype=np.float64).mean(axis=0).tolist()
    if not (min(rows, columns) > SMALLEST_MM and max(rows, columns) < LARGEST_MM):
        raise InvalidGeometry(subject, seen=f"a pixel spacing of {rows:g} x {columns:g} mm")
    normal = np.cross(row, column)
    positions = np.array([item.position for item in group.slices], dtype=np.float64)
    if float(np.abs(positions).max()) > 1e5:
        raise InvalidGeometry(subject, seen="positions beyond 100 m")
    if float(np.diff(np.sort(positions @ normal)).max(initial=0)) > LARGEST_MM:
        raise InvalidGeometry(subject, seen=f"slices more than {LARGEST_MM:g} mm apart")
    order = np.argsort(positions @ normal, kind="stable")
    ordered = tuple(group.slices[index] for index in order)
    return _Grid(subject, ordered, row, column, normal, positions[order], rows, columns)


def _check_spread(group: Group, subject: str) -> None:
    """Refuse cosines or spacings that creep from slice to slice until the ends are not alike."""
    for keyword, tolerance in (("orientation", COSINE_TOLERANCE), ("spacing", SPACING_TOLERANCE_MM)):
        spread = float(np.ptp(np.array([getattr(item, keyword) for item in group.slices]), axis=0).max())
        if spread > _MOST_SPREAD * tolerance:
            raise InvalidGeometry(subject, seen=f"{_KEYWORDS[keyword]} that creeps by {spread:.4g} through the slices")


def _without_gaps(grid: _Grid, policy: Policy, defects: list[Defect]) -> _Grid:
    """Where slices are missing from an otherwise regular stack: refuse, or keep the longest whole run."""
    gaps = np.diff(grid.along_N)
    typical = float(np.sort(gaps)[(len(gaps) - 1) // 2])  # the median, but always a distance that is there
    steps = np.maximum(np.rint(gaps / max(typical, ROUNDING_MM)), 1)
    multiple = np.abs(gaps - steps * typical) <= np.maximum(JITTER_SHARE * typical, ROUNDING_MM) * steps
    if not bool(multiple.all()) or not bool((steps > 1).any()) or _longest_repeat(steps) >= _ANOTHER_SPACING:
        return grid
    first = int(np.argmax(steps > 1))
    missing = int((steps - 1).sum())
    seen = f"{missing} slices are missing, the first after {grid.along_N[first]:.2f} mm from the first slice"
    if policy == "strict":
        raise MissingSlices(grid.subject, seen=seen, expected=f"one every {typical:.3f} mm was expected")
    return _longest_run(grid, steps == 1, seen, defects)


def _without_chasms(grid: _Grid, defects: list[Defect]) -> _Grid:
    """The longest run of unevenly spaced slices without a gap that is too wide to bridge, beside the mean of others."""
    gaps = np.diff(grid.along_N)
    others = (gaps.sum() - gaps) / max(len(gaps) - 1, 1)
    bridged = (gaps <= LARGEST_BRIDGED * others) | (len(gaps) == 1)
    if bool(bridged.all()):
        return grid
    return _longest_run(grid, bridged, f"a gap of {gaps.max():.2f} mm cannot be bridged", defects)


def _longest_repeat(steps: Floats) -> int:
    """How many wider gaps of one width lie side by side, at most."""
    longest = run = 0
    for before, step in pairwise((1.0, *steps.tolist())):
        run = run + 1 if step > 1 and step == before else int(step > 1)
        longest = max(longest, run)
    return longest


def _longest_run(grid: _Grid, whole: NDArray[np.bool_], seen: str, defects: list[Defect]) -> _Grid:
    """The longest run of slices between which every distance is whole."""
    breaks = [-1, *np.flatnonzero(~whole).tolist(), len(whole)]
    runs = [(start + 1, end) for start, end in pairwise(breaks)]
    first, last = max(runs, key=lambda run: run[1] - run[0])
    if last - first < 1:
        raise MissingSlices(grid.subject, seen=f"{seen}, and no two neighbours are left")
    kept = f"the longest whole run was kept, slices {first + 1} to {last + 1} of {len(grid.slices)}"
    defects.append(Defect("missing_slices", "repaired", f"{seen}; {kept}"))
    return grid.part(first, last)


def _is_uneven(grid: _Grid) -> bool:
    along = grid.along_N
    even = np.linspace(0, along[-1], len(along))
    spacing = along[-1] / (len(along) - 1)
    return bool(np.abs(along - even).max() > max(JITTER_SHARE * spacing, ROUNDING_MM))


def _is_tilted(grid: _Grid) -> bool:
    spacing = grid.along_N[-1] / (len(grid.slices) - 1)
    beside = np.linalg.norm(grid.beside_N2, axis=1)
    return bool(beside.max() > max(JITTER_SHARE * spacing, ROUNDING_MM))


def _distances(grid: _Grid) -> str:
    """The distances between neighbours, and how often each is met where they are few."""
    gaps = np.diff(grid.along_N)
    values, counts = np.unique(np.round(gaps, 2), return_counts=True)
    if len(values) > _FEW_DISTANCES:
        return f"{len(gaps)} distances from {gaps.min():.2f} to {gaps.max():.2f} mm between slices"
    told = ", ".join(f"{count} x {value:.2f}" for value, count in zip(values, counts, strict=True))
    return f"distances between slices of {told} mm"


def _tilt(grid: _Grid) -> str:
    """How far slices lie beside each other: along one line it is a tilt, else single slices were moved."""
    beside_N2, along_N = grid.beside_N2, grid.along_N
    line_N2 = np.outer(along_N / along_N[-1], beside_N2[-1])
    shift = float(np.linalg.norm(beside_N2, axis=1).max())
    if float(np.linalg.norm(beside_N2 - line_N2, axis=1).max()) > JITTER_SHARE * shift:
        return f"slices lie up to {shift:.2f} mm beside the first, not along one line"
    angle = np.degrees(np.arctan2(shift, float(along_N[-1])))
    return f"the last slice lies {shift:.2f} mm beside the first, a tilt of {angle:.1f} degrees"


def _affine_lps(grid: _Grid, origin: Floats, spacing: float) -> Affine:
    """C.7.6.2.1.1 equation (1): a step along a row goes by the distance between columns, and the reverse."""
    affine = np.eye(4)
    affine[:3, 0] = grid.row * grid.spacing_columns
    affine[:3, 1] = grid.column * grid.spacing_rows
    affine[:3, 2] = grid.normal * spacing
    affine[:3, 3] = origin
    return affine


def _regular(grid: _Grid, name: str, defects: list[Defect]) -> Stack:
    spacing = float(grid.along_N[-1]) / (len(grid.slices) - 1)
    affine = _affine_lps(grid, grid.positions_N3[0], spacing)
    instance = grid.slices[0].instance
    shape = (instance.columns, instance.rows, len(grid.slices))
    meant_N3 = affine[:3, 3] + np.arange(len(grid.slices))[:, None] * affine[:3, 2]
    return Stack(grid.slices, lps_to_ras(affine), shape, (*defects, *_unevenness(grid, meant_N3)), None, name)


def _unevenness(grid: _Grid, meant_N3: Floats) -> tuple[Defect, ...]:
    """Tell how far the slices' own corners lie from where the one affine puts them.

    This is the whole error of taking the slices as one grid: jitter of positions, rounding of cosines, and cosines and
    spacings that differ from slice to slice within the tolerances.

    Parameters
    ----------
    grid
        The slices.
    meant_N3
        Where the affine puts the first pixel of each, in LPS mm.
    """
    instance = grid.slices[0].instance
    corners = [(column, row) for column in (0, instance.columns - 1) for row in (0, instance.rows - 1)]
    cosines_N6 = np.array([item.orientation for item in grid.slices])
    spacing_N2 = np.array([item.spacing for item in grid.slices])
    error = 0.0
    for column, row in corners:
        own_N3 = grid.positions_N3 + cosines_N6[:, :3] * spacing_N2[:, 1:] * column
        own_N3 = own_N3 + cosines_N6[:, 3:] * spacing_N2[:, :1] * row
        corner = grid.row * grid.spacing_columns * column + grid.column * grid.spacing_rows * row
        error = max(error, float(np.linalg.norm(meant_N3 + corner - own_N3, axis=1).max()))
    if error <= ROUNDING_MM:
        return ()
    detail = f"voxels lie up to {error:.3f} mm from where the slices' own attributes put them"
    return (Defect("uneven_positions", "noted", detail, error_mm=error),)


def _regridded(grid: _Grid, name: str, defects: list[Defect]) -> Stack:
    """Plan an orthogonal, evenly spaced grid that holds every slice."""
    along_N, beside_N2 = grid.along_N, grid.beside_N2
    uneven, tilted = _is_uneven(grid), _is_tilted(grid)
    target = _targets(along_N) if uneven else np.linspace(0, along_N[-1], len(along_N))
    instance = grid.slices[0].instance
    low = beside_N2.min(axis=0) if tilted else np.zeros(2)
    shift_N2 = _shift(grid, low) if tilted else np.zeros_like(beside_N2)
    more_columns, more_rows = np.ceil(shift_N2.max(axis=0)).astype(int).tolist()
    shape = (instance.columns + more_columns, instance.rows + more_rows, len(target))
    before = instance.columns * instance.rows * len(along_N)
    if shape[0] * shape[1] * shape[2] > LARGEST_GROWTH * before:
        raise GantryTilt(
            grid.subject, seen=f"{_tilt(grid)}; a grid that holds it all would be over {LARGEST_GROWTH:g} times larger"
        )
    if uneven:
        error = float(np.abs(target[:, None] - along_N[None, :]).min(axis=1).max())
        detail = f"{_distances(grid)}; interpolated linearly to {len(target)} slices every {target[1]:.3f} mm"
        defects.append(Defect("variable_spacing", "repaired", detail, error_mm=error))
    if tilted:
        detail = f"{_tilt(grid)}; each slice was moved to its place in its plane, with linear interpolation"
        defects.append(Defect("gantry_tilt", "repaired", detail))
    meant_along_N, meant_beside_N2 = along_N if uneven else target, beside_N2 if tilted else 0 * beside_N2
    meant_N3 = grid.positions_N3[0] + np.outer(meant_along_N, grid.normal)
    meant_N3 = meant_N3 + meant_beside_N2 @ np.stack([grid.row, grid.column])
    origin = grid.positions_N3[0] + grid.row * low[0] + grid.column * low[1]
    affine = _affine_lps(grid, origin, float(target[1]))
    notes = _unevenness(grid, meant_N3)
    return Stack(
        grid.slices, lps_to_ras(affine), shape, (*defects, *notes), Regrid(meant_along_N, target, shift_N2), name
    )


def _shift(grid: _Grid, low: Floats) -> Floats:
    """How far each slice lies beside the grid's first pixel, in pixels.

    What is a whole number of pixels but for rounding is taken as whole, else a slice would lose its outermost pixels.
    """
    spacing = np.array([grid.spacing_columns, grid.spacing_rows])
    shift_N2 = (grid.beside_N2 - low) / spacing
    whole_N2 = np.rint(shift_N2)
    snapped_N2: Floats = np.where(np.abs(shift_N2 - whole_N2) * spacing <= ROUNDING_MM, whole_N2, shift_N2)
    return snapped_N2


def _targets(along_N: Floats) -> Floats:
    """Evenly spaced places over the same extent, as near to each other as the slices typically are."""
    count = round(float(along_N[-1] / np.median(np.diff(along_N)))) + 1
    targets: Floats = np.linspace(0, along_N[-1], max(count, 2))
    return targets
