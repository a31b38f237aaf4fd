"""What the engine knows about one layer that an algorithm works on.

A wrapper stands beside the layer, it does not replace it: the user's model keeps its modules, their
names and classes. The wrapper's buffers (masks, ranges, statistics) are saved with the compressor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from engine.attach.parametrized import own_weight


class KeptGrid(Protocol):
    """``engine.quantization.Grid``, as it is known below it: what plugins call, and the rest."""

    def over_extremes(self, weight: Tensor) -> Tensor:
        """Return a weight on the grid over its extremes."""

    def over_range(self, tensor: Tensor, decay: float | None = None) -> Tensor:
        """Return an activation on the grid of its range."""

    def __getattr__(self, name: str) -> Any:
        """Everything else that a grid has."""


class Wrapper(nn.Module):
    """One layer, its configuration, and whatever an algorithm keeps for it.

    Attributes:
        module: the user's layer.
        name: its dotted name in the model, ``""`` for the model itself.
        type: the name of its class, ``"Conv2d"``.
        config: the ``config_list`` entry that applies to it.
        weight_mask: same shape and dtype as the weight, ones and zeros (pruners).
        bias_mask: likewise for the bias; None while the bias is not masked.
        sparsity: the fraction last asked of this layer, None before any.
        grids: what a quantizer rounds this layer's tensors to, by "weight", "input" and "output";
            see ``engine.quantization.Grid``.
    """

    weight_mask: Tensor | None
    bias_mask: Tensor | None
    module: nn.Module
    name: str
    config: dict[str, Any]
    sparsity: float | None
    grids: dict[str, KeptGrid]
    origin: Wrapper | None

    def __init__(self, module: nn.Module, name: str, config: Mapping[str, Any]) -> None:
        super().__init__()
        # Not a submodule: the wrapper's state_dict, .to() and parameters() are its own.
        self.__dict__["module"] = module
        self.name = name
        self.type = type(module).__name__  # type: ignore[assignment, method-assign]
        self.config = dict(config)
        self.sparsity = None
        self.grids = {}
        # Not a submodule, and not copied: of a copied model's wrapper, the one that it was copied
        # from, which may have seen what the copy has not.
        self.__dict__["origin"] = None
        self.register_buffer("weight_mask", None)
        self.register_buffer("bias_mask", None)
        self._own = frozenset(self.__dict__) - {"sparsity"}

    def __getattr__(self, name: str) -> Any:
        """Return a buffer or parameter, brought to its layer's device if the model has moved."""
        value = super().__getattr__(name)
        if isinstance(value, Tensor) and value.device != (device := self.device):
            if name in self._parameters:  # in place: an optimizer may hold it
                value.data = value.data.to(device)
            else:
                value = self._buffers[name] = value.to(device)
        return value

    def __getstate__(self) -> dict[str, Any]:
        """Leave the origin out: a copy or a pickle holds one model."""
        return {**self.__dict__, "origin": None}

    def attributes(self) -> dict[str, Any]:
        """Return what algorithms keep on the wrapper beside buffers: ``sparsity`` and their own."""
        return {k: v for k, v in self.__dict__.items() if k not in self._own and k != "_own"}

    @property
    def weight(self) -> nn.Parameter:
        """The layer's own weight, also while ``module.weight`` is a computed value.

        Of a layer with parametrizations of PyTorch's (see ``Compressor.reads_weights``) it is what
        these make, masked where a mask stands: a tensor, and to be read only.
        """
        weight: Any = own_weight(self.module)
        if weight is None:
            raise AttributeError(f"layer {self.name!r} ({self.type}) has no weight")
        if "weight" not in self.module._parameters:
            mask = self.mask("weight")
            if mask is not None and not self.__dict__.get("straight_through", False):
                weight = weight * mask
        return weight  # type: ignore[no-any-return]

    @property
    def bias(self) -> nn.Parameter | None:
        """The layer's own bias, or None."""
        return self.module._parameters.get("bias")

    def own(self, name: str) -> Tensor | None:
        """Return the layer's ``weight`` or ``bias``, or None where it has none of this name."""
        if name == "weight":
            return own_weight(self.module)
        return self.module._parameters.get(name)

    def set_attribute(self, name: str, value: Any) -> None:
        """Set ``value`` on the wrapper; a tensor becomes a buffer, cloned, on the layer's device.

        Read as ``wrapper.name`` it is there also after the model has moved to another device.
        A list, dict or set is copied too, so that no two wrappers fill the same one.
        """
        if isinstance(value, Tensor):
            if hasattr(self, name) and name not in self._buffers:
                delattr(self, name)
            self.register_buffer(name, value.detach().clone().to(self.device))
        elif value is None and name in self._buffers:
            self._buffers[name] = None
        else:
            self._buffers.pop(name, None)
            setattr(self, name, value.copy() if isinstance(value, (list, dict, set)) else value)

    def learn(self, name: str, value: Tensor) -> None:
        """Add a parameter of the algorithm's own, trained by the optimizer that trains the model.

        It joins the parameter group of the layer's weight when the compressor is attached, is saved
        with the compressor, and has its gradient averaged over processes. Read it as
        ``wrapper.name``, or with :meth:`learned` where activations may be on another device than
        the layer.

        Args:
            name: the attribute's name; not that of a mask or another attribute.
            value: where it begins; floating, cloned, on the layer's device.
        """
        self.register_parameter(name, nn.Parameter(value.detach().clone().to(self.device)))

    def learned(self, name: str, like: Tensor) -> nn.Parameter:
        """Return the parameter that :meth:`learn` made, on the device of ``like``."""
        parameter: Any = self._parameters[name]
        if parameter.device != like.device:  # in place: an optimizer may hold the parameter
            parameter.data = parameter.data.to(like.device)
        return parameter  # type: ignore[no-any-return]

    @property
    def device(self) -> torch.device:
        """Where the layer's parameters are (the CPU for a layer without any)."""
        for parameter in self.module._parameters.values():
            if parameter is not None:
                return parameter.device
        for parameter in self.module.parameters():
            return parameter.device
        return torch.device("cpu")

    def mask(self, name: str) -> Tensor | None:
        """Return the mask of parameter ``name`` ("weight" or "bias") on the parameter's device."""
        mask = self._buffers.get(f"{name}_mask")
        if mask is not None:
            parameter = self.module._parameters.get(name)
            device = self.device if parameter is None else parameter.device
            if mask.device != device:
                mask = self._buffers[f"{name}_mask"] = mask.to(device)
        return mask

    def extra_repr(self) -> str:
        """Return the layer's name and type, as ``print(wrapper)`` shows them."""
        return f"{self.name}: {self.type}"
