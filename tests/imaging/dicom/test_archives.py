"""No member's name is ever a path or told, no bound is passed, and what does not come out is told."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest

from imaging.dicom.archives import Unpacked, is_archive, sink, unpack, zipped
from imaging.errors import ArchiveRefused

NAME = "DOE^JANE\x07\n\u202epatient\u00e9.dcm"
COMPRESSED = {"gz": gzip.compress, "bz2": lambda data: bz2.compress(data, 1), "xz": lzma.compress}
NOISE = random.Random(7).randbytes(300_000)


def a_zip(path: Path, members: Sequence[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


class OneWay(io.BytesIO):
    """A stream that cannot seek: `zipfile` then writes checksum and sizes behind the data, as PACS that stream do."""

    def tell(self) -> int:
        raise OSError


def a_streamed_zip(path: Path, members: Sequence[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> Path:
    stream = OneWay()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return saved(path, stream.getvalue())


def a_tar(members: Sequence[tuple[str, bytes] | tarfile.TarInfo], format: int = tarfile.PAX_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=format) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            archive.addfile(info, io.BytesIO(member[1]))
    return stream.getvalue()


def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def saved(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def contents(found: Unpacked) -> list[bytes]:
    return [file.path.read_bytes() for file in found.files]


def seen(found: Unpacked) -> list[str]:
    """What the refusals say; each is about the archive and names nobody."""
    for error in found.refused:
        assert isinstance(error, ArchiveRefused)
        assert "DOE" not in str(error)
        assert str(error).isprintable()
    assert "DOE" not in repr(found)
    return [error.seen for error in found.refused]


def assert_only(folder: Path, found: Unpacked) -> None:
    """What lies in the folder is what is told, flat and named by numbers."""
    assert sorted(folder.iterdir()) == [file.path for file in found.files]
    assert all(file.path.name == f"{file.number:06d}" and not file.path.is_symlink() for file in found.files)


def lay(path: Path, kind: str, members: Sequence[tuple[str, bytes]]) -> Path:
    if kind == "zip":
        return a_zip(path, members)
    tar = a_tar(members)
    return saved(path, tar if kind == "tar" else COMPRESSED[kind](tar))


KINDS = ["zip", "tar", "gz", "bz2", "xz"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_told_by_its_bytes_and_unpacked(tmp_path: Path, kind: str) -> None:
    members = [("CT/1.dcm", b"one"), ("CT/DICOMDIR", b""), (NAME, NOISE), ("CT/1.dcm", b"two")]
    with pytest.warns(UserWarning, match="Duplicate") if kind == "zip" else nullcontext():
        path = lay(tmp_path / "study.dat", kind, members)
    assert is_archive(path)
    found = unpack(path, tmp_path / "out")
    assert contents(found) == [data for _, data in members]
    assert [file.name for file in found.files] == ["1.dcm", "DICOMDIR", "DOE^JANEpatient\u00e9.dcm", "1.dcm"]
    assert seen(found) == []
    assert_only(tmp_path / "out", found)


@pytest.mark.parametrize("kind", KINDS)
def test_names_that_lead_elsewhere_lead_nowhere(tmp_path: Path, kind: str) -> None:
    names = ["../../evil", str(tmp_path / "absolute"), "..\\..\\evil", "a/../../evil", "C:\\evil", "..", "n" * 3000]
    path = lay(tmp_path / "study", kind, [(name, b"data") for name in names])
    found = unpack(path, tmp_path / "deep" / "er" / "out")
    assert contents(found) == [b"data"] * len(names)
    assert_only(tmp_path / "deep" / "er" / "out", found)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["deep", "study"]
    assert seen(found) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [700_000, 2_000_000])
def test_a_bomb_gives_nothing(tmp_path: Path, kind: str, size: int) -> None:
    members = [("small", b"small"), *[(f"zeros {i}", bytes(size)) for i in range(3)]]
    found = unpack(lay(tmp_path / "bomb", kind, members), tmp_path / "out", most_bytes=1_500_000)
    assert seen(found) == ["it unpacks to more than 1500000 bytes; nothing of it is kept"]
    assert_only(tmp_path / "out", found)


def test_a_zip_that_lies_about_its_size_is_cut_off(tmp_path: Path) -> None:
    path = a_zip(tmp_path / "lies.zip", [("a", b"whole"), ("zeros", bytes(5_000_000))])
    data = path.read_bytes()
    assert data.count(struct.pack("<I", 5_000_000)) == 2
    path.write_bytes(data.replace(struct.pack("<I", 5_000_000), struct.pack("<I", 10)))
    found = unpack(path, tmp_path / "out", most_bytes=1000)
    assert contents(found) == [b"whole"]
    assert seen(found) == [f"member 2 is {zipped._CHECKSUM}"]
    assert_only(tmp_path / "out", found)


@pytest.mark.parametrize("kind", KINDS)
def test_too_many_members_give_nothing(tmp_path: Path, kind: str) -> None:
    path = lay(tmp_path / "many", kind, [(f"{i}", b"") for i in range(11)])
    found = unpack(path, tmp_path / "out", most_members=10)
    assert seen(found) == ["it has more than 10 members; nothing of it is kept"]
    assert_only(tmp_path / "out", found)
    assert len(unpack(path, tmp_path / "all", most_members=11).files) == 11


@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_would_be_full_gives_nothing(tmp_path: Path, kind: str) -> None:
    path = lay(tmp_path / "study", kind, [("a", b"data")])
    found = unpack(path, tmp_path / "out", reserve=2**62)
    assert seen(found) == [
        f"what it unpacks to would leave less than {2**62} bytes free on the disk; nothing of it is kept"
    ]
    assert_only(tmp_path / "out", found)


def test_a_disk_that_others_fill_meanwhile_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = iter([10**9, 10**9, 10**9, 0])
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=next(free)))
    path = a_zip(tmp_path / "study", [("a", b"a"), ("b", b"b"), ("c", b"c")])
    found = unpack(path, tmp_path / "out", reserve=1000)
    assert len(seen(found)) == 1 and "free on the disk" in seen(found)[0]
    assert_only(tmp_path / "out", found)


def test_links_and_devices_of_a_tar_are_one_refusal(tmp_path: Path) -> None:
    members: list[tuple[str, bytes] | tarfile.TarInfo] = [
        ("first", b"first"),
        special("DOE", tarfile.SYMTYPE, "/etc/passwd"),
        special("DOE2", tarfile.LNKTYPE, "first"),
        special("DOE3", tarfile.CHRTYPE),
        special("DOE4", tarfile.FIFOTYPE),
        special("folder", tarfile.DIRTYPE),
        ("DOE/through the link", b"last"),
    ]
    found = unpack(saved(tmp_path / "a.tar", a_tar(members)), tmp_path / "out")
    assert contents(found) == [b"first", b"last"]
    assert [file.number for file in found.files] == [1, 7]
    assert seen(found) == [f"4 members (2, 3, 4, 5) are {sink.SPECIAL}"]
    assert_only(tmp_path / "out", found)


def test_links_of_a_zip_are_refused_and_folders_are_nothing(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("DOE")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("folder/", b"")
        archive.writestr(link, "/etc/passwd")
        archive.writestr("folder/a", b"a")
    found = unpack(tmp_path / "a.zip", tmp_path / "out")
    assert contents(found) == [b"a"]
    assert seen(found) == [f"member 2 is {sink.SPECIAL}"]


def test_sparse_members_are_refused_and_what_follows_is_read(tmp_path: Path) -> None:
    old = special("DOE", tarfile.GNUTYPE_SPARSE)
    pax = tarfile.TarInfo("DOE")
    pax.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "DOE"}
    found = unpack(saved(tmp_path / "a.tar", a_tar([old, pax, ("a", b"a")])), tmp_path / "out")
    assert contents(found) == [b"a"]
    assert seen(found) == [f"2 members (1, 2) are {sink.SPECIAL}"]


def test_encrypted_members_are_refused_by_number(tmp_path: Path) -> None:
    path = a_zip(tmp_path / "a.zip", [("open", b"open"), ("DOE", b"locked"), ("last", b"last")])
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        second = data.index(signature, data.index(signature) + 1)
        data[second + offset] |= 1
    path.write_bytes(data)
    found = unpack(path, tmp_path / "out")
    assert contents(found) == [b"open", b"last"]
    assert seen(found) == ["member 2 is encrypted"]
    assert_only(tmp_path / "out", found)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_rare_compressions_of_a_zip_are_refused(tmp_path: Path, method: int) -> None:
    found = unpack(a_zip(tmp_path / "a.zip", [("DOE", bytes(1000))], method), tmp_path / "out")
    assert seen(found) == [f"member 1 is {zipped._METHOD}"]
    assert_only(tmp_path / "out", found)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_member_with_a_wrong_checksum_is_refused_and_the_others_stay(tmp_path: Path, method: int) -> None:
    path = a_zip(tmp_path / "a.zip", [("a", b"a"), ("DOE", NOISE), ("c", b"c")], method)
    data = bytearray(path.read_bytes())
    data[150_000] ^= 1
    found = unpack(saved(path, bytes(data)), tmp_path / "out")
    assert contents(found) == [b"a", b"c"]
    assert [file.number for file in found.files] == [1, 3]
    assert seen(found) == [f"member 2 is {zipped._CHECKSUM}"]
    assert_only(tmp_path / "out", found)


def test_members_that_share_their_bytes_are_not_read_over_and_over(tmp_path: Path) -> None:
    path = a_zip(tmp_path / "a.zip", [("a", NOISE)], zipfile.ZIP_STORED)
    data = path.read_bytes()
    begin, end = data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")
    counts = struct.pack("<HHI", 50, 50, (end - begin) * 50)
    path.write_bytes(data[:begin] + data[begin:end] * 50 + data[end : end + 8] + counts + data[end + 16 :])
    found = unpack(path, tmp_path / "out")
    assert contents(found) == [NOISE]
    assert seen(found) == ["49 members (2, 3, 4, 5, 6, 7, 8, 9, 10, 11, ...) are overlapping others"]


MANY = [(f"DOE{i}", random.Random(i).randbytes(40_000 + i)) for i in range(10)]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "zip"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_what_stands_before_the_truncation_of_a_tar_is_kept_and_the_truncation_told(
    tmp_path: Path, kind: str, share: float
) -> None:
    path = lay(tmp_path / "a", kind, MANY)
    data = path.read_bytes()
    found = unpack(saved(path, data[: int(len(data) * share)]), tmp_path / "out")
    assert contents(found) == [data for _, data in MANY][: len(found.files)]
    assert len(found.files) < 10
    assert len(found.files) >= int(share * 10) - (3 if kind == "bz2" else 1)  # which gives whole blocks of 100 kB
    assert len(seen(found)) == 1 and seen(found)[0].startswith("damaged")
    assert f"files kept from before the damage: {len(found.files)}" in seen(found)[0]
    assert_only(tmp_path / "out", found)


LOST = f"{zipped._NO_DIRECTORY}; nothing of it is kept"


@pytest.mark.parametrize("cut", [1, 22, 40, 0.05, 0.4, 0.9])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("make", [a_zip, a_streamed_zip])
def test_a_zip_that_was_cut_short_gives_nothing(
    tmp_path: Path, cut: float, method: int, make: Callable[..., Path]
) -> None:
    path = make(tmp_path / "a.zip", MANY, method)
    data = path.read_bytes()
    assert (b"PK\x07\x08" in data) == (make is a_streamed_zip)
    assert contents(unpack(path, tmp_path / "whole")) == [data for _, data in MANY]
    cut = int(cut if cut >= 1 else len(data) * cut)
    found = unpack(saved(path, data[:-cut]), tmp_path / "out")
    assert is_archive(path)
    assert seen(found) == [LOST]
    assert_only(tmp_path / "out", found)


def test_the_directory_of_a_zip_inside_is_not_taken_for_that_of_one_cut_short(tmp_path: Path) -> None:
    inner = a_zip(tmp_path / "inner.zip", [("inner", b"inner")]).read_bytes()
    path = a_zip(tmp_path / "a.zip", [("first", b"first"), ("inner.zip", inner), ("last", NOISE)], zipfile.ZIP_STORED)
    data = path.read_bytes()
    assert contents(unpack(path, tmp_path / "whole")) == [b"first", inner, NOISE]
    for extra in (0, 1000):
        found = unpack(saved(path, data[: data.index(inner) + len(inner) + extra]), tmp_path / f"{extra}")
        assert found.files == ()
        assert seen(found) == [f"{zipped._OTHER_DIRECTORY}; nothing of it is kept"]
        assert_only(tmp_path / f"{extra}", found)


def test_a_zip_without_members_gives_none(tmp_path: Path) -> None:
    path = a_zip(tmp_path / "a.zip", [])
    assert is_archive(path)
    assert unpack(path, tmp_path / "out") == Unpacked((), ())


def test_zip64_is_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in "ab":
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(NOISE)
    found = unpack(tmp_path / "a.zip", tmp_path / "out")
    assert contents(found) == [NOISE, NOISE]
    assert seen(found) == []


@pytest.mark.parametrize("what", ["name", "version"])
def test_a_zip_whose_directory_cannot_be_read_gives_nothing(tmp_path: Path, what: str) -> None:
    path = a_zip(tmp_path / "a.zip", [("\u00e9", b"a")])
    data = bytearray(path.read_bytes())
    if what == "name":
        data = data.replace("\u00e9".encode(), b"\xff\xff")
    else:
        data[data.index(b"PK\x01\x02") + 6] = 99
    found = unpack(saved(path, bytes(data)), tmp_path / "out")
    assert seen(found) == [LOST]
    assert_only(tmp_path / "out", found)


def test_a_huge_directory_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    size = zipped._DIRECTORY + 1
    with path.open("wb") as stream:
        stream.write(b"PK\x03\x04")
        stream.seek(size)
        stream.write(struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 1, 1, size, 0, 0))
    found = unpack(path, tmp_path / "out")
    assert seen(found) == [f"its directory has {size} bytes; nothing of it is kept"]


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path: Path) -> None:
    data = bytearray(a_tar([("a", b"a"), ("DOE", b"b"), ("c", b"c")]))
    data[1024 + 3] ^= 1
    found = unpack(saved(tmp_path / "a.tar", bytes(data)), tmp_path / "out")
    assert contents(found) == [b"a"]
    assert seen(found) == ["damaged: a member's header fails its checksum; files kept from before the damage: 1"]


def test_a_tar_cut_between_members_is_told(tmp_path: Path) -> None:
    data = a_tar([("a", b"a"), ("DOE", b"b")])
    found = unpack(saved(tmp_path / "a.tar", data[:1024]), tmp_path / "out")
    assert contents(found) == [b"a"]
    assert seen(found) == ["damaged: it ends without its end mark; files kept from before the damage: 1"]


@pytest.mark.parametrize("kind", ["tar", "gz", "bz2", "xz"])
def test_members_behind_the_end_mark_are_told(tmp_path: Path, kind: str) -> None:
    one = a_tar([("a", b"a")])
    data = one * 2 if kind == "tar" else COMPRESSED[kind](one) * 2  # compressed streams after each other are one
    found = unpack(saved(tmp_path / "a.tar", data), tmp_path / "out")
    assert contents(found) == [b"a"]
    assert seen(found) == ["damaged: something follows its end mark; files kept from before the damage: 1"]


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_several_compressed_streams_are_one_and_padding_is_nothing(tmp_path: Path, kind: str) -> None:
    data = a_tar([("a", NOISE), ("b", b"b")])
    parts = [COMPRESSED[kind](part) for part in (data[:100_000], b"", data[100_000:])]
    found = unpack(saved(tmp_path / "a", b"".join(parts) + bytes(64)), tmp_path / "out")
    assert contents(found) == [NOISE, b"b"]
    assert seen(found) == []
    found = unpack(saved(tmp_path / "a", b"".join(parts) + b"garbage"), tmp_path / "again")
    assert contents(found) == [NOISE, b"b"]
    assert len(seen(found)) == 1 and "something else follows" in seen(found)[0]


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_compressed_data_with_a_wrong_checksum_give_nothing(tmp_path: Path, kind: str) -> None:
    tar = a_tar([("a", NOISE), ("b", NOISE)])
    data = bytearray(gzip.compress(tar, 0) if kind == "gz" else COMPRESSED[kind](tar))
    data[len(data) // 2] ^= 1
    found = unpack(saved(tmp_path / "a", bytes(data)), tmp_path / "out")
    assert seen(found) == ["its compressed data are damaged, or need too much memory; nothing of it is kept"]
    assert_only(tmp_path / "out", found)
    assert found.files == ()


def test_an_xz_that_asks_for_too_much_memory_is_no_archive(tmp_path: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 2**29}]
    path = saved(tmp_path / "a.tar.xz", lzma.compress(a_tar([("a", b"a")]), filters=filters))
    assert not is_archive(path)
    assert len(seen(unpack(path, tmp_path / "out"))) == 1


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_of_a_tar_is_read(tmp_path: Path, format: int) -> None:
    long = "folder/" * 20 + "\u00e9" * 30 + "name"
    members: list[tuple[str, bytes] | tarfile.TarInfo] = [(long, b"a"), special("link", tarfile.SYMTYPE, "x" * 90)]
    found = unpack(saved(tmp_path / "a.tar", a_tar(members, format)), tmp_path / "out")
    assert contents(found) == [b"a"]
    assert found.files[0].name == "\u00e9" * 30 + "name"


def extension(kind: bytes, data: bytes, size: int | None = None) -> bytes:
    info = special("x", kind)
    info.size = len(data) if size is None else size
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


def test_the_size_of_a_pax_record_counts(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a")
    data = extension(tarfile.XHDTYPE, b"10 size=3\n") + info.tobuf() + b"abc".ljust(512, b"\0") + a_tar([("b", b"b")])
    found = unpack(saved(tmp_path / "a.tar", data), tmp_path / "out")
    assert contents(found) == [b"abc", b"b"]
    assert seen(found) == []


@pytest.mark.parametrize(
    "head",
    [
        extension(tarfile.XHDTYPE, b"9999 path=DOE\n"),
        extension(tarfile.XHDTYPE, b"11 size=-3\n"),
        extension(tarfile.XHDTYPE, b"0 a=b\n"),
        extension(tarfile.XHDTYPE, b"\xff a=b\n"),
        extension(tarfile.XHDTYPE, b"", 2**33),
        extension(tarfile.GNUTYPE_LONGNAME, b"", 2**33),
        extension(tarfile.GNUTYPE_LONGNAME, b"DOE") * 20,
        extension(tarfile.REGTYPE, b"", -5),
    ],
)
def test_hostile_headers_end_the_reading(tmp_path: Path, head: bytes) -> None:
    path = saved(tmp_path / "a.tar", a_tar([("a", b"a")])[:1024] + head + a_tar([("b", b"b")]))
    found = unpack(path, tmp_path / "out")
    assert contents(found) == [b"a"]
    assert len(seen(found)) == 1 and seen(found)[0].startswith("damaged")


def test_an_archive_inside_stays_a_file(tmp_path: Path) -> None:
    inner = a_zip(tmp_path / "inner.zip", [("a", b"a")]).read_bytes()
    found = unpack(a_zip(tmp_path / "a.zip", [("inner.zip", inner)]), tmp_path / "out")
    assert contents(found) == [inner]
    assert is_archive(found.files[0].path)


def test_what_is_there_is_never_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "precious").write_bytes(b"precious")
    (out / "000002").symlink_to(tmp_path / "precious")
    found = unpack(a_zip(tmp_path / "a.zip", [("a", b"a"), ("b", b"b")]), out)
    assert found.files == () and [file.name for file in out.iterdir()] == ["000002"]
    assert len(seen(found)) == 1
    assert (tmp_path / "precious").read_bytes() == b"precious"


def test_what_is_no_archive_is_none_whatever_its_name(tmp_path: Path) -> None:
    dicom = b"PK\x03\x04".ljust(128, b"\0") + b"DICM" + bytes(200)
    others = {
        "a.nii.gz": gzip.compress(struct.pack("<i", 348) + bytes(100_000)),
        "noise.bz2": bz2.compress(NOISE),
        "noise.xz": lzma.compress(NOISE),
        "dicom.zip": dicom,
        "dicom.tar": bytes(128) + b"DICM" + bytes(125) + b"ustar" + bytes(250),
        "broken.gz": b"\x1f\x8b" + NOISE[:100],
        "empty.zip": b"",
        "text.tar": b"text",
    }
    for name, data in others.items():
        path = saved(tmp_path / name, data)
        assert not is_archive(path), name
        found = unpack(path, tmp_path / "out")
        assert seen(found) == ["it begins neither as a ZIP nor as a TAR; nothing of it is kept"]
    assert not is_archive(tmp_path)
    assert not is_archive(tmp_path / "missing")
    assert len(seen(unpack(tmp_path / "missing", tmp_path / "out"))) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_random_damage_never_escapes_and_never_passes_unnoticed(tmp_path: Path, kind: str) -> None:
    chance = random.Random(kind)
    members = [(f"DOE{i}", NOISE[: 600 + i]) for i in range(4)]
    whole = lay(tmp_path / "a", kind, members).read_bytes()
    for turn in range(150):
        data = bytearray(whole)
        for _ in range(chance.choice([1, 1, 3, 30])):
            data[chance.randrange(len(data))] = chance.randrange(256)
        found = unpack(saved(tmp_path / "a", bytes(data)), tmp_path / f"{turn}", most_bytes=10**6)
        seen(found)
        assert_only(tmp_path / f"{turn}", found)
        assert len(found.files) == 4 or found.refused
        if kind != "tar":  # has no checksum of its data
            assert {file.read_bytes() for file in (tmp_path / f"{turn}").iterdir()} <= {data for _, data in members}
