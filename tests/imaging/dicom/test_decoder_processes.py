"""What a codec does to its process stays there: it costs one frame, and nothing is left behind."""

from __future__ import annotations

import errno
import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from encapsulated import RLE, encode, picture, wrap

from imaging.dicom import codecs, decoder
from imaging.dicom.decoder import decode_frame
from imaging.errors import ImagingError, TruncatedPixels, UndecodablePixels, UnreadableDicom

PoolOf = Callable[..., "decoder._Pool"]

PROGRAM = """
import importlib.util, os, sys, time
spec = importlib.util.spec_from_file_location("program", sys.argv[2])
program = sys.modules["program"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(program)
program._SECONDS = 1
worker_answer, rle = program._Worker.answer, program.CODECS["1.2.840.10008.1.2.5"]
def codec(codecs, request, data, target):
    if request.path.endswith("/bad"):
        {codec}
    return rle(codecs, request, data, target)
def answer(self, request):
    if request.path.endswith("/bad"):
        {answer}
    return worker_answer(self, request)
program.CODECS["1.2.840.10008.1.2.5"] = codec
program._Worker.answer = answer
program.main(int(sys.argv[1]), sys.argv[3:])
"""


@pytest.fixture(name="pool_of")
def _pool_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[PoolOf]:
    pools: list[decoder._Pool] = []

    def use(codec: str = "pass", answer: str = "pass") -> decoder._Pool:
        pool = decoder._Pool(2)
        real = decoder._command()
        program = PROGRAM.format(codec=codec, answer=answer)
        pool.command = [sys.executable, "-I", "-S", "-c", program, decoder._DESCRIPTOR, codecs.__file__, *real[5:]]
        monkeypatch.setattr(decoder, "_pool", pool)
        pools.append(pool)
        return pool

    yield use
    for pool in pools:
        pool.close()


BAD = {
    "hangs": {"codec": "time.sleep(600)"},
    "computes for ever": {"codec": "while True: pass"},
    "aborts": {"codec": "os.abort()"},
    "touches what is not there": {"codec": "import ctypes; ctypes.string_at(1)"},
    "exits": {"codec": "os._exit(3)"},
    "eats memory": {"codec": "hoard = [bytearray(1 << 26) for _ in range(1000)]"},
    "writes a file": {"codec": "os.write(os.open(request.path, os.O_WRONLY), b'x')"},
    "has another shape": {"answer": "return {'dtype': request.dtype, 'shape': [9, 9], 'colour': ''}"},
    "has another type": {"answer": "return {'dtype': '<f8', 'shape': request.shape, 'colour': ''}"},
    "answers nonsense": {"answer": "return ['?']"},
    "answers an unknown error": {"answer": "return {'error': 'x', 'seen': 'y'}"},
    "answers without end": {"answer": "return {'error': 'refused', 'seen': 'x' * 100000}"},
}


@pytest.mark.parametrize("deed", BAD)
def test_a_decoder_that_goes_bad_costs_one_frame(
    tmp_path: Path, pool_of: PoolOf, monkeypatch: pytest.MonkeyPatch, deed: str
) -> None:
    monkeypatch.setattr(decoder, "_SECONDS", 1.0 if deed == "hangs" else 60.0)
    pool = pool_of(**BAD[deed])
    values = picture("i2", 16)
    stream = encode(RLE, values, 16)
    good, bad = (wrap(tmp_path / name, stream, RLE, values, 16) for name in ("good", "bad"))
    np.testing.assert_array_equal(decode_frame(good).array, values)
    with pytest.raises((UndecodablePixels, TruncatedPixels, UnreadableDicom)):
        decode_frame(bad)
    np.testing.assert_array_equal(decode_frame(good).array, values)
    assert len(pool._all) == len(pool._idle) == 1


def test_what_a_library_prints_is_no_answer(tmp_path: Path, pool_of: PoolOf) -> None:
    pool_of(codec="os.write(1, b'warning: odd marker'); print('?'); os.write(2, b'!')")
    values = picture("i2", 16)
    np.testing.assert_array_equal(
        decode_frame(wrap(tmp_path / "bad", encode(RLE, values, 16), RLE, values, 16)).array, values
    )


def test_nothing_of_the_working_directory_is_imported(
    tmp_path: Path, pool_of: PoolOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json", "numpy", "imagecodecs", "struct"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(1)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    pool_of()
    values = picture("i2", 16)
    frame = wrap(tmp_path / "good", encode(RLE, values, 16), RLE, values, 16)
    np.testing.assert_array_equal(decode_frame(replace(frame, path=Path("good"))).array, values)


def test_a_process_that_was_killed_between_frames_is_replaced(tmp_path: Path, pool_of: PoolOf) -> None:
    pool = pool_of()
    values = picture("i2", 16)
    frame = wrap(tmp_path / "good", encode(RLE, values, 16), RLE, values, 16)
    decode_frame(frame)
    (process,) = pool._all
    process._child.kill()
    process._child.wait()
    np.testing.assert_array_equal(decode_frame(frame).array, values)


def test_threads_share_the_pool_and_get_their_own_frames(tmp_path: Path, pool_of: PoolOf) -> None:
    pool = pool_of()
    frames, expected = [], []
    for number in range(40):
        values = np.roll(picture("i2", 16), number, axis=1)
        frames.append(wrap(tmp_path / str(number), encode(RLE, values, 16), RLE, values, 16))
        expected.append(values)
    with ThreadPoolExecutor(6) as threads:
        found = [decoded.array for decoded in threads.map(decode_frame, frames)]
    np.testing.assert_array_equal(found, expected)
    assert len(pool._all) <= 2


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_uses_processes_of_its_own(tmp_path: Path) -> None:
    values = picture("i2", 16)
    frame = wrap(tmp_path / "good", encode(RLE, values, 16), RLE, values, 16)
    decode_frame(frame)
    before = {process._child.pid for process in decoder._pool._all}
    child = os.fork()
    if child == 0:
        try:
            same = bool((decode_frame(frame).array == values).all())
            own = not before & {process._child.pid for process in decoder._pool._all}
            decoder._pool.close()
            gc.collect()
            os._exit(0 if same and own else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    np.testing.assert_array_equal(decode_frame(frame).array, values)
    assert before <= {process._child.pid for process in decoder._pool._all}


def test_nothing_is_left_behind(tmp_path: Path, pool_of: PoolOf) -> None:
    pool = pool_of()
    values = picture("i2", 16)
    frame = wrap(tmp_path / "good", encode(RLE, values, 16), RLE, values, 16)
    decode_frame(frame)
    threads, descriptors = threading.active_count(), _descriptors()
    for _ in range(3):
        pool.close()
        np.testing.assert_array_equal(decode_frame(frame).array, values)
    gc.collect()
    assert threading.active_count() == threads
    assert _descriptors() == descriptors


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir())) if sys.platform == "linux" else 0


def test_malformed_frames_leak_no_descriptor(tmp_path: Path, pool_of: PoolOf) -> None:
    """In the decoding process, which each frame opens the file in: after 1,024 it could open none."""
    pool = pool_of()
    values = picture("i2", 16)
    good = wrap(tmp_path / "good", encode(RLE, values, 16), RLE, values, 16)
    (tmp_path / "none").write_bytes(bytes(64))
    decode_frame(good)
    ((child,),) = ([process._child.pid for process in pool._all],)
    opened = len(list(Path(f"/proc/{child}/fd").iterdir()))
    seen = set()
    for _ in range(1100):
        with pytest.raises(ImagingError) as caught:
            decode_frame(replace(good, path=tmp_path / "none", offset=0))
        seen.add((caught.value.code, caught.value.seen))
    assert len(seen) == 1, "the refusal changed on the way"
    assert [process._child.pid for process in pool._all] == [child]
    assert len(list(Path(f"/proc/{child}/fd").iterdir())) <= opened  # that of the good file is kept
    np.testing.assert_array_equal(decode_frame(good).array, values)


def test_a_process_that_cannot_be_started_is_named(
    tmp_path: Path, pool_of: PoolOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_arguments: object, **_options: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    pool_of()
    values = picture("i2", 16)
    frame = wrap(tmp_path / "good", encode(RLE, values, 16), RLE, values, 16)
    gc.collect()
    opened = _descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", fails)
        for _ in range(3):  # more often than the pool has places
            with pytest.raises(UndecodablePixels, match="no decoding process can be started"):
                decode_frame(frame)
    assert _descriptors() <= opened
    np.testing.assert_array_equal(decode_frame(frame).array, values)
