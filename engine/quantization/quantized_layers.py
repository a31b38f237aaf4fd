"""What a quantizer puts into the layers of a model, and takes away again.

Weights become computed ones; inputs, outputs and gradients are quantized in forward hooks.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from engine.attach.computed import Stage, compute_weight, is_computed, plain_weight
from engine.attach.parametrized import is_parametrized
from engine.attach.wrapper import Wrapper
from engine.errors import PluginError
from engine.plugins.stack import Stack, describe
from engine.pruning.masking import MASKED_BY, MaskedWeight
from engine.quantization.fake_quant_call import Differentiates, FakeQuantCall, OnInput, OnOutput
from engine.quantization.quant_types import QuantType, quant_types_of


class QuantizedLayers:
    """The layers that one quantizer is attached to.

    Attributes:
        computed: those whose weight is quantized.
    """

    def __init__(self) -> None:
        self.computed: list[nn.Module] = []
        self._handles: list[Any] = []

    def attach(self, quantizer: Differentiates, wrappers: Iterable[Wrapper], stack: Stack) -> None:
        """Let ``quantizer`` quantize what the configurations of its wrappers name.

        Raises:
            PluginError: a layer's weight is quantized by another quantizer already.
        """
        for wrapper in wrappers:
            module = wrapper.module
            calls = {
                kind: FakeQuantCall(quantizer, stack, wrapper, kind)
                for kind in quant_types_of(wrapper)
            }
            if QuantType.WEIGHT in calls:
                self._compute_weight(quantizer, wrapper, calls[QuantType.WEIGHT])
            if QuantType.INPUT in calls:
                hook = OnInput(calls[QuantType.INPUT])
                self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
            after = [calls[k] for k in (QuantType.OUTPUT, QuantType.GRADIENT) if k in calls]
            if after:
                # Where a batch norm is folded into the layer, its output is the layer's.
                norm = getattr(wrapper.grids.get("weight"), "norm", None)
                hook_of = module if norm is None else norm
                self._handles.append(hook_of.register_forward_hook(OnOutput(after)))

    def detach(self) -> None:
        """Leave the layers as they were; a mask that lies on a weight stays."""
        for handle in self._handles:
            handle.remove()
        for module in self.computed:
            plain_weight(module, Stage.QUANTIZE)
            masked_by = module.__dict__.get(MASKED_BY)
            soft = masked_by is not None and masked_by.straight_through
            if masked_by is not None and not (soft or is_parametrized(module)):
                plain_weight(module, Stage.MASK)
        self._handles.clear()
        self.computed.clear()

    def _compute_weight(
        self, quantizer: Differentiates, wrapper: Wrapper, call: FakeQuantCall
    ) -> None:
        module = wrapper.module
        if is_computed(module, Stage.QUANTIZE):
            raise PluginError(
                f'layer "{wrapper.name}" is already quantized; unwrap() that quantizer first',
                plugin=describe(quantizer),
                layer=wrapper.name,
            )
        compute_weight(module, Stage.QUANTIZE, call)
        self.computed.append(module)
        masked_by = module.__dict__.get(MASKED_BY)
        if masked_by is not None and not is_computed(module, Stage.MASK):
            compute_weight(module, Stage.MASK, MaskedWeight(masked_by))
