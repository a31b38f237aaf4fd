"""The configuration of a smaller Hugging Face model, so that ``from_pretrained`` builds its shapes.

What a setting means is found by trying: settings that could stand for a size that changed are set,
the model's class is built from them without memory, and its shapes tell; where they leave a choice,
the model is run with the numbers that its layers would hold. No architecture has a name here, and
transformers is not imported: a model that has a ``config`` brings its own class.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from engine.speedup import compare
from engine.speedup.evaluation import evaluation
from engine.speedup.replay import Inputs
from engine.speedup.shrink import SpeedupError

Shapes = dict[str, tuple[int, ...]]
#: Values by the name of a setting.
Settings = dict[str, int]
#: A size before and after.
_Change = tuple[int, int]
#: Of a setting that a config does not have.
_UNSAID = object()
#: How many configurations are tried.
_MOST = 300


def fit_config(
    model: nn.Module, args: Any = None, kwargs: Mapping[str, Any] | None = None
) -> Settings:
    """Set the sizes in ``model.config`` to those that the model has; return what was changed.

    Afterwards ``model.save_pretrained(folder)`` writes what ``from_pretrained(folder)`` loads.
    ``apply_speedup`` of a pruner has done this already where it is possible, and warned where not.

    Several settings can give the same shapes: half of the heads, or heads of half the size. Those
    with which the model computes what it does are taken. Without an example they are those whose
    layers hold the most numbers that the model's own layers hold.

    Args:
        model: of transformers, or another whose class is made from its ``config``.
        args: example inputs, if there are any: one tensor, or a tuple of positional arguments.
        kwargs: keyword arguments.

    Returns:
        The settings that changed and their new values; empty where all fitted already.

    Raises:
        SpeedupError: no settings give these shapes, as when layers of one kind have different
            sizes; a layer is named, and the configuration is as it was.
    """
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "to_dict"):
        raise SpeedupError(f"{type(model).__name__} has no config that from_pretrained reads")
    wanted = _shapes(model)
    built = _built(type(model), config, {})
    found = None if built is None else _shapes(built)
    if found == wanted:
        return {}
    if found is None or found.keys() != wanted.keys():
        extra = sorted(wanted.keys() ^ (found or wanted).keys())
        what = f': "{extra[0]}" is in one of them only' if extra else ""
        raise SpeedupError(f"the model's config does not build its parameters{what}")
    # Where layers of one kind differ nothing is built: apply_speedup asks, too, and waits for it.
    if uneven := _uneven(found, wanted):
        one, other = (f'"{name}" {wanted[name]}' for name in uneven)
        raise SpeedupError(
            f"{type(config).__name__} has one size for all layers, and {one} differs from {other}\n"
            "  remove as much from each layer of one kind, whole heads and whole groups of heads; "
            "or save the model with engine.save_compressed"
        )
    example = None
    if args is not None or kwargs is not None:
        positional = tuple(args) if isinstance(args, tuple | list) else (args,)
        example = (() if args is None else positional), dict(kwargs or {})
    settings = _fitting(model, config, found, wanted, example)
    if settings is None:
        name = next(name for name in wanted if wanted[name] != found[name])
        raise SpeedupError(
            f'no settings of {type(config).__name__} give the shape {wanted[name]} of "{name}" and '
            "those of the other layers\n"
            "  such a config has no number for it alone, as where the size of a head is said to be "
            "the hidden size divided by the number of heads; save the model with "
            "engine.save_compressed"
        )
    for name, value in settings.items():
        setattr(config, name, value)
    return settings


def _fitting(
    model: nn.Module, config: Any, found: Shapes, wanted: Shapes, example: Inputs | None
) -> Settings | None:
    """Return the settings with which the class builds what the model is, None if none do."""
    best: tuple[int, Settings] | None = None
    with evaluation(model), torch.no_grad():
        expected = None if example is None else compare.run(model, example)
        for settings, built in _builds(model, config, found, wanted):
            if best is not None and len(settings) > len(best[1]):
                break
            if example is not None:
                with _told(model, config, built, settings):
                    if compare.difference(model, example, expected) is None:
                        return settings
                continue
            apart = [value for *_, value in _apart(model, built)]
            if all(type(value) is int for value in apart) and (
                best is None or len(apart) < best[0]
            ):
                best = len(apart), settings
    return None if best is None else best[1]


def _builds(
    model: nn.Module, config: Any, found: Shapes, wanted: Shapes
) -> Iterator[tuple[Settings, nn.Module]]:
    """Yield settings that give the shapes, few before many, and what is built from them."""
    changes: dict[_Change, None] = {}
    for name, shape in found.items():
        for before, after in zip(shape, wanted[name], strict=len(shape) == len(wanted[name])):
            if before != after:
                changes.setdefault((before, after))
    single = {pair: None for change in changes for pair in _settings(config, change)}
    works: list[tuple[str, int]] = []
    tried = 0
    for several in range(1, len(changes) + 2):
        for chosen in itertools.combinations(single if several == 1 else works, several):
            settings = dict(chosen)
            if len(settings) < several:
                continue  # one name with two values
            tried += 1
            if tried > _MOST:
                return
            built = _built(type(model), config, settings)
            if built is None:
                works += chosen if several == 1 else ()  # others may have to change with it
                continue
            shapes = _shapes(built)
            if several == 1 and shapes != found and shapes.keys() == found.keys():
                works += chosen
            if shapes != wanted and (more := _unsaid(model, config, built)):
                settings |= more
                built = _built(type(model), config, settings)
            if built is not None and _shapes(built) == wanted:
                yield settings, built


def _unsaid(model: nn.Module, config: Any, built: nn.Module) -> Settings:
    """Return the numbers that layers hold under a name that the config has left out until now.

    What a class reads by ``getattr(config, "head_dim", hidden_size // num_heads)`` can be said.
    """
    return {
        name: module.__dict__[name]
        for module, name, value in _apart(model, built)
        if type(value) is int and not hasattr(config, name)
    }


def _apart(model: nn.Module, built: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    """Yield the numbers that layers of ``built`` hold and the model's own do not, and buffers."""
    modules = dict(built.named_modules())
    for path, module in model.named_modules():
        other = modules.get(path, module)
        for name, value in other.__dict__.items():
            own = module.__dict__.get(name)
            if type(value) in (int, float) and type(own) is type(value) and own != value:
                yield module, name, value
        for name, buffer in other._buffers.items():
            mine = module._buffers.get(name)
            if mine is not None and buffer is not None and mine.shape != buffer.shape:
                yield module, name, None


@contextmanager
def _told(
    model: nn.Module, config: Any, built: nn.Module, settings: Mapping[str, int]
) -> Iterator[None]:
    """Let the model's layers hold the numbers of those of ``built``, and its config the settings.

    So the model computes what one that is loaded would, and no weight is copied for it.
    """
    before: list[tuple[Any, str, Any]] = [
        (config, name, getattr(config, name, _UNSAID)) for name in settings
    ]
    for name, value in settings.items():
        setattr(config, name, value)
    for module, name, value in list(_apart(model, built)):
        if value is not None:
            before.append((module, name, module.__dict__[name]))
            module.__dict__[name] = value
    try:
        yield
    finally:
        for owner, name, value in before:
            if value is _UNSAID:
                delattr(owner, name)
            else:
                setattr(owner, name, value)


def _uneven(found: Shapes, wanted: Shapes) -> tuple[str, str] | None:
    """Return two layers whose names differ in numbers alone and whose sizes did not, but now do."""
    alike: dict[tuple[str, tuple[int, ...]], str] = {}
    for name, shape in wanted.items():
        first = alike.setdefault((re.sub(r"\d+", "*", name), found[name]), name)
        if wanted[first] != shape:
            return first, name
    return None


def _settings(config: Any, change: _Change) -> Iterator[tuple[str, int]]:
    """Yield what one setting could be: the size, how many heads of it, or unsaid until now."""
    before, after = change
    own = {k: v for k, v in config.to_dict().items() if not isinstance(v, bool)}
    for name, value in own.items():
        if value == before and isinstance(value, int):
            yield name, after
    for name, value in own.items():
        if isinstance(value, int) and 1 < value < before and before % value == 0:
            size = before // value
            if after % size == 0 and after // size >= 1:
                yield name, after // size
    for name, value in own.items():
        if value is None:
            yield name, after


def _shapes(model: nn.Module) -> Shapes:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _built(cls: type[nn.Module], config: Any, settings: Mapping[str, int]) -> nn.Module | None:
    """Return a model of this class, made without memory; None if it cannot be."""
    try:
        tried = copy.deepcopy(config)
        for name, value in settings.items():
            setattr(tried, name, value)
        with torch.device("meta"):
            return cls(tried)
    except Exception:  # whatever a class makes of settings that contradict each other
        return None
