"""The torch engine: on a GPU or a CPU, the network as it was trained.

Invariant: what the other engines are measured against; fp32 is the reference, and bf16 what the config's
`predict.precision` says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from imaging.checkpoint import Checkpoint
from imaging.config import SegmentConfig
from imaging.engines.engine import EngineName, Precision
from imaging.errors import CheckpointCorrupt
from imaging.networks import build_classifier, build_segmenter, load_weights, stages_of

# Measured on an H100: tiles of 96^3 voxels took half as long each four at a time as alone, those of 40 x 56 x 40 a
# seventh sixteen at a time.
_BUSY_VOXELS, _MOST_AT_ONCE = 4 * 96**3, 16


class TorchEngine:
    """One network in torch; see `imaging.engines.Engine`.

    On a CPU the weights lie channels last, which its convolutions prefer: measured on two cores with AVX-512, a
    40 x 56 x 40 tile through a DynUNet took 0.7 of the time in fp32, and as long as before in bf16. On a GPU those of
    3D networks lie as they are: on an H100 channels last took 1.4 to 1.8 times as long, in each precision.

    fp32 is fp32: cuDNN's TF32, which rounds to ten bits, is kept off.

    Parameters
    ----------
    network
        In evaluation mode; it is moved to the device.
    device
        Where it computes.
    precision
        ``bf16`` is autocast: convolutions and products in bfloat16, sums of many terms in fp32.
    tile
        Voxels of a tile along each axis; a GPU is asked for as many at once as keep it busy.

    Attributes
    ----------
    device
        See there.
    """

    name: EngineName = "torch"

    def __init__(
        self, network: torch.nn.Module, *, device: torch.device, precision: Precision, tile: Sequence[int] = ()
    ) -> None:
        self.precision: Precision = precision
        self.device = device
        self.batch = 1
        if device.type == "cuda" and tile:
            self.batch = min(max(1, _BUSY_VOXELS // math.prod(tile)), _MOST_AT_ONCE)
        self._network = network.eval().to(device)
        most = max(parameter.ndim for parameter in network.parameters())
        layouts = {4: torch.channels_last} | ({} if device.type == "cuda" else {5: torch.channels_last_3d})
        self._layout = layouts.get(most, torch.contiguous_format)
        self._network.to(memory_format=self._layout)  # type: ignore[call-overload]

    @torch.inference_mode()
    def __call__(self, tiles_BCXYZ: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the network says of some tiles; see `imaging.engines.Engine`."""
        tiles = torch.from_numpy(np.ascontiguousarray(tiles_BCXYZ, dtype=np.float32)).to(self.device)
        return np.ascontiguousarray(self.logits(tiles).cpu().numpy())

    @torch.inference_mode()
    def logits(self, tiles_BCXYZ: torch.Tensor) -> torch.Tensor:
        """The same of tiles on the device: float32 there."""
        exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
        with exact, torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            logits: torch.Tensor = self._network(tiles_BCXYZ.to(memory_format=self._layout))
        return logits.float()


class WithEmbedding(torch.nn.Module):
    """A classifier as (B, C, ...) -> its logits (B, K) and behind them its embedding (B, E).

    The embedding is the mean over the picture of what the last stage gives; a network without stages has none.
    """

    def __init__(self, network: torch.nn.Module, last_stage: str | None) -> None:
        super().__init__()
        self.network = network
        self._kept: list[torch.Tensor] = []
        if last_stage is not None:
            network.get_submodule(last_stage).register_forward_hook(self._keep)

    def _keep(self, _module: torch.nn.Module, _given: object, features: torch.Tensor) -> None:
        self._kept.append(features)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits and embedding, one behind the other."""
        self._kept.clear()
        logits_BK: torch.Tensor = self.network(image)
        if not self._kept:
            return logits_BK
        embedding_BE = self._kept.pop().flatten(2).float().mean(2)
        return torch.cat([logits_BK.float(), embedding_BE], dim=1)


def networks_of(checkpoint: Checkpoint) -> tuple[torch.nn.Module, ...]:
    """The network of a checkpoint, or the members of its ensemble, on the CPU, ready to be asked.

    Raises
    ------
    CheckpointCorrupt
        If the weights do not fit the config's network.
    """
    networks = []
    for weights in checkpoint.load_members():
        network = _built(checkpoint)
        try:
            load_weights(network, weights)
        except (KeyError, ValueError) as error:
            raise CheckpointCorrupt(checkpoint.folder, seen=f"the weights do not fit the network: {error}") from error
        networks.append(network.eval())
    return tuple(networks)


def _built(checkpoint: Checkpoint) -> torch.nn.Module:
    config = checkpoint.config
    if isinstance(config, SegmentConfig):
        return build_segmenter(config)
    return build_classifier(
        config.network, spatial_dims=len(config.preprocess.size), in_channels=1, classes=len(config.classes)
    )


def answering(checkpoint: Checkpoint) -> tuple[torch.nn.Module, ...]:
    """The same as an engine has them: a classifier's with its embedding behind its logits."""
    networks = networks_of(checkpoint)
    if isinstance(checkpoint.config, SegmentConfig):
        return networks
    stages = stages_of(checkpoint.config.network, networks[0])
    return tuple(WithEmbedding(network, stages[-1] if stages else None).eval() for network in networks)


def has_bf16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 by itself; what has to imitate it is slower than in fp32."""
    if device.type != "cpu":
        return True
    # AVX-512 with what oneDNN needs, unless ONEDNN_MAX_CPU_ISA forbids it; torch has no public name for this.
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
