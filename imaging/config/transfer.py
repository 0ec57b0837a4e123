"""What a training begins with, and which part of it is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field

from imaging.config.section import Count, Positive, Section

Patterns = Annotated[tuple[str, ...], Field(min_length=1)]


class Start(Section):
    """Weights to begin with instead of random ones.

    `weights` is the name of a shipped checkpoint, a checkpoint's folder, a MONAI bundle's folder, or a file of weights
    (``.safetensors``, ``.pt``, ``.pth``, ``.ckpt``). What has the same name and shape in the network is taken; the
    training is refused where that is less than the share `least_share` of the network's own weights, so that 1 asks for
    all of them.
    """

    weights: str | None = None
    least_share: Annotated[float, Field(gt=0, le=1)] = 0.5

    def without_path(self) -> Self:
        """The same with the last part of a path only: where it lay is the business of the machine that trained."""
        return self.model_copy(update={"weights": self.weights and Path(self.weights).name})


class Lora(Section):
    """Low-rank adaptation of attention: to a frozen matrix the product of two thin ones is added.

    Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022.

    `target` are patterns of names of linear layers; what is added has rank `rank` and counts `alpha` / `rank` times.
    All other weights are frozen but those whose names match `also`, such as the head of another task.
    """

    rank: Count = 8
    alpha: Positive = 16.0
    target: Patterns = ("*.attn.qkv",)
    also: tuple[str, ...] = ()
