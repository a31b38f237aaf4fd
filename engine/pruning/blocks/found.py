"""The repeated blocks of a model, found by running it: no architecture has a name."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn

from engine.attach.undisturbed import undisturbed

_LISTS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)


class Block(NamedTuple):
    """A member of a list of modules that puts out what it gets, changed.

    Attributes:
        name: its dotted name in the model.
        module: the block.
        holder: the list that it is in.
        passes: what stands in for its ``forward`` where it is passed by.
    """

    name: str
    module: nn.Module
    holder: nn.Module
    passes: PassBy


class PassBy:
    """Puts out what a block gets, in the form in which the block puts out: its forward without it.

    Part of the model: it is copied and pickled with it.

    Args:
        form: what the block put out: a tensor, or a tuple or list that holds one.
    """

    def __init__(self, form: Any) -> None:
        self._kind: type | None = None if isinstance(form, Tensor) else type(form)
        leaves = () if isinstance(form, Tensor) else tuple(form)
        self._rest = tuple(None if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        self._place = next((n for n, x in enumerate(leaves) if isinstance(x, Tensor)), 0)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the first tensor among the arguments."""
        hidden = hidden_in((*args, *kwargs.values()))
        if self._kind is None:
            return hidden
        rest = self._rest
        return self._kind((*rest[: self._place], hidden, *rest[self._place + 1 :]))


def hidden_in(values: Any) -> Tensor | None:
    """Return the first tensor among arguments, or in what a block puts out."""
    if isinstance(values, Tensor):
        return values
    if type(values) not in (tuple, list):
        return None
    return next((value for value in values if isinstance(value, Tensor)), None)


def repeated_blocks(model: nn.Module, run: Callable[[], object]) -> list[Block]:
    """Return the blocks that can be left out of ``model``, in its order.

    A block is a member of an outermost list (``ModuleList``, ``Sequential``; lists of lists count
    as one) with modules and parameters of its own, which runs once in a forward pass, puts out one
    tensor of the shape of the one that it gets, and is not alone: the model has another such of
    its class. Members that get the very same tensor stand side by side, and are none.

    Args:
        model: the model.
        run: runs it on one batch; it is left undisturbed.
    """
    members = list(_members(model, "", member=False))
    got: dict[nn.Module, list[Any]] = collections.defaultdict(list)
    put: dict[nn.Module, Any] = {}

    def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        got[module].append(hidden_in((*args, *kwargs.values())))
        put[module] = output

    hooks = [m.register_forward_hook(note, with_kwargs=True) for _, m, _ in members]
    try:
        with undisturbed(model):
            run()
    finally:
        for hook in hooks:
            hook.remove()
    beside = collections.Counter(id(x) for inputs in got.values() for x in inputs if x is not None)
    blocks = [
        Block(name, module, holder, PassBy(put[module]))
        for name, module, holder in members
        if len(got[module]) == 1
        and beside[id(got[module][0])] == 1
        and _is_like(got[module][0], put[module])
    ]
    classes = collections.Counter(type(block.module) for block in blocks)
    return [block for block in blocks if classes[type(block.module)] > 1]


def _is_like(given: Any, output: Any) -> bool:
    """Return whether one tensor is put out, of the shape and dtype of what was given."""
    hidden = hidden_in(output)
    if given is None or hidden is None:
        return False
    several = not isinstance(output, Tensor) and sum(isinstance(x, Tensor) for x in output) > 1
    nested = not isinstance(output, Tensor) and any(
        isinstance(x, (tuple, list, dict)) for x in output
    )
    same = given.shape == hidden.shape and given.dtype == hidden.dtype
    return same and not several and not nested


def _members(
    module: nn.Module, name: str, *, member: bool
) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """Yield the members of outermost lists that could be blocks: name, module and list."""
    is_list = isinstance(module, _LISTS)
    if member and not is_list:
        return
    for key, child in module._modules.items():
        if child is None:
            continue
        path = f"{name}.{key}" if name else key
        if is_list and not isinstance(child, _LISTS):
            if any(True for _ in child.children()) and any(True for _ in child.parameters()):
                yield path, child, module
        else:
            yield from _members(child, path, member=is_list)
