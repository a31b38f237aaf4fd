"""Modules that must go on seeing the removed channels, as zeros: norms and the like.

A layer norm over 384 kept and 384 removed channels must still divide by 768. Such a module keeps
its own code and parameters; a pair of forward hooks puts zeros where channels were removed and
takes the kept ones of what comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from engine.speedup.labels import Labels
from engine.speedup.nested import tensors_in
from engine.speedup.tracked import Tracked

#: Operators whose result on the kept channels depends on how many there were.
_STATISTICS = frozenset(
    (
        *("native_layer_norm", "native_group_norm", "_fused_rms_norm", "mean", "var", "std"),
        *("var_mean", "std_mean", "sum", "norm", "linalg_vector_norm", "avg_pool3d"),
        *("avg_pool2d", "amax", "max", "cumsum"),
    )
)
#: Enough random values per slice that an activation which is often zero is not taken for constant.
_SAMPLES = 64
#: Buffers that hold the hooks' indices, by dimension; not saved.
_PLACE, _KEPT = "speedup_place_", "speedup_kept_"


class Widened(NamedTuple):
    """A module that sees zeros where channels were removed; ``labels`` by dimension."""

    module: nn.Module
    path: str
    rank: int
    labels: dict[int, Tensor]


def light_modules(model: nn.Module) -> set[nn.Module]:
    """Return the modules with no weight worth pruning in them: they may be kept as they are."""
    known: dict[nn.Module, bool] = {}

    def is_light(module: nn.Module) -> bool:
        if module not in known:
            inside = [is_light(child) for child in module._modules.values() if child is not None]
            tensors = [*module._parameters.values(), *module._buffers.values()]
            known[module] = all(inside) and all(
                t is None or t.dim() <= 1 or max(t.shape[:2]) <= 2 for t in tensors
            )
        return known[module]

    is_light(model)
    return {module for module, light in known.items() if light}


def is_alike(args: Any, kwargs: Any, output: Any) -> bool:
    """Return whether a module took one tensor and returned one of the same shape."""
    tensors = tensors_in([*args, *kwargs.values()])
    return (
        len(tensors) == 1
        and len(args) > 0
        and tensors[0] is args[0]
        and isinstance(output, Tensor)
        and output.shape == args[0].shape
        and output.is_floating_point()
    )


def takes_statistics(calls: Sequence[tuple[Any, Any]]) -> bool:
    """Return whether an operator call, given with its arguments, is over what may be removed."""
    for func, args in calls:
        name = func._schema.name.removeprefix("aten::")
        # A batch norm that uses the batch's own numbers, as instance norms do.
        if name in _STATISTICS or (name == "native_batch_norm" and bool(args[5])):
            return True
    return False


def constant_slices(
    module: nn.Module,
    args: Sequence[Any],
    kwargs: Any,
    output: Tensor,
    known: Tracked,
    *,
    planning: bool,
) -> dict[int, Tensor]:
    """Return, by labelled dimension, which slices of the output do not depend on the input.

    Found by running the module on other values where the input is not constant. While planning the
    module's own numbers are yet to be masked: what they make constant now says nothing.
    """
    x = args[0]
    constant = {dim: torch.ones(x.shape[dim], dtype=torch.bool) for dim in known.dims()}
    if known.constant:
        return constant
    if planning and not any(bool(known.flags(dim).any()) for dim in constant):
        return {dim: ~same for dim, same in constant.items()}
    alive = torch.ones(x.shape, dtype=torch.bool, device=x.device)
    for dim in constant:
        shape = [-1 if d == dim else 1 for d in range(x.dim())]
        alive &= ~known.flags(dim).to(x.device).view(shape)
    for _ in range(max(1, -(-_SAMPLES * max(x.shape[d] for d in constant) // x.numel()))):
        other = torch.where(alive, torch.randn_like(x), x)
        differs = module.forward(other, *args[1:], **kwargs) != output
        for dim, same in constant.items():
            same &= ~differs.movedim(dim, 0).reshape(x.shape[dim], -1).any(dim=1).cpu()
    return constant


class _Place(NamedTuple):
    dim: int
    buffer: str


class PutZeros:
    """A forward pre-hook: zeros where channels were removed."""

    def __init__(self, places: Sequence[_Place]) -> None:
        self._places = tuple(places)

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the arguments with the first one as wide as it was."""
        x = args[0]
        for dim, buffer in self._places:
            zero = x.new_zeros([1 if d == dim else n for d, n in enumerate(x.shape)])
            x = torch.cat([x, zero], dim).index_select(dim, getattr(module, buffer).to(x.device))
        return (x, *args[1:])


class TakeKept:
    """A forward hook: the channels that were kept."""

    def __init__(self, places: Sequence[_Place]) -> None:
        self._places = tuple(places)

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        """Return the kept channels of ``output``."""
        for dim, buffer in self._places:
            kept = getattr(module, buffer).to(output.device)
            output = output.index_select(dim, kept)
        return output


def widen(widened: Widened, gone: Callable[[Tensor], Tensor]) -> list[RemovableHandle]:
    """Give the module its hooks where ``gone(labels)`` says that something goes; return them."""
    zeros = {}
    for dim, labels in widened.labels.items():
        keep = ~gone(labels)
        if not bool(keep.all()):
            zeros[str(dim)] = {"size": len(keep), "kept": keep.nonzero().flatten().tolist()}
    return hook(widened.module, zeros)


def hook(module: nn.Module, zeros: Mapping[str, Mapping[str, Any]]) -> list[RemovableHandle]:
    """Let ``module`` see zeros where channels were removed.

    Args:
        module: takes one tensor and returns one of the same shape.
        zeros: by dimension, how many channels the module sees (``size``) and which of them there
            are (``kept``); plain values, as recipes hold them.
    """
    places, kept = [], []
    device = next((t.device for t in module.parameters()), torch.device("cpu"))
    for dim, part in zeros.items():
        there = torch.tensor(part["kept"], dtype=torch.int64)
        position = torch.full((part["size"],), len(there))
        position[there] = torch.arange(len(there))
        for name, values in ((_PLACE, position), (_KEPT, there)):
            module.register_buffer(f"{name}{dim}", values.to(device), persistent=False)
        places.append(_Place(int(dim), f"{_PLACE}{dim}"))
        kept.append(_Place(int(dim), f"{_KEPT}{dim}"))
    if not places:
        return []
    return [
        module.register_forward_pre_hook(PutZeros(places)),
        module.register_forward_hook(TakeKept(kept)),
    ]


def places_of(module: nn.Module) -> dict[str, dict[str, Any]]:
    """Return what :func:`hook` was given for ``module``, empty if it has no such hooks."""
    return {
        name.removeprefix(_KEPT): {
            "size": len(module._buffers[_PLACE + name.removeprefix(_KEPT)]),  # type: ignore[arg-type]
            "kept": kept.tolist(),
        }
        for name, kept in module._buffers.items()
        if name.startswith(_KEPT) and kept is not None
    }


def join(labels: Labels, known: Widened | None, fresh: Widened) -> str:
    """Let a module that runs several times lose the same channels each time.

    Returns:
        why it cannot, empty if it can.
    """
    if known is None:
        return ""
    if known.rank != fresh.rank or set(known.labels) != set(fresh.labels):
        return "a norm is used for tensors of different kinds"
    for dim, mine in fresh.labels.items():
        if mine.shape != known.labels[dim].shape:
            return "a norm is used for tensors of different kinds"
        labels.unite(known.labels[dim], mine)
    return ""
