"""A DICOMweb server with a worklist, simulated: it follows PS3.18 sections 8.6, 10.4, 10.6 and 11 as far as is needed.

No archive that the tests install speaks UPS-RS. What a workitem may become, and under which transaction UID, is that
of PS3.4 annexes CC.1.1 and CC.2.1; answers are those of PS3.18 section 11.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import pydicom
import uvicorn
from pacs import free_port
from pydicom.dataset import Dataset
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pipelines.dicomweb import Web

CODE = "AI-HIPPO"
_STATE, _TRANSACTION = "00741000", "00081195"
_ENDS = ("COMPLETED", "CANCELED")


def workitem(
    uid: str, *studies: str, code: str = CODE, ready: str = "READY", priority: str | None = None
) -> dict[str, Any]:
    item, coded = Dataset(), Dataset()
    if priority is not None:
        item.ScheduledProcedureStepPriority = priority
    item.SOPInstanceUID, item.ProcedureStepState, item.InputReadinessState = uid, "SCHEDULED", ready
    coded.CodeValue, coded.CodingSchemeDesignator, coded.CodeMeaning = code, "99TESTS", "a test"
    item.ScheduledWorkitemCodeSequence = [coded]
    item.InputInformationSequence = []
    for study in studies:
        given = Dataset()
        given.TypeOfInstances, given.StudyInstanceUID = "DICOM", study
        item.InputInformationSequence.append(given)
    return item.to_json_dict()


@dataclass
class Archive:
    """What the server has; `deaf` are requests (method and end of the path) whose answers do not reach the client."""

    items: dict[str, dict[str, Any]] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    deaf: list[tuple[str, str]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    url: str = ""

    @property
    def web(self) -> Web:
        return Web(self.url, timeout_s=30)

    def add(self, item: dict[str, Any]) -> str:
        uid = str(item["00080018"]["Value"][0])
        self.items[uid] = item
        return uid

    def put(self, *contents: bytes) -> None:
        for content in contents:
            self.files[str(pydicom.dcmread(BytesIO(content), stop_before_pixels=True).SOPInstanceUID)] = content

    def state(self, uid: str) -> str:
        return str(self.items[uid][_STATE]["Value"][0])

    def told(self, uid: str) -> Dataset:
        return Dataset.from_json(self.items[uid])

    def claim_by_another(self, uid: str) -> None:
        self.items[uid][_STATE]["Value"], self.owners[uid] = ["IN PROGRESS"], "2.25.1"

    def end_by_another(self, uid: str, state: str = "CANCELED") -> None:
        self.items[uid][_STATE]["Value"] = [state]

    # ---------------------------------------------------------------------------------------------------- the answers

    def answer(self, request: Request, answer: Response) -> Response:
        """The answer, or none: the change is made and the client does not hear of it."""
        for entry in self.deaf:
            if request.method == entry[0] and request.url.path.endswith(entry[1]):
                self.deaf.remove(entry)
                return Response(status_code=503)
        return answer

    async def search(self, request: Request) -> Response:
        asked = request.query_params
        code = asked.get("ScheduledWorkitemCodeSequence.CodeValue")
        found = [item for item in self.items.values()
                 if self.state(item["00080018"]["Value"][0]) == asked.get("ProcedureStepState")
                 and code in (None, item["00404018"]["Value"][0]["00080100"]["Value"][0])]  # fmt: skip
        begin = int(asked.get("offset", 0))
        page = found[begin : begin + int(asked.get("limit", 100))]
        return _json(page) if page else Response(status_code=204)

    async def retrieve(self, request: Request) -> Response:
        item = self.items.get(request.path_params["uid"])
        # Nobody is told a transaction UID (PS3.4 table CC.2.5-3).
        return _json([{k: v for k, v in item.items() if k != _TRANSACTION}]) if item else Response(status_code=404)

    async def update(self, request: Request) -> Response:
        uid, told = request.path_params["uid"], _body(await request.body())
        if uid not in self.items:
            return Response(status_code=404)
        if told is None or _STATE in told:
            return Response(status_code=400)
        if self.state(uid) in _ENDS:
            return Response(status_code=409)
        if self.state(uid) == "IN PROGRESS" and request.query_params.get("transaction") != self.owners[uid]:
            return Response(status_code=409)
        self.items[uid] |= {tag: value for tag, value in told.items() if tag != _TRANSACTION}
        return self.answer(request, Response(status_code=200))

    async def change(self, request: Request) -> Response:
        uid, told = request.path_params["uid"], _body(await request.body())
        if uid not in self.items:
            return Response(status_code=404)
        if told is None or set(told) != {_STATE, _TRANSACTION}:
            return Response(status_code=400)
        [to], [transaction] = told[_STATE]["Value"], told[_TRANSACTION]["Value"]
        now = self.state(uid)
        if to not in ("IN PROGRESS", *_ENDS):
            return Response(status_code=400)
        if now in _ENDS:
            same = {"Warning": f"299 tests: The UPS is already in the requested state of {to}"}
            ours = to == now and transaction == self.owners.get(uid)
            return Response(status_code=200, headers=same) if ours else Response(status_code=409)
        if to == "IN PROGRESS":
            if now != "SCHEDULED":
                return Response(status_code=409)
            self.owners[uid] = transaction
        elif now != "IN PROGRESS" or transaction != self.owners[uid] or not self._is_final(uid, to):
            return Response(status_code=409)
        self.items[uid][_STATE]["Value"] = [to]
        return self.answer(request, Response(status_code=200))

    def _is_final(self, uid: str, to: str) -> bool:
        """Whether all was told that must be (PS3.4 table CC.2.5-3, final state)."""
        item = self.told(uid)
        if to == "CANCELED":
            [progress] = item.get("ProcedureStepProgressInformationSequence") or [Dataset()]
            return "ProcedureStepCancellationDateTime" in progress
        [done] = item.get("UnifiedProcedureStepPerformedProcedureSequence") or [Dataset()]
        return all(keyword in done for keyword in (
            "PerformedStationNameCodeSequence", "PerformedProcedureStepStartDateTime", "PerformedWorkitemCodeSequence",
            "PerformedProcedureStepEndDateTime", "OutputInformationSequence"))  # fmt: skip

    async def studies(self, request: Request) -> Response:
        self.asked.append("studies")
        uid = request.query_params.get("StudyInstanceUID", "")
        count = len(self._of(uid))
        found = [{"0020000D": {"vr": "UI", "Value": [uid]}, "00201208": {"vr": "IS", "Value": [count]}}]
        return _json(found if count and request.query_params.get("offset") == "0" else [])

    async def instances(self, request: Request) -> Response:
        found = self._of(request.path_params["study"])
        return _json(found if request.query_params.get("offset") == "0" else [])

    def _of(self, study: str) -> list[dict[str, Any]]:
        headers = [pydicom.dcmread(BytesIO(content), stop_before_pixels=True) for content in self.files.values()]
        wanted = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
        return [
            {f"{header[name].tag:08X}": {"vr": "UI", "Value": [str(header[name].value)]} for name in wanted}
            for header in headers if header.StudyInstanceUID == study
        ]  # fmt: skip

    async def instance(self, request: Request) -> Response:
        content = self.files.get(request.path_params["uid"])
        if content is None:
            return Response(status_code=404)
        return Response(content, media_type="application/dicom")


def _body(content: bytes) -> dict[str, Any] | None:
    try:
        told = json.loads(content)
    except ValueError:
        return None
    if isinstance(told, list):
        [told] = told
    return dict(told)


def _json(found: list[dict[str, Any]]) -> Response:
    return JSONResponse(found, media_type="application/dicom+json")


@contextmanager
def worklist() -> Iterator[Archive]:
    archive, port = Archive(), free_port()
    app = Starlette(
        routes=[
            Route("/web/workitems", archive.search, methods=["GET"]),
            Route("/web/workitems/{uid}", archive.retrieve, methods=["GET"]),
            Route("/web/workitems/{uid}", archive.update, methods=["POST"]),
            Route("/web/workitems/{uid}/state", archive.change, methods=["PUT"]),
            Route("/web/studies", archive.studies),
            Route("/web/studies/{study}/instances", archive.instances),
            Route("/web/studies/{study}/series/{series}/instances/{uid}", archive.instance),
        ]
    )
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    archive.url = f"http://127.0.0.1:{port}/web"
    try:
        yield archive
    finally:
        server.should_exit = True
        thread.join(60)
