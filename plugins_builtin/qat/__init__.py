"""Quantization-aware training.

Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-
Only Inference", arXiv 1712.05877, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from engine import Quantizer, QuantType, Wrapper
from engine.quantization import (
    follow_range,
    keep_grid,
    quantize_over_extremes,
    quantize_over_range,
)
from engine.quantizer import bits_of, quant_types_of

#: Smoothing of activation ranges over training steps (section 3.1: "close to 1").
EMA_DECAY = 0.99


class QAT_Quantizer(Quantizer):
    """Fake-quantizes weights over their extremes and activations over smoothed ranges.

    ``quant_start_step`` optimizer steps pass before anything is quantized; activation ranges are
    followed meanwhile. In evaluation mode ranges stand still, and an activation that never had a
    range passes unchanged.
    """

    quant_grad = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.steps = 0
        for wrapper in self.wrappers:
            wrapper.quantizing = wrapper.config["quant_start_step"] == 0
            for quant_type in quant_types_of(wrapper):
                keep_grid(wrapper, quant_type, 0, 2 ** bits_of(wrapper, quant_type) - 1)

    def quantize_weight(self, weight: Tensor, wrapper: Wrapper) -> Tensor:
        """Return the weight on the grid from its minimum to its maximum."""
        return quantize_over_extremes(weight, wrapper) if wrapper.quantizing else weight

    def quantize_input(self, input: Tensor, wrapper: Wrapper) -> Tensor:
        """Return the input on the grid of its smoothed range."""
        return self._activation(input, wrapper, QuantType.INPUT)

    def quantize_output(self, output: Tensor, wrapper: Wrapper) -> Tensor:
        """Return the output on the grid of its smoothed range."""
        return self._activation(output, wrapper, QuantType.OUTPUT)

    def step(self) -> None:
        """Count an optimizer step; quantization starts after ``quant_start_step`` of them."""
        self.steps += 1
        for wrapper in self.wrappers:
            if not wrapper.quantizing:
                wrapper.quantizing = self.steps >= wrapper.config["quant_start_step"]

    def get_extra_state(self) -> dict[str, Any]:
        """Return the number of steps so far."""
        return {"steps": self.steps}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`get_extra_state`."""
        self.steps = state["steps"]

    def _activation(self, tensor: Tensor, wrapper: Wrapper, quant_type: QuantType) -> Tensor:
        if wrapper.module.training:
            follow_range(tensor, wrapper, quant_type, EMA_DECAY)
        return quantize_over_range(tensor, wrapper, quant_type) if wrapper.quantizing else tensor
