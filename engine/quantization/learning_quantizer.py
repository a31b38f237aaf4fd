"""Quantizers that learn their grids: parameters beside the model's, trained with them."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from engine.attach.wrapper import Wrapper
from engine.quantization.learned import round_learned, zero_point_of
from engine.quantization.quant_types import QuantType, bits_of, of_type, quant_types_of
from engine.quantization.quantizer import Quantizer
from engine.quantization.scheme import scheme_of

#: A step is no smaller than this: it is divided by.
_LEAST = torch.finfo(torch.float32).eps


class LearningQuantizer(Quantizer):
    """A quantizer with parameters of its own, trained by the optimizer that trains the model.

    What becomes of them in training: ``engine.attach.learned_parameters``.

    For each quantized tensor, ``key`` being "weight", "input" or "output", a wrapper has the
    parameter ``{key}_scale``, ``{key}_offset`` where that is learned as well, and the buffer
    ``{key}_zero_point``. They begin when the tensor is first seen (an activation: in training), and
    with them ``{key}_qmin`` and ``{key}_qmax``; until then it passes unchanged.
    """

    quant_grad = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for wrapper in self.wrappers:
            for quant_type in quant_types_of(wrapper):
                key = quant_type.key
                scheme = scheme_of(wrapper, quant_type, "per_tensor_symmetric")
                weight = wrapper.own("weight")
                shape = torch.Size() if weight is None else scheme.scale_shape(weight.shape)
                if scheme.split > 1:
                    wrapper.__dict__["weight_scheme"] = scheme
                setattr(wrapper, f"{key}_seen", False)
                wrapper.set_attribute(f"{key}_zero_point", torch.zeros(shape))
                wrapper.learn(f"{key}_scale", torch.ones(shape))
                if self.learns_offset(quant_type):
                    wrapper.learn(f"{key}_offset", torch.zeros(shape))

    def learns_offset(self, quant_type: QuantType) -> bool:
        """Return whether zero may be anywhere on the grid of such tensors."""
        return False

    @abstractmethod
    def begin(
        self, tensor: Tensor, like: Tensor, quant_type: QuantType, qmin: int, qmax: int
    ) -> tuple[Tensor, Tensor]:
        """Return scale and offset to begin with, of the shape of ``like``, for a first tensor."""

    def quantize_weight(self, weight: Tensor, wrapper: Wrapper) -> Tensor:
        """Return the weight on its learned grid."""
        scheme = wrapper.__dict__.get("weight_scheme")
        if scheme is None:
            return self._round(weight, wrapper, QuantType.WEIGHT)
        rounded = self._round(scheme.arranged(weight), wrapper, QuantType.WEIGHT)
        restored: Tensor = scheme.restored(rounded, weight.shape)
        return restored

    def quantize_input(self, input: Tensor, wrapper: Wrapper) -> Tensor:
        """Return the input on its learned grid."""
        return self._round(input, wrapper, QuantType.INPUT)

    def quantize_output(self, output: Tensor, wrapper: Wrapper) -> Tensor:
        """Return the output on its learned grid."""
        return self._round(output, wrapper, QuantType.OUTPUT)

    @torch.no_grad()
    def step(self) -> None:
        """Keep scales positive; note the zero points that offsets stand for."""
        for wrapper in self.wrappers:
            for quant_type in quant_types_of(wrapper):
                getattr(wrapper, f"{quant_type.key}_scale").clamp_(min=_LEAST)
                self._note(wrapper, quant_type.key)

    def _state_replaced(self) -> None:
        super()._state_replaced()
        for wrapper in self.wrappers:
            for quant_type in quant_types_of(wrapper):
                self._note(wrapper, quant_type.key)

    def _round(self, tensor: Tensor, wrapper: Wrapper, quant_type: QuantType) -> Tensor:
        key = quant_type.key
        if not tensor.numel():
            return tensor
        origin = wrapper.origin
        lent = origin is not None and origin.__dict__.get(f"{key}_seen", False)
        if lent and not (wrapper.__dict__[f"{key}_seen"] or wrapper.module.training):
            assert origin is not None
            wrapper = origin  # of a copy that is only evaluated
        if not wrapper.__dict__[f"{key}_seen"]:
            trains = wrapper.module.training or quant_type == QuantType.WEIGHT
            # Detached: what is only looked at must not be kept for backward, once and not again.
            if not (trains and bool(tensor.detach().isfinite().all())):
                return tensor
            self._begin(tensor.detach(), wrapper, quant_type)
        scale = wrapper.learned(f"{key}_scale", tensor)
        offset = None
        if f"{key}_offset" in wrapper._parameters:
            offset = wrapper.learned(f"{key}_offset", tensor)
        qmin, qmax = getattr(wrapper, f"{key}_qmin"), getattr(wrapper, f"{key}_qmax")
        samples = tensor.shape[0] if quant_type != QuantType.WEIGHT and tensor.dim() > 1 else 1
        members = tensor.numel() / (samples * scale.numel())
        return round_learned(tensor, scale, offset, qmin, qmax, (members * qmax) ** -0.5)

    @torch.no_grad()
    def _begin(self, tensor: Tensor, wrapper: Wrapper, quant_type: QuantType) -> None:
        key, bits = quant_type.key, bits_of(wrapper, quant_type)
        dtype = of_type(wrapper.config.get("quant_dtype"), quant_type)
        signed = dtype == "int" or self.learns_offset(quant_type)
        if dtype is None and not signed:
            signed = quant_type == QuantType.WEIGHT or bool((tensor < 0).any())
        qmin, qmax = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        setattr(wrapper, f"{key}_qmin", qmin)
        setattr(wrapper, f"{key}_qmax", qmax)
        like = wrapper.learned(f"{key}_scale", tensor)
        scale, offset = self.begin(tensor.float(), like, quant_type, qmin, qmax)
        like.copy_(scale.clamp(min=_LEAST))
        if f"{key}_offset" in wrapper._parameters:
            wrapper.learned(f"{key}_offset", tensor).copy_(offset)
        setattr(wrapper, f"{key}_seen", True)
        self._note(wrapper, key)

    def _note(self, wrapper: Wrapper, key: str) -> None:
        """Keep the zero point that an offset stands for."""
        offset = wrapper._parameters.get(f"{key}_offset")
        if offset is not None and wrapper.__dict__[f"{key}_seen"]:
            scale = getattr(wrapper, f"{key}_scale")
            qmin, qmax = getattr(wrapper, f"{key}_qmin"), getattr(wrapper, f"{key}_qmax")
            zero_point = zero_point_of(scale, offset, qmin, qmax).detach()
            wrapper.set_attribute(f"{key}_zero_point", zero_point)
