"""Masks against a model: which channels all layers that are bound together remove."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from engine.analysis.bound import NORMS, BoundChannel, bound_channels, is_depthwise
from engine.analysis.masked_layer import MaskedLayer
from engine.attach.undisturbed import undisturbed
from engine.files import PathLike
from engine.pruning.mask_files import masked_parameters
from engine.user_code.example import call, example_of


class Agreement:
    """Decides channel by channel; what only some layers remove is restored in their masks.

    A channel is removed when every layer that makes it removes it, by its own mask or by that of
    the norm right behind it. A layer without a mask removes nothing, but a depthwise convolution
    without one follows the layer before it. A norm anywhere else has no say.

    Attributes:
        layers: the masked layers, by the first of each one's names.
        first_names: by every name of a layer, the first.
        blocks: the channels of each set of layers that is bound together, with whether it is gone.

    Raises:
        CheckpointError: the masks cannot be loaded or do not fit the model.
        EngineError: the model does not run on the example.
    """

    def __init__(
        self,
        model: nn.Module,
        masks: Mapping[str, Any] | PathLike,
        dummy_input: Any,
        kwargs: Mapping[str, Any] | None,
    ) -> None:
        first = {id(module): name for name, module in model.named_modules()}
        every = dict(model.named_modules(remove_duplicate=False))
        self.first_names = {name: first[id(module)] for name, module in every.items()}
        self.modules = dict(model.named_modules())
        self.layers = self._masked_layers(model, masks)
        slim = any(isinstance(layer.module, NORMS) for layer in self.layers.values())
        after = _norms_after(model, dummy_input, kwargs) if slim else {}
        #: By layer the masked norms right behind it, if they have one number per filter.
        self._norms = {
            name: [self.layers[norm] for norm in norms if self._fits(norm, name)]
            for name, norms in after.items()
        }
        self.blocks = [
            [(channel, self._agreed(channel)) for channel in block]
            for block in bound_channels(model, dummy_input, kwargs)
        ]

    def removed_of(self, name: str) -> tuple[list[bool], list[bool]]:
        """Return for each filter of a layer whether it is removed, before and after agreement."""
        layers = list(self._closing(name)) or [MaskedLayer(self.modules[name])]
        before = zip(*(layer.removed for layer in layers), strict=True)
        after = zip(*(layer.agreed() for layer in layers), strict=True)
        return list(map(any, before)), list(map(any, after))

    def is_disputed(self, channel: BoundChannel, gone: bool) -> bool:
        """Return whether a channel that is kept is removed by some layer."""
        return not gone and any(layer.touches(at) for layer, at in self._masked(channel))

    def _masked_layers(
        self, model: nn.Module, masks: Mapping[str, Any] | PathLike
    ) -> dict[str, MaskedLayer]:
        holders: dict[int, list[str]] = {}
        for name, module in self.modules.items():
            holders.setdefault(id(module._parameters.get("weight")), []).append(name)
        layers: dict[str, MaskedLayer] = {}
        for module, key, mask in masked_parameters(model, masks):
            if key == "weight":
                # Layers that share a weight are masked together.
                for name in holders[id(module._parameters[key])]:
                    layers.setdefault(name, MaskedLayer(self.modules[name])).set_mask(mask)
        return layers

    def _agreed(self, channel: BoundChannel) -> bool:
        voters = [
            (name, filters)
            for name, filters in channel.outputs.items()
            if any(self._closing(name)) or not is_depthwise(self.modules[name])
        ]
        gone = bool(voters) and all(
            any(layer.removes(filters) for layer in self._closing(name)) for name, filters in voters
        )
        if not gone:
            for layer, at in self._masked(channel):
                layer.restore(at)
        return gone

    def _closing(self, name: str) -> Iterator[MaskedLayer]:
        """Yield what can set a layer's outputs to zero: its mask, and that of the norm after it."""
        if name in self.layers:
            yield self.layers[name]
        yield from self._norms.get(name, ())

    def _masked(self, channel: BoundChannel) -> Iterator[tuple[MaskedLayer, tuple[int, ...]]]:
        for name, filters in channel.outputs.items():
            for layer in self._closing(name):
                yield layer, filters

    def _fits(self, norm: str, maker: str) -> bool:
        filters = len(MaskedLayer(self.modules[maker]).removed)
        return norm in self.layers and len(self.layers[norm].removed) == filters


def _norms_after(
    model: nn.Module, dummy_input: Any, kwargs: Mapping[str, Any] | None
) -> dict[str, list[str]]:
    """Return, by layer, the norms that are given the very tensor that the layer returned."""
    example = example_of(model, dummy_input, kwargs)
    makers: Any = WeakTensorKeyDictionary()
    found: dict[str, list[str]] = {}

    def made(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                makers[output] = name

        return hook

    def read(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            maker = makers.get(args[0]) if args and isinstance(args[0], Tensor) else None
            if maker is not None and name not in found.get(maker, ()):
                found.setdefault(maker, []).append(name)

        return hook

    handles = []
    for name, module in model.named_modules():
        if isinstance(module, NORMS):
            handles.append(module.register_forward_pre_hook(read(name)))
        elif not list(module.children()):
            handles.append(module.register_forward_hook(made(name)))
    try:
        with undisturbed(model):
            call(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return found
