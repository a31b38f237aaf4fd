"""Quantization-aware training.

Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-
Only Inference", arXiv 1712.05877, section 3.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from engine import Quantizer, Wrapper
from engine.quantization import affine_parameters, fake_quantize
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
                key = quant_type.key
                setattr(wrapper, f"{key}_qmin", 0)
                setattr(wrapper, f"{key}_qmax", 2 ** bits_of(wrapper, quant_type) - 1)
                setattr(wrapper, f"{key}_seen", False)
                wrapper.set_attribute(f"{key}_scale", torch.ones(()))
                for name in ("zero_point", "low", "high"):
                    wrapper.set_attribute(f"{key}_{name}", torch.zeros(()))

    def quantize_weight(self, weight: Tensor, wrapper: Wrapper) -> Tensor:
        """Return the weight on the grid from its minimum to its maximum."""
        if not wrapper.quantizing:
            return weight
        low, high = weight.detach().float().aminmax()
        scale, zero_point = affine_parameters(low, high, 0, wrapper.weight_qmax)
        wrapper.weight_scale.copy_(scale)
        wrapper.weight_zero_point.copy_(zero_point)
        return fake_quantize(
            weight, scale, zero_point, 0, wrapper.weight_qmax, never_clips=True
        )

    def quantize_input(self, input: Tensor, wrapper: Wrapper) -> Tensor:
        """Return the input on the grid of its smoothed range."""
        return self._activation(input, wrapper, "input")

    def quantize_output(self, output: Tensor, wrapper: Wrapper) -> Tensor:
        """Return the output on the grid of its smoothed range."""
        return self._activation(output, wrapper, "output")

    def step(self) -> None:
        """Count an optimizer step; quantization starts after ``quant_start_step`` of them."""
        self.steps += 1
        for wrapper in self.wrappers:
            if not wrapper.quantizing:
                wrapper.quantizing = self.steps >= wrapper.config["quant_start_step"]

    def get_extra_state(self) -> dict[str, Any]:
        """Return the number of steps so far."""
        return {"steps": self.steps}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore :meth:`get_extra_state`."""
        self.steps = state["steps"]

    def _activation(self, tensor: Tensor, wrapper: Wrapper, key: str) -> Tensor:
        if wrapper.module.training:
            self._follow(tensor, wrapper, key)
        if not (wrapper.quantizing and getattr(wrapper, f"{key}_seen")):
            return tensor
        return fake_quantize(
            tensor,
            getattr(wrapper, f"{key}_scale"),
            getattr(wrapper, f"{key}_zero_point"),
            0,
            getattr(wrapper, f"{key}_qmax"),
        )

    @torch.no_grad()
    def _follow(self, tensor: Tensor, wrapper: Wrapper, key: str) -> None:
        """Smooth the range: the first batch sets it, later ones move it by 1 - decay."""
        low, high = (getattr(wrapper, f"{key}_{end}") for end in ("low", "high"))
        weight = 1 - EMA_DECAY if getattr(wrapper, f"{key}_seen") else 1.0
        for range_end, now in zip((low, high), tensor.detach().float().aminmax(), strict=True):
            range_end.lerp_(now, weight)
        setattr(wrapper, f"{key}_seen", True)
        scale, zero_point = affine_parameters(low, high, 0, getattr(wrapper, f"{key}_qmax"))
        getattr(wrapper, f"{key}_scale").copy_(scale)
        getattr(wrapper, f"{key}_zero_point").copy_(zero_point)
