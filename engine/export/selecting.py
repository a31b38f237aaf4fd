"""Operators that select, move or repeat values: results are on the grids of what they read."""

from __future__ import annotations

import operator
from itertools import accumulate
from typing import Any

import torch
from torch import fx

_ATEN: Any = torch.ops.aten
#: Where a slice without an end ends.
_END = torch.iinfo(torch.int64).max
_PAD = _ATEN.pad.default
_SPLITS = {_ATEN.split.Tensor, _ATEN.split_with_sizes.default, _ATEN.unbind.int}
#: Each value of the result is one of the first argument, or 0.
_KEEPS_VALUES = {
    _ATEN.relu.default,
    _ATEN.max_pool1d.default,
    _ATEN.max_pool2d.default,
    _ATEN.max_pool3d.default,
    _ATEN.amax.default,
    _ATEN.flatten.using_ints,
    _ATEN.view.default,
    _ATEN.reshape.default,
    _ATEN._unsafe_view.default,
    _ATEN.permute.default,
    _ATEN.transpose.int,
    _ATEN.squeeze.dims,
    _ATEN.squeeze.dim,
    _ATEN.unsqueeze.default,
    _ATEN.slice.Tensor,
    _ATEN.select.int,
    _ATEN.index.Tensor,
    _ATEN.expand.default,
    _ATEN.repeat.default,
    _ATEN.flip.default,
    _ATEN.roll.default,
    _ATEN.clone.default,
    _ATEN.contiguous.default,
    _ATEN.pixel_shuffle.default,
    _ATEN.pixel_unshuffle.default,
    _ATEN.channel_shuffle.default,
    _ATEN.upsample_nearest1d.vec,
    _ATEN.upsample_nearest2d.vec,
    _ATEN.upsample_nearest3d.vec,
}


def keeps_values(node: fx.Node) -> bool:
    """Return whether each value of the result is one of the first argument, or 0.

    0 is on every grid, so that the result then is on any grid that the argument is on, and rounding
    before or after makes no difference.
    """
    if node.target is not _PAD:
        return node.target in _KEEPS_VALUES
    mode = node.args[2] if len(node.args) > 2 else node.kwargs.get("mode", "constant")
    value = node.args[3] if len(node.args) > 3 else node.kwargs.get("value")
    return mode != "constant" or not value


def drop_whole_slices(graph: fx.Graph) -> None:
    """Take away slices of everything, and writing to them: what is left of changes in place."""
    for node in list(graph.nodes):
        writes = node.target is _ATEN.slice_scatter.default
        if not writes and node.target is not _ATEN.slice.Tensor:
            continue
        start, end, step = [*node.args[2 + writes :], None, None, None][:3]
        if not start and end in (None, _END) and step in (None, 1) and not node.kwargs:
            node.replace_all_uses_with(node.args[1] if writes else node.args[0])
            graph.erase_node(node)


def splits_as_slices(graph: fx.Graph) -> None:
    """Let parts of a tensor be slices of it: an operator of several results has no grid."""
    for node in list(graph.nodes):
        if node.target not in _SPLITS or any(u.target is not operator.getitem for u in node.users):
            continue
        for part in list(node.users):
            with graph.inserting_before(part):
                selected = graph.call_function(*_selection(node, part))
            selected.meta = dict(part.meta)
            part.replace_all_uses_with(selected)
            graph.erase_node(part)
        graph.erase_node(node)


def _selection(split: fx.Node, part: fx.Node) -> tuple[Any, tuple[Any, ...]]:
    """Return operator and arguments that give ``part`` of what is split."""
    source, index = split.args[0], part.args[1]
    assert isinstance(index, int)
    if split.target is _ATEN.unbind.int:
        return _ATEN.select.int, (source, _argument(split, 1, "dim"), index)
    sizes: Any = split.args[1]
    dim = _argument(split, 2, "dim")
    if isinstance(sizes, (list, tuple)):
        ends = [0, *accumulate(sizes)]
        return _ATEN.slice.Tensor, (source, dim, ends[index], ends[index + 1])
    # The last part may end before that.
    return _ATEN.slice.Tensor, (source, dim, index * sizes, (index + 1) * sizes)


def _argument(node: fx.Node, place: int, name: str) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, 0)
