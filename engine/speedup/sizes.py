"""Sizes that are written into a model's code: attributes are changed, the rest must stay."""

from __future__ import annotations

from torch import nn

from engine.speedup.layers import KNOWN
from engine.speedup.replay import involved
from engine.speedup.solve import removed
from engine.speedup.tracer import Tracer

_REASON = "its size is written into the model's code"


def set_sizes(model: nn.Module, tracer: Tracer, checked: set[str]) -> set[str]:
    """Change the whole-number attributes that views and factories take their sizes from.

    ``x.view(n, self.heads, self.head_dim)`` in a module: where the view's size shrinks and an
    attribute of that module has the old size, it gets the new one. Whether that was right shows
    when the model runs.

    Args:
        model: the model, its parameters already sliced.
        tracer: what was seen of it.
        checked: paths of modules that compare their inputs with attributes of theirs.

    Returns:
        the paths of the modules that were changed.
    """
    changed = set()
    given = [size for path in sorted(checked) for size in tracer.inputs.get(path, ())]
    for _, path, size, labels in [*tracer.sizes, *given]:
        kept = int((~removed(tracer, labels)).sum())
        module = model.get_submodule(path)
        if kept == size or isinstance(module, KNOWN):
            continue
        for name, value in list(module.__dict__.items()):
            if name.startswith("_"):
                continue
            if type(value) is int and value == size:
                module.__dict__[name] = kept
                changed.add(path)
            elif isinstance(value, tuple) and list(value).count(size) == 1:
                module.__dict__[name] = tuple(kept if x == size else x for x in value)
                changed.add(path)
    return changed


def give_up(
    model: nn.Module,
    tracer: Tracer,
    failed_in: str | None,
    culprit: int | None,
    changed: set[str],
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
        suspects = suspects or [s for s in shrinking if s.path in changed]
    for size in suspects or shrinking:
        tracer.labels.pin(size.labels, _REASON)
    return bool(shrinking)


def _compares(model: nn.Module, tracer: Tracer, path: str) -> bool:
    """Return whether an attribute of the module has the old size of an input that shrank."""
    numbers = {v for v in model.get_submodule(path).__dict__.values() if type(v) is int}
    return any(
        size in numbers and bool(removed(tracer, labels).any())
        for _, _, size, labels in tracer.inputs.get(path, ())
    )
