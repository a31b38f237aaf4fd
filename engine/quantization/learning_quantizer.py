"""Quantizers that learn their grids: parameters beside the model's, trained with them."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from engine.quant_types import QuantType, bits_of, of_type, quant_types_of
from engine.quantization.learned import round_learned, zero_point_of
from engine.quantization.observers.base import is_distributed
from engine.quantization.scheme import scheme_of
from engine.quantizer import Quantizer
from engine.wrapper import Wrapper

#: A step is no smaller than this: it is divided by.
_LEAST = torch.finfo(torch.float32).eps


class LearningQuantizer(Quantizer):
    """A quantizer with parameters of its own, trained by the optimizer that trains the model.

    Each joins the parameter group of its layer's weight, so that it has that group's learning rate
    and a scheduler made before goes on; when no optimizer is given, at the first step of the one
    that trains the model. They are part of this quantizer's ``state_dict``, not of the model's. In
    distributed training their gradients are averaged over processes.

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
                weight = wrapper.module._parameters.get("weight")
                shape = torch.Size() if weight is None else scheme.scale_shape(weight.shape)
                setattr(wrapper, f"{key}_seen", False)
                wrapper.set_attribute(f"{key}_zero_point", torch.zeros(shape))
                self._learn(wrapper, f"{key}_scale", torch.ones(shape))
                if self.learns_offset(quant_type):
                    self._learn(wrapper, f"{key}_offset", torch.zeros(shape))

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
        return self._round(weight, wrapper, QuantType.WEIGHT)

    def quantize_input(self, input: Tensor, wrapper: Wrapper) -> Tensor:
        """Return the input on its learned grid."""
        return self._round(input, wrapper, QuantType.INPUT)

    def quantize_output(self, output: Tensor, wrapper: Wrapper) -> Tensor:
        """Return the output on its learned grid."""
        return self._round(output, wrapper, QuantType.OUTPUT)

    def learned_parameters(self) -> list[nn.Parameter]:
        """Return all learned parameters, in the model's order."""
        return [parameter for wrapper in self.wrappers for parameter in wrapper.parameters()]

    def compress(self) -> nn.Module:
        """Attach, and let the optimizer train what is learned; see :class:`Compressor`."""
        model = super().compress()
        if self.optimizer is not None:
            self._join(self.optimizer)
        return model

    def unwrap(self, *, bake: bool = False) -> nn.Module:
        """Detach; what is learned leaves the optimizer. See :class:`Quantizer`."""
        optimizer = self._hooks.optimizer if self._hooks is not None else None
        model = super().unwrap(bake=bake)
        if optimizer is not None:
            own = {id(parameter) for parameter in self.learned_parameters()}
            for group in optimizer.param_groups:
                group["params"][:] = [p for p in group["params"] if id(p) not in own]
            for parameter in self.learned_parameters():
                optimizer.state.pop(parameter, None)
        return model

    def before_step(self) -> None:
        """Join an optimizer that was not given; average gradients over processes."""
        if self._hooks is not None and self._hooks.optimizer is not None:
            self._join(self._hooks.optimizer)
        if is_distributed():
            self._agree()

    @torch.no_grad()
    def step(self) -> None:
        """Keep scales positive; note the zero points that offsets stand for."""
        for wrapper in self.wrappers:
            for quant_type in quant_types_of(wrapper):
                getattr(wrapper, f"{quant_type.key}_scale").clamp_(min=_LEAST)
                self._note(wrapper, quant_type.key)
            for parameter in wrapper.parameters():
                parameter.grad = None  # a loop that clears the model's alone would add them up

    def _state_replaced(self) -> None:
        super()._state_replaced()
        for wrapper in self.wrappers:
            for quant_type in quant_types_of(wrapper):
                self._note(wrapper, quant_type.key)

    def _round(self, tensor: Tensor, wrapper: Wrapper, quant_type: QuantType) -> Tensor:
        key = quant_type.key
        if not tensor.numel():
            return tensor
        if not wrapper.__dict__[f"{key}_seen"]:
            trains = wrapper.module.training or quant_type == QuantType.WEIGHT
            if not (trains and bool(tensor.isfinite().all())):
                return tensor
            self._begin(tensor.detach(), wrapper, quant_type)
        scale = self._parameter(wrapper, f"{key}_scale", tensor.device)
        offset = None
        if f"{key}_offset" in wrapper._parameters:
            offset = self._parameter(wrapper, f"{key}_offset", tensor.device)
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
        like = self._parameter(wrapper, f"{key}_scale", tensor.device)
        scale, offset = self.begin(tensor.float(), like, quant_type, qmin, qmax)
        like.copy_(scale.clamp(min=_LEAST))
        if f"{key}_offset" in wrapper._parameters:
            self._parameter(wrapper, f"{key}_offset", tensor.device).copy_(offset)
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

    def _learn(self, wrapper: Wrapper, name: str, value: Tensor) -> None:
        wrapper.register_parameter(name, nn.Parameter(value.to(wrapper.device)))

    def _parameter(self, wrapper: Wrapper, name: str, device: torch.device) -> nn.Parameter:
        parameter: Any = wrapper._parameters[name]
        if parameter.device != device:  # the model has moved; an optimizer may hold the parameter
            parameter.data = parameter.data.to(device)
        return parameter  # type: ignore[no-any-return]

    @torch.no_grad()
    def _agree(self) -> None:
        """Average gradients over processes, and what each began with from its own first batch."""
        learned = self.learned_parameters()
        if not learned:
            return
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in learned]
        flat = torch.cat([tensor.reshape(-1) for tensor in (*learned, *grads)])
        torch.distributed.all_reduce(flat)
        flat /= torch.distributed.get_world_size()
        parts = flat.split([tensor.numel() for tensor in (*learned, *grads)])
        for place, parameter in enumerate(learned):
            parameter.copy_(parts[place].view_as(parameter))
            parameter.grad = parts[len(learned) + place].view_as(parameter)

    def _join(self, optimizer: torch.optim.Optimizer) -> None:
        groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        trained = (groups[id(p)] for p in self.bound_model.parameters() if id(p) in groups)
        first = next(trained, None)
        for wrapper in self.wrappers:
            group = groups.get(id(wrapper.module._parameters.get("weight")), first)
            for parameter in wrapper.parameters():
                if group is not None and id(parameter) not in groups:
                    group["params"].append(parameter)
