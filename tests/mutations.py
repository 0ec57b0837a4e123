"""DICOM files -> broken ones: bytes, lengths, VRs, tags, nesting, and the attributes that say how large the pixels are.

The layout of a file is found by a walk that knows no more than it must and stops where the file makes no sense, so that
a mutant can be mutated again. A mutation gives new bytes, or None where the file has nothing that it could change.
"""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

UNDEFINED = 0xFFFFFFFF
_IMPLICIT, _BIG, _DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
_LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
_SHORT = (b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL",
          b"SS", b"ST", b"TM", b"UI", b"UL", b"US")  # fmt: skip
_PIXELS, _ITEM, _ITEM_END, _SEQUENCE_END = 0x7FE00010, 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_MOST_ELEMENTS = 20_000

_SYNTAXES = [f"1.2.840.10008.1.2{tail}" for tail in (
    "", ".1", ".1.99", ".2", ".5", ".8.1", ".4.50", ".4.51", ".4.57", ".4.70", ".4.80", ".4.81", ".4.90", ".4.91",
    ".4.92", ".4.201", ".4.202", ".4.110", ".4.100", ".9999",
)]  # fmt: skip
_PHOTOMETRIC = ["MONOCHROME1", "MONOCHROME2", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "PALETTE COLOR", "ARGB", ""]
_WORDS = [0, 1, 2, 3, 7, 8, 12, 15, 16, 17, 24, 32, 63, 64, 255, 256, 512, 4096, 32767, 32768, 65535]
_LENGTHS = [0, 1, 2, 3, 7, 255, 65534, 65535, 65536, 2**20, 2**31 - 1, 2**31, 2**32 - 2, UNDEFINED]
_NUMBERS = ["0", "-0", "1", "-1", "nan", "inf", "-inf", "1e308", "1e-308", "1e39", "0.5", "1\\2", "x", "", "9" * 60]
# What decides how much is read and where it lies; words (US) and strings (DS, IS).
_SIZES = [0x00280002, 0x00280006, 0x00280010, 0x00280011, 0x00280100, 0x00280101, 0x00280102, 0x00280103, 0x00280120]
_STRINGS = [0x00280008, 0x00280030, 0x00281052, 0x00281053, 0x00200032, 0x00200037, 0x00180050, 0x00200013, 0x00181164]
_SEQUENCES = [0x52009230, 0x52009229, 0x00283000, 0x00081140, 0x00091001, 0x00209221]


@dataclass(frozen=True, slots=True)
class Element:
    """Where an element, or the head of an item, lies in a file; items have no VR."""

    start: int
    tag: int
    vr: bytes
    length_at: int
    value: int
    length: int
    explicit: bool
    big: bool

    @property
    def end(self) -> int:
        return self.value + (0 if self.length == UNDEFINED else self.length)


def layout(data: bytes) -> list[Element]:
    """The elements of a file at all depths, in the order of the file, as far as it makes sense."""
    found: list[Element] = []
    position, explicit, big = 132 if data[128:132] == b"DICM" else 0, True, False
    syntax, in_meta = "", True
    while position + 8 <= len(data) and len(found) < _MOST_ELEMENTS:
        if in_meta and data[position : position + 2] != b"\2\0":
            in_meta = False
            explicit, big = _encoding(data[position : position + 6], syntax)
            if syntax == _DEFLATED:
                break
        element = _element(data, position, explicit=explicit, big=big)
        if element is None:
            break
        found.append(element)
        if element.tag == 0x00020010:
            syntax = data[element.value : element.end].rstrip(b"\0 ").decode("latin-1")
        inside = element.vr == b"SQ" or element.tag in (_ITEM, _ITEM_END, _SEQUENCE_END)
        if element.tag == _PIXELS and element.length == UNDEFINED:
            found += _fragments(data, element.value, big=big)
            break
        position = element.value if inside or element.length == UNDEFINED else element.end
    return found


def _encoding(head: bytes, syntax: str) -> tuple[bool, bool]:
    if syntax:
        return syntax != _IMPLICIT, syntax == _BIG
    return head[4:6] in (*_LONG, *_SHORT), head[:1] == b"\0"


def _element(data: bytes, at: int, *, explicit: bool, big: bool) -> Element | None:
    order = ">" if big else "<"
    group, number = struct.unpack_from(f"{order}HH", data, at)
    tag, vr = group << 16 | number, bytes(data[at + 4 : at + 6])
    if group == 0xFFFE or not explicit:
        return Element(at, tag, b"", at + 4, at + 8, struct.unpack_from(f"{order}I", data, at + 4)[0], False, big)
    if vr in _SHORT:
        return Element(at, tag, vr, at + 6, at + 8, struct.unpack_from(f"{order}H", data, at + 6)[0], True, big)
    if vr in _LONG and at + 12 <= len(data):
        return Element(at, tag, vr, at + 8, at + 12, struct.unpack_from(f"{order}I", data, at + 8)[0], True, big)
    return None


def _fragments(data: bytes, position: int, *, big: bool) -> list[Element]:
    found: list[Element] = []
    while position + 8 <= len(data) and len(found) < _MOST_ELEMENTS:
        item = _element(data, position, explicit=False, big=big)
        if item is None or item.tag != _ITEM:
            break
        found.append(item)
        position = item.end
    return found


def encoded(like: Element, tag: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    """An element in the encoding of another one; `length` may lie."""
    order = ">" if like.big else "<"
    head = struct.pack(f"{order}HH", tag >> 16, tag & 0xFFFF)
    count = len(value) if length is None else length
    if not (like.explicit or like.vr):
        return head + struct.pack(f"{order}I", count) + value
    if vr in _LONG:
        return head + vr + b"\0\0" + struct.pack(f"{order}I", count) + value
    return head + vr + struct.pack(f"{order}H", min(count, 0xFFFF)) + value


def _spliced(data: bytes, start: int, end: int, new: bytes) -> bytes:
    return data[:start] + new + data[end:]


def _values(data: bytes, at: list[Element], tags: list[int]) -> list[Element]:
    return [element for element in at if element.tag in tags and element.end <= len(data)]


# ----------------------------------------------------------------------------------------------------------- mutations

Mutation = Callable[[bytes, list[Element], random.Random], bytes | None]


def flip_bytes(data: bytes, at: list[Element], rng: random.Random) -> bytes | None:
    """A few bytes anywhere, mostly in the header and the first bytes of the pixels."""
    if not data:
        return None
    end = min(len(data), at[-1].value + 200) if at and rng.random() < 0.8 else len(data)
    broken = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        broken[rng.randrange(min(132, end - 1), end)] = rng.randrange(256)
    return bytes(broken)


def truncate(data: bytes, at: list[Element], rng: random.Random) -> bytes | None:
    """Cut off, or with more behind it."""
    if rng.random() < 0.1:
        return data + rng.randbytes(rng.choice((1, 2, 7, 5000)))
    if at and rng.random() < 0.6:
        return data[: rng.choice(at).start + rng.randrange(14)]
    return data[: rng.randrange(len(data) + 1)]


def change_length(data: bytes, at: list[Element], rng: random.Random) -> bytes | None:
    """A length that lies."""
    if not at:
        return None
    element = rng.choice(at)
    size = element.value - element.length_at
    length = rng.choice((*_LENGTHS, element.length + rng.randrange(-4, 5), element.length * 2))
    new = (length % 256**size).to_bytes(size, "big" if element.big else "little")
    return _spliced(data, element.length_at, element.value, new)


def change_vr(data: bytes, at: list[Element], rng: random.Random) -> bytes | None:
    """Another VR, or none, with the head as it was or as the VR asks."""
    named = [element for element in at if element.vr]
    if not named:
        return None
    element = rng.choice(named)
    vr = rng.choice((*_LONG, *_SHORT, b"??", b"\0\0"))
    if rng.random() < 0.5 or vr not in (*_LONG, *_SHORT):
        return _spliced(data, element.start + 4, element.start + 6, vr)
    return _spliced(
        data, element.start, element.end, encoded(element, element.tag, vr, data[element.value : element.end])
    )


def nest(data: bytes, at: list[Element], rng: random.Random) -> bytes | None:
    """Sequences in sequences, of defined or undefined length, closed or not, before some element."""
    outside = [element for element in at if element.tag >> 16 not in (2, 0xFFFE)]
    if not outside:
        return None
    place, tag = rng.choice(outside), rng.choice(_SEQUENCES)
    undefined, closed = rng.random() < 0.6, rng.random() < 0.8
    order = ">" if place.big else "<"
    value = b""
    for _ in range(rng.choice((1, 2, 5, 63, 64, 65, 200, 1500))):
        length = UNDEFINED if undefined else len(value)
        item = struct.pack(f"{order}HHI", 0xFFFE, 0xE000, length) + value
        if undefined and closed:
            item += struct.pack(f"{order}HHI", 0xFFFE, 0xE00D, 0)
        end = struct.pack(f"{order}HHI", 0xFFFE, 0xE0DD, 0) if undefined and closed else b""
        value = encoded(place, tag, rng.choice((b"SQ", b"SQ", b"UN")), item, UNDEFINED if undefined else None) + end
    return _spliced(data, place.start, place.start, value)


def undefine(data: bytes, at: list[Element], rng: random.Random) -> bytes | None:
    """An element of undefined length, with or without an end."""
    chosen = [element for element in at if element.value - element.length_at == 4 or element.vr]
    if not chosen:
        return None
    element = rng.choice(chosen)
    value = data[element.value : element.end]
    end = (
        encoded(Element(0, 0, b"", 0, 0, 0, False, element.big), _SEQUENCE_END, b"", b"") if rng.random() < 0.5 else b""
    )
    vr = rng.choice((b"SQ", b"UN", b"OB", b"OW"))
    return _spliced(data, element.start, element.end, encoded(element, element.tag, vr, value, UNDEFINED) + end)


def swap_tags(data: bytes, at: list[Element], rng: random.Random) -> bytes | None:
    """Two elements with each other's tag, or in each other's place, or one twice, or left out."""
    if len(at) < 2:
        return None
    one, two = sorted(rng.sample(range(len(at)), 2))
    first, second = at[one], at[two]
    way = rng.randrange(4)
    if way == 0:
        tags = data[first.start : first.start + 4], data[second.start : second.start + 4]
        changed = _spliced(data, first.start, first.start + 4, tags[1])
        return _spliced(changed, second.start, second.start + 4, tags[0])
    whole = data[first.start : first.end]
    if way == 1 and first.end <= second.start:
        between = data[first.end : second.start]
        return _spliced(data, first.start, second.end, data[second.start : second.end] + between + whole)
    return _spliced(data, first.start, first.end, whole * 2 if way == 2 else b"")


def change_fragments(data: bytes, at: list[Element], rng: random.Random) -> bytes | None:
    """The offset table and the items of encapsulated pixels."""
    items = at[[element.tag for element in at].index(_PIXELS) + 1 :] if _PIXELS in [item.tag for item in at] else []
    if not items:
        return None
    table = items[0]
    way = rng.randrange(5)
    if way == 0:
        offsets = [rng.choice((0, 1, 8, rng.randrange(2**16), 2**31, UNDEFINED)) for _ in range(rng.randrange(9))]
        content = struct.pack(f"<{len(offsets)}I", *offsets) + rng.randbytes(rng.choice((0, 0, 1)))
        return _spliced(data, table.start, table.end, encoded(table, _ITEM, b"", content))
    item = rng.choice(items)
    if way == 1:
        return _spliced(data, item.length_at, item.value, struct.pack("<I", rng.choice((*_LENGTHS, item.length + 2))))
    if way == 2:
        return _spliced(data, item.start, item.end, data[item.start : item.end] * rng.choice((0, 2, 2, 300)))
    if way == 3 and item.length > 8:  # the same bytes in several fragments
        half = rng.randrange(2, item.length, 2)
        parts = data[item.value : item.value + half], data[item.value + half : item.end]
        return _spliced(data, item.start, item.end, b"".join(encoded(table, _ITEM, b"", part) for part in parts))
    extended = struct.pack("<3Q", *(rng.choice((0, 1, 8, 2**40, 2**64 - 1)) for _ in range(3)))
    pixels = next(element for element in at if element.tag == _PIXELS)
    added = [encoded(pixels, tag, b"OV", extended[: rng.choice((8, 16, 23, 24))]) for tag in (0x7FE00001, 0x7FE00002)]
    return _spliced(data, pixels.start, pixels.start, b"".join(added))


def change_pixels(data: bytes, at: list[Element], rng: random.Random) -> bytes | None:
    """The pixels: their length, their VR, more or fewer of them, or a codestream's own bytes."""
    found = [element for element in at if element.tag == _PIXELS]
    if not found:
        return None
    pixels, way = found[0], rng.randrange(4)
    if way == 0:
        size = pixels.value - pixels.length_at
        new = rng.choice((*_LENGTHS, pixels.length + rng.randrange(-9, 10))) % 256**size
        return _spliced(data, pixels.length_at, pixels.value, new.to_bytes(size, "big" if pixels.big else "little"))
    if way == 1:
        value = data[pixels.value : pixels.end]
        value = value[: rng.randrange(len(value) + 1)] if rng.random() < 0.7 else value * 2
        tag = rng.choice((_PIXELS, _PIXELS, 0x7FE00008, 0x7FE00009))
        vr = rng.choice((b"OB", b"OW", b"OF", b"OD", b"UN", b"SQ"))
        return _spliced(data, pixels.start, pixels.end, encoded(pixels, tag, vr, value))
    broken = bytearray(data)
    begin, end = at[-1].value, min(len(data), at[-1].value + rng.choice((64, 700, len(data))))
    for _ in range(rng.choice((1, 2, 5)) if begin < end else 0):
        broken[rng.randrange(begin, end)] = rng.choice((0, 0xFF, rng.randrange(256)))
    return bytes(broken)


def change_size(data: bytes, at: list[Element], rng: random.Random) -> bytes | None:
    """Rows, Columns, Bits Allocated and their kin."""
    found = [element for element in _values(data, at, _SIZES) if element.length == 2]
    if not found:
        return None
    element = rng.choice(found)
    word = rng.choice(_WORDS).to_bytes(2, "big" if element.big else "little")
    return _spliced(data, element.value, element.value + 2, word)


def change_text(data: bytes, at: list[Element], rng: random.Random) -> bytes | None:
    """Number of Frames, spacing, position, rescale; transfer syntax; photometric interpretation."""
    found = _values(data, at, [*_STRINGS, 0x00020010, 0x00280004])
    if not found:
        return None
    element = rng.choice(found)
    if element.tag == 0x00020010:
        text = rng.choice(_SYNTAXES)
    elif element.tag == 0x00280004:
        text = rng.choice(_PHOTOMETRIC)
    elif element.tag == 0x00280008:
        text = rng.choice(("0", "1", "2", "10", "-1", "1000000", "999999999", "2147483648", "x"))
    else:
        old = data[element.value : element.end].decode("latin-1").split("\\")
        old[rng.randrange(len(old))] = rng.choice(_NUMBERS)
        text = "\\".join(old)
    value = text.encode("latin-1")
    value += b" " * (len(value) % 2)
    return _spliced(data, element.start, element.end, encoded(element, element.tag, element.vr, value))


def change_value(data: bytes, at: list[Element], rng: random.Random) -> bytes | None:
    """Any value: empty, long, of other bytes."""
    found = [element for element in at if element.vr and element.length < 65536 and element.end <= len(data)]
    if not found:
        return None
    element = rng.choice(found)
    value = rng.choice(
        (b"", b"\0" * element.length, rng.randbytes(element.length), b"\xff" * 64, b"1" * 300, b"\\" * 9)
    )
    return _spliced(data, element.start, element.end, encoded(element, element.tag, element.vr, value))


def inside_deflate(data: bytes, _at: list[Element], rng: random.Random) -> bytes | None:
    """What a deflated data set inflates to; a few KB may be made to inflate to many MB."""
    start = data.find(_DEFLATED.encode())
    meta = layout(data)
    if start < 0 or not meta:
        return None
    begin = meta[-1].end
    try:
        inner = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data[begin:], 2**24)
    except zlib.error:
        return None
    if rng.random() < 0.1:
        inner += b"\0" * rng.choice((2**20, 2**27, 2**28 + 2))
    else:
        broken = mutate(b"\0" * 128 + b"DICM" + inner, rng, 1)[0]
        inner = broken[132:]
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    return data[:begin] + packer.compress(inner) + packer.flush()


MUTATIONS: tuple[Mutation, ...] = (
    flip_bytes, truncate, change_length, change_vr, nest, undefine, swap_tags, change_fragments, change_pixels,
    change_pixels, change_size, change_size, change_text, change_text, change_value, inside_deflate,
)  # fmt: skip


def neighbour(data: bytes) -> bytes | None:
    """The same file as the next slice: 1.5 mm on, under a SOPInstanceUID of its own; None where it has no place."""
    at = [element for element in layout(data) if element.end <= len(data)]
    place = next((element for element in at if element.tag == 0x00200032), None)
    uid = next((element for element in at if element.tag == 0x00080018), None)
    if place is None or uid is None or uid.length < 4 or place.start < uid.end:
        return None
    try:
        *beside, along = (float(part) for part in data[place.value : place.end].rstrip(b"\0 ").split(b"\\"))
    except ValueError:
        return None
    position = "\\".join(f"{part:.9g}" for part in (*beside, along + 1.5)).encode()
    position += b" " * (len(position) % 2)
    moved = _spliced(data, place.start, place.end, encoded(place, place.tag, place.vr, position))
    # Two digits in the middle, which are neither padding nor the first of a component that must not be 0.
    return _spliced(
        moved, uid.value + 2, uid.value + 4, b".7" if data[uid.value + 2 : uid.value + 3] == b"." else b"77"
    )


def mutate(data: bytes, rng: random.Random, count: int | None = None) -> tuple[bytes, tuple[str, ...]]:
    """One to four mutations on top of each other, and their names."""
    done: list[str] = []
    for _ in range(count or rng.choice((1, 1, 1, 2, 3, 4))):
        at = layout(data)
        for _ in range(8):
            mutation = rng.choice(MUTATIONS)
            broken = mutation(data, at, rng)
            if broken is not None:
                data = broken
                done.append(mutation.__name__)
                break
    return data, tuple(done)
