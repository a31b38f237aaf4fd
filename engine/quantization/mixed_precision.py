"""Bits for each layer: how much each width harms, and the best choice within a size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from engine.attach.selection import select_layers
from engine.errors import EngineError
from engine.quantization.affine import fake_quantize
from engine.quantization.scheme import Scheme, channels_of
from engine.user_code.batches import Forward, batches_in, call_with_batch

#: So many of the partial choices that no other beats are kept; fewer lose nothing.
_KEPT = 4096
_ALL = ({"op_types": ["default"]},)


class LayerSensitivity(NamedTuple):
    """What quantizing one weight alone does, for each number of bits.

    Attributes:
        names: the layers that have the weight, more than one where it is shared.
        weights: how many weights there are.
        channels: how many scales there are.
        harm: by bits, what the model loses; see :func:`scan_bits`.
    """

    names: tuple[str, ...]
    weights: int
    channels: int
    harm: dict[int, float]

    def size(self, bits: int) -> int:
        """Return the bits that the weight takes: its integers and a float32 for each channel."""
        return self.weights * bits + 32 * self.channels


def propose_bits(
    model: nn.Module,
    evaluate: Callable[[nn.Module], float] | None = None,
    batches: Iterable[Any] | None = None,
    *,
    bits: Sequence[int] = (8, 4, 2),
    budget: float,
    activation_bits: int | None = None,
    config_list: Sequence[Mapping[str, Any]] = _ALL,
    forward: Forward | None = None,
) -> list[dict[str, Any]]:
    """Return a ``config_list`` that gives each layer bits, such that all weights fit a budget.

    Each layer is quantized alone with each number of bits (:func:`scan_bits`); of all choices
    within the budget the one of least total harm is taken, harms of layers added up. The model is
    left as it was.

    Args:
        model: a trained model that is not compressed.
        evaluate: returns a score of the model, higher is better; or
        batches: batches to compare outputs on.
        bits: the widths to choose from, 2 to 16.
        budget: the size of the quantized weights and their scales as a fraction of float32.
        activation_bits: bits of the layers' inputs, which are then quantized, too.
        config_list: entries that say which layers; only ``op_types``, ``op_names`` and ``exclude``.
        forward: ``forward(model, batch)`` calls the model; see ``PTQQuantizer.calibrate``.

    Raises:
        EngineError: neither or both of ``evaluate`` and ``batches``, no batches, a score or an
            output of the model itself that is not finite, bits out of range, or a budget that even
            the fewest bits exceed, with the least that is possible.
        ConfigError: ``config_list`` does not fit the model.
    """
    layers = scan_bits(
        model, evaluate, batches, bits=bits, config_list=config_list, forward=forward
    )
    whole = 32 * sum(layer.weights for layer in layers)
    least = sum(layer.size(min(bits)) for layer in layers)
    if not least <= budget * whole:
        raise EngineError(
            f"the budget of {budget:g} of the float32 size cannot be met: with {min(bits)} bits "
            f"everywhere the weights take {least / whole:.4f}\n  allow fewer bits, or more room"
        )
    chosen = assign_bits(layers, int(budget * whole))
    entries: list[dict[str, Any]] = []
    for width in sorted(set(chosen), reverse=True):
        of_width = [layer for layer, own in zip(layers, chosen, strict=True) if own == width]
        names = [name for layer in of_width for name in layer.names]
        entry: dict[str, Any] = {"op_names": names, "quant_types": ["weight"], "quant_bits": width}
        if activation_bits is not None:
            entry["quant_types"] = ["weight", "input"]
            entry["quant_bits"] = {"weight": width, "input": activation_bits}
        entries.append(entry)
    return entries


@torch.no_grad()
def scan_bits(
    model: nn.Module,
    evaluate: Callable[[nn.Module], float] | None = None,
    batches: Iterable[Any] | None = None,
    *,
    bits: Sequence[int] = (8, 4, 2),
    config_list: Sequence[Mapping[str, Any]] = _ALL,
    forward: Forward | None = None,
) -> list[LayerSensitivity]:
    """Return what quantizing each weight alone does: symmetric, a scale for each channel.

    With ``evaluate`` the harm is how far the score falls; with ``batches``, the mean squared change
    of the model's output relative to its mean square. NaN counts as infinite. Arguments and errors
    as for :func:`propose_bits`. The model is evaluated in evaluation mode.
    """
    if (evaluate is None) == (batches is None):
        raise EngineError("give either evaluate, a function of the model, or batches")
    if not bits or not all(isinstance(b, int) and 2 <= b <= 16 for b in bits):
        raise EngineError(f"bits are {list(bits)}; needed: whole numbers from 2 to 16")
    weights: dict[int, tuple[Tensor, nn.Module, list[str]]] = {}
    for layer in select_layers(model, config_list):
        own: Any = layer.module._parameters["weight"]
        weights.setdefault(id(own), (own, layer.module, []))[2].append(layer.name)
    harm_of = (
        _by_output(model, batches, forward) if evaluate is None else _by_score(model, evaluate)
    )
    training = [module for module in model.modules() if module.training]
    result = []
    try:
        model.eval()
        for weight, module, names in weights.values():
            plain = weight.detach().clone()
            harm = {}
            layout = channels_of(module, names[0])
            try:
                for width in sorted(set(bits), reverse=True):
                    scheme = Scheme(width, True, True, layout.axis, split=layout.groups)
                    arranged = scheme.arranged(plain)
                    scale, _ = scheme.parameters(*scheme.extremes(arranged))
                    rounded = fake_quantize(arranged, scale, None, scheme.qmin, scheme.qmax)
                    weight.copy_(scheme.restored(rounded, plain.shape))
                    lost = harm_of()
                    harm[width] = math.inf if math.isnan(lost) else lost
            finally:
                weight.copy_(plain)
            channels = layout.count(plain.shape)
            result.append(LayerSensitivity(tuple(names), plain.numel(), channels, harm))
    finally:
        for module in training:
            module.training = True
    return result


def assign_bits(layers: Sequence[LayerSensitivity], most: int) -> list[int]:
    """Return bits for each layer, of least total harm, that take at most ``most`` bits together.

    Exact, as a multiple-choice knapsack over the partial choices that no other beats; where those
    become more than some thousands, the nearest in size are merged.

    Raises:
        ValueError: no choice fits.
    """
    front: list[tuple[int, float, tuple[int, ...]]] = [(0, 0.0, ())]
    smallest = [min(map(layer.size, layer.harm)) for layer in layers]
    for place, layer in enumerate(layers):
        room = most - sum(smallest[place + 1 :])
        longer = [
            (size + layer.size(width), total + max(harm, 0.0), (*chosen, width))
            for size, total, chosen in front
            for width, harm in layer.harm.items()
            if size + layer.size(width) <= room
        ]
        if not longer:
            raise ValueError(f"{most} bits are too few")
        front, best = [], math.inf
        for candidate in sorted(longer, key=lambda c: (c[0], c[1])):
            if candidate[1] < best or not front:
                front.append(candidate)
                best = candidate[1]
        step = -(-len(front) // _KEPT)
        front = front[::step] if step == 1 else [front[0], *front[1:-1:step], front[-1]]
    return list(min(front, key=lambda c: (c[1], c[0]))[2])


def _by_score(model: nn.Module, evaluate: Callable[[nn.Module], float]) -> Callable[[], float]:
    before = float(evaluate(model))
    if not math.isfinite(before):
        raise EngineError(f"evaluate returned {before} for the model as it is")
    return lambda: before - float(evaluate(model))


def _by_output(
    model: nn.Module, batches: Iterable[Any] | None, forward: Forward | None
) -> Callable[[], float]:
    kept = list(batches_in(batches, "a comparison of outputs"))
    call = call_with_batch if forward is None else forward
    training = [module for module in model.modules() if module.training]
    model.eval()
    plain = [_output(call(model, batch)) for batch in kept]
    for module in training:
        module.training = True
    power = sum(float(output.double().square().sum()) for output in plain)
    if not math.isfinite(power):
        raise EngineError("an output of the model as it is is NaN or infinite")

    def harm() -> float:
        changes = (
            float((_output(call(model, batch)) - before).double().square().sum())
            for batch, before in zip(kept, plain, strict=True)
        )
        return sum(changes) / (power or 1.0)

    return harm


def _output(value: Any) -> Tensor:
    """Return the first tensor that a model returns."""
    while not isinstance(value, Tensor):
        if isinstance(value, Mapping):
            value = tuple(value.values())
        if not isinstance(value, (tuple, list)) or not value:
            raise EngineError(f"the model returned a {type(value).__name__}, not a tensor")
        value = value[0]
    return value
