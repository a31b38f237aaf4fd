"""Post-training quantization: ranges from batches, no training.

Krishnamoorthi 2018, "Quantizing deep convolutional networks for efficient inference: A whitepaper",
arXiv 1806.08342, section 3; corrections of Nagel et al. 2019, arXiv 1906.04721.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from engine import EngineError, Wrapper
from engine.quantization import PostTrainingQuantizer
from engine.quantization.batch_norm import norm_pairs
from engine.quantization.bias_correction import correct_biases
from engine.quantization.calibration import run_batches
from engine.quantization.equalization import equalize
from engine.quantization.observers import OBSERVERS, Observer
from engine.user_code.batches import Forward


class PTQQuantizer(PostTrainingQuantizer):
    """Quantizes weights at once, and activations when it has seen batches."""

    observer: str
    percentile: float
    ema_decay: float
    fold_batch_norm: bool
    bias_correction: bool
    cross_layer_equalization: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._corrected: list[tuple[Tensor, Tensor]] = []

    @cached_property
    def _norms(self) -> dict[nn.Module, nn.Module]:
        return norm_pairs(self.bound_model)

    def norm_behind(self, wrapper: Wrapper) -> nn.Module | None:
        """Return the batch norm behind a layer, where norms count as folded in."""
        return self._norms.get(wrapper.module) if self.fold_batch_norm else None

    def make_observer(self) -> Observer:
        """Return an observer for one activation; a subclass may return one of its own."""
        options = {"percentile": self.percentile} if self.observer == "percentile" else {}
        options |= {"decay": self.ema_decay} if self.observer == "moving_average" else {}
        return OBSERVERS[self.observer](**options)

    def preprocess_model(self, compressor: Any, model: nn.Module) -> None:
        """Equalize neighbouring layers, if that was asked for."""
        if self.cross_layer_equalization:
            equalize(model, compressor.change)

    def calibrate(self, batches: Iterable[Any], forward: Forward | None = None) -> nn.Module:
        """Set the ranges of activations, then correct biases, if that was asked for."""
        if self._stack is None:
            raise EngineError("call compress() before calibrate()")
        if self.bias_correction and iter(batches) is batches:
            batches = list(batches)  # they are run twice
        for tensor, before in self._corrected:
            self.change(tensor, before)
        self._corrected.clear()
        super().calibrate(batches, forward)
        if self.bias_correction:
            correct_biases(
                self.wrappers,
                self._norms,
                lambda: run_batches(self.bound_model, batches, forward),
                self._correct,
            )
        return self.bound_model

    def _correct(self, tensor: Tensor, value: Tensor) -> None:
        self._corrected.append((tensor, tensor.detach().clone()))
        self.change(tensor, value)
