"""What speedup changed, as plain values: it makes a fresh model of the same class as small."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from engine.attach.checkpoint import load_model
from engine.errors import CheckpointError, nearest
from engine.files import PathLike, load_tensors, save_tensors
from engine.files.plain import says
from engine.speedup.attention import PrunedMultiheadAttention, shrink_attention
from engine.speedup.rewrite import Snapshot
from engine.speedup.widen import hook, places_of

_KEY = "_speedup_recipe"
_FORMAT = "engine smaller model"
_VERSION = 1
#: What the class of a graph module has beside the name of the model's.
GRAPH = "Graph"


def remember(model: nn.Module, snapshot: Snapshot) -> None:
    """Keep on ``model`` what is different from ``snapshot``, with what was different before."""
    recipe: dict[str, Any] = model.__dict__.get(_KEY, {})
    names = {id(module): name for name, module in model.named_modules()}
    for state in snapshot.modules:
        module = state.module
        entry: dict[str, Any] = {"class": state.kind.__name__}
        tensors = {}
        for name, new in [*module._parameters.items(), *module._buffers.items()]:
            old = state.parameters.get(name, state.buffers.get(name))
            if new is not None and (old is None or old.shape != new.shape):
                tensors[name] = list(new.shape)
        widened = places_of(module)
        tensors = {n: s for n, s in tensors.items() if n not in module._non_persistent_buffers_set}
        plain = {
            name: list(value) if isinstance(value, list | tuple) else value
            for name, value in module.__dict__.items()
            if not name.startswith("_") and _is_plain(value) and value != state.attributes.get(name)
        }
        if isinstance(module, PrunedMultiheadAttention) and tensors:
            entry["attention"] = {"scale": module.scale, "heads": module.num_heads}
        entry |= {
            key: value
            for key, value in (("tensors", tensors), ("attributes", plain), ("zeros", widened))
            if value
        }
        if len(entry) > 1:
            known = recipe.setdefault(names[id(module)], {"class": entry["class"]})
            for key, value in entry.items():
                if isinstance(value, dict) and key != "attention":
                    known[key] = {**known.get(key, {}), **value}
                elif key != "class":
                    known[key] = value
    model.__dict__[_KEY] = recipe


def _is_plain(value: Any) -> bool:
    """Return whether an attribute holds sizes: a number, or some in a row."""
    if type(value) in (list, tuple):
        return all(type(each) is int for each in value)
    return type(value) is int


def is_smaller(model: nn.Module) -> bool:
    """Return whether speedup has made ``model`` smaller."""
    return bool(model.__dict__.get(_KEY))


def save_compressed(model: nn.Module, path: PathLike) -> None:
    """Write a model that speedup made smaller: its ``state_dict`` and the recipe for its shapes.

    Args:
        model: what ``apply_speedup`` or ``speedup`` returned or changed.
        path: the file; written whole or not at all.

    Raises:
        CheckpointError: the model was not made smaller by speedup.
        ExportError: the file cannot be written.
    """
    recipe = model.__dict__.get(_KEY)
    if not recipe:
        raise CheckpointError(
            "this model was not made smaller by speedup; save its state_dict as usual"
        )
    save_tensors(
        path,
        {
            "format": _FORMAT,
            "version": _VERSION,
            "recipe": recipe,
            "state_dict": {k: v.detach().cpu() for k, v in model.state_dict().items()},
        },
        read_back=True,
    )


def load_compressed(model: nn.Module, path: PathLike) -> nn.Module:
    """Make a fresh model as small as the saved one, load its weights and return it.

    Args:
        model: a new instance of the class that was compressed, in its original size; changed in
            place.
        path: what :func:`save_compressed` wrote.

    Raises:
        CheckpointError: the file is no such file, or does not fit the model, which is unchanged.
    """
    held: Any = load_tensors(path)
    if not isinstance(held, Mapping) or not says(held.get("format"), _FORMAT):
        raise CheckpointError(f"{path} was not written by save_compressed")
    if not says(held.get("version"), _VERSION):
        raise CheckpointError(f"{path} has version {held.get('version')}, this engine reads 1")
    snapshot = Snapshot(model)
    try:
        _reshape(model, held["recipe"], snapshot)
        load_model(model, held["state_dict"])
    except CheckpointError:
        snapshot.restore()
        raise
    except Exception as error:
        snapshot.restore()
        raise CheckpointError(
            f"{path} is damaged: {type(error).__name__}: {error}; the model is unchanged"
        ) from error
    model.__dict__[_KEY] = held["recipe"]
    return model


def _reshape(model: nn.Module, recipe: Mapping[str, Any], snapshot: Snapshot) -> None:
    modules = dict(model.named_modules())
    fresh: dict[int, nn.Parameter] = {}
    for path, entry in recipe.items():
        if path not in modules:
            near = nearest(path, modules)
            hint = f', did you mean "{near}"?' if near else ""
            raise CheckpointError(f'the model has no module "{path}"{hint}')
        module = modules[path]
        if type(module).__name__ not in (entry["class"], PrunedMultiheadAttention.__name__):
            graph = f"{type(module).__name__}{GRAPH}"
            hint = (
                "\n  load it into engine.speedup.as_graph_module(model, dummy_input)"
                if entry["class"] == graph and not path
                else ""
            )
            raise CheckpointError(
                f'"{path or "the model"}" is a {type(module).__name__}, '
                f"the saved one is a {entry['class']}{hint}"
            )
        for name, shape in entry.get("tensors", {}).items():
            _resize(module, name, shape, fresh)
        for name, value in entry.get("attributes", {}).items():
            kind = type(module.__dict__.get(name, value))
            module.__dict__[name] = kind(value) if kind in (list, tuple) else value
        attention = entry.get("attention")
        if attention is not None and isinstance(module, nn.MultiheadAttention):
            shrink_attention(module, attention["scale"], attention["heads"])
        if "zeros" in entry:
            snapshot.handles.extend(hook(module, entry["zeros"]))
        if isinstance(module, nn.RNNBase):
            module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]


def _resize(module: nn.Module, name: str, shape: list[int], fresh: dict[int, nn.Parameter]) -> None:
    if name in module._buffers:
        old_buffer = module._buffers[name]
        assert old_buffer is not None
        module._buffers[name] = old_buffer.new_empty(shape)
        return
    old = module._parameters.get(name)
    like: Tensor = old if old is not None else next(module.parameters())
    if old is not None and id(old) in fresh:
        module._parameters[name] = fresh[id(old)]
        return
    made = nn.Parameter(torch.empty(shape, dtype=like.dtype, device=like.device))
    made.requires_grad_(like.requires_grad)
    module._parameters[name] = made
    if old is not None:
        fresh[id(old)] = made
