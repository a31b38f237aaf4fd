"""The blocks of a model: what is run by itself while the layers in it are looked at."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from torch import nn

_LISTS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)


def blocks_of(model: nn.Module, layers: Collection[nn.Module]) -> dict[nn.Module, list[nn.Module]]:
    """Return the blocks of ``model`` that hold any of ``layers``, each with those, in its order.

    A block is a member of the outermost list (``ModuleList``, ``Sequential``) in which layers are,
    lists of lists counting as one; a layer in no list is a block by itself. So a transformer's
    blocks are its decoder layers, a ResNet's its residual blocks.
    """
    wanted = set(layers)
    found: dict[nn.Module, list[nn.Module]] = {}
    for block in _members(model, wanted, member=False):
        own = [module for module in block.modules() if module in wanted]
        found.setdefault(block, own)
    return found


def finished_parts(
    block: nn.Module,
    layers: Collection[nn.Module],
    left: Collection[nn.Module],
    calls: Mapping[nn.Module, int],
) -> Iterator[nn.Module]:
    """Yield the largest parts of a block that hold some of ``layers`` and none that is ``left``.

    So a decoder layer's attention, when its feed-forward network has its turn. Each runs once in a
    forward pass; ``calls`` tells how often modules do.
    """
    for child in block.children():
        held = [module for module in child.modules() if module in layers]
        if not held or child in layers:
            continue
        if calls[child] == 1 and not any(module in left for module in held):
            yield child
        else:
            yield from finished_parts(child, layers, left, calls)


def _members(module: nn.Module, wanted: set[nn.Module], *, member: bool) -> Iterator[nn.Module]:
    if module in wanted:
        yield module
    elif member and not isinstance(module, _LISTS):
        if any(inner in wanted for inner in module.modules()):
            yield module
    else:
        for child in module.children():
            yield from _members(child, wanted, member=isinstance(module, _LISTS))
