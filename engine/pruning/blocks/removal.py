"""Blocks taken out of the lists that hold them, and whatever counts blocks told of it."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from engine.errors import EngineError


@contextmanager
def without_blocks(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Take blocks out of ``model``; what is raised inside puts them back.

    Lists whose keys are numbers are numbered anew. An integer that was the block's place in its
    list in each of the list's blocks, such as the ``layer_idx`` that caches go by, becomes its new
    place. In a model that has a ``config`` (transformers), whatever is said once for each block of
    a list is said for those that are left, and the number of blocks is theirs, so that
    ``save_pretrained`` writes what ``from_pretrained`` loads.

    Args:
        model: changed in place.
        names: dotted names of blocks.

    Raises:
        EngineError: no setting of the config gives these blocks.
    """
    undo: list[Callable[[], None]] = []
    holders: dict[str, list[str]] = {}
    for name in names:
        holder, _, key = name.rpartition(".")
        holders.setdefault(holder, []).append(key)
    try:
        sizes = []
        for path, keys in holders.items():
            holder_module = model.get_submodule(path)
            kept = [key not in keys for key in holder_module._modules]
            _renumber_places(list(holder_module._modules.values()), kept, undo)
            _take_out(holder_module, kept, undo)
            sizes.append(kept)
        if hasattr(getattr(model, "config", None), "to_dict"):
            _fit(model, sizes, undo)
        yield
    except BaseException:
        for step in reversed(undo):
            step()
        raise


def _take_out(holder: nn.Module, kept: Sequence[bool], undo: list[Callable[[], None]]) -> None:
    before = dict(holder._modules)

    def put(modules: dict[str, nn.Module | None]) -> None:
        holder._modules.clear()
        holder._modules.update(modules)

    undo.append(lambda: put(before))
    left = {key: m for (key, m), stays in zip(before.items(), kept, strict=True) if stays}
    if all(key == str(place) for place, key in enumerate(before)):
        left = {str(place): module for place, module in enumerate(left.values())}
    put(left)


def _renumber_places(
    blocks: Sequence[nn.Module | None], kept: Sequence[bool], undo: list[Callable[[], None]]
) -> None:
    """Give blocks that know their place in the list their new one."""
    inside = [dict(block.named_modules()) if block is not None else {} for block in blocks]
    new_place = list(itertools.accumulate(kept, initial=0))
    for path, module in inside[0].items() if len(blocks) > 1 else ():
        for name, value in list(vars(module).items()):
            if type(value) is not int or value != 0:
                continue
            same = [each.get(path) for each in inside]
            if any(
                other is None or type(vars(other).get(name)) is not int or vars(other)[name] != n
                for n, other in enumerate(same)
            ):
                continue
            for place, other in enumerate(same):
                if kept[place] and other is not None:
                    undo.append(lambda o=other, k=name, v=place: setattr(o, k, v))  # type: ignore[misc]
                    setattr(other, name, new_place[place])


def _fit(model: nn.Module, lists: Sequence[Sequence[bool]], undo: list[Callable[[], None]]) -> None:
    """Set what the config says of the number of blocks; its meaning is found by building."""
    config: Any = model.config
    wanted = _shapes(model)
    options = []
    for kept in lists:
        shorter, count = [], []
        for owner in _configs(config):
            for key, value in vars(owner).items():
                if type(value) is int and value == len(kept):
                    count.append((owner, key, sum(kept)))
                elif isinstance(value, (list, tuple)) and len(value) == len(kept):
                    left = [x for x, stays in zip(value, kept, strict=True) if stays]
                    shorter.append((owner, key, type(value)(left)))
        for owner, key, value in shorter:
            _set(owner, key, value, undo)
        options.append(count)
    for chosen in itertools.product(*options):
        steps: list[Callable[[], None]] = []
        for owner, key, value in chosen:
            _set(owner, key, value, steps)
        if _built(model, config) == wanted:
            undo.extend(steps)
            return
        for step in reversed(steps):
            step()
    raise EngineError(
        f"no setting of {type(config).__name__} gives the blocks that are left\n"
        "  save the model with torch.save, and build it without the config"
    )


def _configs(config: Any) -> Iterator[Any]:
    """Yield a config and those inside it, such as that of the text model."""
    yield config
    for value in list(vars(config).values()):
        if hasattr(value, "to_dict"):
            yield from _configs(value)


def _set(owner: Any, key: str, value: Any, undo: list[Callable[[], None]]) -> None:
    before = getattr(owner, key)
    undo.append(lambda: setattr(owner, key, before))
    setattr(owner, key, value)


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _built(model: nn.Module, config: Any) -> dict[str, tuple[int, ...]] | None:
    """Return the shapes of a model of this class, made without memory; None if it cannot be."""
    cls: Any = type(model)
    try:
        with torch.device("meta"):
            return _shapes(cls(copy.deepcopy(config)))
    except Exception:  # whatever a class makes of settings that contradict each other
        return None
