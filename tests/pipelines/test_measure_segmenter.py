"""What is said of volumes is said of cases that have the structure."""

from __future__ import annotations

import math

from imaging.config import SegmentConfig, load_config
from imaging.files import shipped
from imaging.mask_scores import CaseScore, StructureScore
from pipelines.measure_segmenter import volume_intervals


def cases(*volumes: tuple[float, float]) -> list[CaseScore]:
    """Cases with what was found and what is there, in mm3."""
    scores = [StructureScore(math.nan, math.nan, math.nan, math.nan, found, truth) for found, truth in volumes]
    name = "hippocampus_anterior"
    return [CaseScore(f"c{number}", f"p{number}", {name: score}) for number, score in enumerate(scores)]


def test_factors_are_tried_only_where_there_is_a_structure() -> None:
    """Nothing lies within any factor of nothing: cases without the structure would make every interval look right."""
    config = load_config(shipped("configs") / "hippocampus_mr.yaml")
    assert isinstance(config, SegmentConfig)
    label, held_out = config.labels[:1], cases(*[(100.0, 100.0)] * 19)
    tried = cases((50.0, 50.0), (50.0, 99.0), (0.0, 40.0), (40.0, 0.0), *[(0.0, 0.0)] * 6)
    interval = volume_intervals(label, held_out, tried)["hippocampus_anterior"]
    assert interval is not None and (interval["held_on_test"], interval["test_cases"]) == (0.25, 4)
    nowhere = volume_intervals(label, held_out, cases((0.0, 0.0)))["hippocampus_anterior"]
    assert nowhere is not None and "held_on_test" not in nowhere
