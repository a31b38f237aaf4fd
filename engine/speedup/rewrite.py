"""Making it so: parameters and buffers are sliced, layers told their new sizes; or all put back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from engine.speedup.layers import kept_by_group, tell_sizes
from engine.speedup.solve import BiasChange, Decision, Merge, removed
from engine.speedup.tracer import Tracer
from engine.speedup.tracked import Grouped, Tracked
from engine.speedup.widen import widen


class Snapshot:
    """The parameters, buffers, classes and attributes of all modules, to put back."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = [_State(module) for module in model.modules()]
        self.handles: list[RemovableHandle] = []

    def restore(self) -> None:
        """Put everything back, the very same tensors."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        for state in self.modules:
            state.restore()


class _State:
    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.kind = type(module)
        self.attributes = dict(module.__dict__)
        self.parameters = dict(module._parameters)
        self.buffers = dict(module._buffers)
        self.unsaved = set(module._non_persistent_buffers_set)

    def restore(self) -> None:
        module = self.module
        module.__class__ = self.kind
        module.__dict__.clear()
        module.__dict__.update(self.attributes)
        module._parameters.clear()
        module._parameters.update(self.parameters)
        module._buffers.clear()
        module._buffers.update(self.buffers)
        module._non_persistent_buffers_set.clear()
        module._non_persistent_buffers_set.update(self.unsaved)


Slice = Callable[[Tensor], Tensor]


def rewrite(
    tracer: Tracer, decision: Decision, snapshot: Snapshot
) -> dict[int, tuple[Tensor, Slice]]:
    """Slice what goes; return, by id of each old parameter, the new one and how it was sliced."""
    done: dict[int, tuple[Tensor, Slice]] = {}
    for change in decision.biases:
        _into_bias(tracer, change)
    merges = {id(merge.weight): merge for merge in decision.merges}
    for tracked in tracer.parameters:
        cut = _slicer(tracer, tracked)
        if cut is None:
            continue
        for slot in tracked.slots:
            holder: dict[str, Any] = (
                slot.module._parameters
                if slot.name in slot.module._parameters
                else slot.module._buffers
            )
            old = holder[slot.name]
            if id(old) not in done:
                value = old.detach()
                if id(tracked) in merges:
                    value = _merged(value, merges[id(tracked)])
                new = _laid_out(cut(value), value)
                if isinstance(old, nn.Parameter):
                    new = nn.Parameter(new, requires_grad=old.requires_grad)
                    if old.grad is not None:
                        new.grad = _laid_out(cut(old.grad), old.grad)
                done[id(old)] = (new, cut)
            holder[slot.name] = done[id(old)][0]
    for widened in tracer.widened.values():
        snapshot.handles.extend(widen(widened, lambda labels: removed(tracer, labels)))
    tell_sizes(tracer.model, tracer)
    return done


def _laid_out(new: Tensor, old: Tensor) -> Tensor:
    """Return ``new`` in the memory format of ``old``: ``channels_last`` stays."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    last = formats.get(old.dim())
    if last is None or old.is_contiguous() or not old.is_contiguous(memory_format=last):
        return new.contiguous()
    return new.contiguous(memory_format=last)


def update_optimizer(optimizer: Optimizer, done: dict[int, tuple[Tensor, Slice]]) -> None:
    """Let ``optimizer`` train the new parameters; its state is sliced like them."""
    for group in optimizer.param_groups:
        for place, old in enumerate(group["params"]):
            if id(old) not in done:
                continue
            new, cut = done[id(old)]
            group["params"][place] = new
            if old in optimizer.state:
                state = optimizer.state.pop(old)
                optimizer.state[new] = {
                    key: _laid_out(cut(value), value)
                    if isinstance(value, Tensor) and value.shape == old.shape
                    else value
                    for key, value in state.items()
                }


def _slicer(tracer: Tracer, tracked: Tracked) -> Slice | None:
    if tracked.whole:
        return None
    if tracked.grouped is not None:
        return _grouped_slicer(tracer, tracked.grouped)
    keeps = []
    for dim in tracked.dims():
        labels = tracked.labels[dim]
        assert labels is not None
        gone = removed(tracer, labels)
        if bool(gone.any()):
            keeps.append((dim, (~gone).nonzero().flatten()))
    if not keeps:
        return None

    def cut(tensor: Tensor) -> Tensor:
        for dim, keep in keeps:
            tensor = tensor.index_select(dim, keep.to(tensor.device))
        return tensor

    return cut


def _grouped_slicer(tracer: Tracer, grouped: Grouped) -> Slice | None:
    groups = grouped.groups
    outputs = kept_by_group(tracer, grouped.outputs, groups, 0)

    def cut(tensor: Tensor) -> Tensor:
        # (inputs, outputs per group, ...) for a transposed weight, else (outputs, inputs per group)
        stacked = tensor.view(groups, -1, *tensor.shape[1:])
        per_in = stacked.shape[1] if grouped.transposed else stacked.shape[2]
        inputs = kept_by_group(tracer, grouped.inputs, groups, per_in)
        first, second = (inputs, outputs) if grouped.transposed else (outputs, inputs)
        if bool(second[first.any(dim=1)].all()):
            return tensor[first.flatten().to(tensor.device)]
        parts = [
            part[first[g].to(tensor.device)][:, second[g].to(tensor.device)]
            for g, part in enumerate(stacked)
            if bool(first[g].any()) and bool(second[g].any())
        ]
        return torch.cat(parts)

    everything = bool(outputs.all()) and (
        grouped.inputs is None or not bool(removed(tracer, grouped.inputs).any())
    )
    return None if everything else cut


def _merged(weight: Tensor, merge: Merge) -> Tensor:
    """Return ``weight`` with columns that read constants added to one of them."""
    weight = weight.movedim(merge.dim, 0).clone()
    factors = merge.factors.to(weight.device, weight.dtype)
    columns = weight[merge.columns.to(weight.device)]
    weight[merge.into] += torch.tensordot(factors, columns, 1)
    return weight.movedim(0, merge.dim)


def _into_bias(tracer: Tracer, change: BiasChange) -> None:
    module = change.module
    weight = module._parameters["weight"]
    assert weight is not None
    amount = change.amount.to(weight.device, weight.dtype)
    bias = module._parameters["bias"]
    # A new parameter: the old one is part of the snapshot and must stay as it is.
    value = _kept_outputs(tracer, change.weight, amount) if bias is None else bias.detach() + amount
    needs_grad = weight.requires_grad if bias is None else bias.requires_grad
    module._parameters["bias"] = nn.Parameter(value, requires_grad=needs_grad)


def _kept_outputs(tracer: Tracer, weight: Tracked, amount: Tensor) -> Tensor:
    """Return ``amount`` (outputs,) without the outputs that go: a new bias has no other record."""
    transposed = getattr(weight.slots[0].module, "transposed", False)
    labels = weight.labels[1 if transposed else 0]
    if weight.grouped is not None:
        labels = weight.grouped.outputs
    if labels is None:
        return amount
    return amount[~removed(tracer, labels).to(amount.device)]
