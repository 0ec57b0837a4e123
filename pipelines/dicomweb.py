"""DICOMweb, as client: instances in and out of a server byte for byte, and questions about what it has.

Invariant: what is stored and what is retrieved are the bytes of the file, never a data set that was decoded and written
again; a retrieved answer is whole or an error. Nothing is tried again here: errors say whether that may help.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
from dicomweb_client.web import DICOMwebClient, _Transaction
from pydicom.dataset import Dataset

from imaging.errors import PeerUnreachable, WebRefused, WebUnavailable

_VERBATIM = 'multipart/related; type="application/dicom"; transfer-syntax=*'
_TOO_MANY, _SERVER_FAULT = 429, 500
_PAGE = 500


@dataclass(frozen=True, slots=True)
class Web:
    """A DICOMweb server.

    Attributes
    ----------
    url
        Where its services are, such as ``https://pacs.example/dicom-web``.
    token
        A bearer token; empty is none.
    user, password
        For HTTP basic authentication; empty is none.
    trusted
        Certificates that sign the server's, in PEM; none takes those of the machine.
    timeout_s
        How long the server may take to begin an answer, and between two parts of it.
    """

    url: str
    token: str = field(default="", repr=False)
    user: str = ""
    password: str = field(default="", repr=False)
    trusted: Path | None = None
    timeout_s: float = 60.0

    def __str__(self) -> str:
        return self.url


class Client(DICOMwebClient):
    """One connection to a server.

    Parameters
    ----------
    web
        The server.
    """

    def __init__(self, web: Web) -> None:
        session = requests.Session()
        session.verify = str(web.trusted) if web.trusted is not None else True
        if web.user:
            session.auth = (web.user, web.password)
        headers = {"Authorization": f"Bearer {web.token}"} if web.token else None
        super().__init__(web.url.rstrip("/"), session=session, headers=headers, timeout=web.timeout_s)
        self.set_http_retry_params(retry=False)
        self._web = web

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def store_file(self, path: Path, study_uid: str) -> Mapping[str, int]:
        """Store one file as it is (STOW-RS, PS3.18 section 10.5).

        Returns
        -------
        Mapping[str, int]
            Failure reason by SOPInstanceUID of what the server did not keep.

        Raises
        ------
        PeerUnreachable, WebRefused, WebUnavailable
        """
        url = self._get_studies_url(_Transaction.STORE, study_uid)
        with self._telling():
            answer = self._http_post_multipart_application_dicom(url, [path.read_bytes()])
        failed = answer.get("FailedSOPSequence") or ()
        return {str(item.get("ReferencedSOPInstanceUID", "")): int(item.get("FailureReason", 0)) for item in failed}

    def instance(self, study_uid: str, series_uid: str, sop_instance_uid: str) -> bytes:
        """One instance as the server has it (WADO-RS, PS3.18 section 10.4).

        Raises
        ------
        PeerUnreachable, WebRefused, WebUnavailable
        """
        url = self._get_instances_url(_Transaction.RETRIEVE, study_uid, series_uid, sop_instance_uid)
        with self._telling():
            answer = self._http_get(url, headers={"Accept": _VERBATIM})
            if answer.headers.get("Content-Type", "").startswith("application/dicom"):
                return bytes(answer.content)
            parts = list(self._decode_multipart_message(answer, stream=False))
            if len(parts) != 1 or not answer.content.rstrip().endswith(b"--"):
                raise WebUnavailable(self._web, seen=f"{len(parts)} parts where one whole instance was asked for")
            return bytes(parts[0])

    def studies(self, filters: Mapping[str, str]) -> Iterator[tuple[str, int]]:
        """StudyInstanceUID and number of instances of each study that matches (QIDO-RS, PS3.18 section 10.6).

        Raises
        ------
        PeerUnreachable, WebRefused, WebUnavailable
        """
        for item in self._all(self.search_for_studies, search_filters=dict(filters),
                              fields=["NumberOfStudyRelatedInstances"]):  # fmt: skip
            count = item.get("NumberOfStudyRelatedInstances")
            yield str(item.StudyInstanceUID), int(count) if count not in (None, "") else -1

    def instances(self, study_uid: str) -> Iterator[tuple[str, str]]:
        """SeriesInstanceUID and SOPInstanceUID of each instance of a study.

        Raises
        ------
        PeerUnreachable, WebRefused, WebUnavailable
        """
        for item in self._all(self.search_for_instances, study_instance_uid=study_uid):
            yield str(item.SeriesInstanceUID), str(item.SOPInstanceUID)

    def call(
        self, method: str, path: str, *, params: Mapping[str, str] | None, data: bytes | None, but: Container[int] = ()
    ) -> tuple[int, list[Dataset]]:
        """One request of DICOM JSON that the library has no verb for.

        Parameters
        ----------
        method, path
            Such as ``GET`` and ``/workitems``, below the server's address.
        params, data
            Of the request; no data is none.
        but
            HTTP statuses that are no error.

        Returns
        -------
        tuple of int and list of Dataset
            The HTTP status, and what a ``GET`` has brought; nothing with a status of `but`.

        Raises
        ------
        PeerUnreachable, WebRefused, WebUnavailable
        """
        kind = "application/dicom+json"
        headers = {"Accept": kind, **({"Content-Type": kind} if data is not None else {})}
        with self._telling():
            answer = self._session.request(method, f"{self.base_url}{path}", params=params, data=data, headers=headers,
                                           timeout=self._web.timeout_s)  # fmt: skip
            if answer.status_code in but:
                return answer.status_code, []
            answer.raise_for_status()
            found = answer.json() if answer.content.strip() and method == "GET" else []
            items = found if isinstance(found, list) else [found]
            return answer.status_code, [Dataset.from_json(item) for item in items]

    def _all(self, search: Any, **asked: Any) -> Iterator[Dataset]:
        """Page by page, however small the pages that the server gives."""
        offset = 0
        while True:
            with self._telling():
                page = search(**asked, limit=_PAGE, offset=offset)
                found = [Dataset.from_json(item) for item in page]
            yield from found
            if not found:
                return
            offset += len(found)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Name what the library and the connection raise."""
        try:
            yield
        except requests.HTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            kind = WebUnavailable if status == _TOO_MANY or status >= _SERVER_FAULT else WebRefused
            raise kind(self._web, seen=f"HTTP status {status}") from error
        except (requests.ConnectionError, requests.Timeout) as error:
            raise PeerUnreachable(self._web, seen=type(error).__name__) from error
        except (requests.RequestException, ValueError, KeyError, AttributeError) as error:
            raise WebUnavailable(self._web, seen=f"an answer that cannot be read ({type(error).__name__})") from error
