"""Compressed frames -> stored values, decoded in other processes that may crash, hang or run out of memory.

Invariant: a frame comes back decoded to the size and type that its header declares, or is refused by name within a
bounded time and memory; what it did to its decoder never reaches this process nor the next frame. The decoding
processes run `imaging.dicom.codecs`; they are started when they are needed, used by one thread at a time, kept for the
next frame, and never shared with a forked process. Imports no torch.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import fcntl
import importlib.util
import json
import mmap
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imaging.dicom import codecs
from imaging.errors import (
    InputRefused,
    TruncatedPixels,
    UndecodablePixels,
    UnreadableDicom,
    UnsupportedPixels,
    UnsupportedTransferSyntax,
)

LARGEST_FRAME = 256 * 1024 * 1024
_STEP = 4 * 1024 * 1024  # in which the shared memory grows
_LONGEST_ANSWER = 4096
_DESCRIPTOR = "DESCRIPTOR"  # of the shared memory, in the command
# The kernel ends a process that computes for too long; this is for one that waits, as on a dead network drive.
_SECONDS, _SECONDS_EACH_MILLION = 60.0, 4.0
_FIELDS = tuple(field.name for field in dataclasses.fields(codecs.Request))
_KINDS: dict[str, type[InputRefused]] = {
    "unsupported": UnsupportedTransferSyntax,
    "unreadable": UnreadableDicom,
    "truncated": TruncatedPixels,
    "refused": UndecodablePixels,
    "memory": UndecodablePixels,
}


@dataclass(frozen=True, slots=True)
class EncapsulatedFrame:
    """One frame of encapsulated pixel data, as its header describes it.

    Attributes
    ----------
    path
        The file.
    offset
        Where the value of the pixel data, which begins with the basic offset table's item, begins in the file.
    transfer_syntax
        UID.
    index, frames
        Which frame, from 0, of how many.
    rows, columns, samples, bits_allocated, bits_stored, signed, photometric, planar
        The image pixel module (PS3.3 C.7.6.3); `planar` is Planar Configuration 1.
    extended_offsets, extended_lengths
        Values of (7FE0,0001) and (7FE0,0002), little endian; empty where they are not there.
    """

    path: Path
    offset: int
    transfer_syntax: str
    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    signed: bool = False
    photometric: str = "MONOCHROME2"
    samples: int = 1
    planar: bool = False
    index: int = 0
    frames: int = 1
    extended_offsets: bytes = b""
    extended_lengths: bytes = b""


@dataclass(frozen=True, slots=True)
class Decoded:
    """A frame as it was stored.

    Attributes
    ----------
    array
        (rows, columns) or (rows, columns, samples), of the header's bits allocated and pixel representation.
    photometric
        What the samples mean now: ``RGB`` where the codec turned YCbCr into it, else as the header says.
    """

    array: NDArray[np.generic]
    photometric: str


def decode_frame(frame: EncapsulatedFrame, out: NDArray[np.generic] | None = None) -> Decoded:
    """Decode one frame.

    Parameters
    ----------
    frame
        What and where.
    out
        Where to put it, if its shape and type are the frame's; else a new array is made.

    Returns
    -------
    Decoded
        Bits above Bits Stored are as the codec left them.

    Raises
    ------
    UnsupportedTransferSyntax
        If there is no decoder for it.
    UnsupportedPixels
        If the bits allocated are not 8, 16, 32 or 64.
    TruncatedPixels
        If the frame is not there, breaks off, or has another size than the header declares.
    UndecodablePixels
        If the codec refuses it, crashed, or needed too much time or memory.
    UnreadableDicom
        If the file cannot be read or its items do not follow each other.
    """
    request = _request(frame)
    try:
        process = _pool.take()
    except OSError as error:
        raise UndecodablePixels(frame.path, seen=f"no decoding process can be started ({error.strerror})") from error
    try:
        process.ask(request)
        photometric = process.answer(request, frame.path)
        if out is None or out.shape != request.shape or out.dtype != np.dtype(request.dtype):
            out = np.empty(request.shape, request.dtype)
        process.copy(out)
    except InputRefused:
        raise
    except OSError as error:  # no memory to share
        process.close()
        raise UndecodablePixels(frame.path, seen=f"a frame cannot be shared ({error.strerror})") from error
    except BaseException:  # an interrupt in the middle leaves an answer behind that belongs to no later frame
        process.close()
        raise
    finally:
        _pool.give(process)
    return Decoded(out, photometric)


def _request(frame: EncapsulatedFrame) -> codecs.Request:
    """What the decoding process is asked; refuses what the header alone shows to be hopeless."""
    if frame.transfer_syntax not in codecs.CODECS:
        raise UnsupportedTransferSyntax(frame.path, seen=f"there is no decoder for {frame.transfer_syntax}")
    bits = frame.bits_allocated
    if bits not in (8, 16, 32, 64):
        raise UnsupportedPixels(frame.path, seen=f"{bits} bits a sample")
    if not (0 < frame.bits_stored <= bits and 0 < frame.rows < 65536 and 0 < frame.columns < 65536):
        seen = f"{frame.rows} x {frame.columns} pixels with {frame.bits_stored} bits stored in {bits}"
        raise UnreadableDicom(frame.path, seen=seen)
    if frame.samples not in (1, 3):
        raise UnsupportedPixels(frame.path, seen=f"{frame.samples} samples a pixel", expected="1 or 3 were expected")
    at, length = _extended(frame)
    request = codecs.Request(
        os.path.abspath(frame.path),  # noqa: PTH100 - Path.resolve would follow links that the caller meant
        frame.offset, frame.transfer_syntax, frame.index, frame.frames,
        frame.rows, frame.columns, frame.samples, bits, frame.bits_stored,
        frame.signed, frame.planar, frame.photometric, at, length, 0,
    )  # fmt: skip
    if request.size > LARGEST_FRAME:
        raise UndecodablePixels(frame.path, seen=f"a frame of {request.size} bytes", expected=f"{LARGEST_FRAME} may be")
    return request


def _extended(frame: EncapsulatedFrame) -> tuple[int, int]:
    """The frame's own entries in the extended offset table; -1 where the table is not whole (PS3.3 C.7.6.3.1.8)."""
    numbers = []
    for table in (frame.extended_offsets, frame.extended_lengths):
        whole = len(table) == 8 * frame.frames and 0 <= frame.index < frame.frames
        numbers.append(int.from_bytes(table[8 * frame.index :][:8], "little") if whole else -1)
    return numbers[0], numbers[1]


def _command() -> list[str]:
    """How a decoding process is started: by path and isolated, so that nothing of the working directory is imported."""
    folders = []
    for name in ("numpy", "imagecodecs"):
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin:
            folders.append(str(Path(spec.origin).parent.parent))
    # -S: what `site` adds are folders, and those are given; .pth files of an environment may run anything, slowly.
    return [sys.executable, "-I", "-S", codecs.__file__, _DESCRIPTOR, *dict.fromkeys(folders)]


class _NoAnswer(Exception):
    """The process died or kept silent; the text says how."""


class _Process:
    """One decoding process and the memory it shares with this one."""

    def __init__(self, command: Sequence[str]) -> None:
        self._memory = _shared_memory()
        self._room = 0
        self._view = memoryview(b"")
        self._dead = False
        # BLAS would map memory for a thread on each core, and a codec's own threads would only fight the pool's.
        alone = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
        try:
            self._child = subprocess.Popen(  # noqa: S603 - our own program, by its path
                [str(self._memory) if part == _DESCRIPTOR else part for part in command],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                bufsize=0, pass_fds=(self._memory,), env=os.environ | alone, cwd="/",
            )  # fmt: skip
        except OSError:
            os.close(self._memory)
            raise
        assert self._child.stdin is not None and self._child.stdout is not None
        self._to, self._from = self._child.stdin, self._child.stdout
        os.set_blocking(self._to.fileno(), False)
        self._poll = select.poll()  # select.select cannot take descriptors above 1023
        self._poll.register(self._from, select.POLLIN)

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return not self._dead and self._child.poll() is None

    def ask(self, request: codecs.Request) -> None:
        """Send a request, with room for its answer in the shared memory."""
        if request.size > self._room:
            self._room = -(-request.size // _STEP) * _STEP
            os.ftruncate(self._memory, self._room)
            self._view = memoryview(mmap.mmap(self._memory, self._room, prot=mmap.PROT_READ))
        line = json.dumps({name: getattr(request, name) for name in _FIELDS} | {"room": self._room})
        with contextlib.suppress(BrokenPipeError, BlockingIOError):  # a dead or deaf process gives no answer: see there
            self._to.write(line.encode() + b"\n")

    def answer(self, request: codecs.Request, path: Path) -> str:
        """Wait for the answer; gives the colour space of what now lies in the shared memory."""
        million = request.rows * request.columns * request.samples / 1e6
        try:
            answer = json.loads(self._line(_SECONDS + _SECONDS_EACH_MILLION * million))
            if "error" in answer:
                kind, seen = _KINDS[answer["error"]], str(answer["seen"])
            elif [answer["shape"], answer["dtype"]] == [list(request.shape), request.dtype]:
                return str(answer["colour"])
            else:
                kind, seen = TruncatedPixels, "decoded pixels of another shape or type than the header declares"
        except _NoAnswer as error:
            self.close()
            kind, seen = UndecodablePixels, str(error)
        except (ValueError, KeyError, TypeError):
            self.close()
            kind, seen = UndecodablePixels, "the decoding process gave no proper answer"
        raise kind(path, seen=seen)

    def _line(self, seconds: float) -> bytes:
        """The next line that the process writes."""
        line = b""
        until = time.monotonic() + seconds
        while not line.endswith(b"\n"):
            left = until - time.monotonic()
            if left <= 0 or not self._poll.poll(left * 1000):
                raise _NoAnswer(f"no answer within {seconds:.0f} s")
            part = os.read(self._from.fileno(), _LONGEST_ANSWER)
            line += part
            if not part:
                raise _NoAnswer(self._end())
            if len(line) > _LONGEST_ANSWER:
                raise _NoAnswer("the decoding process gave no proper answer")
        return line

    def _end(self) -> str:
        """Why the process ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):  # it may have closed stdout and live on
            code = self._child.wait(1)
            if code == -signal.SIGPROF:
                return "the codec needed more CPU time than a frame of this size may take"
            return f"the codec crashed ({signal.Signals(-code).name if code < 0 else f'exit status {code}'})"
        return "the decoding process stopped answering"

    def copy(self, out: NDArray[np.generic]) -> None:
        """Copy the decoded frame from the shared memory."""
        out[...] = np.ndarray(out.shape, out.dtype, buffer=self._view)

    def close(self) -> None:
        """End the process; it has nothing to lose."""
        if not self._dead:
            self._child.kill()
            self._child.wait()
            self.abandon()

    def abandon(self) -> None:
        """Let go of the process without ending it: after a fork it is the parent's."""
        self._dead = True
        self._to.close()
        self._from.close()
        os.close(self._memory)
        self._child.returncode = self._child.returncode or 0  # or Popen would wait for a child that is not this one's


class _Pool:
    """The processes, each used by one thread at a time; a thread that finds all of them in use waits."""

    def __init__(self, size: int) -> None:
        self._size = size
        self.command: Sequence[str] | None = None
        self._forget()

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._free = threading.BoundedSemaphore(self._size)
        self._idle: list[_Process] = []
        self._all: set[_Process] = set()

    def take(self) -> _Process:
        """A process that nobody else uses."""
        self._free.acquire()
        try:
            with self._lock:
                while self._idle:
                    process = self._idle.pop()
                    if process.alive:
                        return process
                    self._end(process)
                self.command = self.command or _command()
            process = _Process(self.command)
            with self._lock:
                self._all.add(process)
            return process
        except BaseException:
            self._free.release()
            raise

    def give(self, process: _Process) -> None:
        """Give it back, for the next frame."""
        with self._lock:
            if process.alive:
                self._idle.append(process)
            else:
                self._end(process)
        self._free.release()

    def _end(self, process: _Process) -> None:
        process.close()
        self._all.discard(process)

    def close(self) -> None:
        """End all processes; the next frame starts new ones."""
        with self._lock:
            for process in list(self._all):
                self._end(process)
            self._idle.clear()

    def abandon(self) -> None:
        """In a forked process: keep nothing of the parent's, whose answers would go astray."""
        for process in self._all:
            process.abandon()
        self._forget()


def _shared_memory() -> int:
    """A file without a name that grows and, where the system can hold it to that, never shrinks under a reader."""
    if sys.platform != "linux":
        with tempfile.TemporaryFile() as file:
            return os.dup(file.fileno())
    descriptor = os.memfd_create("frame", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return descriptor


_pool = _Pool(max(2, len(os.sched_getaffinity(0))))
atexit.register(_pool.close)
os.register_at_fork(after_in_child=_pool.abandon)
