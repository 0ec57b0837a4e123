"""The sender over DICOMweb: results into a PACS by STOW-RS, and a QIDO-RS question whether it has them.

Invariant: that of `pipelines.send`: files go as they are, a file counts as delivered only if the server says afterwards
that it has it, and each one that was not delivered has an error that says whether trying again may help.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from imaging.errors import ImagingError, NotConfirmed, StorageDeferred, StorageRefused
from pipelines.dicomweb import Client, Web
from pipelines.send import Delivered, Delivery, described

# PS3.3 section C.14.1.1, PS3.18 table I.2-2: reasons after which trying again may help.
_PROCESSING_FAILURE, _OUT_OF_RESOURCES = 0x0110, 0xA7


def store(paths: Sequence[Path], web: Web) -> Delivery:
    """Store DICOM files on a DICOMweb server, each in a request of its own, and ask for them afterwards.

    Parameters
    ----------
    paths
        DICOM files.
    web
        The server.

    Returns
    -------
    Delivery
        Every file with its outcome; nothing is raised for what the server or a file does.
    """
    with Client(web) as client:
        sent = [_stored(client, web, described(path)) for path in paths]
        return Delivery(tuple(_confirmed(client, web, sent)))


def _stored(client: Client, web: Web, file: Delivered) -> Delivered:
    if file.error is not None:
        return file
    try:
        failed = client.store_file(file.path, file.study_uid)
    except ImagingError as error:
        return replace(file, error=error)
    if not failed:
        return file
    reason = failed.get(file.sop_instance_uid, next(iter(failed.values())))
    later = reason == _PROCESSING_FAILURE or reason >> 8 == _OUT_OF_RESOURCES
    seen = f"failure reason {reason:04X}"
    return replace(file, error=StorageDeferred(web, seen=seen) if later else StorageRefused(web, seen=seen))


def _confirmed(client: Client, web: Web, sent: Sequence[Delivered]) -> list[Delivered]:
    """The same files, those that the server has marked so."""
    has: dict[str, set[str]] = {}
    faults: dict[str, ImagingError] = {}
    for study in dict.fromkeys(file.study_uid for file in sent if file.error is None):
        try:
            has[study] = {uid for _series, uid in client.instances(study)}
        except ImagingError as error:
            faults[study] = error
    judged = []
    for file in sent:
        if file.error is not None:
            judged.append(file)
        elif file.study_uid in faults:
            judged.append(replace(file, error=faults[file.study_uid]))
        elif file.sop_instance_uid in has[file.study_uid]:
            judged.append(replace(file, confirmed_by="qido"))
        else:
            seen = f"QIDO-RS does not name {file.sop_instance_uid}"
            judged.append(replace(file, error=NotConfirmed(web, seen=seen)))
    return judged
