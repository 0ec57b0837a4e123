"""A PNG is read rightly or refused by name, and the header is judged before a pixel is unpacked."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imaging.errors import PictureTooLarge, UnreadablePng
from imaging.png import is_png, read_png, read_png_shape

RAMP = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20  # 3 rows, 4 columns


def saved(path: Path, image: np.ndarray[Any, Any] | Image.Image) -> Path:
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path)
    return path


def codes(path: Path) -> list[str]:
    return [defect.code for defect in read_png(path).defects]


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def header(columns: int, rows: int) -> bytes:
    """A PNG that declares a size and holds next to nothing."""
    size = chunk(b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + size + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("name", "is_one"), [("a.png", True), ("A.PNG", True), ("a.png.nii", False), ("png", False)])
def test_png_is_known_by_its_name(name: str, is_one: bool) -> None:
    assert is_png(Path(name)) == is_one


def test_x_runs_along_the_rows_and_y_down_the_columns(tmp_path: Path) -> None:
    volume = read_png(saved(tmp_path / "film.png", RAMP))
    assert volume.array.shape == (1, 4, 3, 1)
    assert volume.array.dtype == np.float32
    assert np.array_equal(volume.array[0, :, :, 0], RAMP.T)
    assert volume.facts.subject == "film.png"
    assert volume.orientation[:2] == "LP", "as a projection in DICOM"
    assert codes(tmp_path / "film.png") == ["no_patient_position", "unknown_spacing"]


def test_sixteen_bits_are_kept(tmp_path: Path) -> None:
    wide = RAMP.astype(np.uint16) * 257
    assert np.array_equal(read_png(saved(tmp_path / "f.png", wide)).array[0, :, :, 0], wide.T)


def test_one_bit_is_grey(tmp_path: Path) -> None:
    assert set(np.unique(read_png(saved(tmp_path / "f.png", Image.fromarray(RAMP > 100))).array)) == {0, 1}


def test_colour_becomes_grey_and_is_told(tmp_path: Path) -> None:
    colour = np.zeros((3, 4, 3), dtype=np.uint8)
    colour[..., 1] = 100
    path = saved(tmp_path / "f.png", colour)
    assert np.allclose(read_png(path).array, 58.7, atol=0.01)
    assert "colour_to_grey" in codes(path)


def test_grey_stored_as_colour_is_the_grey(tmp_path: Path) -> None:
    path = saved(tmp_path / "f.png", np.repeat(RAMP[..., None], 3, axis=2))
    assert np.array_equal(read_png(path).array[0, :, :, 0], RAMP.T)
    assert "grey_as_colour" in codes(path)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparency_is_left_out_and_told(tmp_path: Path, mode: str) -> None:
    path = saved(tmp_path / "f.png", Image.fromarray(RAMP).convert(mode))
    assert np.array_equal(read_png(path).array[0, :, :, 0], RAMP.T)
    assert "alpha_ignored" in codes(path)


def test_palette_is_looked_up(tmp_path: Path) -> None:
    picture = Image.fromarray(RAMP).convert("P")
    assert np.array_equal(read_png(saved(tmp_path / "f.png", picture)).array[0, :, :, 0], RAMP.T)


@pytest.mark.parametrize("size", [(70_000, 1_000), (60_000, 60_000)])
@pytest.mark.parametrize("read", [read_png, read_png_shape])
def test_bomb_is_refused_by_its_header(tmp_path: Path, read: Any, size: tuple[int, int]) -> None:
    (tmp_path / "f.png").write_bytes(header(*size))
    with pytest.raises(PictureTooLarge):
        read(tmp_path / "f.png")


def test_shape_needs_no_pixels(tmp_path: Path) -> None:
    (tmp_path / "f.png").write_bytes(header(300, 200))
    assert read_png_shape(tmp_path / "f.png") == (300, 200, 1)
    with pytest.raises(UnreadablePng):
        read_png(tmp_path / "f.png")


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_what_is_no_png_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "f.png").write_bytes(content)
    with pytest.raises(UnreadablePng):
        read_png(tmp_path / "f.png")


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadablePng):
        read_png(tmp_path / "none.png")


def test_other_format_under_the_name_is_refused(tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "f.png", format="BMP")
    with pytest.raises(UnreadablePng):
        read_png(tmp_path / "f.png")


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    content = saved(tmp_path / "whole.png", np.random.default_rng(0).integers(0, 256, (9, 9)).astype(np.uint8))
    whole = content.read_bytes()
    for length in range(0, len(whole) - 16, 7):
        (tmp_path / "f.png").write_bytes(whole[:length])
        with pytest.raises(UnreadablePng):
            read_png(tmp_path / "f.png")


def test_several_pictures_in_one_file_are_refused(tmp_path: Path) -> None:
    first, second = Image.fromarray(RAMP), Image.fromarray(255 - RAMP)
    first.save(tmp_path / "f.png", save_all=True, append_images=[second])
    with pytest.raises(UnreadablePng, match="several"):
        read_png(tmp_path / "f.png")
