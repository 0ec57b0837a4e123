"""DICOMweb beside Orthanc: stored, found, brought back byte for byte; and what servers do that fail."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pacs import Orthanc, ct, data_set, free_port, orthanc, written
from pydicom import dcmread
from pydicom.uid import RLELossless
from results import seg_of, sr_of

from imaging.errors import ImagingError, PeerUnreachable, StoreFull, WebRefused, WebUnavailable
from pipelines.dicomweb import Client, Web
from pipelines.fetch import Poller, Watched
from pipelines.store import Received, Store
from pipelines.stow import store as stow

ALL = Watched(days=0)


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with orthanc(tmp_path_factory.mktemp("orthanc")) as server:
        yield server


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store", watching=True) as opened:
        yield opened


def test_results_stored_by_stow_are_found_by_qido_and_come_back_byte_for_byte(pacs: Orthanc, tmp_path: Path) -> None:
    slices = [ct(1, study="2.25.820"), ct(2, study="2.25.820", rle=True)]
    files = [seg_of(tmp_path), sr_of(tmp_path / "sr"), *written(tmp_path / "out", slices)]
    delivery = stow(files, Web(pacs.web))
    assert delivery.done, [file.error for file in delivery.files]
    assert [file.confirmed_by for file in delivery.files] == ["qido"] * 4
    names = pacs.instances()
    with Client(Web(pacs.web)) as client:
        for file in delivery.files:
            again = client.instance(file.study_uid, file.series_uid, file.sop_instance_uid)
            assert again == file.path.read_bytes()
            assert pacs.raw(f"/instances/{names[file.sop_instance_uid]}/file") == file.path.read_bytes()
    assert stow(files, Web(pacs.web)).done, "a second time changes nothing"


def test_studies_are_fetched_once_and_again_when_they_grow(pacs: Orthanc, store: Store, tmp_path: Path) -> None:
    slices = [ct(n, study="2.25.830", rle=n == 2) for n in range(4)]
    paths = written(tmp_path / "out", slices)
    for path in paths[:3]:
        pacs.post("/instances", path.read_bytes())
    poller = Poller(Web(pacs.web), store, store.holds, Watched(days=0, match={"StudyInstanceUID": "2.25.830"}))
    first = poller.poll()
    assert (first.studies, first.instances, first.errors) == (1, {"new": 3}, ())
    assert poller.poll().instances == {}
    pacs.post("/instances", paths[3].read_bytes())
    assert poller.poll().instances == {"new": 1}
    again = Poller(Web(pacs.web), store, store.holds, Watched(days=0, match={"StudyInstanceUID": "2.25.830"}))
    assert again.poll().instances == {}, "after a new start the store says what is there"
    kept = {str(dcmread(path).SOPInstanceUID): path for path in (store.root / "instances").rglob("*.dcm")}
    for dataset, path in zip(slices, paths, strict=True):
        assert data_set(kept[dataset.SOPInstanceUID].read_bytes()) == data_set(path.read_bytes())
    assert dcmread(kept[slices[2].SOPInstanceUID]).file_meta.TransferSyntaxUID == RLELossless


def test_only_studies_of_the_last_days_are_asked_for(pacs: Orthanc, store: Store, tmp_path: Path) -> None:
    for path in written(tmp_path / "out", [ct(1, study="2.25.840")]):
        pacs.post("/instances", path.read_bytes())
    of_today = Poller(Web(pacs.web), store, store.holds, Watched(days=1, match={"StudyInstanceUID": "2.25.840"}))
    assert of_today.poll().studies == 0


def test_small_pages_are_turned(pacs: Orthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.dicomweb._PAGE", 2)
    for path in written(tmp_path / "out", [ct(n, study="2.25.850") for n in range(5)]):
        pacs.post("/instances", path.read_bytes())
    with Client(Web(pacs.web)) as client:
        found = list(client.instances("2.25.850"))
    assert sorted(found) == [("2.25.850.1", f"2.25.850.1.{number}") for number in range(5)]


def test_a_full_store_ends_the_round_and_the_next_goes_on(pacs: Orthanc, store: Store, tmp_path: Path) -> None:
    class Full:
        asked = 0

        def put(self, _data: object, **_names: str) -> Received:
            self.asked += 1
            raise StoreFull(tmp_path, seen="no space")

    for path in written(tmp_path / "out", [ct(n, study="2.25.860") for n in range(3)]):
        pacs.post("/instances", path.read_bytes())
    full = Full()
    watched = Watched(days=0, match={"StudyInstanceUID": "2.25.860"})
    poller = Poller(Web(pacs.web), full, store.holds, watched)
    assert [error.code for error in poller.poll().errors] == ["store_full"]
    assert full.asked == 1
    poller._intake = store
    assert poller.poll().instances == {"new": 3}


Answer = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def server(answer: Answer) -> Iterator[Web]:
    """A server that answers everything in one way."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def do_POST(self) -> None:
            while self.rfile.readline().strip() not in (b"0", b""):
                pass
            answer(self)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield Web(f"http://127.0.0.1:{http.server_port}/web", timeout_s=30)
        http.shutdown()


def with_status(status: int, content: bytes = b"", kind: str = "application/dicom+json") -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    return answer


@pytest.mark.parametrize(("status", "kind"), [(401, WebRefused), (404, WebRefused), (409, WebRefused),
                                              (429, WebUnavailable), (500, WebUnavailable),
                                              (503, WebUnavailable)])  # fmt: skip
def test_http_statuses_say_whether_to_try_again(tmp_path: Path, status: int, kind: type[ImagingError]) -> None:
    with server(with_status(status)) as web:
        (file,) = stow(written(tmp_path, [ct(1)]), web).files
        assert type(file.error) is kind
        assert file.transient == (kind is WebUnavailable)
        with Client(web) as client, pytest.raises(kind, match=f"HTTP status {status}"):
            client.instance("1.2", "1.3", "1.4")


def _failed(reason: int) -> bytes:
    return (b'{"00081198": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": ["2.25.601.1.1"]},'
            b'"00081197": {"vr": "US", "Value": [%d]}}]}}' % reason)  # fmt: skip


@pytest.mark.parametrize(("reason", "code"), [(0xA700, "storage_deferred"), (0x0110, "storage_deferred"),
                                              (0xC000, "storage_refused"), (0x0122, "storage_refused")])  # fmt: skip
def test_failure_reasons_say_whether_to_try_again(tmp_path: Path, reason: int, code: str) -> None:
    with server(with_status(202, _failed(reason))) as web:
        (file,) = stow(written(tmp_path, [ct(1)]), web).files
    assert file.error is not None
    assert file.error.code == code


def test_a_server_that_says_yes_and_has_nothing_is_found_out(tmp_path: Path) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        with_status(200, b"{}" if handler.command == "POST" else b"[]")(handler)

    with server(answer) as web:
        (file,) = stow(written(tmp_path, [ct(1)]), web).files
    assert file.error is not None
    assert (file.error.code, file.transient) == ("not_confirmed", True)


def test_nobody_there(tmp_path: Path) -> None:
    web = Web(f"http://127.0.0.1:{free_port()}/web", timeout_s=30)
    (file,) = stow(written(tmp_path, [ct(1)]), web).files
    assert isinstance(file.error, PeerUnreachable)
    with Client(web) as client, pytest.raises(PeerUnreachable):
        list(client.studies({}))


PARTS = 'multipart/related; type="application/dicom"; boundary=B'


@pytest.mark.parametrize(
    ("kind", "content", "length"),
    [
        (PARTS, b"--B\r\n\r\nhalf of an inst", None),
        (PARTS, b"--B\r\n\r\nhalf", 1000),
        (
            PARTS,
            b"--B\r\n\r\none\r\n--B\r\n\r\ntwo\r\n--B--\r\n",
            None,
        ),
        ("text/html", b"<html>sign in</html>", None),
    ],
    ids=["no end", "shorter than said", "two parts", "a page"],
)
def test_answers_that_are_not_one_whole_instance_are_none(kind: str, content: bytes, length: int | None) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", kind)
        if length is not None:
            handler.send_header("Content-Length", str(length))
        handler.end_headers()
        handler.wfile.write(content)

    with server(answer) as web, Client(web) as client, pytest.raises((WebUnavailable, PeerUnreachable)):
        client.instance("1.2", "1.3", "1.4")


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_another_instance_than_was_asked_for_is_not_taken(store: Store, tmp_path: Path) -> None:
    (path,) = written(tmp_path / "out", [ct(2)])
    whole = b"--B\r\nContent-Type: application/dicom\r\n\r\n" + path.read_bytes() + b"\r\n--B--\r\n"
    listed = b'[{"0020000D": {"vr":"UI","Value":["2.25.601"]}, "0020000E": {"vr":"UI","Value":["2.25.601.1"]}, ' \
             b'"00080018": {"vr":"UI","Value":["%s"]}, "00201208": {"vr":"IS","Value":[1]}}]'  # fmt: skip
    uid = b"2.25.601.1.1"

    def answer(handler: BaseHTTPRequestHandler) -> None:
        if "offset=0" in handler.path:
            with_status(200, listed % uid)(handler)
        elif "offset=" in handler.path:
            with_status(200, b"[]")(handler)
        else:
            with_status(200, whole, PARTS)(handler)

    with server(answer) as web:
        poller = Poller(web, store, store.holds, ALL)
        assert [error.code for error in poller.poll().errors] == ["instance_mismatch"]
        assert [error.code for error in poller.poll().errors] == ["instance_mismatch"], "asked for again"
        uid = b"../../x"
        assert [error.code for error in poller.poll().errors] == ["invalid_uid"]
        uid = b"2.25.601.1.2"
        assert poller.poll().instances == {"new": 1}


def test_secrets_are_not_shown() -> None:
    assert "secret" not in repr(Web("http://pacs/web", token="secret", user="me", password="secret"))
    with Client(Web("http://pacs/web", token="secret")) as client:
        assert client._session.headers["Authorization"] == "Bearer secret"
