"""A small fusion with a known answer, for the tests of every room that meets one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from imaging.config import FuseConfig, load_any
from imaging.stacking import Case

CODE = {"value": "263654008", "meaning": "Abnormal"}
CONTENT: dict[str, Any] = {
    "name": "both",
    "version": "1.0",
    "title": "Film and request",
    "task": "fuse",
    "judged": {"name": "odd", "title": "Odd", "category": CODE, "code": CODE},
    "images": [{"name": "toy", "target": "odd"}],
    "text": {"name": "words"},
    "facts": [{"name": "age", "mean": 50, "deviation": 20}, {"name": "sex", "values": ["F", "M"]}],
    "train": {"method": "stacked"},
    "card": {"data": "d", "licence": "l", "intended_use": "i", "limits": "l", "command": "c"},
}


def fuse_config(folder: Path, *overrides: str) -> FuseConfig:
    path = folder / "fuse.yaml"
    path.write_text(yaml.safe_dump(CONTENT))
    config = load_any(path, overrides)
    assert isinstance(config, FuseConfig)
    return config


def drawn(
    cases: int, *, seed: int = 0, missing: float = 0.0, worth: tuple[float, float] = (2.0, 1.0)
) -> tuple[list[Case], np.ndarray[Any, Any]]:
    """Cases whose film and words tell the truth independently of each other, so that their log-odds add up.

    With `worth` d the log-odds of a part are normal around d^2 / 2 in the ill and -d^2 / 2 in the others, with variance
    d^2: calibrated, at equal shares. Half of them are ill; age tells nothing, sex a little.
    """
    generator = np.random.default_rng(seed)
    truth = generator.random(cases) < 0.5
    found = []
    for ill in truth.tolist():
        logits = {
            part: float(generator.normal(d * d * (ill - 0.5), d))
            for part, d in zip(("toy", "text"), worth, strict=True)
            if generator.random() >= missing
        }
        facts = {"age": str(generator.integers(20, 80)), "sex": "FM"[int(generator.random() < 0.4 + 0.2 * ill)]}
        found.append(Case(logits, facts if generator.random() >= missing else {}))
    return found, truth
