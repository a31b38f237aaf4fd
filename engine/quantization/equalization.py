"""Cross-layer equalization: channels of neighbouring layers get ranges of the same size.

Nagel, van Baalen, Blankevoort, Welling 2019, "Data-Free Quantization Through Weight Equalization
and Bias Correction", arXiv 1906.04721, section 4.1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from engine.quantization.batch_norm import channel_factor, is_foldable
from engine.quantization.layer_graph import layer_paths

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
#: f(s x) = s f(x) for each channel and s > 0.
_HOMOGENEOUS = (
    nn.ReLU,
    nn.LeakyReLU,
    nn.PReLU,
    nn.Identity,
    nn.modules.dropout._DropoutNd,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
)
_HOMOGENEOUS_FUNCTIONS = {
    *(F.relu, torch.relu, F.leaky_relu, F.dropout),
    *(F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d),
    *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
}
_HOMOGENEOUS_METHODS = {"relu", "relu_", "contiguous"}
_SWEEPS = 20
#: Writes a value into a parameter.
Change = Callable[[Tensor, Tensor], None]


class Equalized(NamedTuple):
    """One pair of layers, and what the channels between them were divided by.

    ``scale`` is (channels,), powers of two: dividing and multiplying by them is exact.
    """

    first: nn.Module
    norm: nn.Module | None
    second: nn.Module
    scale: Tensor


@torch.no_grad()
def equalize(model: nn.Module, change: Change) -> list[Equalized]:
    """Rescale the weights of ``model`` so that channels have similar ranges; return what was done.

    For a channel between two layers, with r1 and r2 the largest absolute weights that make it and
    that read it, its makers are divided and its readers multiplied by ``s = sqrt(r1 / r2)``
    (eq. 11), rounded to a power of two: the model computes the same in evaluation mode, up to
    rounding. Repeated until nothing changes.

    Pairs are layers with nothing but a batch norm, directly behind the first, and operations that
    scale with their input between them: ReLU, dropout, pooling. A batch norm counts as folded in:
    it is its gamma and beta that are divided.

    Args:
        model: the model.
        change: writes a value into one of its parameters: ``compressor.change``, which can be
            undone.
    """
    pairs = _pairs(model)
    total = [torch.ones(_weight(second, True).shape[0]) for _, _, second in pairs]
    for _ in range(_SWEEPS):
        changed = False
        for place, (first, norm, second) in enumerate(pairs):
            of_first = _weight(first, False).abs().amax(1)
            if norm is not None:
                of_first = of_first * channel_factor(norm).abs()
            of_second = _weight(second, True).abs().amax(1)
            usable = (of_first > 0) & (of_second > 0)
            exponent = (0.5 * (of_first / of_second).log2()).round()
            scale = torch.exp2(exponent).where(usable & exponent.isfinite(), 1.0)
            if bool((scale != 1).any()):
                changed = True
                _divide(Equalized(first, norm, second, scale), scale, change)
                total[place] = total[place].to(scale.device) * scale
        if not changed:
            break
    return [Equalized(*pair, scale) for pair, scale in zip(pairs, total, strict=True)]


def _pairs(model: nn.Module) -> list[tuple[nn.Module, nn.Module | None, nn.Module]]:
    parameters = Counter(
        id(parameter) for module in model.modules() for parameter in module._parameters.values()
    )
    pairs = []
    for first, *between, second in layer_paths(model, _passes):
        norms = [layer for layer in between if is_foldable(layer)]
        norm = norms[0] if norms else None
        affine = norm is None or (norm is between[0] and norm.weight is not None)
        shared = any(
            parameters[id(parameter)] > 1
            for layer in (first, *norms, second)
            for parameter in layer._parameters.values()
            if parameter is not None
        )
        if len(norms) <= 1 and affine and not shared and _alike(first, second):
            pairs.append((first, norm, second))
    return pairs


def _passes(thing: nn.Module | fx.Node) -> bool:
    if isinstance(thing, nn.Module):
        return isinstance(thing, _HOMOGENEOUS) or is_foldable(thing)
    if thing.op == "call_function":
        return thing.target in _HOMOGENEOUS_FUNCTIONS
    return thing.op == "call_method" and thing.target in _HOMOGENEOUS_METHODS


def _alike(first: nn.Module, second: nn.Module) -> bool:
    """Return whether each channel of ``first`` is one that ``second`` reads by itself."""
    if isinstance(first, nn.Linear) and isinstance(second, nn.Linear):
        return first.out_features == second.in_features
    if not (isinstance(first, _CONVOLUTIONS) and isinstance(second, _CONVOLUTIONS)):
        return False
    depthwise = second.groups == second.in_channels == second.out_channels
    return first.out_channels == second.in_channels and (second.groups == 1 or depthwise)


def _weight(layer: nn.Module, reads: bool) -> Tensor:
    """Return the weight as (channels, elements), by what it makes or by what it ``reads``."""
    weight: Any = layer._parameters["weight"]
    by_channel: Tensor = weight.detach()
    if reads and getattr(layer, "groups", 1) == 1:
        by_channel = by_channel.transpose(0, 1)
    return by_channel.flatten(1).float()


def _divide(pair: Equalized, scale: Tensor, change: Change) -> None:
    first, norm, second, _ = pair
    makes = first if norm is None else norm
    for parameter in (makes._parameters["weight"], makes._parameters.get("bias")):
        if parameter is not None:
            by = scale.view(-1, *[1] * (parameter.dim() - 1)).to(parameter)
            change(parameter, parameter / by)
    weight: Any = second._parameters["weight"]
    axis = 1 if getattr(second, "groups", 1) == 1 else 0
    view = [-1 if dim == axis else 1 for dim in range(weight.dim())]
    change(weight, weight * scale.view(view).to(weight))
