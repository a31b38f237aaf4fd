"""Bias correction: the mean that quantized weights shift an output by is taken off again.

Nagel, van Baalen, Blankevoort, Welling 2019, "Data-Free Quantization Through Weight Equalization
and Bias Correction", arXiv 1906.04721, section 4.2, with the expectation taken over batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from engine.attach.computed import Stage, is_computed, without_stage
from engine.attach.layout import TRANSPOSED, is_linear_by_columns, output_axis
from engine.attach.wrapper import Wrapper

_KNOWN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)


class _Shift:
    """Collects ``E[layer(x, quantized weight) - layer(x, weight)]`` for each channel."""

    def __init__(self, axis: int) -> None:
        self._axis = axis
        self._total: Tensor | float = 0.0
        self._batches = 0

    def __call__(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> None:
        quantized: Tensor = layer.forward(*args, **kwargs)
        with without_stage(layer, Stage.QUANTIZE):
            shift = quantized - layer.forward(*args, **kwargs)
        channels = shift.movedim(self._axis, 0)
        self._total = self._total + channels.flatten(1).double().mean(1)
        self._batches += 1

    @property
    def mean(self) -> Tensor:
        """The mean over batches, float64 (channels,)."""
        return torch.as_tensor(self._total) / max(self._batches, 1)


@torch.no_grad()
def correct_biases(
    wrappers: Sequence[Wrapper],
    norms: Mapping[nn.Module, nn.Module],
    run: Callable[[], object],
    change: Callable[[Tensor, Tensor], None],
) -> None:
    """Take off what quantized weights add to the mean of each channel.

    The shift goes into the layer's bias, or, of a layer without one, into the running mean of the
    batch norm behind it; a layer with neither is left alone.

    Args:
        wrappers: layers whose weight is quantized are corrected: convolutions and linear layers.
        norms: the batch norm behind a layer.
        run: runs the batches through the model in evaluation mode.
        change: writes a value into a bias or a running mean: ``compressor.change``, which can be
            undone.
    """
    collected = []
    try:
        for wrapper in wrappers:
            layer = wrapper.module
            target: Tensor | None = layer._parameters.get("bias")
            if target is None and layer in norms:
                target = norms[layer]._buffers["running_mean"]
            known = isinstance(layer, _KNOWN) or is_linear_by_columns(layer)
            if known and target is not None and is_computed(layer, Stage.QUANTIZE):
                shift = _Shift(output_axis(layer))
                handle = layer.register_forward_hook(shift, with_kwargs=True)
                collected.append((layer, target, shift, handle))
        run()
    finally:
        for *_, handle in collected:
            handle.remove()
    for layer, target, shift, _ in collected:
        own = target is layer._parameters.get("bias")
        # A norm takes its mean off: what is added to the mean is taken off the output.
        mean = shift.mean.to(target)
        change(target, target - mean if own else target + mean)
