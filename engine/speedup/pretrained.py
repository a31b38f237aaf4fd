"""The configuration of a smaller Hugging Face model, so that ``from_pretrained`` builds its shapes.

What a setting means is found by trying: settings that could stand for a size that changed are set,
the model's class is built from them without memory, and its shapes tell. No architecture has a name
here, and transformers is not imported: a model that has a ``config`` brings its own class.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from engine.speedup.shrink import SpeedupError

Shapes = dict[str, tuple[int, ...]]
#: A size before and after.
_Change = tuple[int, int]
#: How many configurations are tried.
_MOST = 300


def fit_config(model: nn.Module) -> dict[str, int]:
    """Set the sizes in ``model.config`` to those that the model has; return what was changed.

    Afterwards ``model.save_pretrained(folder)`` writes what ``from_pretrained(folder)`` loads.
    ``apply_speedup`` of a pruner has done this already where it is possible.

    Args:
        model: of transformers, or another whose class is made from its ``config``.

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
    found = _built(type(model), config)
    if found == wanted:
        return {}
    if found is None or found.keys() != wanted.keys():
        extra = sorted(wanted.keys() ^ (found or wanted).keys())
        what = f': "{extra[0]}" is in one of them only' if extra else ""
        raise SpeedupError(f"the model's config does not build its parameters{what}")
    # Where layers of one kind differ nothing is built: apply_speedup asks, too, and waits for it.
    tries = () if _is_uneven(found, wanted) else _candidates(config, found, wanted)
    for settings in itertools.islice(tries, _MOST):
        tried = copy.deepcopy(config)
        for name, value in settings.items():
            setattr(tried, name, value)
        if _built(type(model), tried) == wanted:
            for name, value in settings.items():
                setattr(config, name, value)
            return settings
    name = next(name for name in wanted if wanted[name] != found[name])
    raise SpeedupError(
        f"no settings of {type(config).__name__} give the shape {wanted[name]} of "
        f'"{name}" and those of the other layers\n'
        "  layers of one kind must be equally large: remove the same number from each, whole heads "
        "and whole groups of heads; or save the model with engine.save_compressed"
    )


def _is_uneven(found: Shapes, wanted: Shapes) -> bool:
    """Return whether layers whose names differ in numbers alone have different sizes now only."""
    alike: dict[str, set[tuple[tuple[int, ...], tuple[int, ...]]]] = {}
    for name, shape in wanted.items():
        alike.setdefault(re.sub(r"\d+", "*", name), set()).add((found[name], shape))
    return any(
        len({after for _, after in pairs}) > len({before for before, _ in pairs})
        for pairs in alike.values()
    )


def _candidates(
    config: Any, found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]
) -> Iterator[dict[str, int]]:
    """Yield settings that could stand for the sizes that changed, one or several at a time."""
    changes: dict[_Change, None] = {}
    for name, shape in found.items():
        for before, after in zip(shape, wanted[name], strict=len(shape) == len(wanted[name])):
            if before != after:
                changes.setdefault((before, after))
    options = [[*_settings(config, change)] for change in changes]
    for several in range(1, len(options) + 1):
        for chosen in itertools.combinations(options, several):
            for settings in itertools.product(*chosen):
                merged: dict[str, int] = {}
                for name, value in settings:
                    if merged.setdefault(name, value) != value:
                        break
                else:
                    yield merged


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


def _built(cls: type[nn.Module], config: Any) -> Shapes | None:
    """Return the shapes of a model of this class, made without memory; None if it cannot be."""
    try:
        with torch.device("meta"):
            return _shapes(cls(copy.deepcopy(config)))
    except Exception:  # whatever a class makes of settings that contradict each other
        return None
