"""Sizes that are written into a model's code: attributes are changed, the rest must stay."""

from __future__ import annotations

from torch import nn

from engine.speedup.compare import Difference
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
        if owner is not None and owner.get() is not None:
            if changed.setdefault(owner, kept) != kept:
                # Two dimensions take their size from one number but cannot both follow it.
                tracer.labels.pin(labels, _REASON)
            owner.set(kept)
    for path in sorted(checked):
        module = model.get_submodule(path)
        for _, _, size, labels, _ in tracer.inputs(path):
            kept = int((~removed(tracer, labels)).sum())
            for name, value in _numbers(module).items():
                if value == size != kept:
                    owner = Owner(module, name)
                    owner.set(kept)
                    changed[owner] = kept
    return {id(owner.module) for owner in changed}


def _numbers(module: nn.Module) -> dict[str, int]:
    own = {n: v for n, v in module.__dict__.items() if not n.startswith("_")}
    return {name: value for name, value in own.items() if type(value) is int}


def give_up(
    model: nn.Module,
    tracer: Tracer,
    difference: Difference,
    culprit: int | None,
    changed: set[int],
    checked: set[str],
) -> bool:
    """Choose what to do otherwise, after a smaller model did not run or was not equal.

    A module that raised an error of its own may compare its input's size with an attribute
    (``checked`` gets its path). Else sizes are kept: those of the call that went wrong and of its
    likes in modules of the same class; those of the module where it failed; those of its siblings
    in class; those whose attributes were changed; all. At last channels are kept for no better
    reason than that the model's code must compute something with their number.

    Returns:
        whether there was anything to give up.
    """
    path = difference.failed_in
    if (
        difference.stated
        and path is not None
        and path not in checked
        and _compares(model, tracer, path)
    ):
        checked.add(path)
        return True
    blamed = [] if culprit is None else involved(model, tracer, culprit)
    if blamed:
        for labels in blamed:
            tracer.labels.pin(labels, _REASON)
        return True
    shrinking = [s for s in tracer.sizes if bool(removed(tracer, s.labels).any())]
    kind = None if path is None else type(model.get_submodule(path))
    suspects = [s for s in shrinking if s.path == path]
    suspects = suspects or [s for s in shrinking if type(model.get_submodule(s.path)) is kind]
    if path is None:
        suspects = [s for s in shrinking if id(model.get_submodule(s.path)) in changed]
    for size in suspects or shrinking:
        tracer.labels.pin(size.labels, _REASON)
    return bool(shrinking) or _keep_all(tracer, culprit)


def _keep_all(tracer: Tracer, culprit: int | None) -> bool:
    """Keep what the module of the call that went wrong touches, or everything."""
    here = next((call.path for call in tracer.calls if call.number == culprit), None)
    touched = [t for call in tracer.calls if call.path == here for t in call.inputs]
    for some in (touched, tracer.parameters):
        labels = [each for tracked in some for each in tracked.labels if each is not None]
        going = [each for each in labels if bool(removed(tracer, each).any())]
        for each in going:
            tracer.labels.pin(each, "the model's code computes with its size")
        if going:
            return True
    return False


def _compares(model: nn.Module, tracer: Tracer, path: str) -> bool:
    """Return whether an attribute of the module has the old size of an input that shrank."""
    numbers = _numbers(model.get_submodule(path)).values()
    return any(
        size in numbers and bool(removed(tracer, labels).any())
        for _, _, size, labels, _ in tracer.inputs(path)
    )
