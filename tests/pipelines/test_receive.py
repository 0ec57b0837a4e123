"""What the receiver takes, refuses and survives; senders are pynetdicom's, dcmtk's and Orthanc's."""

from __future__ import annotations

import os
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from certified import certificates
from pacs import ct, data_set, orthanc, storescu, written
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RLELossless
from pynetdicom import AE, evt

from imaging.errors import ConfigInvalid, ListenImpossible, StoreFull
from pipelines import disk, receive
from pipelines.association import STORAGE_COMMITMENT, VERIFICATION, Peer, Tls
from pipelines.receive import Listening, Receiver
from pipelines.store import Received, Store

Open = Callable[..., AbstractContextManager[Receiver]]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store", watching=True) as opened:
        yield opened


@pytest.fixture
def receiving(store: Store) -> Open:
    @contextmanager
    def begin(intake: Any = None, on_refused: Any = lambda *_: None, **more: Any) -> Iterator[Receiver]:
        listening = Listening("IMGPIPE", 0, host="127.0.0.1", **more)
        with Receiver(
            listening, intake or store, folder=store.root, holds=store.holds, on_refused=on_refused
        ) as receiver:
            yield receiver

    return begin


def files(store: Store) -> dict[str, bytes]:
    """Every data set that the store has, by SOPInstanceUID."""
    paths = (store.root / "instances").rglob("*.dcm")
    return {str(dcmread(path, stop_before_pixels=True).SOPInstanceUID): data_set(path.read_bytes()) for path in paths}


def associated(receiver: Receiver, *, aet: str = "SCU", syntaxes: Sequence[str] = (ExplicitVRLittleEndian,)) -> Any:
    entity = AE(aet)
    entity.add_requested_context(VERIFICATION)
    for syntax in syntaxes:
        entity.add_requested_context(CTImageStorage, [syntax])
    return entity.associate("127.0.0.1", receiver.port, ae_title="IMGPIPE")


def stored(receiver: Receiver, datasets: Sequence[Dataset]) -> list[int | None]:
    association = associated(receiver)
    assert association.is_established
    answers = [association.send_c_store(dataset) for dataset in datasets]
    association.release()
    return [answer.get("Status") for answer in answers]


def test_takes_an_instance_byte_for_byte(store: Store, receiving: Open, tmp_path: Path) -> None:
    (path,) = written(tmp_path / "out", [ct(1)])
    with receiving() as receiver:
        association = associated(receiver)
        assert association.send_c_echo().Status == 0
        assert association.send_c_store(ct(1)).Status == 0
        association.release()
        assert receiver.counts == {"new": 1}
    (kept,) = (store.root / "instances").rglob("*.dcm")
    assert data_set(kept.read_bytes()) == data_set(path.read_bytes())
    meta = dcmread(kept).file_meta
    assert meta.MediaStorageSOPInstanceUID == ct(1).SOPInstanceUID
    assert meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert meta.SourceApplicationEntityTitle == "SCU"
    assert meta.FileMetaInformationGroupLength == kept.read_bytes().index(data_set(kept.read_bytes())) - 144


def test_same_again_is_acknowledged_and_other_content_is_kept_beside_it(store: Store, receiving: Open) -> None:
    changed = ct(1)
    changed.SeriesDescription = "changed"
    with receiving() as receiver:
        assert stored(receiver, [ct(1), ct(1), changed]) == [0, 0, 0]
        assert receiver.counts == {"new": 1, "same": 1, "conflict": 1}
    assert len(list((store.root / "instances").rglob("*.dcm"))) == 2


def test_storescu_sends_what_is_compressed_and_what_is_not(store: Store, receiving: Open, tmp_path: Path) -> None:
    plain, packed = [ct(n) for n in range(1, 6)], [ct(n, series="2", rle=True) for n in range(1, 6)]
    sent = written(tmp_path / "plain", plain), written(tmp_path / "packed", packed)
    with receiving() as receiver:
        done = [storescu("-R", "+sd", tmp_path / "plain", port=receiver.port),
                storescu("-R", "-xr", "+sd", tmp_path / "packed", port=receiver.port)]  # fmt: skip
    assert [process.returncode for process in done] == [0, 0], done[0].stderr + done[1].stderr
    assert files(store) == {str(ds.SOPInstanceUID): data_set(path.read_bytes())
                            for ds, path in zip(plain + packed, sent[0] + sent[1], strict=True)}  # fmt: skip
    syntaxes = Counter(str(dcmread(path).file_meta.TransferSyntaxUID) for path in store.root.rglob("*.dcm"))
    assert syntaxes == {str(ExplicitVRLittleEndian): 5, str(RLELossless): 5}


def test_orthanc_sends_a_study_and_is_told_that_it_is_kept(store: Store, tmp_path: Path) -> None:
    slices = [ct(1), ct(2), ct(3, series="2", rle=True)]
    with _between_orthanc_and(store, tmp_path) as (server, receiver):
        for path in written(tmp_path / "out", slices):
            server.post("/instances", path.read_bytes())
        names = server.get("/instances")
        answer = server.post("/modalities/imgpipe/store", {"Resources": names, "Synchronous": True,
                                                           "StorageCommitment": True})  # fmt: skip
        assert answer["FailedInstancesCount"] == 0
        assert receiver.counts == {"new": 3}
        report = _report(server, answer["StorageCommitmentTransactionUID"])
        assert report["Status"] == "Success", report
        assert len(report["Success"]) == 3
        asked = {"DicomInstances": [[CTImageStorage, str(ct(1).SOPInstanceUID)], [CTImageStorage, "2.25.404"]]}
        missing = server.post("/modalities/imgpipe/storage-commitment", asked)
        report = _report(server, missing["ID"])
        assert report["Status"] == "Failure"
        assert [item["SOPInstanceUID"] for item in report["Failures"]] == ["2.25.404"]
        assert [item["SOPInstanceUID"] for item in report["Success"]] == [str(ct(1).SOPInstanceUID)]
    assert set(files(store)) == {str(item.SOPInstanceUID) for item in slices}
    assert Counter(str(dcmread(path).file_meta.TransferSyntaxUID) for path in store.root.rglob("*.dcm")) == {
        str(ExplicitVRLittleEndian): 2, str(RLELossless): 1}  # fmt: skip


@contextmanager
def _between_orthanc_and(store: Store, tmp_path: Path) -> Iterator[tuple[Any, Receiver]]:
    """An Orthanc that knows the receiver, and a receiver that knows the Orthanc."""
    peers: dict[str, Peer] = {}
    listening = Listening("IMGPIPE", 0, host="127.0.0.1", peers=peers)
    with Receiver(listening, store, folder=store.root, holds=store.holds) as receiver:
        known = {"imgpipe": ["IMGPIPE", "127.0.0.1", receiver.port]}
        with orthanc(tmp_path / "orthanc", modalities=known) as server:
            peers["ORTHANC"] = Peer("ORTHANC", "127.0.0.1", server.dicom_port)
            yield server, receiver


def _report(server: Any, transaction: str) -> Any:
    end = time.monotonic() + 60
    while (report := server.get(f"/storage-commitment/{transaction}"))["Status"] == "Pending":
        assert time.monotonic() < end, "no report of storage commitment"
        time.sleep(0.1)
    return report


def test_commitment_is_reported_in_the_association_of_who_is_not_known(store: Store, receiving: Open) -> None:
    heard: list[tuple[int, Dataset]] = []
    arrived = threading.Event()

    def told(event: evt.Event) -> tuple[int, None]:
        heard.append((int(event.event_type or 0), event.event_information))
        arrived.set()
        return 0, None

    request = Dataset()
    request.TransactionUID = "2.25.777"
    request.ReferencedSOPSequence = [_reference("2.25.601.1.1"), _reference("2.25.404")]
    with receiving() as receiver:
        stored(receiver, [ct(1)])
        entity = AE("SCU")
        entity.add_requested_context(STORAGE_COMMITMENT)
        association = entity.associate("127.0.0.1", receiver.port, ae_title="IMGPIPE",
                                       evt_handlers=[(evt.EVT_N_EVENT_REPORT, told)])  # fmt: skip
        answer, _ = association.send_n_action(request, 1, STORAGE_COMMITMENT, "1.2.840.10008.1.20.1.1")
        assert answer.Status == 0
        assert association.send_n_action(request, 7, STORAGE_COMMITMENT, "1.2.840.10008.1.20.1.1")[0].Status == 0x0123
        assert arrived.wait(60)
        association.release()
    ((kind, information),) = heard
    assert kind == 2
    assert information.TransactionUID == "2.25.777"
    assert [item.ReferencedSOPInstanceUID for item in information.ReferencedSOPSequence] == ["2.25.601.1.1"]
    assert [(item.ReferencedSOPInstanceUID, item.FailureReason) for item in information.FailedSOPSequence] == [
        ("2.25.404", 0x0112)]  # fmt: skip


def _reference(uid: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = CTImageStorage, uid
    return item


def test_same_study_on_two_associations_at_once_is_kept_once(store: Store, receiving: Open) -> None:
    slices = [ct(number) for number in range(30)]
    with receiving() as receiver:
        statuses = _at_once([lambda: stored(receiver, slices), lambda: stored(receiver, slices[::-1])])
        assert statuses == [[0] * 30] * 2
        assert receiver.counts == {"new": 30, "same": 30}
    assert len(list(store.root.rglob("*.dcm"))) == 30


def test_files_of_ten_studies_come_interleaved_and_out_of_order(store: Store, receiving: Open) -> None:
    studies = [f"2.25.70{number}" for number in range(10)]
    mixed = [ct(number * 7 % 12, study=study) for number in range(12) for study in studies]
    with receiving() as receiver:
        assert _at_once([lambda part=part: stored(receiver, mixed[part::3]) for part in range(3)]) == [[0] * 40] * 3
    for study in studies:
        rows = store.database.read("SELECT sop_instance_uid FROM instances WHERE study_uid = ?", [study])
        assert {row["sop_instance_uid"] for row in rows} == {f"{study}.1.{number}" for number in range(12)}


def _at_once(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    answers: list[Any] = [None] * len(calls)

    def run(number: int) -> None:
        answers[number] = calls[number]()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return answers


def test_disk_at_its_mark_refuses_and_loses_nothing(
    store: Store, receiving: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type(disk.shutil.disk_usage("/"))
    with receiving(disk_mark=0.8) as receiver:
        monkeypatch.setattr(disk.shutil, "disk_usage", lambda _folder: usage(100, 85, 15))
        association = associated(receiver)
        answer = association.send_c_store(ct(1))
        assert answer.Status == 0xA700
        assert answer.ErrorComment == "disk_mark_reached"
        assert files(store) == {}
        monkeypatch.setattr(disk.shutil, "disk_usage", lambda _folder: usage(100, 75, 25))
        assert association.send_c_store(ct(1)).Status == 0
        association.release()
        assert receiver.counts == {"disk_mark_reached": 1, "new": 1}


class _Failing:
    def __init__(self, error: Exception) -> None:
        self.error = error

    def put(self, _data: Any, **_names: str) -> Received:
        raise self.error


@pytest.mark.parametrize(("error", "code"), [(StoreFull(Path("/store"), seen="no space"), "store_full"),
                                             (KeyError("a bug"), "receiver_fault")])  # fmt: skip
def test_what_the_store_cannot_take_is_not_acknowledged(receiving: Open, error: Exception, code: str) -> None:
    with receiving(_Failing(error)) as receiver:
        assert stored(receiver, [ct(1)]) == [0xA700]
        assert receiver.counts == {code: 1}


def _without(keyword: str) -> Dataset:
    dataset = ct(1)
    delattr(dataset, keyword)
    return dataset


def _with(**values: str) -> Dataset:
    dataset = ct(1)
    for keyword, value in values.items():
        element = dataset.data_element(keyword)
        assert element is not None
        element._value = value
    return dataset


@pytest.mark.parametrize(
    ("dataset", "status", "code"),
    [
        (_without("StudyInstanceUID"), 0xC000, "missing_attribute"),
        (_with(SeriesInstanceUID="../../../etc/passwd"), 0xC000, "invalid_uid"),
        (_with(StudyInstanceUID="1." + "2" * 63), 0xC000, "invalid_uid"),
    ],
    ids=["no study", "a path", "too long"],
)
def test_datasets_without_their_names_are_refused(
    store: Store, receiving: Open, dataset: Dataset, status: int, code: str
) -> None:
    with receiving() as receiver:
        association = associated(receiver)
        answer = association.send_c_store(dataset)
        assert (answer.Status, answer.ErrorComment) == (status, code)
        assert association.send_c_store(ct(2)).Status == 0, "the association goes on"
        association.release()
    assert set(files(store)) == {"2.25.601.1.2"}


def _raw(receiver: Receiver, content: bytes, *, uid: str = "2.25.601.1.1", sop_class: str = CTImageStorage) -> Any:
    """A C-STORE whose data set is whatever it is."""
    from io import BytesIO

    from pynetdicom.dimse_primitives import C_STORE

    association = associated(receiver)
    request = C_STORE()
    request.MessageID, request.Priority = 1, 0
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = sop_class, uid
    request.DataSet = BytesIO(content)
    context = next(item for item in association.accepted_contexts if item.abstract_syntax == CTImageStorage)
    association._reactor_checkpoint.clear()
    while not association._is_paused:
        time.sleep(0.001)
    association.dimse.send_msg(request, context.context_id)
    _, answer = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    association.release()
    return answer


def _bytes(tmp_path: Path) -> bytes:
    (path,) = written(tmp_path / "one", [ct(1)])
    return data_set(path.read_bytes())


def test_hostile_datasets_are_refused_by_name(store: Store, receiving: Open, tmp_path: Path) -> None:
    good = _bytes(tmp_path)
    huge = good[:8] + b"\x08\x00\x08\x00UT\0\0" + struct.pack("<I", 0xFFFFFFF0) + good[8:]
    nested = b"\x08\x00\x00\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 50_000
    with receiving() as receiver:
        for content, status, code in [(huge, 0xC000, b"unreadable_dicom"), (nested, 0xC000, b"unreadable_dicom"),
                                      (b"\0" * 999, 0xC000, b""), (os.urandom(999), 0xC000, b""),
                                      (good[:60], 0xC000, b"unreadable_dicom")]:  # fmt: skip
            answer = _raw(receiver, content)
            assert answer.Status == status
            assert not code or code.decode() == answer.ErrorComment
        for named in ({"uid": "2.25.9"}, {"sop_class": "1.2.840.10008.5.1.4.1.1.4"}):
            assert _raw(receiver, good, **named).Status == 0xA900
        assert _raw(receiver, good).Status == 0
    assert set(files(store)) == {"2.25.601.1.1"}


def test_a_file_broken_behind_its_names_is_kept_for_the_reader_to_judge(
    store: Store, receiving: Open, tmp_path: Path
) -> None:
    broken = _bytes(tmp_path)[:-500]
    with receiving() as receiver:
        assert _raw(receiver, broken).Status == 0
    assert list(files(store).values()) == [broken]


def test_large_data_sets_go_through_a_file_and_too_large_ones_nowhere(
    store: Store, receiving: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receive, "_IN_MEMORY", 100_000)
    monkeypatch.setattr("pipelines.association.MAXIMUM_PDU", 16_384)
    large, larger = ct(1, size=512), ct(2, size=800)
    with receiving(largest_bytes=1_000_000) as receiver:
        assert stored(receiver, [large, larger, ct(3)]) == [0, 0xA700, 0]
        assert receiver.counts == {"new": 2, "instance_too_large": 1}
    (kept,) = [path for path in store.root.rglob("*.dcm") if path.stat().st_size > 500_000]
    again = dcmread(kept)
    assert again == large
    assert again.file_meta.MediaStorageSOPInstanceUID == large.SOPInstanceUID
    assert [path for path in store.root.rglob("*") if path.is_file() and path.suffix not in (".dcm", ".lock")
            and "sqlite" not in path.name] == []  # fmt: skip


def test_a_pdu_beyond_all_bounds_ends_its_association_alone(
    store: Store, receiving: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.receive._NEGOTIATION_S", 600.0)  # no other reason to be closed
    with receiving() as receiver:
        with socket.create_connection(("127.0.0.1", receiver.port)) as hostile:
            hostile.sendall(b"\x01\x00" + struct.pack(">I", 0xFFFFFFFF) + b"x" * 1000)
            hostile.settimeout(45)
            assert _until_closed(hostile)
        with socket.create_connection(("127.0.0.1", receiver.port)) as other:
            other.sendall(b"GET / HTTP/1.1\r\n\r\n")
            other.settimeout(45)
            assert _until_closed(other)
        assert stored(receiver, [ct(1)]) == [0]


def _until_closed(connection: socket.socket) -> bool:
    try:
        while connection.recv(4096):
            pass
    except ConnectionResetError:
        return True
    return True


def test_who_falls_silent_is_left(receiving: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.receive._NEGOTIATION_S", 600.0)
    with receiving(timeout_s=0.5) as receiver:
        with socket.create_connection(("127.0.0.1", receiver.port)) as silent:
            silent.sendall(b"\x01\x00\x00\x00\x01\x00half")
            silent.settimeout(45)  # less than the 60 s that are waited where nothing is said
            assert _until_closed(silent)
        assert stored(receiver, [ct(1)]) == [0]


def test_a_private_class_is_taken_where_it_is_named_and_refused_elsewhere(store: Store, receiving: Open) -> None:
    private = "1.2.826.0.1.3680043.10.1503.77"
    for named in (frozenset({private}), frozenset[str]()):
        with receiving(private=named) as receiver:
            entity = AE("SCU")
            entity.add_requested_context(private, [ExplicitVRLittleEndian])
            entity.add_requested_context(VERIFICATION)
            association = entity.associate("127.0.0.1", receiver.port, ae_title="IMGPIPE")
            assert len(association.accepted_contexts) == 1 + len(named)
            dataset = ct(1)
            dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = private
            if named:
                assert association.send_c_store(dataset).Status == 0
            association.release()
    assert store.holds(str(ct(1).SOPInstanceUID)) == private


def test_who_is_refused_is_told(receiving: Open) -> None:
    told: list[tuple[str, str]] = []
    with receiving(callers=frozenset({"CT1"}), on_refused=lambda *refusal: told.append(refusal)) as receiver:
        assert associated(receiver, aet="CT2").is_rejected
        association = associated(receiver, aet="CT1")
        other = ct(1)
        other.StudyInstanceUID = "none"
        assert association.send_c_store(other).Status == 0xC000
        association.release()
        assert _soon(lambda: len(told) == 2)
    assert told == [("association_rejected", "scp CT2@127.0.0.1"), ("invalid_uid", "scp CT1@127.0.0.1")]


def test_strangers_and_those_who_call_another_are_rejected_for_good(receiving: Open) -> None:
    with receiving(callers=frozenset({"CT1"})) as receiver:
        stranger = associated(receiver, aet="CT2")
        assert stranger.is_rejected
        assert stranger.acceptor.primitive.result == 1
        assert associated(receiver, aet="CT1").is_established
        other = AE("CT1")
        other.add_requested_context(VERIFICATION)
        assert other.associate("127.0.0.1", receiver.port, ae_title="ELSE").is_rejected
        assert _soon(lambda: receiver.counts["association_rejected"] == 2)


def test_more_associations_than_allowed_are_rejected_for_now(receiving: Open) -> None:
    with receiving(associations=2) as receiver:
        held = [associated(receiver) for _ in range(2)]
        third = associated(receiver)
        assert third.is_rejected
        assert third.acceptor.primitive.result == 2
        held[0].release()
        assert _soon(lambda: associated(receiver).is_established)


def test_senders_choose_the_syntax_and_what_nobody_reads_is_refused(receiving: Open) -> None:
    mpeg = "1.2.840.10008.1.2.4.102"
    with receiving() as receiver:
        entity = AE("SCU")
        entity.add_requested_context(CTImageStorage, [mpeg, RLELossless, ExplicitVRLittleEndian])
        entity.add_requested_context("1.2.840.10008.5.1.4.1.1.77.1.1.1", [mpeg])
        entity.add_requested_context("1.2.840.10008.5.1.4.1.1.5")  # nuclear medicine before 1994
        entity.add_requested_context("1.2.840.10008.5.1.4.1.2.2.2")  # C-MOVE
        association = entity.associate("127.0.0.1", receiver.port, ae_title="IMGPIPE")
        accepted = {str(item.abstract_syntax): list(item.transfer_syntax) for item in association.accepted_contexts}
        association.release()
    assert accepted[CTImageStorage] == [RLELossless]
    assert set(accepted) == {str(CTImageStorage), "1.2.840.10008.5.1.4.1.1.5"}


def test_stopping_lets_an_association_end(store: Store) -> None:
    with Receiver(Listening("IMGPIPE", 0, host="127.0.0.1"), store, folder=store.root) as receiver:
        port, association = receiver.port, associated(receiver)
        stopping = threading.Thread(target=receiver.stop, kwargs={"grace_s": 60.0})
        stopping.start()
        assert _soon(lambda: _refused(port))
        assert association.send_c_store(ct(1)).Status == 0
        association.release()
        stopping.join(60)
        assert not stopping.is_alive()


def _soon(condition: Callable[[], bool]) -> bool:
    """Whether it holds within a minute."""
    end = time.monotonic() + 60
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_port_in_use_is_told(receiving: Open, store: Store) -> None:
    with receiving() as receiver, pytest.raises(ListenImpossible, match="in use"):
        Receiver(Listening("OTHER", receiver.port, host="127.0.0.1"), store, folder=store.root).__enter__()


def test_tls_takes_who_shows_a_certificate_and_nobody_else(store: Store, receiving: Open, tmp_path: Path) -> None:
    tls = certificates(tmp_path)
    with receiving(tls=tls, timeout_s=5.0) as receiver:
        silent = socket.create_connection(("127.0.0.1", receiver.port))  # begins no handshake, and holds up nobody
        entity = AE("SCU")
        entity.add_requested_context(CTImageStorage, [ExplicitVRLittleEndian])
        association = entity.associate("127.0.0.1", receiver.port, ae_title="IMGPIPE",
                                       tls_args=(tls.context(server=False), "127.0.0.1"))  # fmt: skip
        assert association.is_established
        assert [association.send_c_store(ct(n, size=256)).get("Status") for n in range(5)] == [0] * 5
        association.release()
        entity.acse_timeout = 3
        assert not entity.associate("127.0.0.1", receiver.port, ae_title="IMGPIPE").is_established
        without = ssl.create_default_context(cafile=str(tls.trusted))
        stranger = entity.associate("127.0.0.1", receiver.port, ae_title="IMGPIPE", tls_args=(without, "127.0.0.1"))
        assert not stranger.is_established
        silent.close()
    assert len(files(store)) == 5


def test_certificates_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    missing = tmp_path / "none.pem"
    with pytest.raises(ConfigInvalid, match="Correct --tls-certificate"):
        Tls(missing, missing, missing).context(server=True)


_VICTIM = """
import sys, time
from pathlib import Path
from pipelines.receive import Listening, Receiver
from pipelines.store import Store
root = Path(sys.argv[1])
with Store(root, watching=True) as store, \\
        Receiver(Listening("IMGPIPE", 0, host="127.0.0.1"), store, folder=root) as receiver:
    print(receiver.port, flush=True)
    time.sleep(600)
"""


def test_killed_in_the_middle_it_has_all_that_it_acknowledged(tmp_path: Path) -> None:
    root, slices = tmp_path / "store", [ct(number, size=256) for number in range(400)]
    acknowledged: set[str] = set()
    for after in (20, 60, 35):
        with subprocess.Popen([sys.executable, "-c", _VICTIM, str(root)], stdout=subprocess.PIPE, text=True) as victim:
            assert victim.stdout is not None
            port = int(victim.stdout.readline())
            killer = threading.Timer(0.003, victim.kill)
            acknowledged |= _until_it_dies(port, [item for item in slices if item.SOPInstanceUID not in acknowledged],
                                           after, killer)  # fmt: skip
            killer.cancel()
            victim.kill()
    assert 20 + 60 + 35 <= len(acknowledged) < len(slices), "killed before it was done, but not before it began"
    with Store(root, watching=True) as store:
        held = {row["sop_instance_uid"] for row in store.database.read("SELECT sop_instance_uid FROM instances")}
        assert acknowledged <= held
        whole = {str(item.SOPInstanceUID): item for item in slices}
        found = list((root / "instances").rglob("*.dcm"))
        assert len(found) == len(held)
        for path in found:
            dataset = dcmread(path)
            assert dataset == whole[dataset.SOPInstanceUID]
        assert [path for path in root.rglob("*") if path.name.endswith(".partial")] == []
        assert [tuple(row) for row in store.database.read("PRAGMA integrity_check")] == [("ok",)]


def _until_it_dies(port: int, slices: Sequence[Dataset], after: int, killer: threading.Timer) -> set[str]:
    """Send on and on; the killer is let loose once so many are acknowledged."""
    entity = AE("SCU")
    entity.dimse_timeout = entity.acse_timeout = entity.network_timeout = 60
    entity.add_requested_context(CTImageStorage, [ExplicitVRLittleEndian])
    association = entity.associate("127.0.0.1", port, ae_title="IMGPIPE")
    assert association.is_established
    done: set[str] = set()
    for item in slices:
        try:
            answer = association.send_c_store(item)
        except (RuntimeError, ValueError):
            break
        if answer.get("Status") != 0:
            break
        done.add(str(item.SOPInstanceUID))
        if len(done) == after:
            killer.start()
    if association.is_established:
        association.abort()
    return done
