"""Masks of layers that are bound together: where they disagree, and what all of them remove."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from engine.analysis.agreement import Agreement
from engine.analysis.dependencies import merged
from engine.errors import EngineError
from engine.files import PathLike
from engine.files.table import text_table
from engine.pruning.mask_files import Masks, load_masks


class LayerMask(NamedTuple):
    """One layer of a dependency set.

    ``removed`` are the numbers of the filters that its mask removes (or that of the norm right
    behind it), ``agreed`` those that all layers of the set remove; ``filters`` is how many it has.
    """

    name: str
    filters: int
    removed: tuple[int, ...]
    agreed: tuple[int, ...]


class Conflict(NamedTuple):
    """A dependency set whose layers remove different channels.

    ``channels`` is how many can go from the set, ``disputed`` how many of these some layers remove
    and others keep, ``removed_by_all`` how many all remove. Where a grouped convolution takes part
    a channel is one filter of each group.
    """

    layers: tuple[LayerMask, ...]
    channels: int
    disputed: int
    removed_by_all: int


class MaskConflicts(NamedTuple):
    """The dependency sets whose masks disagree; empty, and false, when none do."""

    sets: tuple[Conflict, ...]

    def __bool__(self) -> bool:
        return bool(self.sets)

    def as_dicts(self) -> list[dict[str, Any]]:
        """Return the sets as plain values, for JSON."""
        return [
            {**conflict._asdict(), "layers": [layer._asdict() for layer in conflict.layers]}
            for conflict in self.sets
        ]

    def __str__(self) -> str:
        if not self.sets:
            return "no conflicts: layers that are bound together remove the same channels"
        rows = [
            (
                layer.name or "(model)",
                f"Set {number}",
                str(layer.filters),
                str(len(layer.removed)),
                str(len(layer.agreed)),
            )
            for number, conflict in enumerate(self.sets, 1)
            for layer in conflict.layers
        ]
        disputed = sum(conflict.disputed for conflict in self.sets)
        text = text_table(("LAYER", "SET", "FILTERS", "REMOVED", "BY ALL"), rows, 2)
        return f"{text}\nsets that disagree: {len(self.sets)}, about {disputed} channels"


def mask_conflicts(
    model: nn.Module,
    masks: Mapping[str, Any] | PathLike,
    dummy_input: Any,
    kwargs: Mapping[str, Any] | None = None,
) -> MaskConflicts:
    """Return the sets of layers that are bound together and whose masks remove different channels.

    A filter is removed where its whole row of the mask is zero, or the element of the mask of the
    norm right behind it. A layer without a mask removes nothing, except that a depthwise
    convolution without one follows the layer before it.

    Args:
        model: the model that the masks are for; left as found.
        masks: a mask file, or ``{layer: {"weight": mask, "bias": mask or None}}``.
        dummy_input: one tensor, a tuple of positional arguments, or the shape of the one input.
        kwargs: keyword arguments.

    Raises:
        CheckpointError: the masks cannot be loaded or do not fit the model.
        EngineError: the model does not run on the example.
    """
    agreement = Agreement(model, masks, dummy_input, kwargs)
    sets = merged(block[0][0].outputs for block in agreement.blocks)
    number = {name: place for place, names in enumerate(sets) for name in names}
    counts = [[0, 0, 0] for _ in sets]
    for block in agreement.blocks:
        for channel, gone in block:
            if channel.outputs:
                count = counts[number[next(iter(channel.outputs))]]
                count[0] += 1
                count[1] += agreement.is_disputed(channel, gone)
                count[2] += gone
    order = {name: place for place, name in enumerate(agreement.modules)}
    conflicts = [
        Conflict(tuple(_layer(agreement, n) for n in sorted(names, key=order.__getitem__)), *count)
        for names, count in zip(sets, counts, strict=True)
        if count[1]
    ]
    return MaskConflicts(tuple(sorted(conflicts, key=lambda c: order[c.layers[0].name])))


def fix_mask_conflict(
    masks: Mapping[str, Any] | PathLike,
    model: nn.Module | None = None,
    dummy_input: Any = None,
    kwargs: Mapping[str, Any] | None = None,
) -> Masks:
    """Return masks with which layers that are bound together remove only what all of them remove.

    A channel that one of them keeps is kept in all: its elements of weights' and biases' masks
    become one. Grouped convolutions keep as many filters in each group as in the others. Nothing is
    removed that was not, so that sparsity can fall, to nothing where masks were chosen layer by
    layer: :func:`mask_conflicts` tells how far. Masks that are not of whole filters stay as they
    are.

    Args:
        masks: a mask file, or ``{layer: {"weight": mask, "bias": mask or None}}``; not changed.
        model: the model that the masks are for; left as found.
        dummy_input: one tensor, a tuple of positional arguments, or the shape of the one input.
        kwargs: keyword arguments.

    Raises:
        CheckpointError: the masks cannot be loaded or do not fit the model.
        EngineError: there is no model or no example, or the model does not run on it.
    """
    if model is None or dummy_input is None:
        raise EngineError(
            "fix_mask_conflict needs model and dummy_input: which layers are bound together is "
            "seen when the model runs"
        )
    loaded = masks if isinstance(masks, Mapping) else load_masks(masks)
    agreement = Agreement(model, loaded, dummy_input, kwargs)
    fixed: Masks = {}
    for name, entry in loaded.items():
        layer = agreement.layers.get(agreement.first_names[name])
        fixed[name] = {
            key: mask if layer is None else layer.fixed(key, mask) for key, mask in entry.items()
        }
    return fixed


def _layer(agreement: Agreement, name: str) -> LayerMask:
    before, after = agreement.removed_of(name)
    return LayerMask(name, len(before), _numbers(before), _numbers(after))


def _numbers(flags: list[bool]) -> tuple[int, ...]:
    return tuple(place for place, flag in enumerate(flags) if flag)
