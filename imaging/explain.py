"""Where on a picture a classifier's probability comes from.

Invariant: what is explained is the log-odds of the thing that the report judges, by the very weights that judged it; a
map is never finer than the features it was made from, and says how coarse these are. The same picture gives the same
map.

A map shows what the network's answer depends on. It is no outline of a disease, and a plausible map is no proof of a
right answer: Adebayo et al., Sanity Checks for Saliency Maps, NeurIPS 2018 (the tests hold that a map changes when the
weights are made random; that is all such a check can show).

Shapes: B batch, C channels, T things that are explained; ``image_1C...`` with two or three spatial axes; a map has the
spatial axes of the network's grid.
"""

from __future__ import annotations

import copy
import difflib
import warnings
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from monai.visualize import GradCAMpp
from monai.visualize.visualizer import default_upsampler

from imaging.config import ClassifyConfig
from imaging.errors import ConfigInvalid, UnknownName
from imaging.heat_map import Attribution, Method
from imaging.networks import stages_of

# What is laid over the grid, with the gap and the steps of integrated gradients.
_Map = tuple[torch.Tensor, float | None, int | None]

# Grad-CAM's own maps of a ResNet have 7 x 7 cells (Selvaraju et al., ICCV 2017); with fewer, a cell is half a lung.
_ENOUGH_CELLS = 7
# Pictures at once on the way of integrated gradients.
_BATCH = 16
# The steps are doubled until the attributions add up to what they explain but for this share, or are so many.
_SMALL_GAP, _MOST_STEPS = 0.05, 512


class Explainer:
    """Explains a classifier; call it with what the network is given.

    Parameters
    ----------
    config
        The classifier's config.
    networks
        The network, or the members of an ensemble. They are copied: the originals are left without hooks and with
        their gradients.

    Raises
    ------
    UnknownName
        If ``explain.layer`` is no module of the network.
    ConfigInvalid
        If that module gives no feature map, or Grad-CAM++ is asked of a network that has none.
    """

    def __init__(self, config: ClassifyConfig, networks: Sequence[torch.nn.Module]) -> None:
        self._settings, self._softmax = config.explain, config.output == "softmax"
        self._size, self._flips = config.preprocess.size, _flips_of(config.predict.flip_axes)
        self.layer, self.cells = layer_of(config, networks[0])
        self.method: Method = "grad_cam_pp" if self.layer else "integrated_gradients"
        self._networks = [copy.deepcopy(network).eval().requires_grad_(False) for network in networks]

    def __call__(self, image_1C: torch.Tensor, groups: Sequence[Sequence[int]]) -> tuple[Attribution, ...]:
        """What raised the log-odds of each group of classes.

        Parameters
        ----------
        image_1C
            What the network is given: (1, C, X, Y) or (1, C, X, Y, Z).
        groups
            Ids of the classes whose probabilities together make each thing; with sigmoid one id each.

        Notes
        -----
        Members of an ensemble, and the flips that the config's prediction averages over, are explained one by one and
        their maps, each as a share of its own greatest value, averaged: the scale of a Grad-CAM++ map means nothing.
        """
        maps = self._grad_cam(image_1C, groups) if self.layer else self._integrated(image_1C, groups)
        return tuple(
            Attribution(_shares(heat.clamp(min=0)).cpu().numpy(), self.method, self.layer, self.cells, gap, steps)
            for heat, gap, steps in maps
        )

    def _grad_cam(self, image_1C: torch.Tensor, groups: Sequence[Sequence[int]]) -> list[_Map]:
        """Grad-CAM++ (Chattopadhay et al., WACV 2018) by MONAI, laid over the grid as if its cells were equal parts."""
        total = torch.zeros(len(groups), *self._size, device=image_1C.device)
        lay = default_upsampler(self._size)
        for network in self._networks:
            layer = network.get_submodule(self.layer)
            layer.register_forward_hook(_begin_here)
            explain = GradCAMpp(
                _Odds(network, groups, softmax=self._softmax, shifted=True), target_layers=f"network.{self.layer}"
            )
            for flip in self._flips:
                for number in range(len(groups)):
                    coarse = _quietly(explain, _flipped(image_1C, flip), number)
                    total[number] += _shares(_flipped(lay(coarse), flip)[0, 0])
            # MONAI never takes its hooks off; they would keep the last picture's features.
            layer._forward_hooks.clear()
            layer._backward_hooks.clear()
        return [(heat, None, None) for heat in total]

    def _integrated(self, image_1C: torch.Tensor, groups: Sequence[Sequence[int]]) -> list[_Map]:
        """Integrated gradients (Sundararajan et al., ICML 2017), from a picture of nothing but the image's least value.

        The integral is taken at Gauss-Legendre's points. The attributions add up to the difference of the log-odds
        between image and baseline (the axiom of completeness). How far they do not is told, and with it the steps:
        as the paper has it, more of them are taken where they do not.
        """
        result: list[_Map] = []
        for classes in groups:
            steps = self._settings.steps
            heat, gap = self._in_steps(image_1C, classes, steps)
            while gap > _SMALL_GAP and steps < _MOST_STEPS:
                steps = min(2 * steps, _MOST_STEPS)
                heat, gap = self._in_steps(image_1C, classes, steps)
            result.append((heat, gap, steps))
        return result

    def _in_steps(self, image_1C: torch.Tensor, classes: Sequence[int], steps: int) -> tuple[torch.Tensor, float]:
        """Attributions of one group of classes, summed over the channels, and their gap."""
        points, weights = np.polynomial.legendre.leggauss(steps)
        along = torch.as_tensor((points + 1) / 2, dtype=image_1C.dtype, device=image_1C.device)
        weight = torch.as_tensor(weights / 2, dtype=image_1C.dtype, device=image_1C.device)
        total, explained = torch.zeros_like(image_1C), 0.0
        for network in self._networks:
            odds = _Odds(network, [classes], softmax=self._softmax)
            for flip in self._flips:
                found, difference = _integral(odds, _flipped(image_1C, flip), along, weight)
                total += _flipped(found, flip)
                explained += difference
        gap = abs(float(total.double().sum()) - explained) / max(abs(explained), 1e-12)
        return total[0].sum(0), gap


def _integral(
    odds: _Odds, image_1C: torch.Tensor, along: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, float]:
    """Attributions (1, C, ...) and the difference of the log-odds that they should add up to."""
    baseline_1C = image_1C.amin().expand_as(image_1C)
    total = torch.zeros_like(image_1C)
    axes = [1] * (image_1C.ndim - 1)
    for points, share in zip(torch.split(along, _BATCH), torch.split(weight, _BATCH), strict=True):
        steps = baseline_1C + points.reshape(-1, *axes) * (image_1C - baseline_1C)
        steps.requires_grad_(True)
        (gradient,) = torch.autograd.grad(odds(steps).sum(), steps)
        total += (share.reshape(-1, *axes) * gradient).sum(0, keepdim=True)
    with torch.no_grad():
        difference = float(odds(image_1C).double() - odds(baseline_1C).double())
    return total * (image_1C - baseline_1C), difference


class _Odds(torch.nn.Module):
    """A classifier as (B, C, ...) -> the log-odds (B, T) of each group of its classes.

    `shifted` takes the value away and leaves the gradient: Grad-CAM++ multiplies by the exponential of the score, which
    scales a map as a whole and overflows for a network that is very sure.
    """

    def __init__(
        self, network: torch.nn.Module, groups: Sequence[Sequence[int]], *, softmax: bool, shifted: bool = False
    ) -> None:
        super().__init__()
        self.network, self._groups, self._softmax, self._shifted = network, groups, softmax, shifted

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Log-odds: the logit of a class with sigmoid, and against all other classes with softmax."""
        logits_BK = self.network(image).float()
        odds_BT = torch.stack([self._of(logits_BK, list(classes)) for classes in self._groups], dim=1)
        return odds_BT - odds_BT.detach() if self._shifted else odds_BT

    def _of(self, logits_BK: torch.Tensor, classes: list[int]) -> torch.Tensor:
        if not self._softmax:
            (single,) = classes
            return logits_BK[:, single]
        others = [number for number in range(logits_BK.shape[1]) if number not in classes]
        return logits_BK[:, classes].logsumexp(1) - logits_BK[:, others].logsumexp(1)


def layer_of(config: ClassifyConfig, network: torch.nn.Module) -> tuple[str, tuple[int, ...]]:
    """The module whose feature map is weighed, and the size of that; no module for integrated gradients.

    Raises
    ------
    UnknownName, ConfigInvalid
        As `Explainer` does.
    """
    settings, size = config.explain, tuple(config.preprocess.size)
    if settings.method == "integrated_gradients":
        return "", size
    if settings.layer is not None:
        known = [name for name, _ in network.named_modules() if name]
        if settings.layer not in known:
            near = difflib.get_close_matches(settings.layer, known, n=5, cutoff=0.3)
            raise UnknownName("explain.layer", seen=repr(settings.layer), expected=f"known: {', '.join(near or known)}")
        choice: tuple[str, ...] = (settings.layer,)
    else:
        choice = stages_of(config.network, network)[-2:]
    if not choice:
        if settings.method is None:
            return "", size
        raise ConfigInvalid("explain.method", seen=f"{config.network.name} has no feature maps that are known",
                            expected="integrated_gradients, or a layer, was expected")  # fmt: skip
    shapes = _shapes_of(network, choice, size)
    for name in choice:
        if len(shapes.get(name, ())) != len(size):
            raise ConfigInvalid("explain.layer", seen=f"{name} gives no feature map",
                                expected=f"a module that gives channels and {len(size)} axes was expected")  # fmt: skip
    last = choice[-1] if min(shapes[choice[-1]]) >= _ENOUGH_CELLS else choice[0]
    return last, shapes[last]


def _shapes_of(network: torch.nn.Module, names: Sequence[str], size: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The spatial shape of what modules give for one picture; nothing for those that give no tensor."""
    network = copy.deepcopy(network).eval()
    shapes: dict[str, tuple[int, ...]] = {}

    def keeper(name: str) -> torch.utils.hooks.RemovableHandle:
        def keep(_module: torch.nn.Module, _given: object, result: object) -> None:
            if isinstance(result, torch.Tensor):
                shapes[name] = tuple(result.shape[2:])

        return network.get_submodule(name).register_forward_hook(keep)

    for name in names:
        keeper(name)
    device = next(network.parameters()).device
    with torch.no_grad():
        network(torch.zeros(1, 1, *size, device=device))
    return shapes


def _begin_here(_module: torch.nn.Module, _given: object, features: torch.Tensor) -> torch.Tensor | None:
    """Make a module's feature map the beginning of the graph: nothing before it needs a gradient."""
    return features.detach().requires_grad_(True) if torch.is_grad_enabled() else None


def _quietly(explain: GradCAMpp, image_1C: torch.Tensor, number: int) -> torch.Tensor:
    """A map (1, 1, ...) of as many cells as the layer has, without the warning that its graph begins there."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        coarse: torch.Tensor = explain.compute_map(image_1C, class_idx=number)
    return coarse.detach()


def _flips_of(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """Every way of flipping an image (1, C, ...) along some of its spatial axes, none at all first."""
    chosen = [axis + 2 for axis in axes]
    return [flip for count in range(len(chosen) + 1) for flip in combinations(chosen, count)]


def _flipped(values: torch.Tensor, flip: tuple[int, ...]) -> torch.Tensor:
    return values.flip(flip) if flip else values


def _shares(heat: torch.Tensor) -> torch.Tensor:
    """As shares of the greatest value; nothing stays nothing."""
    greatest = heat.max()
    return heat / greatest if greatest > 0 else heat
