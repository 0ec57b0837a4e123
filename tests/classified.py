"""Small classified data sets with a known answer, for the tests of every room that meets one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from imaging.config import ClassifyConfig, load_config

# The share of usual cases that a checkpoint which knows strange ones may flag.
FALSE_FLAGS = 0.3
CODE = {"value": "17621005", "meaning": "Normal"}
CONTENT: dict[str, Any] = {
    "name": "toy",
    "version": "1.0",
    "title": "Toy",
    "task": "classify",
    "applies_to": {"modality": ["DX", "CR"]},
    "output": "softmax",
    "classes": [
        {"id": 0, "name": "plain", "title": "Plain", "category": CODE, "code": CODE, "abnormal": False},
        {"id": 1, "name": "odd", "title": "Odd", "category": CODE, "code": CODE, "abnormal": True},
    ],
    "data": {"folds": 2, "test_fraction": 0.25},
    "preprocess": {"size": [16, 16]},
    "network": {"name": "DenseNet", "options": {"init_features": 4, "growth_rate": 4, "block_config": [1, 1]}},
    "train": {
        "epochs": 4, "batch_size": 8, "learning_rate": 0.02, "ema_decay": 0.5, "precision": "32",
        "augment": [{"name": "RandGaussianNoise", "options": {"prob": 0.5, "std": 0.1}}],
    },
    "card": {"data": "d", "licence": "l", "intended_use": "i", "limits": "l", "command": "c"},
}  # fmt: skip


def write_config(path: Path, *overrides: str) -> Path:
    """The toy config as a file."""
    path.write_text(yaml.safe_dump(CONTENT))
    path.write_text(load_config(path, overrides).to_yaml())
    return path


def toy_config(folder: Path, *overrides: str) -> ClassifyConfig:
    config = load_config(write_config(folder / "toy.yaml", *overrides))
    assert isinstance(config, ClassifyConfig)
    return config


def picture(generator: np.random.Generator, *, odd: bool, size: tuple[int, int] = (20, 16)) -> np.ndarray[Any, Any]:
    """Noise of (rows, columns) that is brighter below; an odd one has a bright blob in its middle."""
    rows, columns = size
    image = generator.normal(80, 20, size) + np.linspace(-50, 50, rows)[:, None]
    if odd:
        image[rows // 3 : 2 * rows // 3, columns // 3 : 2 * columns // 3] += 60
    return np.clip(image, 0, 255).astype(np.uint8)


def write_pictures(folder: Path, *, cases: int = 48, seed: int = 0) -> Path:
    """PNG files and their manifest: two pictures a patient, every second patient odd, sex and age as facts."""
    generator = np.random.default_rng(seed)
    rows = ["image,label,patient,sex,age"]
    for number in range(cases):
        patient = number // 2
        odd = patient % 2 == 1
        Image.fromarray(picture(generator, odd=odd)).save(folder / f"film{number:03d}.png")
        sex, age = "FM"[patient // 2 % 2], 20 + number
        rows.append(f"film{number:03d}.png,{'odd' if odd else 'plain'},p{patient},{sex},{age}")
    (folder / "films.csv").write_text("\n".join(rows) + "\n")
    return folder / "films.csv"


def strange_picture(folder: Path) -> Path:
    """A picture like none of these: checks, and broad."""
    checks = (np.indices((16, 60)).sum(axis=0) // 4 % 2 * 200 + np.arange(60)[None] % 50).astype(np.uint8)
    Image.fromarray(checks).save(folder / "checks.png")
    return folder / "checks.png"
