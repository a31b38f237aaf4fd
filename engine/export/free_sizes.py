"""Which sizes of a model's inputs an exported graph leaves free.

Without a word from the user: as many as the model's code allows, tried from all of them down to
none. With ``dynamic_axes`` those that it names, under their names; one that the model fixes is an
error.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from engine.errors import ExportError, nearest

DynamicAxes = Mapping[str, Mapping[int, str] | Sequence[int]]


class Calls(NamedTuple):
    """Inputs to export with, which of their sizes are free, and the names of some of those."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    dynamic_shapes: Any
    names: tuple[Mapping[int, str], ...] = ()


def as_call(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return positional arguments and keywords of an example."""
    if isinstance(example, Mapping):
        return (), dict(example)
    return (tuple(example), {}) if isinstance(example, (tuple, list)) else ((example,), {})


def possible_calls(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], axes: DynamicAxes | None
) -> list[Calls]:
    """Return the calls to try an export with, the one of most free sizes first.

    Raises:
        ExportError: ``axes`` names an input or a dimension that there is not.
    """
    if axes is not None:
        names = _named(model, args, kwargs, axes)
        return [_call(args, kwargs, names, names)]
    values = (*args, *kwargs.values())
    tiers = [[free(value) for value in values] for free in (_free_sizes, _free_text, _free_batch)]
    distinct = [tier for place, tier in enumerate(tiers) if tier not in tiers[:place]]
    return [*(_call(args, kwargs, tier) for tier in distinct), Calls(args, kwargs, None)]


def require_free(program: ExportedProgram, calls: Calls) -> None:
    """Raise ExportError where a size is a number that the user wants to be free."""
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    inputs = [nodes[name] for name in program.graph_signature.user_inputs if name in nodes]
    for node, names in zip(inputs, calls.names, strict=False):
        for dim, name in names.items():
            size = fixed_size(node.meta["val"].shape[dim])
            if size is not None:
                raise ExportError(
                    f'dynamic_axes: dimension {dim} ("{name}") of the input "{node.name}" cannot '
                    f"be free: the model takes a size of {size} there only\n"
                    "  leave it out, or change what in the model's forward fixes the size"
                )


def fixed_size(size: Any) -> int | None:
    """Return the number that a size in a graph is; None where it is free.

    One that turned out to be a number may still stand there as a symbol.
    """
    if isinstance(size, int):
        return size
    number: int | None = size.node.maybe_as_int()
    return number


def _call(
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    free: Sequence[Any],
    names: tuple[Mapping[int, str], ...] = (),
) -> Calls:
    """Return the call with sizes of 1 doubled where they are free: 1 is taken for a constant."""
    values = [
        _doubled(value, dims) for value, dims in zip((*args, *kwargs.values()), free, strict=True)
    ]
    shapes = [None if not dims else dict.fromkeys(dims, Dim.AUTO) for dims in free]
    own = dict(zip(kwargs, values[len(args) :], strict=True))
    if not kwargs:
        return Calls(tuple(values), own, tuple(shapes), names)
    parameters = [f"_{place}" for place in range(len(args))]
    by_name = dict(zip((*parameters, *kwargs), shapes, strict=True))
    return Calls(tuple(values[: len(args)]), own, by_name, names)


def _doubled(value: Any, dims: Any) -> Any:
    for dim in dims or ():
        if value.shape[dim] == 1:
            value = torch.cat((value, value), dim)
    return value


def _free_batch(value: Any) -> tuple[int, ...]:
    return (0,) if isinstance(value, Tensor) and value.dim() else ()


def _free_text(value: Any) -> tuple[int, ...]:
    """Let numbers of tokens, and masks beside them, be of any length, too."""
    if isinstance(value, Tensor) and value.dim() > 1 and not value.is_floating_point():
        return (0, 1)
    return _free_batch(value)


def _free_sizes(value: Any) -> tuple[int, ...]:
    """Let pictures and sounds be of any size, too; channels of pictures have their number."""
    if isinstance(value, Tensor) and value.dim() > 2 and value.is_floating_point():
        return tuple(dim for dim in range(value.dim()) if dim != 1 or value.dim() == 3)
    return _free_text(value)


def _named(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], axes: DynamicAxes
) -> tuple[Mapping[int, str], ...]:
    parameters = list(inspect.signature(model.forward).parameters)
    inputs = [*parameters[: len(args)], *kwargs]
    inputs += [f"input_{place}" for place in range(len(inputs), len(args) + len(kwargs))]
    if not isinstance(axes, Mapping):
        raise ExportError(
            f"dynamic_axes is {axes!r}\n  it maps an input's name to its free dimensions, such as "
            f'{{"{inputs[0]}": {{0: "batch", 2: "height", 3: "width"}}}}'
        )
    found: dict[str, Mapping[int, str]] = {}
    for name, dims in axes.items():
        if name not in inputs and not (len(inputs) == 1 and name == "input"):
            near = nearest(str(name), inputs)
            raise ExportError(
                f'dynamic_axes names "{name}", which is no input of the model\n'
                f"  its inputs: {', '.join(inputs)}"
                + (f'\n  did you mean "{near}"?' if near else "")
            )
        place = inputs.index(name) if name in inputs else 0
        value = (*args, *kwargs.values())[place]
        rank = value.dim() if isinstance(value, Tensor) else 0
        named = dims if isinstance(dims, Mapping) else {d: f"{name}_{d}" for d in dims}
        wrong = [dim for dim in named if type(dim) is not int or not -rank <= dim < rank]
        if wrong:
            raise ExportError(
                f'dynamic_axes: the input "{name}" has {rank} dimensions, {wrong[0]!r} is none of '
                "them"
            )
        found[inputs[place]] = {dim % rank: str(text) for dim, text in named.items()}
    return tuple(found.get(name, {}) for name in inputs)
