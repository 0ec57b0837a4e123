"""What is done with the pictures of a study, and where the time goes that it takes."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from imaging.checkpoint import Checkpoint, find_checkpoint, open_checkpoint
from imaging.errors import ImagingError, MemoryTooSmall
from imaging.inputs import SeriesView
from imaging.predict import Predictor
from imaging.report.report import StudyEntry
from imaging.stages import listening
from imaging.volume import SeriesFacts, Volume
from pipelines.asking import Source, ask_pictures
from pipelines.infer import Inference


def test_opening_a_checkpoint_counts_as_that(data: Path, tmp_path: Path) -> None:
    held: list[Predictor] = []

    def opened(checkpoint: Checkpoint) -> Predictor:
        if not held:
            time.sleep(0.5)
            held.append(Predictor(checkpoint, engine="torch"))
        return held[0]

    inference = Inference(models=["hippocampus_mr"], formats=["json"], opened=opened)
    image = min((data / "hippocampus" / "imagesTr").glob("*.nii.gz"))
    with listening() as heard:
        done = inference([image], tmp_path)
    assert done.studies[0].report is not None
    assert heard.seconds()["open"] >= 0.5


class Full(Predictor):
    """A predictor that has no room for anything."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint, self.asked = checkpoint, list[int]()

    def check_room(self, *_: object, subject: str, unread: int = 0, **__: object) -> None:
        self.asked.append(unread)
        raise MemoryTooSmall(subject, seen="no room")


def test_no_channel_is_read_where_there_is_no_room_for_all() -> None:
    full = Full(open_checkpoint(find_checkpoint("hippocampus_mr")))

    def read() -> Volume:
        raise AssertionError("it was read")

    views = [
        SeriesView(SeriesFacts(series_uid=f"1.2.{number}"), 1, (4, 4, 4), np.eye(4), channel_of=(("pair", name),))
        for number, name in enumerate(("t1", "t2"))
    ]
    source = Source(StudyEntry(name="1.2", uid="1.2"), tuple((view, read) for view in views))
    problems: list[ImagingError] = []
    entries, predictions = ask_pictures(source, lambda _: full, problems, "none")
    assert predictions == []
    assert [problem.code for problem in problems] == ["memory_too_small"]
    assert [[refusal.code for refusal in entry.refusals] for entry in entries] == [["memory_too_small"]] * 2
    assert full.asked == [4]  # two that are read, and both once more as one volume
