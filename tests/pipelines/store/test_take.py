"""A file moves into the store: read once, gone from its place, and what no study can have is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from arriving import instance, study_uid

from imaging.errors import MissingAttribute, NotDicom, StoreFull, UnreadableDicom
from pipelines.store import Received, Store
from pipelines.store import content as content_module


def test_a_file_moves_in_and_is_the_same_as_one_that_was_sent(tmp_path: Path) -> None:
    file = tmp_path / "IM1"
    with Store(tmp_path / "store") as store:
        for expected in (Received.NEW, Received.SAME):
            file.write_bytes(instance(1, 1))
            assert store.take(file, source="inbox") is expected
            assert not file.exists()
        [job] = store.jobs.all()
        assert job.study_uid == study_uid(1)
        [kept] = store.files(job)
        assert kept.read_bytes() == instance(1, 1)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"Dear colleague, the patient John Doe ...", NotDicom),
        (b"", NotDicom),
        (instance(1, 1)[:300], UnreadableDicom),
        (instance(1, 1).replace(b"\x20\x00\x0d\x00UI", b"\x20\x00\x0d\x01UI"), MissingAttribute),
    ],
    ids=["text", "empty", "cut", "no study"],
)
def test_what_no_study_can_have_is_set_aside_and_told(tmp_path: Path, content: bytes, kind: type[Exception]) -> None:
    file = tmp_path / "John Doe" / "IM1"
    file.parent.mkdir()
    file.write_bytes(content)
    with Store(tmp_path / "store", watching=True) as store:
        with pytest.raises(kind):
            store.take(file, source="inbox")
        assert not file.exists()
        [event] = store.jobs.events()
        assert event.code == "file_refused"
        assert event.detail is not None
        assert "Doe" not in str(event.detail)
        assert (store.contents.refused / event.detail["file"]).read_bytes() == content
        assert store.jobs.all() == []
    with Store(tmp_path / "store", watching=True) as store:
        assert len(list(store.contents.refused.iterdir())) == 1


def test_a_file_that_cannot_be_kept_stays_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "IM1"
    file.write_bytes(instance(1, 1))

    def full(_: Path) -> None:
        raise OSError(28, "No space left on device")

    with Store(tmp_path / "store") as store:
        monkeypatch.setattr(content_module, "sync_file", full)
        with pytest.raises(StoreFull):
            store.take(file, source="inbox")
        monkeypatch.undo()
        assert file.read_bytes() == instance(1, 1)
        assert list((tmp_path / "store" / "incoming").iterdir()) == []
        assert store.take(file, source="inbox") is Received.NEW
