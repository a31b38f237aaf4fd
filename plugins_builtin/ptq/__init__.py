"""Post-training quantization: ranges from batches, no training.

Krishnamoorthi 2018, "Quantizing deep convolutional networks for efficient inference: A whitepaper",
arXiv 1806.08342, section 3; corrections of Nagel et al. 2019, arXiv 1906.04721.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from engine import EngineError, Quantizer, QuantType, Wrapper
from engine.quantization import keep_grid, scheme_of
from engine.quantization.batch_norm import norm_pairs
from engine.quantization.bias_correction import correct_biases
from engine.quantization.calibration import Calibration, run_batches
from engine.quantization.equalization import Equalized, equalize
from engine.quantization.observers import OBSERVERS, Observer
from engine.quantization.quantizer import quant_types_of
from engine.user_code.batches import Forward

_DEFAULT = {True: "per_channel_symmetric", False: "per_tensor_affine"}


class PTQQuantizer(Quantizer):
    """Quantizes weights at once, and activations when :meth:`calibrate` has seen batches."""

    quant_grad = None
    observer: str
    percentile: float
    ema_decay: float
    fold_batch_norm: bool
    bias_correction: bool
    cross_layer_equalization: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._calibration: Calibration | None = None
        self._equalized: list[Equalized] = []
        self._corrected: list[tuple[Tensor, Tensor]] = []
        self._norms = norm_pairs(self.bound_model)
        for wrapper in self.wrappers:
            for kind in quant_types_of(wrapper):
                weight = kind == QuantType.WEIGHT
                norm = self._norms.get(wrapper.module) if weight and self.fold_batch_norm else None
                keep_grid(wrapper, kind, scheme_of(wrapper, kind, _DEFAULT[weight]), norm)

    def make_observer(self) -> Observer:
        """Return an observer for one activation; a subclass may return one of its own."""
        options = {"percentile": self.percentile} if self.observer == "percentile" else {}
        options |= {"decay": self.ema_decay} if self.observer == "moving_average" else {}
        return OBSERVERS[self.observer](**options)

    def calibrate(self, batches: Iterable[Any], forward: Forward | None = None) -> nn.Module:
        """Set the ranges of activations from ``batches``; return the model.

        The model runs unquantized, in evaluation mode and without gradients. ``forward(model,
        batch)`` calls it; without one, of a tuple or list the first item is the input, and a
        mapping is passed as keywords.

        Raises:
            EngineError: no batches, an activation that is NaN or infinite, or none that a batch
                reached; the layer is named and no range is changed.

        Warns:
            UserWarning: some activations were not reached, such as an expert's: they stay in float.
        """
        if self._stack is None:
            raise EngineError("call compress() before calibrate()")
        if self.bias_correction and iter(batches) is batches:
            batches = list(batches)  # they are run twice
        self._undo_correction()
        self._calibration = Calibration(self.wrappers, self.make_observer)
        try:
            self._calibration.run(self.bound_model, batches, forward)
        finally:
            self._calibration = None
        if self.bias_correction:
            self._corrected = correct_biases(
                self.wrappers, self._norms, lambda: run_batches(self.bound_model, batches, forward)
            )
        return self.bound_model

    def quantize_weight(self, weight: Tensor, wrapper: Wrapper) -> Tensor:
        """Return the weight on the grid over its extremes; as it is while calibrating."""
        return weight if self._calibration else wrapper.grids["weight"].over_extremes(weight)

    def quantize_input(self, input: Tensor, wrapper: Wrapper) -> Tensor:
        """Return the input on its calibrated grid."""
        return self._activation(input, wrapper, "input")

    def quantize_output(self, output: Tensor, wrapper: Wrapper) -> Tensor:
        """Return the output on its calibrated grid."""
        return self._activation(output, wrapper, "output")

    def preprocess_model(self, compressor: Any, model: nn.Module) -> None:
        """Equalize neighbouring layers, if that was asked for."""
        self._equalized = equalize(model) if self.cross_layer_equalization else []

    def restore_model(self, compressor: Any, model: nn.Module) -> None:
        """Give biases and neighbouring layers back what they had."""
        self._undo_correction()
        for pair in self._equalized:
            pair.undo()
        self._equalized = []

    def _activation(self, tensor: Tensor, wrapper: Wrapper, key: str) -> Tensor:
        if self._calibration is None:
            if not wrapper.__dict__[f"{key}_seen"]:
                self.warn_uncalibrated(wrapper, key)
            return wrapper.grids[key].over_range(tensor)
        self._calibration.observe(tensor, wrapper, key)
        return tensor

    @torch.no_grad()
    def _undo_correction(self) -> None:
        for tensor, before in self._corrected:
            tensor.copy_(before)
        self._corrected = []
