"""Results on their way out: read back against their checksums, then brought to each destination.

Invariant: nothing is delivered that is not, byte for byte, what report.json vouches for. A destination is asked again
with the same result as often as need be, and whoever looks there sees the old result or the whole new one.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from imaging.dicom.attributes import read_facts
from imaging.errors import DeliveryFailed, ImagingError, OutputMismatch
from imaging.files import PARTIAL, exchange, sha256_of, sync_file, sync_folder
from imaging.report.report import Report
from pipelines.store.view import Triage
from pipelines.triage import triage_of

REPORT = "report.json"


@dataclass(frozen=True, slots=True)
class Result:
    """A result that was read back.

    Attributes
    ----------
    folder
        Where it lies.
    study_uid
        Whose it is.
    sums
        SHA-256 of each of its files by name, report.json among them.
    dicom
        SOPInstanceUIDs of its DICOM files.
    triage
        How soon somebody should look at it.
    """

    folder: Path
    study_uid: str
    sums: Mapping[str, str]
    dicom: tuple[str, ...] = ()
    triage: Triage | None = None

    @property
    def report_sha256(self) -> str:
        """SHA-256 of report.json."""
        return self.sums[REPORT]


def read_back(folder: Path, study_uid: str, version: int) -> Result:
    """Read what a worker has written, and hold it against its report.

    Parameters
    ----------
    folder
        That of the study.
    study_uid, version
        Which study it should be, and which version of it.

    Raises
    ------
    OutputMismatch
        If a file is missing, differs or is not vouched for, or the report is of something else.
    """
    try:
        content = (folder / REPORT).read_bytes()
        report = Report.model_validate_json(content)
        if (report.study.uid, report.version) != (study_uid, version):
            seen = f"a report of version {report.version} of study {report.study.uid or 'without a UID'}"
            raise OutputMismatch(f"study {study_uid}", seen=seen, expected=f"one of version {version} was expected")
        sums = {output.file: output.sha256 for output in report.outputs}
        sums[REPORT] = hashlib.sha256(content).hexdigest()
        found = {file.name: sha256_of(file) for file in folder.iterdir()}
    except OSError as error:
        seen = f"{Path(error.filename or folder).name} cannot be read ({error.strerror})"
        raise OutputMismatch(f"study {study_uid}", seen=seen) from error
    except ValidationError as error:  # its text quotes the report
        raise OutputMismatch(f"study {study_uid}", seen="report.json is no report") from error
    wrong = sorted(name for name in sums.keys() | found.keys() if sums.get(name) != found.get(name))
    if wrong:
        seen = f"{wrong[0]} {'is missing' if wrong[0] not in found else 'is not what the report vouches for'}"
        raise OutputMismatch(f"study {study_uid}", seen=seen)
    dicom = [read_facts(folder / name).instance.sop_instance_uid for name in sorted(found) if name.endswith(".dcm")]
    return Result(folder, study_uid, sums, tuple(dicom), triage_of(report))


class Destination(Protocol):
    """Where results go."""

    @property
    def name(self) -> str:
        """Its name in the store, the same at each start of the watcher."""
        ...

    def deliver(self, result: Result) -> None:
        """Bring a result there, and see that it is there; once more is no harm.

        Raises
        ------
        ImagingError
            If it is not there afterwards; it is tried again.
        """
        ...


class Outbox:
    """A folder in which each study has a folder of its own, which appears whole and is replaced whole.

    Parameters
    ----------
    folder
        The outbox; made if it is not there.
    owner
        Of temporary names; only those are swept.
    """

    def __init__(self, folder: Path, *, owner: str) -> None:
        self._folder = folder.absolute()
        self._owner = hashlib.sha256(owner.encode()).hexdigest()[:8]

    @property
    def name(self) -> str:
        """The folder."""
        return f"outbox {self._folder}"

    def deliver(self, result: Result) -> None:
        """Copy a result beside its place, read it back, and put it there by one rename.

        What somebody else has laid into the study's folder stays in it.

        Raises
        ------
        DeliveryFailed
            If the outbox cannot be written, or what was written is not what was meant.
        """
        target = self._folder / result.study_uid
        if _sums_in(target, result.sums) == dict(result.sums):
            return
        stage = self._folder / f".{result.study_uid[:40]}.{self._owner}.{secrets.token_hex(4)}{PARTIAL}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            stage.mkdir()
            for name in result.sums:
                shutil.copyfile(result.folder / name, stage / name)
                sync_file(stage / name)
            if _sums_in(stage, result.sums) != dict(result.sums):
                raise DeliveryFailed(self.name, seen="what was written, read back, differs from what was meant")
            if target.exists():
                _keep_strangers(target, stage)
            sync_folder(stage)
            exchange(stage, target)
            sync_folder(self._folder)
        except OSError as error:
            raise DeliveryFailed(self.name, seen=error.strerror or "cannot be written") from error
        finally:
            shutil.rmtree(stage, ignore_errors=True)

    def sweep(self) -> None:
        """Remove what a killed watcher with this store has left half written."""
        with suppress(OSError):
            for left in self._folder.glob(f".*.{self._owner}.*{PARTIAL}"):
                shutil.rmtree(left, ignore_errors=True)


def _sums_in(folder: Path, wanted: Mapping[str, str]) -> dict[str, str]:
    """SHA-256 of those of the wanted files that are there, and of all that the report there vouches for."""
    names = set(wanted) | _vouched(folder)
    return {name: sha256_of(folder / name) for name in names if (folder / name).is_file()}


def _vouched(folder: Path) -> set[str]:
    """Names of the files of an earlier result of ours."""
    try:
        report = json.loads((folder / REPORT).read_bytes())
        return {REPORT, *(Path(output["file"]).name for output in report["outputs"])}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _keep_strangers(old: Path, new: Path) -> None:
    """Copy what is none of ours into the folder that takes the old one's place."""
    ours = _vouched(old)
    for path in old.iterdir():
        if path.name not in ours and not (new / path.name).exists():
            if path.is_dir() and not path.is_symlink():
                shutil.copytree(path, new / path.name, symlinks=True)
            else:
                shutil.copy2(path, new / path.name, follow_symlinks=False)


def reason_of(error: Exception, destination: str) -> ImagingError:
    """The error of a delivery as ours."""
    if isinstance(error, ImagingError):
        return error
    return DeliveryFailed(destination, seen=type(error).__name__)
