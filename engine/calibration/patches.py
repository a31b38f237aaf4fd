"""What a convolution or linear layer sees at single places of its output, as rows of a matrix."""

from __future__ import annotations

import collections
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.attach.layout import is_linear_by_columns
from engine.errors import EngineError

_KINDS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def has_rows(module: nn.Module) -> bool:
    """Return whether the layer's output is its weight times rows of what it gets, and a bias.

    Linear layers, GPT-2's ``Conv1D`` among them, and convolutions that are not transposed.
    """
    return _is_plain(module) or is_linear_by_columns(module)


def all_rows(module: nn.Module, value: Tensor, places: Tensor | None = None) -> Tensor:
    """Return what the outputs at ``places`` are weighted sums of, at all of them by default.

    Args:
        module: one that :func:`has_rows`.
        value: its input.
        places: int64, ascending, of :func:`count_places`.

    Returns:
        (places, columns), or (groups, places, columns) where the layer has groups.
    """
    if isinstance(module, nn.Linear) or is_linear_by_columns(module):
        rows = value.reshape(-1, value.shape[-1])
        return rows if places is None else rows[places]
    if places is None:
        places = torch.arange(count_places(module, value), device=value.device)
    seen = patches_at(module, value, places).transpose(0, 1)
    return seen[0] if len(seen) == 1 else seen


def count_places(module: nn.Module, value: Tensor) -> int:
    """Return at how many places a layer that :func:`has_rows` has an output for an input."""
    if isinstance(module, nn.Linear) or is_linear_by_columns(module):
        return value.numel() // value.shape[-1]
    layer: Any = module
    batched = _batched(module, value)
    padding = layer._reversed_padding_repeated_twice
    places: int = len(batched) * math.prod(
        (size + padding[-2 * i - 2] + padding[-2 * i - 1] - d * (k - 1) - 1) // s + 1
        for i, (size, k, s, d) in enumerate(
            zip(batched.shape[2:], layer.kernel_size, layer.stride, layer.dilation, strict=True)
        )
    )
    return places


def weighted_sums(model: nn.Module) -> dict[nn.Module, str]:
    """Return the layers whose outputs are their weight times such rows, and their names.

    They compute nothing else in ``forward``, and have a weight and a bias, if any, as parameters of
    their own.
    """
    users = collections.Counter(
        id(parameter) for module in model.modules() for parameter in module._parameters.values()
    )
    found = {}
    for name, module in model.named_modules():
        own = [value for value in module._parameters.values() if value is not None]
        weight = module._parameters.get("weight")
        if (
            _is_plain(module)
            and weight is not None
            and weight.is_floating_point()
            and module.bias is module._parameters.get("bias")
            and all(users[id(value)] == 1 for value in own)
        ):
            found[module] = name
    return found


def input_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return the input among the arguments that a layer was called with."""
    value: Tensor = args[0] if args else kwargs["input"]
    return value


class LayerCall(NamedTuple):
    """One call of a layer: the shape of its input, and its outputs at some places."""

    shape: torch.Size
    places: Tensor
    outputs: Tensor
    #: How many places there were.
    of: int

    @classmethod
    def drawn(
        cls,
        module: nn.Module,
        value: Tensor,
        output: Tensor,
        points: int,
        generator: torch.Generator,
    ) -> LayerCall:
        """Return a call with this input and output, at :func:`positions`."""
        places = positions(module, output, points, generator)
        of = output.numel() // _channels(module)
        return cls(value.shape, places, outputs_at(module, output, places), of)

    def seen_again(self, module: nn.Module, value: Tensor) -> Tensor:
        """Return what is seen at the same places in another input, see :func:`patches_at`.

        Raises:
            EngineError: the input has another shape, or the layer another number of filters.
        """
        was, now = [*self.shape, self.outputs.shape[1]], [*value.shape, _channels(module)]
        if was != now:
            raise EngineError(
                f"sizes of its input and its filters were {was} and are {now}\n"
                "  fit before speedup; what a layer sees must not be chosen by layers before it"
            )
        return patches_at(module, value, self.places)


def positions(module: nn.Module, output: Tensor, points: int, generator: torch.Generator) -> Tensor:
    """Return places of an output, drawn without repetition: ``points`` times the examples.

    Args:
        module: the layer.
        output: what it put out: (N, C, ...) of a convolution, (..., C) of a linear layer.
        points: how many for each example, fewer where there are no more.
        generator: draws them; on the CPU.

    Returns:
        int64, ascending: an example's number times its places, plus the place within it, the last
        dimension running fastest.
    """
    batched = _batched(module, output)
    examples = len(batched)
    each = batched[0].numel() // _channels(module) if examples else 0
    chosen = torch.randperm(examples * each, generator=generator)[: examples * points]
    return chosen.sort().values.to(output.device)


def outputs_at(module: nn.Module, output: Tensor, places: Tensor) -> Tensor:
    """Return the output at ``places``: (places, output channels)."""
    batched = _batched(module, output)
    if isinstance(module, nn.Linear):
        return batched.flatten(0, -2)[places]
    return batched.flatten(2).transpose(1, 2).flatten(0, 1)[places]


def patches_at(module: nn.Module, value: Tensor, places: Tensor) -> Tensor:
    """Return the inputs that the outputs at ``places`` are weighted sums of.

    Args:
        module: a convolution, not transposed, or a linear layer.
        value: its input.
        places: of :func:`positions`.

    Returns:
        (places, groups, columns), columns in the order of ``weight.flatten(1)``.
    """
    batched = _batched(module, value)
    if isinstance(module, nn.Linear):
        return batched.flatten(0, -2)[places][:, None]
    layer: Any = module
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(batched, layer._reversed_padding_repeated_twice, mode=mode)
    sizes = padded.shape[2:]
    geometry = list(zip(sizes, layer.kernel_size, layer.stride, layer.dilation, strict=True))
    counts = [(size - d * (k - 1) - 1) // s + 1 for size, k, s, d in geometry]
    example = places // math.prod(counts)
    rest = places % math.prod(counts)
    start = torch.zeros_like(places)
    offset = places.new_zeros(1)
    pitch = 1
    # From the last dimension up: where a window begins, and the steps within one.
    for (size, k, s, d), count in reversed(list(zip(geometry, counts, strict=True))):
        start += (rest % count) * s * pitch
        rest = rest // count
        steps = torch.arange(k, device=places.device) * d * pitch
        offset = (steps[:, None] + offset).flatten()
        pitch *= size
    seen = padded.flatten(2)[example[:, None], :, start[:, None] + offset]  # (places, K, C)
    columns = batched.shape[1] // layer.groups * len(offset)
    return seen.transpose(1, 2).reshape(len(places), layer.groups, columns)


def _batched(module: nn.Module, value: Tensor) -> Tensor:
    """Return a value with a dimension of examples in front."""
    dims = 2 if isinstance(module, nn.Linear) else module.weight.dim()  # type: ignore[operator]
    return value[None] if value.dim() < dims else value


def _channels(module: nn.Module) -> int:
    return len(module.weight)  # type: ignore[arg-type]


def _is_plain(module: nn.Module) -> bool:
    """Return whether a layer runs as PyTorch's own does, and no code of a subclass."""
    kind = next((kind for kind in _KINDS if isinstance(module, kind)), None)
    return kind is not None and all(
        getattr(module, name) == getattr(kind, name).__get__(module)
        for name in ("forward", "_conv_forward")
        if hasattr(kind, name)
    )
