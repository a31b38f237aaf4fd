"""Ranges for tensors that the quantizer leaves in float and integer kernels need on integers.

An integer convolution writes integers, so that its output needs a grid; an integer sum needs its
two inputs and its output on grids. Where the fake-quantized model has none there, 8-bit affine ones
over what sample batches show are put in. The file then rounds where the fake-quantized model did
not: an approximation, which is why it is done only when batches are given.

Where one reader of a tensor has a grid and another reads it in float (both branches of a residual
block), the grid serves both if it is as good as one over what batches show. One of few bits, or one
that clips, does not: then the reader with the grid rounds once more.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from engine.errors import ExportError
from engine.export.integer_bias import CONVOLUTIONS, LINEAR
from engine.export.integer_graph import (
    JOINS,
    insert_pair,
    is_dequantize,
    is_integer_weight,
    is_quantize,
    joined,
    last_of_kernel,
    make_explicit,
    settings_of,
)
from engine.export.selecting import keeps_values
from engine.quantization.observers import MinMax
from engine.quantization.scheme import Scheme
from engine.user_code.batches import batches_in, call_with_batch

_SCHEME = Scheme(8)
#: Of the range that batches show: a step of 7 bits, which is what 8 symmetric ones have for values
#: that are never negative; and how much of it a range from other batches may lack.
_COARSEST, _MOST_CLIPPED = 1 / 120, 1 / 16


def complete(module: fx.GraphModule, batches: Iterable[Any]) -> int:
    """Put the tensors on grids that integer kernels need; return how many got a range.

    Args:
        module: an exported graph with pairs of quantize and dequantize; changed in place.
        batches: what a loader gives; of a tuple or list as many items as the model takes are its
            inputs, and a mapping is passed as keywords.

    Raises:
        ExportError: there are no batches, the graph does not take them, or a tensor is not finite.
    """
    given = batches_in(batches, "the export", ExportError)
    needed = tensors_needed(module.graph)
    ranges = _observe(module, needed, given)
    observed = 0
    for node in needed:
        low, high = ranges[node]
        grids = {settings_of(user): user for user in node.users if is_quantize(user)}
        own = next((grid for grid in grids if _serves(grid, low, high)), None)
        observed += own is None
        settings = _settings(low, high) if own is None else own
        others = [u for u in node.users if not is_quantize(u) or settings_of(u) != own]
        insert_pair(module.graph, node, settings, others)
    make_explicit(module.graph)
    module.recompile()
    return observed


def tensors_needed(graph: fx.Graph) -> list[fx.Node]:
    """Return the tensors that integer kernels of quantized weights, and sums of these, need."""
    needed: dict[fx.Node, None] = {}

    def note(node: fx.Node) -> None:
        if not is_dequantize(node) and not _only_quantized(node):
            needed[node] = None

    def on_grid(node: Any) -> bool:
        while isinstance(node, fx.Node):
            if node in needed or is_dequantize(node) or _own_quantize(node) is not None:
                return True
            if not keeps_values(node):
                return False
            node = node.args[0]
        return False

    for node in graph.nodes:
        if node.target in CONVOLUTIONS or node.target is LINEAR:
            if is_integer_weight(node.args[1]):
                note(node.args[0])
                if node.target in CONVOLUTIONS:
                    note(last_of_kernel(node))
        elif node.target in JOINS and all(map(on_grid, joined(node))):
            note(last_of_kernel(node))
    return list(needed)


def _own_quantize(node: fx.Node) -> fx.Node | None:
    return next((user for user in node.users if is_quantize(user)), None)


def _serves(grid: tuple[Any, ...], low: float, high: float) -> bool:
    """Return whether a grid is, for values in [low, high], nearly as good as 8 bits over these."""
    scale, zero_point, qmin, qmax, _ = grid
    span = max(high, 0.0) - min(low, 0.0)
    clipped = max((qmin - zero_point) * scale - low, high - (qmax - zero_point) * scale)
    return bool(scale <= span * _COARSEST and clipped <= span * _MOST_CLIPPED)


def _only_quantized(node: fx.Node) -> bool:
    return len(node.users) == 1 and all(map(is_quantize, node.users))


class _Watch(nn.Module):
    """Passes a tensor on; its observer sees it."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.observer = MinMax()

    def forward(self, tensor: Tensor) -> Tensor:
        """Return ``tensor``."""
        if not bool(tensor.isfinite().all()):
            raise ExportError(f'the tensor "{self.name}" holds NaN or infinity in a batch')
        self.observer.observe(tensor)
        return tensor


@torch.no_grad()
def _observe(
    module: fx.GraphModule, nodes: list[fx.Node], batches: Iterable[Any]
) -> dict[fx.Node, tuple[float, float]]:
    """Return the smallest and the largest value of each node while ``batches`` run."""
    graph = module.graph
    watches: dict[fx.Node, tuple[str, fx.Node]] = {}
    for place, node in enumerate(nodes):
        name = f"_watch_{place}"
        module.add_submodule(name, _Watch(node.name))
        with graph.inserting_after(node):
            watches[node] = name, graph.call_module(name, (node,))
    module.recompile()
    try:
        for batch in batches:
            _run(module, batch)
    finally:
        found = {node: module.get_submodule(name) for node, (name, _) in watches.items()}
        for name, call in watches.values():
            graph.erase_node(call)
            module.delete_submodule(name)
        module.recompile()
    return {node: _range(watch) for node, watch in found.items()}


def _run(module: fx.GraphModule, batch: Any) -> None:
    inputs = [leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)]
    if not all(bool(tensor.isfinite().all()) for tensor in inputs):
        raise ExportError("a batch holds NaN or infinity")
    count = sum(node.op == "placeholder" for node in module.graph.nodes)
    try:
        if isinstance(batch, (tuple, list)) and count > 1:
            module(*batch[:count])
        else:
            call_with_batch(module, batch)
    except ExportError:
        raise
    except Exception as error:  # whatever operators make of a shape or dtype
        shapes = [str(list(tensor.shape)) for tensor in inputs]
        shape = ", ".join(shapes) or type(batch).__name__
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ExportError(
            f"a batch ({shape}) does not go through the exported model: {lines[0]}\n"
            "  batches need the shape of the example, but for the size of the batch"
        ) from error


def _range(watch: Any) -> tuple[float, float]:
    low, high = watch.observer.limits(_SCHEME)
    return float(low), float(high)


def _settings(low: float, high: float) -> tuple[Any, ...]:
    scale, zero_point = _SCHEME.parameters(torch.tensor(low), torch.tensor(high))
    return (float(scale), int(zero_point), _SCHEME.qmin, _SCHEME.qmax, torch.uint8)
