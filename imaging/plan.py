"""What a data set's figures say about the network: target grid, patch, depth, strides, kernels, batch.

Invariant: pure functions of the figures and the budget; the same data set gives the same plan. The rules are those of
Isensee et al., *nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation*, Nature
Methods 18 (2021) 203-211, and its supplement, except that memory is counted here, not compared with a reference.
Imports no torch.

Shapes: sizes in voxels, spacings in mm, both along R-L, A-P, S-I. S stages, the first at full resolution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from imaging.config import Size3, Vector3
from imaging.dataset_check import CaseFacts
from imaging.errors import ConfigInvalid

# nnU-Net's figures: an axis is coarse beyond three times the others; no feature map is pooled
# below four voxels; 32 filters at full resolution, doubled at each stage up to 320; a patch begins at 256 cubed.
_ANISOTROPIC = 3
_LEAST_EDGE = 4
_FIRST_FILTERS, _MOST_FILTERS = 32, 320
_LARGEST_PATCH = 256**3
_LEAST_BATCH = 2
_SHARE_OF_DATA_SET = 0.05
# MONAI's DynUNet takes no fewer.
_LEAST_STAGES = 3
_BYTES = 4
# Of each weight: itself, its gradient, Adam's two moments, the moving average.
_COPIES_OF_WEIGHTS = 5
_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Budget:
    """What training may take.

    Attributes
    ----------
    memory_gib
        GiB for one training step: weights, optimizer and all that the backward pass needs.
    steps
        Optimizer steps of the whole run.
    """

    memory_gib: float = 8.0
    steps: int = 10_000


@dataclass(frozen=True, slots=True)
class Grid:
    """The network's grid.

    Attributes
    ----------
    spacing_mm
        Size of its voxels.
    median_size
        Median over cases of the size on it.
    coarse_axis
        The axis of the slices, where it is so much coarser than the others that it is treated apart; else None.
    """

    spacing_mm: Vector3
    median_size: Size3
    coarse_axis: int | None


@dataclass(frozen=True, slots=True)
class Topology:
    """A U-Net that suits a patch: strides and kernels of each of its S stages, and the patch made divisible."""

    patch: Size3
    strides: tuple[Size3, ...]
    kernels: tuple[Size3, ...]

    @property
    def filters(self) -> tuple[int, ...]:
        """Filters of each stage."""
        return tuple(min(_FIRST_FILTERS * 2**stage, _MOST_FILTERS) for stage in range(len(self.strides)))

    @property
    def supervised(self) -> int:
        """Heads of deep supervision beside the last layer: of all stages but the two deepest, as in nnU-Net."""
        return max(1, len(self.strides) - 3)

    @property
    def sizes(self) -> tuple[Size3, ...]:
        """Size of the feature maps at each stage."""
        sizes = [self.patch]
        for stride in self.strides[1:]:
            x, y, z = (math.ceil(size / step) for size, step in zip(sizes[-1], stride, strict=True))
            sizes.append((x, y, z))
        return tuple(sizes)


@dataclass(frozen=True, slots=True)
class NetworkPlan:
    """A topology with the batch that a budget allows.

    Attributes
    ----------
    topology
        The network and its patch.
    batch_size
        Patches a step.
    step_bytes
        What a step takes by `training_bytes`.
    step_operations
        Multiplications and additions of a step, forwards and backwards.
    """

    topology: Topology
    batch_size: int
    step_bytes: int
    step_operations: int


def target_grid(cases: Sequence[CaseFacts]) -> Grid:
    """The spacing that all cases are brought to: the median along each axis.

    Where the slices are more than three times as far apart as the pixels and also more than three times fewer, the
    median would blur the finer cases: the 10th percentile is taken along that axis, but nothing finer than the pixels.
    """
    spacings = np.array([case.spacing_mm for case in cases])
    sizes = np.array([case.size for case in cases])
    target = np.median(spacings, axis=0)
    median_size = np.median(sizes, axis=0)
    axis = int(target.argmax())
    others = [other for other in range(3) if other != axis]
    finest = float(target[others].max())
    coarse = target[axis] > _ANISOTROPIC * finest and median_size[axis] * _ANISOTROPIC < median_size[others].min()
    if coarse:
        target[axis] = max(float(np.percentile(spacings[:, axis], 10)), finest)
    x, y, z = target.round(4).tolist()
    on_grid = np.median(sizes * spacings / [x, y, z], axis=0)
    a, b, c = (max(1, round(size)) for size in on_grid.tolist())
    apart = max(x, y, z) > _ANISOTROPIC * sorted((x, y, z))[1]
    return Grid((x, y, z), (a, b, c), axis if coarse and apart else None)


def topology_for(patch: Size3, spacing_mm: Vector3) -> Topology:
    """The U-Net for a patch: pooled along each axis until four voxels are left, coarse axes later.

    An axis is pooled only while its voxels are less than twice as long as the shortest, and the kernel along it is one
    voxel until then, so that features stay about as long as wide in the patient.

    Parameters
    ----------
    patch
        Wanted size; it is rounded up to what the strides divide.
    spacing_mm
        Of the network's grid.
    """
    size, spacing = list(patch), list(spacing_mm)
    kernel = [1, 1, 1]
    strides: list[Size3] = [(1, 1, 1)]
    kernels: list[Size3] = []
    while True:
        deep = [axis for axis in range(3) if size[axis] >= 2 * _LEAST_EDGE]
        least = min((spacing[axis] for axis in deep), default=0)
        pooled = [axis for axis in deep if spacing[axis] < 2 * least]
        if not pooled or (len(pooled) == 1 and size[pooled[0]] < 3 * _LEAST_EDGE):
            break
        kernel = [3 if k == 3 or spacing[axis] < 2 * min(spacing) else 1 for axis, k in enumerate(kernel)]
        kernels.append((kernel[0], kernel[1], kernel[2]))
        x, y, z = (2 if axis in pooled else 1 for axis in range(3))
        strides.append((x, y, z))
        size = [math.ceil(edge / step) for edge, step in zip(size, strides[-1], strict=True)]
        spacing = [length * step for length, step in zip(spacing, strides[-1], strict=True)]
    x, y, z = (
        math.ceil(edge / step) * step for edge, step in zip(patch, np.prod(strides, axis=0).tolist(), strict=True)
    )
    return Topology((x, y, z), tuple(strides), (*kernels, (3, 3, 3)))


def plan_network(grid: Grid, *, classes: int, cases: int, budget: Budget) -> NetworkPlan:
    """The largest patch, up to the median case, of which two fit the budget; what is left goes to the batch.

    Parameters
    ----------
    grid
        The network's grid.
    classes
        With the background.
    cases
        Number of training cases.
    budget
        What training may take.

    Raises
    ------
    ConfigInvalid
        If two of the smallest patches do not fit.
    """
    available = budget.memory_gib * _GIB
    topology = topology_for(_first_patch(grid), grid.spacing_mm)
    while training_bytes(topology, classes=classes, batch=_LEAST_BATCH) > available:
        smaller = _smaller(topology, grid)
        if smaller is None:
            needed = training_bytes(topology, classes=classes, batch=_LEAST_BATCH) / _GIB
            raise ConfigInvalid("--memory", seen=f"{budget.memory_gib:g} GiB",
                                expected=f"at least {needed:.2f} GiB was expected for two of the smallest patches",
                                remedy="Give more memory")  # fmt: skip
        topology = smaller
    in_patch, in_set = math.prod(topology.patch), cases * math.prod(grid.median_size)
    most = max(_LEAST_BATCH, min(round(_SHARE_OF_DATA_SET * in_set / in_patch), cases // 4))
    batch = _LEAST_BATCH
    while batch < most and training_bytes(topology, classes=classes, batch=batch + 1) <= available:
        batch += 1
    return NetworkPlan(
        topology,
        batch,
        training_bytes(topology, classes=classes, batch=batch),
        3 * batch * _forward_operations(topology, classes),
    )


def _first_patch(grid: Grid) -> Size3:
    """As large as the median case, but no more than 256 cubed voxels of equal length along all axes."""
    inverse = 1 / np.array(grid.spacing_mm)
    cube = inverse * (_LARGEST_PATCH / inverse.prod()) ** (1 / 3)
    fine = [spacing < 2 * min(grid.spacing_mm) for spacing in grid.spacing_mm]
    # Twice pooled, or DynUNet does not take it (one axis alone is pooled from 12 voxels on, see `topology_for`); small
    # cases are padded.
    edge_when_fine = (2 * _LEAST_EDGE if sum(fine) > 1 else 3 * _LEAST_EDGE) * 2 ** (_LEAST_STAGES - 2)
    least = [edge_when_fine if axis else 1 for axis in fine]
    x, y, z = (
        max(low, min(round(edge), size)) for low, edge, size in zip(least, cube.tolist(), grid.median_size, strict=True)
    )
    return x, y, z


def _smaller(topology: Topology, grid: Grid) -> Topology | None:
    """One step less along the axis of which the patch shows most; None where that would leave too few stages."""
    steps = np.prod(topology.strides, axis=0).tolist()
    shown = [edge / size for edge, size in zip(topology.patch, grid.median_size, strict=True)]
    for axis in sorted(range(3), key=lambda axis: -shown[axis]):
        edges = list(topology.patch)
        # What remains must not be rounded up to the same patch again.
        while edges[axis] > 1:
            edges[axis] = max(1, edges[axis] - steps[axis])
            smaller = topology_for((edges[0], edges[1], edges[2]), grid.spacing_mm)
            if len(smaller.strides) < _LEAST_STAGES:
                break
            if math.prod(smaller.patch) < math.prod(topology.patch):
                return smaller
    return None


def training_bytes(topology: Topology, *, classes: int, batch: int) -> int:
    """Memory of one training step of a DynUNet, from what its backward pass must keep, at four bytes a value.

    Of each convolution its output (for the normalisation) and the activation (for the next convolution) are kept, of
    each step upwards the joined maps as well; for the loss the logits of each head, their softmax and the one-hot
    truth. With bf16 most of these take half of it, and the rest is headroom.
    """
    voxels = [math.prod(size) for size in topology.sizes]
    filters = topology.filters
    down = sum(4 * f * v for f, v in zip(filters, voxels, strict=True))
    up = sum(6 * f * v for f, v in zip(filters[:-1], voxels[:-1], strict=True))
    heads = 1 + topology.supervised
    loss = 4 * heads * classes * voxels[0]
    passing = 2 * filters[0] * voxels[0]
    weights = _COPIES_OF_WEIGHTS * sum(count for count, _ in _convolutions(topology, classes))
    return _BYTES * (batch * (down + up + loss + passing) + weights)


def _forward_operations(topology: Topology, classes: int) -> int:
    return sum(2 * count * voxels for count, voxels in _convolutions(topology, classes))


def _convolutions(topology: Topology, classes: int) -> list[tuple[int, int]]:
    """Of each convolution its number of weights and of the voxels at which they are used."""
    voxels = [math.prod(size) for size in topology.sizes]
    filters, kernels = topology.filters, [math.prod(kernel) for kernel in topology.kernels]
    found = []
    for stage, width in enumerate(filters):
        above = filters[stage - 1] if stage else 1
        found += [(above * width * kernels[stage], voxels[stage]), (width * width * kernels[stage], voxels[stage])]
    for stage, width in enumerate(filters[:-1]):
        below, step = filters[stage + 1], math.prod(topology.strides[stage + 1])
        found += [
            (below * width * step, voxels[stage + 1]),
            # On the way up MONAI takes the kernel of the stage below.
            (2 * width * width * kernels[stage + 1], voxels[stage]),
            (width * width * kernels[stage + 1], voxels[stage]),
        ]
    found += [(filters[stage] * classes, voxels[stage]) for stage in range(1 + topology.supervised)]
    return found


def epochs_for(budget: Budget, *, cases: int, batch: int) -> int:
    """Epochs that give the budget's steps, one patch of each case an epoch, a last batch that is not full left out."""
    return max(1, math.ceil(budget.steps / max(1, cases // batch)))
