"""A tiny encoder and texts with a known answer, all invented, for the tests of every room that meets a text."""

from __future__ import annotations

import csv
import hashlib
import json
import random
from pathlib import Path
from typing import Any

import yaml

from imaging.config import TextConfig, load_network

NORMAL = (
    "the lungs are clear", "heart size is normal", "nothing lies beside the lung", "the chest is well",
    "the bones are intact", "the mediastinum is not widened", "nothing else is to be told",
    "the airway lies in the middle",
)  # fmt: skip
ABNORMAL = (
    "a suspicious effusion is seen on the left", "a suspicious shadow lies on the heart",
    "a suspicious opacity lies in the lower lobe", "a suspicious nodule is seen", "a suspicious fracture of a rib",
)  # fmt: skip
CODE = {"value": "17621005", "meaning": "Normal"}


def tiny_encoder(folder: Path) -> dict[str, Any]:
    """A BERT of one layer with random weights and the words of these texts; what a config says of it."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import BertConfig, BertModel

    words = sorted({word for text in (*NORMAL, *ABNORMAL) for word in text.split()})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", ".", "##a", "##x", *words]
    folder.mkdir(parents=True)
    tokenizer = Tokenizer(models.WordPiece({word: at for at, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # As published ones do: what a tokenizer says of another use must not count.
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(folder / "tokenizer.json"))
    shape = {"vocab_size": len(vocabulary), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
             "intermediate_size": 32, "max_position_embeddings": 64, "initializer_range": 0.3}  # fmt: skip
    torch.manual_seed(0)
    model = BertModel(BertConfig(**shape))
    model.save_pretrained(folder, safe_serialization=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", **shape}))
    digest = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("model.safetensors", "tokenizer.json")
    }
    return {
        "package": None, "folder": str(folder), "sha256": digest["model.safetensors"],
        "tokenizer_sha256": digest["tokenizer.json"], "window": 32, "overlap": 8,
    }  # fmt: skip


def content(encoder: dict[str, Any]) -> dict[str, Any]:
    """The toy config: normal or abnormal by two columns."""
    return {
        "name": "toy_text", "version": "1.0", "title": "Toy", "task": "text",
        "applies_to": {"roles": ["report"], "sections": ["findings", "impression"]},
        "encoder": encoder,
        "classes": [
            {"id": 0, "name": "normal", "title": "Normal", "category": CODE, "code": CODE, "abnormal": False},
            {"id": 1, "name": "abnormal", "title": "Abnormal", "category": CODE,
             "code": {"value": "263654008", "meaning": "Abnormal"}, "abnormal": True},
        ],
        "data": {"columns": {"parts": ["findings", "impression"], "label": "Problems", "case": "uid"},
                 "otherwise": "abnormal", "folds": 3, "test_fraction": 0.2},
        "train": {"epochs": 20, "batch_size": 8, "learning_rate": 0.02, "ema_decay": 0, "precision": "32",
                  "warmup_steps": 5, "tuning": {"rank": 4, "alpha": 8}},
        "card": {"data": "d", "licence": "l", "intended_use": "i", "limits": "l", "command": "c"},
    }  # fmt: skip


def write_config(path: Path, encoder: dict[str, Any], *overrides: str) -> Path:
    """The toy config as a file."""
    path.write_text(yaml.safe_dump(content(encoder)))
    path.write_text(load_network(path, overrides).to_yaml())
    return path


def toy_config(folder: Path, encoder: dict[str, Any], *overrides: str) -> TextConfig:
    config = load_network(write_config(folder / "toy_text.yaml", encoder, *overrides))
    assert isinstance(config, TextConfig)
    return config


def write_reports(path: Path, *, cases: int = 96, seed: int = 0) -> Path:
    """Invented reports of three sentences; every second one has one that is abnormal."""
    generator = random.Random(seed)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["uid", "findings", "impression", "Problems"])
        for number in range(cases):
            odd = number % 2 == 1
            parts = generator.sample(NORMAL, 5 - odd) + generator.sample(ABNORMAL, 1 if odd else 0)
            generator.shuffle(parts)
            said = [part[0].upper() + part[1:] + "." for part in parts]
            writer.writerow([f"r{number:03d}", " ".join(said[:3]), " ".join(said[3:]), "Opacity" if odd else "normal"])
    return path
