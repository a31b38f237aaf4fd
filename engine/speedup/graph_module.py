"""A model as a graph in which every size that stands in the code is an attribute.

``x.view(n, 4, -1)`` cannot follow when heads go, ``x.view(n, self.heads, -1)`` can: so the model's
calls are written down by ``torch.export``, and each literal size becomes a number that the graph
module holds. From there on all is as with any model.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim
from torch.utils._pytree import tree_map

from engine.speedup.evaluation import evaluation
from engine.speedup.recipe import GRAPH
from engine.speedup.shrink import SpeedupError, refuse_compiled

#: Operators whose whole numbers are sizes or places, by the arguments that hold these.
_SIZED: Mapping[str, tuple[int, ...]] = {
    "view": (1,),
    "_unsafe_view": (1,),
    "reshape": (1,),
    "unflatten": (2,),
    "expand": (1,),
    "repeat": (1,),
    "slice": (2, 3),
    "narrow": (2, 3),
    "split": (1,),
    "split_with_sizes": (1,),
    "zeros": (0,),
    "ones": (0,),
    "full": (0,),
    "empty": (0,),
    "rand": (0,),
    "randn": (0,),
    "new_zeros": (1,),
    "new_ones": (1,),
    "new_full": (1,),
    "new_empty": (1,),
    **dict.fromkeys((f"conv{n}d" for n in (1, 2, 3)), (6,)),
    **dict.fromkeys((f"conv_transpose{n}d" for n in (1, 2, 3)), (6,)),
}
#: Names of the attributes.
_NAME = "literal_{}"


def as_graph_module(
    model: nn.Module, args: Any, kwargs: Mapping[str, Any] | None = None
) -> fx.GraphModule:
    """Return ``model`` as a graph module of the same parameters, its literal sizes attributes.

    The graph is that of evaluation mode, with the branches that the example takes. Sizes of its
    inputs stay free where the code leaves them free.

    Args:
        model: unchanged; the graph module has its very parameters and buffers, under their names.
        args: example inputs: one tensor, or a tuple of positional arguments.
        kwargs: keyword arguments.

    Raises:
        SpeedupError: ``torch.export`` cannot write the model down.
    """
    refuse_compiled(model)
    positional = tuple(args) if isinstance(args, tuple | list) else (args,)
    named = dict(kwargs or {})
    with evaluation(model), _symbolic_len(model):
        try:
            given = inspect.signature(model.forward).bind(*positional, **named).arguments
            dynamic = {name: tree_map(_free_sizes, value) for name, value in given.items()}
            program = torch.export.export(model, positional, named, dynamic_shapes=dynamic)
        except Exception as error:
            lines = str(error).strip().splitlines()
            raise SpeedupError(
                "the model cannot be written down as a graph: "
                f"{type(error).__name__}: {lines[0] if lines else ''}\n"
                "  without graph_module=True it is made smaller as it is, and channels whose sizes "
                "are literals in its code stay"
            ) from error
    exported: Any = program.module(check_guards=False)
    # A module of its own: the exported one refuses train() and eval(). And a tracer that PyTorch
    # can make again when it is unpickled.
    exported.graph._tracer_cls = None
    graph_module = fx.GraphModule(exported, exported.graph, type(model).__name__ + GRAPH)
    # The very layers, so that they are found by their types; only their tensors are read.
    for name, child in model.named_children():
        if name in graph_module._modules:
            graph_module._modules[name] = child
    _divide_sums(graph_module.graph)
    _name_literals(graph_module)
    graph_module.training = model.training
    return graph_module


def _free_sizes(value: Any) -> Any:
    return dict.fromkeys(range(value.dim()), Dim.AUTO) if isinstance(value, Tensor) else None


def _divide_sums(graph: fx.Graph) -> None:
    """Let means over dimensions of a fixed size be sums that are divided by that size.

    Of channels that are zero a sum may lose any, and the number stays that of the model as it was.
    """
    for node in list(graph.find_nodes(op="call_function", target=torch.ops.aten.mean.dim)):
        x, dims, *rest = node.args
        value = x.meta.get("val")
        if value is None or not dims or node.kwargs:
            continue
        if value.dtype not in (torch.float32, torch.float64):
            continue  # a sum of half precision may be too large
        sizes = [value.shape[dim] for dim in dims]
        if not all(type(size) is int for size in sizes):
            continue
        with graph.inserting_before(node):
            total = graph.call_function(torch.ops.aten.sum.dim_IntList, (x, dims, *rest))
            mean = graph.call_function(torch.ops.aten.div.Tensor, (total, math.prod(sizes)))
        node.replace_all_uses_with(mean)
        graph.erase_node(node)


def _name_literals(module: fx.GraphModule) -> None:
    """Let the module hold each literal size of its graph."""
    graph = module.graph
    count = 0
    for node in list(graph.nodes):
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        places = _SIZED.get(node.target._schema.name.removeprefix("aten::").rstrip("_"), ())

        def named(value: Any, before: fx.Node = node) -> Any:
            nonlocal count
            # One is no size that shrinks, and the largest number means "to the end".
            if type(value) is not int or not 1 < value < torch.iinfo(torch.int64).max:
                return value
            name = _NAME.format(count)
            count += 1
            module.__dict__[name] = value
            with graph.inserting_before(before):
                return graph.create_node("get_attr", name)

        node.args = tuple(
            tree_map(named, value) if place in places else value
            for place, value in enumerate(node.args)
        )
    module.recompile()


@contextmanager
def _symbolic_len(model: nn.Module) -> Iterator[None]:
    """Let ``len(x)`` in the model's code be ``x.shape[0]``, which is free, and no plain number.

    ``len`` itself must return a plain number. In the files of the model's classes the name means
    another function for as long as they run; the built-in one is left alone.
    """
    spaces: dict[int, dict[str, Any]] = {}
    for module in model.modules():
        space = getattr(type(module).forward, "__globals__", {})
        if space.get("__name__", "torch").split(".")[0] != "torch" and "len" not in space:
            spaces[id(space)] = space
    for space in spaces.values():
        space["len"] = _length
    try:
        yield
    finally:
        for space in spaces.values():
            del space["len"]


def _length(value: Any) -> Any:
    return value.shape[0] if isinstance(value, Tensor) and value.dim() else len(value)
