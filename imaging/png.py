"""PNG pictures -> the same Volume as from DICOM: one slice, on the picture's own axes.

Invariant: the header is judged before a pixel is unpacked, so a small file cannot claim memory without bound; what a
picture does not tell (its place in the patient, its scale) is told as a defect, never made up.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imaging.errors import PictureTooLarge, UnreadablePng
from imaging.volume import Affine, Defect, SeriesFacts, Volume, lps_to_ras

# A detector of 43 cm at 0.1 mm has 18 million pixels; four bytes each, this is 256 MiB.
LARGEST_PIXELS = 2**26

_GREY = ("1", "L", "I;16", "I;16B", "I")
_WITH_ALPHA = ("LA", "PA", "RGBA")


def is_png(path: Path) -> bool:
    """Whether the name is one that PNG files have."""
    return path.name.lower().endswith(".png")


def affine_of_picture() -> Affine:
    """X along the rows, Y down the columns, 1 mm a pixel: as for a film without position (`imaging.dicom.planar`)."""
    return lps_to_ras(np.eye(4))


def defects_of_picture() -> tuple[Defect, ...]:
    """What every PNG leaves unsaid."""
    place = "a PNG has no position in the patient; its axes run along its rows and down its columns"
    scale = "nothing says the size of a pixel; each counts as 1 mm, and no length or area means anything"
    return (
        Defect("no_patient_position", "noted", place, error_mm=None),
        Defect("unknown_spacing", "repaired", scale, error_mm=None),
    )


def read_png_shape(path: Path) -> tuple[int, int, int]:
    """Columns, rows and 1, from the header alone; see `read_png` for what is raised."""
    with _opened(path) as image:
        return (*image.size, 1)


def read_png(path: Path) -> Volume:
    """Read one picture.

    Parameters
    ----------
    path
        A PNG file: grey of 1 to 16 bits, or colour, which becomes grey and is told.

    Returns
    -------
    Volume
        (1, X, Y, 1) of the stored values (0 to 255, or 0 to 65535); `facts.description` is the file's name.

    Raises
    ------
    UnreadablePng
        If it is not PNG, is damaged, or holds several pictures.
    PictureTooLarge
        If the header declares more than `LARGEST_PIXELS`.
    """
    with _opened(path) as image:
        image.verify()  # every chunk's checksum, which decoding alone does not ask; the picture is used up by it
    with _opened(path) as image:
        grey_YX, met = _grey(image)
    return Volume(
        array=np.ascontiguousarray(grey_YX.T, dtype=np.float32)[None, :, :, None],
        affine=affine_of_picture(),
        facts=SeriesFacts(description=path.name),
        defects=(*defects_of_picture(), *met),
    )


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The picture with its header checked; whatever Pillow raises until the block ends gets a name."""
    try:
        with warnings.catch_warnings(), Image.open(path, formats=["PNG"]) as image:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own bound is narrower
            columns, rows = image.size
            if columns * rows > LARGEST_PIXELS:
                raise PictureTooLarge(path, seen=f"{columns} x {rows} pixels")
            if getattr(image, "n_frames", 1) != 1:
                raise UnreadablePng(path, seen="several pictures in one file")
            yield image
    except Image.DecompressionBombError as error:
        raise PictureTooLarge(path, seen="a header that declares hundreds of millions of pixels") from error
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        MemoryError,
    ) as error:  # Pillow raises SyntaxError for bad chunks
        raise UnreadablePng(path, seen=f"cannot be read as PNG ({type(error).__name__})") from error


def _grey(image: Image.Image) -> tuple[NDArray[np.float32], tuple[Defect, ...]]:
    """(Y, X) grey values, and what was done to get them."""
    if image.mode in _GREY:
        return np.asarray(image, dtype=np.float32), ()
    met = []
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        met.append(Defect("alpha_ignored", "repaired", "the picture has a transparency, which is left out"))
    if image.mode == "LA":
        return np.asarray(image.getchannel("L"), dtype=np.float32), tuple(met)
    colour_YX3 = np.asarray(image.convert("RGB"), dtype=np.float32)
    red_YX = colour_YX3[..., 0]
    if bool((colour_YX3 == red_YX[..., None]).all()):
        met.append(Defect("grey_as_colour", "noted", "red, green and blue are equal; one of them is taken"))
        return red_YX, tuple(met)
    detail = "colour became grey as 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601)"
    met.append(Defect("colour_to_grey", "repaired", detail))
    grey_YX: NDArray[np.float32] = colour_YX3 @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    return grey_YX, tuple(met)
