"""Deciding what goes: everything that is constant or unneeded wherever it appears."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from engine.speedup.records import Fold
from engine.speedup.tracer import Tracer
from engine.speedup.tracked import Tracked

#: How far a folded constant may vary over positions, relative to its size, in float64.
_UNIFORM = 1e-12


class BiasChange(NamedTuple):
    """A constant that goes into a bias, which is made if the layer has none."""

    module: nn.Module
    bias: Tracked | None
    weight: Tracked
    amount: Tensor


class Merge(NamedTuple):
    """Columns of a weight that read constants are added to one that stays and reads a constant."""

    weight: Tracked
    dim: int
    into: int
    columns: Tensor
    factors: Tensor


class Decision(NamedTuple):
    """What is done to constants of removed channels."""

    biases: list[BiasChange]
    merges: list[Merge]


def decide(tracer: Tracer) -> Decision:
    """Pin everything that must stay; return what becomes of constants.

    Afterwards a label that ``tracer.labels`` does not pin is to be removed.
    """
    seen: set[int] = set()
    alive: list[tuple[Tensor, str]] = []
    for call in tracer.calls:
        for tracked in call.outputs:
            if id(tracked) in seen:
                continue
            seen.add(id(tracked))
            for dim in tracked.dims():
                labels = tracked.labels[dim]
                assert labels is not None
                where = call.path or "the model"
                alive.append((labels[tracked.flow(dim)], f"{where} computes it from the input"))
    tracer.labels.pin_all(alive)
    while True:
        _keep_one(tracer)
        decision, refused, pinned = _fold(tracer)
        if not refused and not pinned:
            return decision
        for fold, reason in refused:
            labels = fold.source.labels[fold.dim]
            assert labels is not None
            tracer.labels.pin(labels[fold.source.flags(fold.dim)], reason)


def removed(tracer: Tracer, labels: Tensor) -> Tensor:
    """Return which indices go, bool of the shape of ``labels``."""
    return ~tracer.labels.stays(labels)


def _keep_one(tracer: Tracer) -> None:
    for tracked in tracer.parameters:
        sides = [tracked.labels[dim] for dim in tracked.dims()]
        if tracked.grouped is not None:
            sides = [tracked.grouped.inputs, tracked.grouped.outputs]
        for labels in sides:
            if labels is not None and bool(removed(tracer, labels).all()):
                tracer.labels.pin(labels[:1], "a layer keeps at least one channel")


def _fold(tracer: Tracer) -> tuple[Decision, list[tuple[Fold, str]], bool]:
    """Return what becomes of constants, what must stay, and whether anything was pinned."""
    changes: dict[int, BiasChange] = {}
    merges: list[Merge] = []
    refused: list[tuple[Fold, str]] = []
    pinned = False
    for fold in tracer.folds:
        labels = fold.source.labels[fold.dim]
        assert labels is not None
        going = removed(tracer, labels).nonzero().flatten()
        if not len(going):
            continue
        contribution = fold.contribution(going)
        if not bool(contribution.any()):
            continue
        flat = contribution.movedim(fold.channel_dim, 0).flatten(1).double()
        amount = flat[:, 0]
        spread = (flat - amount[:, None]).abs().max()
        eps = _UNIFORM if contribution.dtype == torch.float64 else 1e-5
        where = fold.path or "the model"
        owner = _owner(fold)
        into_bias = owner is not None and not bool(spread > eps * flat.abs().max())
        if not into_bias:
            merge = _merge(tracer, fold, labels, going)
            if merge is not None:
                # A channel that now stays may have been given away to another one before.
                pinned |= merge.into in going
                merges.append(merge)
                continue
            fault = (
                f"its constant has no bias to go into at {where}"
                if owner is None
                else f"its constant differs between positions at {where} (padding)"
            )
            refused.append((fold, fault))
            continue
        assert owner is not None
        change = BiasChange(owner, fold.bias, fold.weight, amount)
        known = changes.setdefault(id(owner), change)
        if known is not change and not torch.allclose(known.amount, amount, rtol=1e-12):
            refused.append((fold, f"its constant differs between uses of {where}"))
    # A layer that runs several times must get the same constant each time, or none.
    for fold in tracer.folds:
        owner = _owner(fold)
        if owner is not None and id(owner) in changes and _uses(tracer, fold) > 1:
            refused.append((fold, f"{fold.path or 'the model'} runs several times"))
    return Decision(list(changes.values()), merges), refused, pinned


def _merge(tracer: Tracer, fold: Fold, labels: Tensor, going: Tensor) -> Merge | None:
    """Let one constant channel stay for all: ``W_r += sum_i W_i c_i / c_r``, exact at any padding.

    Every channel that goes must be the same constant at all positions, and the layer run once.
    """
    slots = fold.weight.slots
    values = fold.values[going]
    if fold.inside is None or len(slots) != 1 or bool(values.isnan().any()):
        return None
    if sum(fold.weight in call.inputs for call in tracer.calls) > 1:
        return None
    stays = ~removed(tracer, labels) & ~fold.values.isnan() & (fold.values != 0)
    if not bool(stays.any()):
        stays[going[values.abs().argmax()]] = True
    into = int(torch.where(stays, fold.values.abs(), 0).argmax())
    tracer.labels.pin(labels[into : into + 1], f"it carries constants to {fold.path}")
    columns = going[going != into]
    return Merge(fold.weight, fold.inside, into, columns, fold.values[columns] / fold.values[into])


def _uses(tracer: Tracer, fold: Fold) -> int:
    name = "convolution"
    calls = [c for c in tracer.calls if fold.weight in c.inputs and c.name == name]
    return max(1, len(calls))


def _owner(fold: Fold) -> nn.Module | None:
    slots = fold.weight.slots
    if len(slots) != 1 or slots[0].name != "weight":
        return None
    module = slots[0].module
    if fold.bias is None:
        # One that is made is added by the layer's own forward, not by code that reads its weight.
        runs = slots[0].path == fold.path
        return module if runs and "bias" in module._parameters else None
    fits = len(fold.bias.slots) == 1 and fold.bias.slots[0].module is module
    return module if fits else None
