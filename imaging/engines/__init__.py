"""What computes a network's numbers: torch, or OpenVINO on a CPU.

Invariant: whoever asks gives tiles as NumPy arrays and gets logits as NumPy arrays, and need not know who computed
them. Nothing here imports torch or MONAI before an engine needs them: with a kept model OpenVINO needs neither.
"""

from __future__ import annotations

from imaging.engines.choice import Engines, engines_of
from imaging.engines.engine import Engine, EngineChoice, Precision, Wanted

__all__ = ["Engine", "EngineChoice", "Engines", "Precision", "Wanted", "engines_of"]
