"""Results into a PACS: what is delivered, what that rests on, and what each failure is called."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pacs import Orthanc, ct, data_set, free_port, orthanc, started, written
from pydicom import dcmread
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RLELossless
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from results import seg_of, sr_of

from imaging.errors import ConfigInvalid
from pipelines.association import STORAGE_COMMITMENT, Peer
from pipelines.commitment import Commitments
from pipelines.receive import Listening, Receiver
from pipelines.send import Confirm, send
from pipelines.store import Store

FIND = "1.2.840.10008.5.1.4.1.2.2.1"


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with orthanc(tmp_path_factory.mktemp("orthanc")) as server:
        yield server


def peer_of(server: Orthanc) -> Peer:
    return Peer("ORTHANC", "127.0.0.1", server.dicom_port)


def test_results_are_in_orthanc_unchanged_once_they_are_delivered(pacs: Orthanc, tmp_path: Path) -> None:
    slices = [ct(1, study="2.25.810"), ct(2, study="2.25.810", rle=True)]
    files = [seg_of(tmp_path), sr_of(tmp_path / "sr"), *written(tmp_path / "out", slices)]
    delivery = send(files, peer_of(pacs))
    assert delivery.done, [file.error for file in delivery.files]
    assert [file.confirmed_by for file in delivery.files] == ["find"] * 4
    assert [file.status for file in delivery.files] == [0] * 4
    names = pacs.instances()
    for file in delivery.files:
        kept = pacs.raw(f"/instances/{names[file.sop_instance_uid]}/file")
        assert data_set(kept) == data_set(file.path.read_bytes()), file.path.name
        assert dcmread(file.path).file_meta.TransferSyntaxUID == file.transfer_syntax
    assert delivery.files[3].transfer_syntax == RLELossless


def test_orthanc_commits_to_what_it_keeps_where_it_knows_us(tmp_path: Path) -> None:
    commitments = Commitments()
    listening = Listening("IMGPIPE", 0, host="127.0.0.1")
    files = written(tmp_path / "out", [ct(1), ct(2)])
    with (
        Store(tmp_path / "store") as store,
        Receiver(listening, store, folder=store.root, commitments=commitments) as receiver,
        orthanc(tmp_path / "orthanc", modalities={"imgpipe": ["IMGPIPE", "127.0.0.1", receiver.port]}) as server,
    ):
        delivery = send(files, peer_of(server), commitments=commitments)
        assert [file.confirmed_by for file in delivery.files] == ["commitment"] * 2
        only = send(files, peer_of(server), confirm=Confirm.COMMITMENT, commitments=Commitments(), commitment_s=0.5)
        assert [file.error.code for file in only.files if file.error] == ["not_confirmed"] * 2
        assert only.left == only.files


def test_pacs_down_and_up_again(tmp_path: Path) -> None:
    files = written(tmp_path / "out", [ct(1)])
    with orthanc(tmp_path / "orthanc") as server:
        pass
    down = send(files, peer_of(server), timeout_s=5)
    assert [(file.error.code, file.transient) for file in down.files if file.error] == [("peer_unreachable", True)]
    with started(server):
        assert send([file.path for file in down.left], peer_of(server)).done
        assert len(server.instances()) == 1


@contextmanager
def scp(
    store: Callable[[Any], int] = lambda _event: 0,
    *,
    find: Callable[[Any], Iterator[Any]] | None = None,
    commit: Callable[[Any], Any] | None = None,
    classes: Sequence[str] = (CTImageStorage,),
    **settings: Any,
) -> Iterator[Peer]:
    """A peer that does what a test wants of it."""
    entity = AE("PACS")
    for name, value in settings.items():
        setattr(entity, name, value)
    for sop_class in classes:
        entity.add_supported_context(sop_class, [ExplicitVRLittleEndian])
    handlers: list[Any] = [(evt.EVT_C_STORE, store)]
    if find is not None:
        entity.add_supported_context(FIND)
        handlers.append((evt.EVT_C_FIND, find))
    if commit is not None:
        entity.add_supported_context(STORAGE_COMMITMENT)
        handlers.append((evt.EVT_N_ACTION, commit))
    port = free_port()
    server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)
    assert server is not None
    try:
        yield Peer("PACS", "127.0.0.1", port)
    finally:
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "code", "transient"),
    [(0xA700, "storage_deferred", True), (0x0110, "storage_deferred", True), (0xA900, "storage_refused", False),
     (0xC001, "storage_refused", False), (0x0122, "storage_refused", False), (0xB000, None, False)],
)  # fmt: skip
def test_statuses_say_whether_to_try_again(tmp_path: Path, status: int, code: str | None, transient: bool) -> None:
    with scp(lambda _event: status) as peer:
        (file,) = send(written(tmp_path, [ct(1)]), peer).files
    assert file.status == status
    assert (file.error.code if file.error else None) == code
    assert file.transient == transient
    assert file.confirmed_by == ("" if code else "status")


def test_a_pacs_that_accepts_and_then_drops_the_association(tmp_path: Path) -> None:
    taken: list[str] = []

    def drop_the_third(event: Any) -> int:
        if len(taken) == 2:
            event.assoc.abort()
            return 0
        taken.append(str(event.request.AffectedSOPInstanceUID))
        return 0

    files = written(tmp_path, [ct(number) for number in range(5)])
    with scp(drop_the_third) as peer:
        delivery = send(files, peer)
        assert [file.error.code if file.error else file.confirmed_by for file in delivery.files] == [
            "status", "status", "association_lost", "association_lost", "association_lost"]  # fmt: skip
        assert len(delivery.left) == 3
        taken.clear()


def test_a_pacs_that_says_yes_and_forgets_is_found_out(tmp_path: Path) -> None:
    def forgetful(_event: Any) -> Iterator[Any]:
        found = ct(1)
        found.QueryRetrieveLevel = "IMAGE"
        yield 0xFF00, found

    with scp(find=forgetful) as peer:
        first, second = send(written(tmp_path, [ct(1), ct(2)]), peer).files
    assert (first.confirmed_by, first.error) == ("find", None)
    assert second.error is not None
    assert (second.error.code, second.transient) == ("not_confirmed", True)


def test_a_refused_request_for_commitment_leaves_it_to_find_or_the_status(tmp_path: Path) -> None:
    files = written(tmp_path, [ct(1)])
    with scp(commit=lambda _event: (0x0124, None)) as peer:
        assert send(files, peer).files[0].confirmed_by == "status"
        (file,) = send(files, peer, confirm=Confirm.COMMITMENT).files
        assert file.error is not None
        assert file.error.code == "not_confirmed"
        assert send(files, peer, confirm=Confirm.STATUS).files[0].confirmed_by == "status"


def test_what_a_peer_does_not_take_is_told_and_the_rest_goes(tmp_path: Path) -> None:
    files = written(tmp_path, [ct(1), ct(2, rle=True)])
    with scp() as peer:
        plain, packed = send(files, peer).files
        assert plain.confirmed_by == "status"
        assert packed.error is not None
        assert (packed.error.code, packed.transient) == ("context_refused", False)
        assert send(files[1:], peer).refused[0].error.code == "context_refused"  # type: ignore[union-attr]


def test_rejections_are_for_good_or_for_now(tmp_path: Path) -> None:
    files = written(tmp_path, [ct(1)])
    with scp(require_calling_aet=["SOMEBODY"]) as peer:
        (file,) = send(files, peer).files
        assert file.error is not None
        assert (file.error.code, file.transient) == ("association_rejected", False)
        assert send(files, peer, aet="SOMEBODY").done
    with scp(maximum_associations=1) as peer:
        entity = AE("OTHER")
        entity.add_requested_context(CTImageStorage)
        held = entity.associate(peer.host, peer.port)
        (file,) = send(files, peer).files
        assert file.error is not None
        assert (file.error.code, file.transient) == ("association_deferred", True)
        held.release()


def test_a_peer_that_never_answers_is_left(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        peer = Peer("PACS", "127.0.0.1", deaf.getsockname()[1])
        (file,) = send(written(tmp_path, [ct(1)]), peer, timeout_s=0.5).files
    assert file.error is not None
    assert (file.error.code, file.transient) == ("association_lost", True)


def test_a_file_that_is_none_keeps_no_other_back(tmp_path: Path) -> None:
    (good,) = written(tmp_path, [ct(1)])
    (tmp_path / "text").write_text("no DICOM")
    with scp() as peer:
        bad, fine, missing = send([tmp_path / "text", good, tmp_path / "nowhere"], peer).files
    assert bad.error is not None
    assert bad.error.code == "not_dicom"
    assert not bad.transient
    assert fine.confirmed_by == "status"
    assert missing.error is not None


def test_more_kinds_than_an_association_has_contexts_go_in_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.send._MOST_CONTEXTS", 1)
    associations: list[int] = []
    files = written(tmp_path, [ct(1), ct(2, rle=True), ct(3)])
    with scp(lambda event: associations.append(id(event.assoc)) or 0) as peer:
        delivery = send(files, peer)
    assert [file.confirmed_by for file in delivery.files] == ["status", "", "status"]
    assert len(set(associations)) == 2


class _HeldUp(threading.Event):
    """A checkpoint whose thread goes on late, as on a machine that is busy."""

    def wait(self, timeout: float | None = None) -> bool:
        come = super().wait(timeout)
        time.sleep(0.05)
        return come


def test_no_answer_is_lost_where_threads_are_held_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin, take = Association.__init__, DIMSEServiceProvider.get_msg

    def late(association: Any, ae: AE, mode: str) -> None:
        begin(association, ae, mode)
        if mode == "requestor":
            association._reactor_checkpoint = _HeldUp()
            association._reactor_checkpoint.set()

    def taken_late(provider: Any, block: bool = False) -> Any:
        time.sleep(0.2 if block else 0)
        return take(provider, block)

    monkeypatch.setattr(Association, "__init__", late)
    monkeypatch.setattr(DIMSEServiceProvider, "get_msg", taken_late)
    with scp() as peer:
        delivery = send(written(tmp_path, [ct(1), ct(2)]), peer, confirm=Confirm.STATUS, timeout_s=10)
    assert [file.status for file in delivery.files] == [0, 0], [str(file.error) for file in delivery.files]


def test_two_deliveries_at_once(tmp_path: Path) -> None:
    taken: list[str] = []
    done: list[bool] = []
    files = [written(tmp_path / study, [ct(n, study=study) for n in range(8)]) for study in ("2.25.91", "2.25.92")]
    with scp(lambda event: taken.append(str(event.request.AffectedSOPInstanceUID)) or 0) as peer:
        threads = [threading.Thread(target=lambda part=part: done.append(send(part, peer).done)) for part in files]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert done == [True, True]
    assert len(set(taken)) == len(taken) == 16


@pytest.mark.parametrize("text", ["PACS", "PACS@host", "PACS@host:0", "PACS@host:70000", "@host:104", "A" * 17 + "@h:1",
                                  "PA\\CS@host:104", "P\x00@host:104"])  # fmt: skip
def test_addresses_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigInvalid):
        Peer.parse(text)


def test_addresses() -> None:
    assert Peer.parse("PACS@pacs.example:104") == Peer("PACS", "pacs.example", 104)
    assert str(Peer.parse("PACS@[::1]:11112")) == "PACS@[::1]:11112"
