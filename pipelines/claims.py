"""From a worklist to a study that is reported on, and back: workitems claimed, worked on, and told of (IHE AIW-I).

Invariant: a workitem is completed after its result was confirmed at all its places, and never before; how far it is
lies in the store, so that whatever ends the watcher the next one goes on there. What is somebody else's is left alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from imaging.dicom.values import is_uid
from imaging.errors import OutputMismatch, PeerFault, WorkitemLost
from pipelines.delivery import Result, read_back
from pipelines.dicomweb import Web
from pipelines.fetch import Fetched, Poller, Watched
from pipelines.send import Delivered, described
from pipelines.store import Store
from pipelines.store.moves import State
from pipelines.store.view import Job
from pipelines.store.workitems import Step, Workitem
from pipelines.worklist import CANCELED, COMPLETED, IN_PROGRESS, Kind, Offered, Worklist

log = logging.getLogger(__name__)

# So many are claimed and not ended at once: what waits longer may be done sooner by somebody else.
_MOST = 8


@dataclass(frozen=True, slots=True)
class Ended:
    """What a study has come to: what the other side is told, and whether its workitem is completed or canceled."""

    step: Step
    told: Mapping[str, Any]


class Claims:
    """Works through the worklist of one server, round after round.

    Parameters
    ----------
    web
        The server; its studies are fetched from it, too.
    kind
        Which workitems are ours.
    store
        The watcher's.
    most
        How many are claimed at once.
    """

    def __init__(self, web: Web, kind: Kind, store: Store, *, most: int = _MOST) -> None:
        self._web, self._kind, self._store, self._most = web, kind, store, most
        self._poller = Poller(web, store, store.holds, Watched(days=0))
        self._declined: set[str] = set()

    def round(self) -> None:
        """Go a step further with each workitem that was claimed, and claim what there is room for.

        Raises
        ------
        PeerUnreachable, WebRefused, WebUnavailable
            If the server does not say what is on its worklist.
        StoreFull, StoreBusy
            If nothing can be written down.
        """
        with Worklist(self._web) as worklist:
            for item in self._store.workitems.open(self._web.url):
                self._attempt(worklist, item)
            free = self._most - len(self._store.workitems.open(self._web.url))
            # Those of one urgency stay in the server's order.
            for offered in sorted(self._new(worklist), key=lambda item: -item.priority)[: max(free, 0)]:
                [study] = offered.studies
                begun = self._store.workitems.begin(offered.uid, self._web.url, study, offered.priority)
                self._attempt(worklist, begun)

    def _new(self, worklist: Worklist) -> Iterator[Offered]:
        """What is offered and was not begun, or lost."""
        for offered in worklist.offered(self._kind):
            known = self._store.workitems.find(offered.uid) if is_uid(offered.uid) else None
            if known is not None and known.step is not Step.LOST:
                continue
            if is_uid(offered.uid) and len(offered.studies) == 1:
                yield offered
            elif offered.uid not in self._declined:
                self._declined.add(offered.uid)
                log.warning("a workitem of %s is left alone: %d studies are its input, and one was expected", self._web,
                            len(offered.studies))  # fmt: skip

    def _attempt(self, worklist: Worklist, item: Workitem) -> None:
        try:
            self._go_on(worklist, item)
        except WorkitemLost as error:
            self._lost(worklist, self._store.workitems.find(item.uid) or item, error)
        except PeerFault as error:  # the next round tries again
            log.warning("workitem %s: %s", item.uid, error)

    def _go_on(self, worklist: Worklist, item: Workitem) -> None:
        workitems = self._store.workitems
        if item.step is Step.CLAIMING:
            self._claim(worklist, item)
            item = workitems.move(item, Step.CLAIMED)
        if item.step is Step.CLAIMED:
            state = worklist.state(item.uid)
            if state != IN_PROGRESS:
                raise WorkitemLost(self._web, seen=f"it is {state or 'in no state'}")
            fetched = self._poller.bring(item.study_uid)
            ended = self._end_of(item, fetched)
            if ended is None:
                return
            item = workitems.move(item, ended.step, told=ended.told)
        worklist.update(item.uid, item.transaction_uid, item.told or {})
        is_done = item.step is Step.COMPLETING
        worklist.change(item.uid, item.transaction_uid, COMPLETED if is_done else CANCELED)
        workitems.move(item, Step.COMPLETED if is_done else Step.CANCELED)

    def _claim(self, worklist: Worklist, item: Workitem) -> None:
        """Claim it, or see that it is ours: the answer to an earlier claim may have been lost."""
        try:
            worklist.change(item.uid, item.transaction_uid, IN_PROGRESS)
        except WorkitemLost:
            worklist.update(item.uid, item.transaction_uid, _progress("claimed"))

    def _lost(self, worklist: Worklist, item: Workitem, error: WorkitemLost) -> None:
        """It is not in our hands: because it was ended, perhaps by us, or because somebody else has it."""
        try:
            state = worklist.state(item.uid)
        except WorkitemLost:
            state = ""
        except PeerFault as other:
            log.warning("workitem %s: %s", item.uid, other)
            return
        step = Step.LOST
        if state == CANCELED and item.step is not Step.CLAIMING:
            step = Step.CANCELED
        elif state == COMPLETED and item.step is Step.COMPLETING:
            step = Step.COMPLETED
        log.warning("workitem %s of %s is %s: %s", item.uid, self._web, step, error.seen)
        self._store.workitems.move(item, step, why=error.seen)

    def _end_of(self, item: Workitem, fetched: Fetched) -> Ended | None:
        """What its study has come to; None while it is on its way."""
        if fetched.errors or fetched.instances:
            return None
        jobs = [job for job in self._store.jobs.all() if job.study_uid == item.study_uid]
        newest = jobs[-1] if jobs else None
        if newest is None or newest.state not in (State.DONE, State.FAILED):
            return None
        if newest.state is State.FAILED:
            return Ended(Step.CANCELING, _canceled(newest.reason["code"] if newest.reason else "failed"))
        if newest.result_uid != item.study_uid:
            # Its outputs are under pseudonyms: to name them here would say of whom they are.
            return Ended(Step.COMPLETING, _performed(item, self._kind, []))
        try:
            folder = self._store.result_of(newest) / newest.result_uid
            outputs = self._outputs(newest, read_back(folder, newest.result_uid, newest.version))
        except OutputMismatch as error:
            return Ended(Step.CANCELING, _canceled(error.code))
        return Ended(Step.COMPLETING, _performed(item, self._kind, outputs))

    def _outputs(self, job: Job, result: Result) -> list[Dataset]:
        """The DICOM files of a result, by series, and where they are."""
        files = [described(result.folder / name) for name in sorted(result.sums) if name.endswith(".dcm")]
        places = [delivery.destination for delivery in self._store.jobs.deliveries(job.id)]
        files.sort(key=lambda file: file.series_uid)
        return [_output(list(group), places) for _, group in groupby(files, key=lambda file: file.series_uid)]


def _output(files: Sequence[Delivered], places: Sequence[str]) -> Dataset:
    """An item of the Output Information Sequence (PS3.3 table 10-3b)."""
    item = Dataset()
    item.TypeOfInstances = "DICOM"
    item.StudyInstanceUID, item.SeriesInstanceUID = files[0].study_uid, files[0].series_uid
    item.ReferencedSOPSequence = []
    for file in files:
        referenced = Dataset()
        referenced.ReferencedSOPClassUID, referenced.ReferencedSOPInstanceUID = (
            file.sop_class_uid,
            file.sop_instance_uid,
        )
        item.ReferencedSOPSequence.append(referenced)
    peers = [place.removeprefix("pacs ").partition("@")[0] for place in places if place.startswith("pacs ")]
    webs = [place.removeprefix("stow ") for place in places if place.startswith("stow ")]
    if peers:
        item.DICOMRetrievalSequence = [Dataset()]
        item.DICOMRetrievalSequence[0].RetrieveAETitle = peers
    if webs:
        item.WADORSRetrievalSequence = [Dataset()]
        url = f"{webs[0].rstrip('/')}/studies/{item.StudyInstanceUID}/series/{item.SeriesInstanceUID}"
        item.WADORSRetrievalSequence[0].RetrieveURL = url
    return item


def _performed(item: Workitem, kind: Kind, outputs: Sequence[Dataset]) -> dict[str, Any]:
    """What must be told before a workitem is completed (PS3.4 table CC.2.5-3)."""
    done, told = Dataset(), Dataset()
    done.PerformedStationNameCodeSequence = [_coded(Code("imgpipe", "99IMGPIPE", "imgpipe"))]
    done.PerformedWorkitemCodeSequence = [_coded(Code(kind.value, kind.scheme or "99IMGPIPE", kind.value))]
    done.PerformedProcedureStepStartDateTime = _moment(datetime.fromisoformat(item.begun))
    done.PerformedProcedureStepEndDateTime = _moment(datetime.now(UTC))
    done.OutputInformationSequence = list(outputs)
    told.UnifiedProcedureStepPerformedProcedureSequence = [done]
    return told.to_json_dict()


def _canceled(code: str) -> dict[str, Any]:
    """What must be told before a workitem is canceled."""
    progress, told = Dataset(), Dataset()
    progress.ProcedureStepCancellationDateTime = _moment(datetime.now(UTC))
    progress.ReasonForCancellation = code
    progress.ProcedureStepDiscontinuationReasonCodeSequence = [_coded(codes.DCM.DiscontinuedForUnspecifiedReason)]
    told.ProcedureStepProgressInformationSequence = [progress]
    return told.to_json_dict()


def _progress(what: str) -> dict[str, Any]:
    progress, told = Dataset(), Dataset()
    progress.ProcedureStepProgressDescription = what
    told.ProcedureStepProgressInformationSequence = [progress]
    return told.to_json_dict()


def _coded(code: Code) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme_designator, code.meaning
    return item


def _moment(when: datetime) -> str:
    return f"{when:%Y%m%d%H%M%S}+0000"
