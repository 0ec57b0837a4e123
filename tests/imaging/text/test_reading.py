"""A text checkpoint judges texts beside such pictures alone as it has read of."""

from __future__ import annotations

import pytest

from imaging.checkpoint import find_checkpoint, open_text
from imaging.errors import NotApplicable
from imaging.text.answer import check_pictures
from imaging.text.document import Document
from imaging.volume import SeriesFacts

REPORT = "FINDINGS: The heart is normal. No pleural effusion."
CHEST, KNEE, BRAIN = (SeriesFacts(modality=m, body_part=p) for m, p in [("DX", "CHEST"), ("DX", "KNEE"), ("MR", "")])


@pytest.mark.parametrize(
    ("series", "taken"),
    [
        ([CHEST], True),
        ([BRAIN, CHEST], True),
        ([SeriesFacts()], True),  # a file that does not tell
        ([SeriesFacts(modality="CR")], True),
        ([KNEE], False),
        ([BRAIN], False),
        ([], True),
    ],
)
def test_texts_are_judged_of_such_pictures_alone_as_the_checkpoint_has_read_of(
    series: list[SeriesFacts], taken: bool
) -> None:
    for name, role in (("report_text", "report"), ("request_text", "request")):
        document = Document.of(REPORT, role=role, source="file x", language="en")
        config = open_text(find_checkpoint(name)).config
        if taken:
            check_pictures(config, document, series)
        else:
            with pytest.raises(NotApplicable, match="CHEST"):
                check_pictures(config, document, series)
