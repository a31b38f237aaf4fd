"""Sizes that are written into a model's code: attributes are changed, the rest must stay."""

from __future__ import annotations

from torch import nn

from engine.speedup.layers import KNOWN
from engine.speedup.replay import involved
from engine.speedup.solve import removed
from engine.speedup.tags import Owner
from engine.speedup.tracer import Tracer

_REASON = "its size is written into the model's code"


def set_sizes(model: nn.Module, tracer: Tracer, checked: set[str]) -> set[int]:
    """Change the whole-number attributes that views and factories take their sizes from.

    ``x.view(n, self.heads, self.head_dim)`` in a module: where the view's size shrinks, the
    attribute that it was given gets the new one. Whether that was all shows when the model runs.

    Args:
        model: the model, its parameters already sliced.
        tracer: what was seen of it.
        checked: paths of modules that compare their inputs with attributes of theirs.

    Returns:
        the ids of the modules that were changed.
    """
    changed: dict[Owner, int] = {}
    for _, path, size, labels, owner in tracer.sizes:
        kept = int((~removed(tracer, labels)).sum())
        if kept == size or isinstance(model.get_submodule(path), KNOWN):
            continue
        if owner is None:
            changed |= _in_tuples(model.get_submodule(path), size, kept)
        elif owner.name in owner.module.__dict__:
            if changed.setdefault(owner, kept) != kept:
                # Two dimensions take their size from one number but cannot both follow it.
                tracer.labels.pin(labels, _REASON)
            owner.module.__dict__[owner.name] = kept
    for path in sorted(checked):
        module = model.get_submodule(path)
        for _, _, size, labels, _ in tracer.inputs.get(path, ()):
            kept = int((~removed(tracer, labels)).sum())
            for name, value in _numbers(module).items():
                if value == size != kept:
                    module.__dict__[name] = kept
                    changed[Owner(module, name)] = kept
    return {id(owner.module) for owner in changed}


def _in_tuples(module: nn.Module, size: int, kept: int) -> dict[Owner, int]:
    """Change ``size`` in tuples such as ``nn.Unflatten``'s, where it stands in them once."""
    changed: dict[Owner, int] = {}
    for name, value in list(module.__dict__.items()):
        if isinstance(value, tuple) and not name.startswith("_") and list(value).count(size) == 1:
            module.__dict__[name] = tuple(kept if x == size else x for x in value)
            changed[Owner(module, name)] = kept
    return changed


def _numbers(module: nn.Module) -> dict[str, int]:
    own = {n: v for n, v in module.__dict__.items() if not n.startswith("_")}
    return {name: value for name, value in own.items() if type(value) is int}


def give_up(
    model: nn.Module,
    tracer: Tracer,
    failed_in: str | None,
    culprit: int | None,
    changed: set[int],
    checked: set[str],
) -> bool:
    """Choose what to do otherwise, after a smaller model did not run or was not equal.

    A module that failed may compare its input's size with an attribute (``checked`` gets its path).
    Else sizes are kept: those of the call that went wrong, if it is known; those of the module
    where it failed and of its siblings in class; those whose attributes were changed; all.

    Returns:
        whether there was anything to give up.
    """
    if failed_in is not None and failed_in not in checked and _compares(model, tracer, failed_in):
        checked.add(failed_in)
        return True
    if culprit is not None and (blamed := involved(tracer, culprit)):
        for labels in blamed:
            tracer.labels.pin(labels, _REASON)
        return True
    shrinking = [s for s in tracer.sizes if bool(removed(tracer, s.labels).any())]
    kinds = set()
    if failed_in is not None:
        kinds = {type(model.get_submodule(failed_in))}
    suspects = [s for s in shrinking if type(model.get_submodule(s.path)) in kinds]
    if failed_in is None:
        suspects = suspects or [s for s in shrinking if id(model.get_submodule(s.path)) in changed]
    for size in suspects or shrinking:
        tracer.labels.pin(size.labels, _REASON)
    return bool(shrinking)


def _compares(model: nn.Module, tracer: Tracer, path: str) -> bool:
    """Return whether an attribute of the module has the old size of an input that shrank."""
    numbers = _numbers(model.get_submodule(path)).values()
    return any(
        size in numbers and bool(removed(tracer, labels).any())
        for _, _, size, labels, _ in tracer.inputs.get(path, ())
    )
