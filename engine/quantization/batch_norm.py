"""Batch norms that are folded into the layers before them, as inference will fold them.

Jacob et al. 2018, arXiv 1712.05877, section 3.2: what inference rounds to integers is
``w_fold = gamma w / sqrt(EMA(variance) + eps)``, so that training has to round the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from engine.attach.computed import Stage, without_stage
from engine.attach.layout import TRANSPOSED, layout_of
from engine.quantization.layer_graph import layer_paths

_FOLDABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
#: A folded weight's factor is no nearer to 0: it is divided by.
_LEAST = 1e-12


def norm_pairs(model: nn.Module) -> dict[nn.Module, nn.Module]:
    """Return the batch norm that alone reads the output of each layer that has one.

    Convolutions, transposed ones of one group, and linear layers; see :func:`layer_paths`.
    """
    pairs: dict[nn.Module, nn.Module] = {}
    if not any(map(is_foldable, model.modules())):
        return pairs
    for layer, following in layer_paths(model, lambda passed: False):
        layout = layout_of(layer) if isinstance(layer, _FOLDABLE) else None
        if layout is None or layout.groups != 1 or not is_foldable(following):
            continue
        weight = layer._parameters.get("weight")
        if weight is None:  # computed by parametrizations
            continue
        if following.num_features == layout.count(weight.shape):
            pairs[layer] = following
    return pairs


def is_foldable(module: nn.Module) -> bool:
    """Return whether ``module`` is a batch norm with running statistics."""
    return isinstance(module, _BatchNorm) and module.running_var is not None


def channel_factor(norm: nn.Module) -> Tensor:
    """Return ``gamma / sqrt(running variance + eps)``, float32 (channels,), without gradient.

    A factor near 0 is moved away from it: the channel's folded weight is rounded to 0 and can still
    be divided by the factor.
    """
    assert isinstance(norm, _BatchNorm)
    assert norm.running_var is not None
    gamma = None if norm.weight is None else norm.weight.detach()
    return factor_of(gamma, norm.running_var, norm.eps)


def factor_of(gamma: Tensor | None, variance: Tensor, eps: float) -> Tensor:
    """Return :func:`channel_factor` from its parts; without ``gamma`` it is 1."""
    factor = (variance.float() + eps).rsqrt()
    if gamma is not None:
        factor = factor * gamma.float()
    return factor.where(factor.abs() > _LEAST, _LEAST)


class FloatStatistics:
    """The unfused variant: a second pass through the layer, in float, for the batch's statistics.

    As in the paper's training graph (figure C.8) the batch norm sees the float output. What
    quantization changes of it is added behind the norm, times ``gamma / sigma`` of the batch, so
    that the norm's own gradient and running statistics are those of float training. In evaluation
    mode nothing is done.

    In the fused variant the norm sees the quantized output, and one pass is enough.
    """

    is_copy = False

    def __init__(self, layer: nn.Module, norm: nn.Module) -> None:
        self.norm = norm
        self.change: Tensor | None = None
        self.handles = [
            layer.register_forward_hook(self, with_kwargs=True),
            norm.register_forward_hook(_AddChange(self)),
        ]

    def __call__(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor:
        """Return the layer's float output while training; keep what quantization changes."""
        if not self.norm.training:
            return output
        with without_stage(layer, Stage.QUANTIZE):
            plain: Tensor = layer.forward(*args, **kwargs)
        self.change = output - plain
        return plain

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self.handles:
            handle.remove()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "change": None, "handles": [], "is_copy": True}


class _AddChange:
    """The hook of the norm behind a layer with :class:`FloatStatistics`."""

    def __init__(self, statistics: FloatStatistics) -> None:
        self.statistics = statistics

    @property
    def is_copy(self) -> bool:
        return self.statistics.is_copy

    def __call__(self, norm: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Return the norm's output with what quantization changes."""
        change, self.statistics.change = self.statistics.change, None
        if change is None:
            return output
        plain = args[0].detach().float()
        assert isinstance(norm, _BatchNorm)
        dims = [dim for dim in range(plain.dim()) if dim != 1]
        factor = (plain.var(dims, correction=0) + norm.eps).rsqrt()
        if norm.weight is not None:
            factor = factor * norm.weight
        view = [-1 if dim == 1 else 1 for dim in range(plain.dim())]
        result: Tensor = output + change * factor.view(view).to(change.dtype)
        return result


class FrozenNorms:
    """Batch norms that keep their running statistics, whatever ``model.train()`` says.

    They then normalize with those, also in training.
    """

    def __init__(self, model: nn.Module) -> None:
        self._norms = [module for module in model.modules() if is_foldable(module)]
        self._handles: list[RemovableHandle] = [
            norm.register_forward_pre_hook(_Hold()) for norm in self._norms
        ]

    def remove(self, training: bool) -> None:
        """Let the statistics move again; the norms are set to ``training``."""
        for handle in self._handles:
            handle.remove()
        for norm in self._norms:
            norm.training = training


class _Hold:
    """A forward pre-hook: the norm is in evaluation mode."""

    def __init__(self, is_copy: bool = False) -> None:
        self.is_copy = is_copy

    def __call__(self, norm: nn.Module, args: tuple[Any, ...]) -> None:
        norm.training = False

    def __reduce__(self) -> tuple[Any, ...]:
        return _Hold, (True,)


def fold_into_bias(layer: nn.Module, norm: nn.Module) -> Tensor:
    """Return the bias of ``layer`` with ``norm`` folded in, float32 (channels,).

    ``beta + (b - running mean) gamma / sqrt(running variance + eps)``: what an export writes beside
    the folded weight.
    """
    assert isinstance(norm, _BatchNorm)
    assert norm.running_mean is not None
    bias = layer._parameters.get("bias")
    with torch.no_grad():
        shift = -norm.running_mean.float() if bias is None else bias - norm.running_mean.float()
        shift = shift * channel_factor(norm)
        folded: Tensor = shift if norm.bias is None else norm.bias.float() + shift
        return folded
