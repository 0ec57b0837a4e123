"""How well a model finds mentions, as one HTML page that needs nothing beside it.

Invariant: every number on the page is in metrics.json; no word of a text is on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from imaging.config import TextConfig
from imaging.interval import Interval
from imaging.report.html import TEMPLATES

TITLES = {"precision": "Precision", "recall": "Recall", "f1": "F1"}


def render_spans(metrics: Mapping[str, Any], config: TextConfig) -> str:
    """The page.

    Parameters
    ----------
    metrics
        As metrics.json has them.
    config
        The checkpoint's.
    """
    return TEMPLATES.get_template("span_page.html.j2").render(
        metrics=metrics, kinds=config.kinds, titles=TITLES, interval=lambda value: str(Interval(**value)),
        cross_validation=None,
    )  # fmt: skip
