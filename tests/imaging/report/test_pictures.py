"""A picture shows a slice as a radiologist expects it, whichever way the array lies."""

from __future__ import annotations

import base64
import io
import re
from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from imaging.checkpoint import Checkpoint
from imaging.config import Code, load_config
from imaging.files import shipped
from imaging.heat_map import Attribution, HeatMap
from imaging.judgement import Classification, Judgement, Target
from imaging.predict import Prediction
from imaging.report.pictures import Picture, key_pictures, outline_path
from imaging.volume import Frame, Volume, orientation_of

Array = np.ndarray[Any, Any]

CONFIG = load_config(shipped("configs") / "hippocampus_mr.yaml")
# left, right, top, bottom by the patient axis that the slices follow (Foster, radiological convention).
EDGES = {"S": "RLAP", "A": "RLSI", "R": "APSI"}
AXIS = {"L": "R", "R": "R", "P": "A", "A": "A", "I": "S", "S": "S"}


def affine_towards(letters: str, spacing: tuple[float, ...] = (1.0, 1.0, 1.0)) -> Array:
    """An affine whose axes run towards these patient directions."""
    affine = np.zeros((4, 4))
    for axis, letter in enumerate(letters):
        affine["RAS".index(AXIS[letter]), axis] = spacing[axis] * (1 if letter in "RAS" else -1)
    affine[3, 3] = 1
    return affine


ORIENTATIONS = [
    "".join(pair[sign] for pair, sign in zip(order, signs, strict=True))
    for order in permutations(("RL", "AP", "SI"))
    for signs in product((0, 1), repeat=3)
]


def predicted(array: Array, mask: Array, affine: Array, *, dicom: bool = False) -> Prediction:
    frames = tuple(Frame(f"1.2.3.{z}", 1, Path("f")) for z in range(mask.shape[2])) if dicom else ()
    volume = Volume(array[None].astype(np.float32), affine, sources=frames)
    return Prediction(Checkpoint(Path("checkpoint"), CONFIG, {}, ""), volume, mask.astype(np.uint8), {})


def grey(picture: Picture) -> Array:
    """The pixels of a picture, rows downwards."""
    kind, _, content = picture.png.partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


def edges(picture: Picture) -> str:
    return picture.left + picture.right + picture.top + picture.bottom


# ---------------------------------------------------------------------------------------------- radiological convention


def test_there_are_48_orientations() -> None:
    assert len(set(ORIENTATIONS)) == 48
    assert all(orientation_of(affine_towards(letters)) == letters for letters in ORIENTATIONS)


@pytest.mark.parametrize("letters", ORIENTATIONS)
def test_edges_follow_the_radiological_convention(letters: str) -> None:
    (picture,) = key_pictures(predicted(_ramp((5, 6, 7)), np.zeros((5, 6, 7)), affine_towards(letters)))
    assert edges(picture) == EDGES[AXIS[letters[2]]]


def _ramp(shape: tuple[int, int, int]) -> Array:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize("letters", [letters for letters in ORIENTATIONS if letters[2] == "S"])
def test_same_patient_point_shows_at_the_same_place(letters: str) -> None:
    """A bright spot at the patient's right and front: in an axial picture on the left and at the top."""
    affine = affine_towards(letters)
    array = np.zeros((9, 9, 3))
    index = [{"R": 7, "L": 1, "A": 6, "P": 2}[letter] for letter in letters[:2]]
    array[*index, 1] = 1
    (picture,) = key_pictures(predicted(array, array, affine), most=1)
    assert np.argwhere(grey(picture) == 255).tolist() == [[2, 1]]
    assert picture.outlines[0].path == "M1 2h1M1 3h1M1 2v1M2 2v1"


def test_stated_direction_of_an_edge_is_the_direction_of_the_pixels() -> None:
    """Whatever the convention, the letters and the pixels may not disagree."""
    for letters in ORIENTATIONS:
        affine = affine_towards(letters)
        for position, letter in enumerate("RAS"):
            if AXIS[letters[2]] == letter:
                continue
            points = np.stack(np.meshgrid(*[np.arange(5)] * 3, indexing="ij"))
            towards = np.tensordot(affine[position, :3], points, axes=1)
            (picture,) = key_pictures(predicted(towards, np.zeros((5, 5, 5)), affine))
            pixels = grey(picture).astype(int)
            side = edges(picture).index(letter)
            faces = [pixels[:, 0], pixels[:, -1], pixels[0], pixels[-1]]
            assert faces[side].min() > 250, (letters, letter)
            assert faces[side ^ 1].max() < 5, (letters, letter)


@pytest.mark.parametrize("letters", ["LPS", "RAS", "LSA", "PSR"])
def test_proportions_are_those_of_the_patient(letters: str) -> None:
    spacing = (0.5, 2.0, 3.0)
    (picture,) = key_pictures(predicted(_ramp((8, 6, 3)), np.zeros((8, 6, 3)), affine_towards(letters, spacing)))
    assert grey(picture).shape == (picture.rows, picture.columns)
    along = {letters[0]: (8, 4.0), letters[1]: (6, 12.0)}
    by_axis = {AXIS[letter]: size for letter, size in along.items()}
    assert (picture.columns, picture.width_mm) == by_axis[AXIS[picture.right]]
    assert (picture.rows, picture.height_mm) == by_axis[AXIS[picture.bottom]]


# --------------------------------------------------------------------------------------------------------- which slices


def test_empty_prediction_shows_the_middle_slice() -> None:
    (picture,) = key_pictures(predicted(_ramp((4, 5, 9)), np.zeros((4, 5, 9)), np.eye(4), dicom=True))
    assert (picture.index, picture.of, picture.sop_instance_uid, picture.outlines) == (4, 9, "1.2.3.4", ())


def test_constant_image_gives_a_picture() -> None:
    (picture,) = key_pictures(predicted(np.full((4, 5, 3), 7.0), np.zeros((4, 5, 3)), np.eye(4)))
    assert len(np.unique(grey(picture))) == 1


def test_slice_where_each_structure_is_largest_is_among_the_pictures() -> None:
    mask = np.zeros((8, 8, 20))
    mask[2:4, 2:4, 3:15] = 1
    mask[2:6, 2:6, 13] = 1
    mask[6, 6, 4:18] = 2
    mask[6:8, 6:8, 5] = 2
    pictures = key_pictures(predicted(_ramp((8, 8, 20)), mask, np.eye(4)))
    indices = [picture.index for picture in pictures]
    assert {5, 13} <= set(indices)
    assert indices == sorted(set(indices)) and len(indices) == 6
    assert all(3 <= index < 18 for index in indices)


@given(mask=arrays.arrays(np.uint8, (4, 3, 8), elements=st.integers(0, 2)), most=st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_pictures_show_the_measured_mask(mask: Array, most: int) -> None:
    pictures = key_pictures(predicted(_ramp((4, 3, 8)), mask, affine_towards("LPS")), most=most)
    assert 1 <= len(pictures) <= most
    for picture in pictures:
        shown = {outline.title: area(outline.path) for outline in picture.outlines}
        expected = {label.title: int((mask[:, :, picture.index] == label.id).sum()) for label in CONFIG.labels}
        assert shown == {title: count for title, count in expected.items() if count}


# ------------------------------------------------------------------------------------------------------------- outlines


def strokes(path: str) -> list[tuple[int, int, str, int]]:
    return [(int(x), int(y), kind, int(n)) for x, y, kind, n in re.findall(r"M(\d+) (\d+)([hv])(\d+)", path)]


def area(path: str) -> int:
    """The enclosed area by Green's theorem over the unsigned vertical edges of each row: even-odd filling."""
    total = 0
    rows: dict[int, list[int]] = {}
    for x, y, kind, length in strokes(path):
        if kind == "v":
            for row in range(y, y + length):
                rows.setdefault(row, []).append(x)
    for crossings in rows.values():
        ordered = sorted(crossings)
        total += sum(right - left for left, right in zip(ordered[::2], ordered[1::2], strict=True))
    return total


@pytest.mark.parametrize(
    ("mask", "path"),
    [
        ([[0]], ""),
        ([[1]], "M0 0h1M0 1h1M0 0v1M1 0v1"),
        ([[1, 1]], "M0 0h2M0 1h2M0 0v1M2 0v1"),
        ([[0, 0], [0, 1]], "M1 1h1M1 2h1M1 1v1M2 1v1"),
        ([[1, 0], [0, 1]], "M0 0h1M0 1h2M1 2h1M0 0v1M1 0v2M2 1v1"),
    ],
)
def test_outline_of_a_known_mask(mask: list[list[int]], path: str) -> None:
    assert outline_path(np.array(mask, dtype=bool)) == path


@given(arrays.arrays(np.bool_, (6, 7)))
def test_outline_encloses_the_mask_and_lies_within_it(mask: Array) -> None:
    path = outline_path(mask)
    assert area(path) == mask.sum()
    assert re.fullmatch(r"(M\d+ \d+[hv]\d+)*", path)
    for x, y, kind, length in strokes(path):
        assert 0 <= x <= 7 and 0 <= y <= 6 and length > 0
        assert (x if kind == "h" else y) + length <= (7 if kind == "h" else 6)


@pytest.mark.parametrize("letters", ["LPS", "RAS", "PIR", "ALS"])
def test_heat_lies_on_the_pixels_that_it_is_of(letters: str) -> None:
    """Colours are turned with the picture: a map that is the image itself is brightest where the image is."""
    array = np.random.default_rng(0).permutation(6 * 5 * 4).reshape(6, 5, 4).astype(np.float32) + 60
    heat_XYZ = array / array.max()
    heat_XYZ[0] = np.nan
    volume = Volume(array[None], affine_towards(letters))
    code = Code(value="17621005", meaning="Normal")
    judgement = Judgement(Target("odd", "Odd", code, code, (1,), True), 0.9, 0.5, "abnormal", "")
    made = Attribution(np.zeros((2, 2, 2), dtype=np.float32), "grad_cam_pp", "layer4", (2, 2, 2), None, None)
    said = Classification(
        Checkpoint(Path("checkpoint"), CONFIG, {}, ""), volume, {}, (judgement,), (HeatMap("odd", heat_XYZ, made),)
    )
    plain, heated = key_pictures(said)
    assert plain.heat is None
    assert heated.heat is not None
    z = int(np.nan_to_num(heat_XYZ).max(axis=(0, 1)).argmax())
    assert heated.index == z
    colours = np.asarray(Image.open(io.BytesIO(base64.b64decode(heated.heat.png.split(",")[1]))).convert("RGBA"))
    opacity, shown = colours[..., 3].astype(int), grey(heated).astype(int)
    assert opacity.shape == shown.shape
    seen = opacity > 0
    assert seen.sum() == (array.shape[0] - 1) * array.shape[1], "what was not seen is not coloured, all else is"
    order = np.lexsort((opacity[seen], shown[seen]))
    assert (np.diff(opacity[seen][order]) >= 0).all()
    assert area(heated.heat.unseen) == (array.shape[0] - 1) * array.shape[1]
    assert (heated.heat.title, heated.heat.cells, heated.heat.blank) == ("Odd", (2, 2, 2), False)
