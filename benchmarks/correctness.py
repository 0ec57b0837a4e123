"""Who reads what hospitals send: the torture cases of tests/torture.py, given to this project and to its peers.

    python benchmarks/correctness.py [--only WORD,...] [--peers NAME,...] [--verdicts FILE] [--detail]

Every picture of a case is a field that is linear in the patient's millimetres, so a volume can be judged by itself:

- right: every voxel of every volume holds the field's value at the place where the volume's own affine puts it (to
  0.1 mm and what quantisation takes), and every volume that can be had was given;
- explained: not so, but an exception, a warning or a defect says something of it, or nothing was given at all;
- incomplete: what was given is right, and the rest was lost without a word;
- wrong: a volume has other values than the place its affine names, without a word;
- crashed: the process died or did not answer within a minute.

The judge is lenient where peers differ by taste: any exception is an explanation; so is any message with a word that
concerns geometry or pixels, unless the reader says the same of any good series; beyond what was acquired a
volume may be filled with one value, and voxels stored as padding may hold any; axes may run in any order. Each reader
is used as its own documentation shows and runs in a process of its own. With `--verdicts` each verdict and its reason
is written as a line of JSON when it is known, and what stands there already is not run again.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import re
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from measuring import machine, versions
from numpy.typing import NDArray
from peers import PEERS, Floats, Given, Peer, Values

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from phantom import write_series
from torture import CASES, Case, Expected, Field, Plane, Truth

VERDICTS = ("right", "explained", "incomplete", "wrong", "crashed")
# How far in mm a voxel may lie from where the affine puts it.
_NEAR_MM = 0.1
# A voxel this far in pixels beyond the outermost pixel centres was not acquired.
_BEYOND = 0.01
# Words of a message that concerns what a torture case is about.
_CONCERNS = re.compile(
    r"missing|spac|uniform|distan|\bgaps?\b|tilt|gantry|shear|duplicat|overlap|same position|orient|orthog|locali[sz]er"
    r"|scout|series|multi|dimension|matrix|\bsize|inconsist|irregular|differ|vary|varies|var(?:iable|ied)|slope|scal|"
    r"intercept|padding|monochrome|photometric|palette|colou?r|rgb|planar|signed|bits|overlay|trunc|corrupt|short|"
    r"invalid|malformed|unable|unsupported|not supported|transfer syntax|decod|compress|pixel|jpeg|rle|frame|mosaic|"
    r"echo|b.?val|phase|temporal|time|order|position|instance|uid|patient|study|skip|ignor|refus|not a? ?dicom|"
    r"preamble|meta|archive|magnification|calibrat|projection|derived|secondary|report|no image|no valid|resampl",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Verdict:
    """What came of one reader on one case."""

    row: str
    case: str
    peer: str
    verdict: str
    why: str


def judge(truth: Truth, given: Given, usual: frozenset[str]) -> tuple[str, str]:
    """A reader's answer -> one of `VERDICTS`, and why."""
    if given.crashed:
        return "crashed", given.crashed
    told = [text for text in given.told if _CONCERNS.search(text) and _pattern(text) not in usual]
    if given.raised:
        told.insert(0, given.raised)
    if given.absurd:
        return ("explained", told[0]) if told else ("wrong", f"a volume of {given.absurd}")
    if not given.volumes:
        return "explained", told[0] if told else "no volume, and no word"
    possible = [*truth.repair, *truth.strict]
    covered: set[int] = set()
    for number, (array_CXYZ, affine) in enumerate(given.volumes):
        fitting = [k for k, expected in enumerate(possible) if _fits(expected, array_CXYZ, affine)]
        if not fitting and not (not possible and _fits_field(Field(), array_CXYZ, affine)):
            seen = f"volume {number + 1} of {len(given.volumes)}, {array_CXYZ.shape}, has values that are not there"
            return ("explained", told[0]) if told else ("wrong", seen)
        covered.update(k for k in fitting if _covers(possible[k], array_CXYZ.shape[1:], affine))
    lost = [k for k in range(len(truth.repair)) if k not in covered]
    if lost or given.raised:
        return (
            ("explained", told[0]) if told else ("incomplete", f"{len(lost)} of {len(truth.repair)} volumes are lost")
        )
    return "right", told[0] if told else ""


def _pattern(text: str) -> str:
    """A message without what changes from file to file."""
    return re.sub(r"[\d./\\_-]+\w*", "#", text)[:80]


def _points(shape: Sequence[int], affine_ras: Floats) -> Floats:
    """(n, 3): the place in LPS mm of each voxel."""
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine_ras
    indices = np.indices(shape).reshape(3, -1)
    points: Floats = (affine[:3, :3] @ indices + affine[:3, 3:]).T
    return points


def _fits_field(field: Field, array_CXYZ: Values, affine: Floats) -> bool:
    if not np.isfinite(affine).all():
        return False
    values = field(_points(array_CXYZ.shape[1:], affine))
    near = 1.0 + _NEAR_MM * float(np.linalg.norm(field.gradient))
    return len(array_CXYZ) == 1 and bool((np.abs(array_CXYZ.reshape(-1) - values) <= near).all())


def _fits(expected: Expected, array_CXYZ: Values, affine: Floats) -> bool:
    """Whether all values that were acquired are the field's, and some were."""
    if len(array_CXYZ) != len(expected.fields) or not np.isfinite(affine).all():
        return False
    points = _points(array_CXYZ.shape[1:], affine)
    acquired = _acquired(expected, points)
    if not acquired.any():
        return False
    for values_XYZ, field in zip(array_CXYZ, expected.fields, strict=True):
        near = expected.tolerance + _NEAR_MM * float(np.linalg.norm(field.gradient))
        values = values_XYZ.reshape(-1)
        right = np.abs(values - field(points)) <= near
        # Beyond what was acquired, and for padding, a reader may have set one value; it may not have put a picture.
        empty = ~acquired & ((values == values.min()) | (values == 0))
        if not (right | empty | _padding(expected, points)).all():
            return False
    return True


def _acquired(expected: Expected, points: Floats) -> NDArray[np.bool_]:
    """Which points lie among the planes."""
    nearest, along, heights = _nearest(expected, points)
    half = float(np.diff(heights).max()) / 2 if len(heights) > 1 else np.inf
    inside: NDArray[np.bool_] = (along > heights.min() - half) & (along < heights.max() + half)
    for number, plane in enumerate(expected.planes):
        mine = nearest == number
        inside[mine] &= plane.edge(points[mine]) > -_BEYOND
    return inside


def _padding(expected: Expected, points: Floats) -> NDArray[np.bool_]:
    """Which points lie on padding."""
    padding = np.zeros(len(points), dtype=bool)
    if expected.masked is not None:
        nearest, _, _ = _nearest(expected, points)
        for number, plane in enumerate(expected.planes):
            mine = nearest == number
            column, row = _pixel(plane, points[mine])
            padding[mine] = expected.masked[number][row, column]
    return padding


def _nearest(expected: Expected, points: Floats) -> tuple[NDArray[np.intp], Floats, Floats]:
    """For each point the number of the nearest plane and its place along the normal; the planes' places."""
    first = expected.planes[0]
    heights = np.array([(plane.position - first.position) @ first.normal for plane in expected.planes])
    along: Floats = (points - first.position) @ first.normal
    return np.abs(along[:, None] - heights[None, :]).argmin(axis=1), along, heights


def _pixel(plane: Plane, points: Floats) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The nearest pixel of a plane, as column and row."""
    column = np.rint((points - plane.position) @ plane.row / plane.spacing[1]).clip(0, plane.columns - 1)
    row = np.rint((points - plane.position) @ plane.column / plane.spacing[0]).clip(0, plane.rows - 1)
    return column.astype(int), row.astype(int)


def _covers(expected: Expected, shape: Sequence[int], affine: Floats) -> bool:
    """Whether every plane lies inside of the grid."""
    inverse = np.linalg.inv(np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)
    points = np.concatenate([plane.points().reshape(-1, 3) for plane in expected.planes])
    indices = points @ inverse[:3, :3].T + inverse[:3, 3]
    return bool((indices > -0.6).all() and (indices < np.array(shape) - 0.4).all())


def _plain(modality: str) -> Case:
    """A series without a defect: what every reader is made for."""

    def write(folder: Path) -> Truth:
        made = write_series(folder, modality=modality, slices=6, pixel_spacing=(0.8, 0.8))
        row, column = np.array([1.0, 0.0, 0.0]), np.array([0.0, 1.0, 0.0])
        planes = [
            Plane(frozenset([(uid, 1)]), position, row, column, (0.8, 0.8), 5, 7)
            for uid, position in zip(made.uids, made.positions, strict=True)
        ]
        return Truth((), (Expected(tuple(planes), made.tolerance),))

    return Case(f"plain_{modality}", "nothing wrong: the control", write)


CONTROLS = tuple(_plain(modality) for modality in ("CT", "MR"))


def usual_of(peer: Peer, folder: Path) -> frozenset[str]:
    """What a reader says of series whose geometry and values have no defect."""
    said: set[str] = set()
    for modality in ("CT", "MR"):
        for numbering in ("ascending", "scrambled"):
            target = folder / f"{modality}_{numbering}"
            write_series(target, modality=modality, numbering=numbering, slices=6)
            said.update(_pattern(text) for text in peer.ask(target).told)
    return frozenset(said)


def run(cases: Sequence[Case], names: Sequence[str], known: dict[tuple[str, str], Verdict]) -> Iterator[Verdict]:
    """Give every case to every reader; what is known is given as it is."""
    peers = [Peer(name) for name in names]
    for peer in [peer for peer in peers if peer.missing]:
        print(f"{peer.name}: not installed ({peer.missing})  ")
    peers = [peer for peer in peers if not peer.missing]
    usual: dict[str, frozenset[str]] = {}
    with tempfile.TemporaryDirectory(prefix="correctness_") as temporary:
        for number, case in enumerate(cases):
            yield from (known[case.name, peer.name] for peer in peers if (case.name, peer.name) in known)
            asked = [peer for peer in peers if (case.name, peer.name) not in known]
            folder = Path(temporary) / f"case{number}"
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # pydicom, of what is written wrong on purpose
                truth = case.write(folder) if asked else Truth()
            for peer in asked:
                if peer.name not in usual:
                    usual[peer.name] = usual_of(peer, Path(temporary) / f"usual_{peer.name}")
                verdict, why = judge(truth, peer.ask(folder), usual[peer.name])
                yield Verdict(case.row, case.name, peer.name, verdict, why)
            shutil.rmtree(folder, ignore_errors=True)
    for peer in peers:
        peer.close()


def known_verdicts(path: Path | None) -> dict[tuple[str, str], Verdict]:
    """What an earlier run wrote."""
    lines = path.read_text().splitlines() if path and path.exists() else []
    verdicts = [Verdict(**json.loads(line)) for line in lines]
    return {(item.case, item.peer): item for item in verdicts}


def report(verdicts: Sequence[Verdict], *, detail: bool) -> None:
    """A row for each row of the table of kinds (or each case), and the sums, in Markdown."""
    names = [name for name in PEERS if any(item.peer == name for item in verdicts)]
    print(f"\n| what comes | cases | {' | '.join(names)} |")
    print(f"| --- | ---: | {' | '.join('---' for _ in names)} |")
    labels = list(dict.fromkeys(item.case if detail else item.row for item in verdicts))
    for label in [*labels, "all"]:
        mine = [item for item in verdicts if label in ("all", item.case if detail else item.row)]
        counts = [Counter(item.verdict for item in mine if item.peer == name) for name in names]
        cells = [", ".join(f"{count[word]} {_loud(word)}" for word in VERDICTS if count[word]) for count in counts]
        print(f"| {label.replace('|', '/')} | {len(mine) // len(names)} | {' | '.join(cells)} |")


def _loud(word: str) -> str:
    return f"**{word}**" if word in ("incomplete", "wrong", "crashed") else word


def main() -> None:
    """Choose the cases, run, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="words, one of which a case's or a row's name must have")
    parser.add_argument("--peers", default=",".join(PEERS), help="readers, with commas between")
    parser.add_argument("--verdicts", type=Path, help="where each verdict goes, with its reason, and is taken up again")
    parser.add_argument("--detail", action="store_true", help="a line for each case instead of each row")
    given = parser.parse_args()
    words, names = given.only.split(","), given.peers.split(",")
    unknown = set(names) - set(PEERS)
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: known are {', '.join(PEERS)}")
    cases = [case for case in (*CONTROLS, *CASES) if any(word in case.name or word in case.row for word in words)]
    if not cases:
        parser.error(f"no case has {given.only!r} in its name")
    print(f"{datetime.date.today()}; {machine()}; Python {platform.python_version()}; ", end="")
    print(f"{versions(PEERS[name].package for name in names)}  ")
    print(f"{len(cases)} cases of tests/torture.py")
    known, verdicts = known_verdicts(given.verdicts), []
    for verdict in run(cases, names, known):
        verdicts.append(verdict)
        if given.verdicts and (verdict.case, verdict.peer) not in known:
            with given.verdicts.open("a") as lines:
                lines.write(json.dumps(asdict(verdict)) + "\n")
    report(verdicts, detail=given.detail)


if __name__ == "__main__":
    main()
