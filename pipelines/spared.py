"""MONAI without the packages that it would only look at.

Invariant: nothing that a verb uses is kept from it. `import monai` imports every part of MONAI, and with them whatever
optional package of theirs happens to be installed: transformers for a network that reads texts, MLflow, scikit-learn
and Matplotlib for training. A report needs none of these from MONAI. While MONAI is being imported they are not there,
which MONAI takes for an installation without them; before and after, to anybody else, they are.

Only a process that ends with its verb does this: whoever imports imgpipe as a library gets the whole of MONAI.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

SPARED = frozenset((
    "accelerate", "huggingface_hub", "ignite", "matplotlib", "mlflow", "nvidia", "onnx", "onnxruntime", "optuna",
    "pandas", "skimage", "sklearn", "tensorboard", "tensorrt", "transformers",
))  # fmt: skip


class _Sparing(MetaPathFinder):
    """Says of the spared packages that they are not installed, as long as MONAI is being imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Refuse a spared package, or leave the name to the next finder."""
        if fullname in SPARED and _importing("monai"):
            raise ModuleNotFoundError(f"{fullname} is not needed from MONAI", name=fullname)
        return None


def _importing(name: str) -> bool:
    """Whether a package's own import has begun and not ended."""
    spec = getattr(sys.modules.get(name), "__spec__", None)
    # Where a Python to come tells this in another way nothing is spared, and nothing is lost but time.
    return bool(getattr(spec, "_initializing", False))


def spare() -> None:
    """From here on MONAI, if it is imported at all, is imported alone."""
    if not any(isinstance(finder, _Sparing) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Sparing())
