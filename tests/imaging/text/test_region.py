"""Where a text's findings lie is told by its title, its pictures or what was examined, and by nothing else."""

from __future__ import annotations

import pytest

from imaging.text.document import Document
from imaging.text.region import region_of
from imaging.volume import SeriesFacts


def region(text: str, *series: SeriesFacts) -> str | None:
    return region_of(Document.of(text, role="report", source="file report.txt"), series)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("MRI BRAIN WITHOUT CONTRAST\nFINDINGS: A mass.", "elsewhere"),
        ("Chest radiograph, two views\n\nFindings: A mass.", "chest"),
        ("EXAM: CT ABDOMEN AND PELVIS\nFINDINGS: A mass.", "elsewhere"),
        ("CT CHEST AND ABDOMEN\nFINDINGS: A mass.", "elsewhere"),  # it need not be the lung's
        ("TECHNIQUE: Computerized tomography of the chest, to be delivered today.\nFINDINGS: A mass.", "chest"),
        ("TECHNIQUE: Supine, head first, of the thorax.\nFINDINGS: A mass.", "chest"),
        ("FINDINGS: A mass beside the liver.", None),
        ("A mass of the brain is seen on this MRI.", None),  # a sentence is no title
        ("COMPARISON: MRI brain\nFINDINGS: A mass.", None),
        ("HISTORY: MRI of the knee\nFINDINGS: A mass.", None),
        ("", None),
    ],
)
def test_a_text_says_itself_what_it_is_of(text: str, expected: str | None) -> None:
    assert region(text) == expected


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"body_part": "BRAIN"}, "elsewhere"),
        ({"body_part": "CHEST"}, "chest"),
        ({"body_part": "THORAX^LUNG"}, "chest"),
        ({"body_part": "CHESTABDPELVIS"}, "elsewhere"),
        ({"body_part": "TSPINE"}, "elsewhere"),
        ({"body_part": "HEART"}, "elsewhere"),  # its edema is none of the lung
        ({"body_part": "STOMACH"}, "elsewhere"),
        ({"body_part": "JAW"}, "elsewhere"),
        ({"body_part": "CEREBRAL"}, "elsewhere"),
        ({"body_part": "KUB"}, "elsewhere"),
        ({"description": "Chest, linear reformat, early phase"}, "chest"),  # no ear
        ({"body_part": "ABDOMEN", "description": "Chest 5 mm"}, "elsewhere"),
        ({"body_part": "SUPINE", "description": "Lung 1.0 B60f"}, "chest"),
        ({"description": "hippo_crop"}, "elsewhere"),
        ({"modality": "MG"}, "elsewhere"),
        ({"modality": "MR", "description": "t1"}, None),
    ],
)
def test_pictures_say_what_they_are_of(facts: dict[str, str], expected: str | None) -> None:
    assert region("FINDINGS: A mass.", SeriesFacts(**facts)) == expected


def test_the_title_goes_before_the_pictures_and_these_before_the_technique() -> None:
    chest, brain = SeriesFacts(body_part="CHEST"), SeriesFacts(body_part="BRAIN")
    assert region("CT CHEST\nFINDINGS: A mass.", brain) == "chest"
    technique = "TECHNIQUE: Axial images from the lung apices to the abdomen.\nFINDINGS: A mass."
    assert (region(technique), region(technique, chest)) == ("elsewhere", "chest")


def test_one_picture_of_another_part_counts_for_all() -> None:
    assert region("A mass.", SeriesFacts(body_part="CHEST"), SeriesFacts(body_part="ABDOMEN")) == "elsewhere"
    assert region("A mass.", SeriesFacts(body_part="CHEST"), SeriesFacts(modality="CT")) == "chest"
