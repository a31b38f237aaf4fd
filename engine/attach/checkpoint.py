"""Saving and restoring a compressor: all or nothing, tensors and plain values only."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from engine.attach.configured import Configured
from engine.attach.wrapper import Wrapper
from engine.errors import CheckpointError, nearest
from engine.files.plain import says

_VERSION = 1
_WRAPPER_KEYS = {"buffers", "attributes"}
_KEYS = {"version", "algorithms", "epoch", "wrappers", "extra"}
_MASKS = {"weight_mask": "weight", "bias_mask": "bias"}


def state_of(compressor: Configured) -> dict[str, Any]:
    """Return the state of ``compressor``: its wrappers, its plugins, where training stands.

    And, before the model is trained, what its weights were before they were changed.
    """
    changes = compressor._changes.state(compressor.bound_model)
    return {
        "version": _VERSION,
        "algorithms": [part.plugin_name for part in compressor._participants()],
        "epoch": compressor.epoch,
        "wrappers": {wrapper.name: _wrapper_state(wrapper) for wrapper in compressor.wrappers},
        "extra": [dict(part.get_extra_state()) for part in compressor._participants()],
        "extensions": {
            name: dict(extension.get_extra_state())
            for name, extension in _extensions(compressor).items()
        },
        **({"changes": changes} if changes else {}),
        **({"calibrated": True} if compressor.calibrated else {}),
    }


def restore(compressor: Configured, state: Mapping[str, Any]) -> None:
    """Restore what :func:`state_of` returned.

    Raises:
        CheckpointError: another version, algorithm or model; nothing was changed.
    """
    if not (
        isinstance(state, Mapping)
        and says(state.get("version"), _VERSION)
        and _KEYS.issubset(state)
    ):
        raise CheckpointError(
            "this is not a state of a compressor (compressor.state_dict()); a model's state_dict "
            "is loaded with load_model_state_dict"
        )
    own = [part.plugin_name for part in compressor._participants()]
    of, saved = state["algorithms"], state["wrappers"]
    if not isinstance(of, list) or not all(isinstance(name, str) for name in of):
        raise CheckpointError("the state is damaged; nothing was changed")
    if of != own:
        raise CheckpointError(
            f"the state is of {' + '.join(of)}, the compressor is {' + '.join(own)}"
        )
    if not isinstance(saved, Mapping) or not isinstance(state["epoch"], int):
        raise CheckpointError("the state is damaged; nothing was changed")
    by_name = {wrapper.name: wrapper for wrapper in compressor.wrappers}
    faults = [f'layer "{name}" is not configured here' for name in saved if name not in by_name]
    faults += [f'the state has no layer "{name}"' for name in by_name if name not in saved]
    for name, wrapper in by_name.items():
        entry = saved.get(name)
        if name not in saved:
            continue
        if not isinstance(entry, Mapping) or not all(
            isinstance(entry.get(key), Mapping) for key in _WRAPPER_KEYS
        ):
            faults.append(f'layer "{name}" is damaged')
            continue
        faults += _unlike(wrapper, entry)
        for mask, parameter_name in _MASKS.items():
            tensor = entry["buffers"].get(mask)
            parameter = wrapper.own(parameter_name)
            if tensor is not None and not isinstance(tensor, Tensor):
                faults.append(f'"{name}" {mask} is a {_class_of(tensor)}, not a tensor')
            elif tensor is not None and not bool(((tensor == 0) | (tensor == 1)).all()):
                faults.append(f'"{name}" {mask} has values that are neither 0 nor 1')
            elif tensor is not None and (parameter is None or tensor.shape != parameter.shape):
                has = "none" if parameter is None else tuple(parameter.shape)
                faults.append(f'"{name}" {mask}: {tuple(tensor.shape)}, the layer has {has}')
    if faults:
        raise CheckpointError(_list("the state does not fit this model", faults))
    before = state_of(compressor)
    try:
        _put(compressor, by_name, state)
    except Exception as error:
        # Whatever a damaged state makes of the wrappers and plugins: all of it is undone.
        _put(compressor, by_name, before)
        raise CheckpointError(
            f"the state is damaged: {type(error).__name__}: {error}; nothing was changed"
        ) from error


def _put(compressor: Configured, by_name: Mapping[str, Wrapper], state: Mapping[str, Any]) -> None:
    saved = state["wrappers"]
    for name, wrapper in by_name.items():
        for key, value in saved[name]["buffers"].items():
            # Masks go through here too: None means that the parameter is not masked.
            _set_tensor(wrapper, key, value)
        for key, value in saved[name]["attributes"].items():
            wrapper.set_attribute(key, copy.deepcopy(value))
    for part, extra in zip(compressor._participants(), state["extra"], strict=True):
        part.epoch = state["epoch"]
        part.set_extra_state(extra)
    # One that was added or left out since the state was saved begins anew, or is passed over.
    for name, extension in _extensions(compressor).items():
        if name in state.get("extensions", {}):
            extension.set_extra_state(state["extensions"][name])
    compressor._state_replaced()
    compressor.calibrated = bool(state.get("calibrated", False))
    if "changes" in state:
        compressor._changes.restore(compressor.bound_model, state["changes"])


def _extensions(compressor: Configured) -> dict[str, Any]:
    """Return the extensions that have a state of their own, by class name and order."""
    named: dict[str, Any] = {}
    for extension in compressor.extensions:
        if hasattr(extension, "get_extra_state") and hasattr(extension, "set_extra_state"):
            name = _class_of(extension)
            others = sum(key.partition(" ")[0] == name for key in named)
            named[f"{name} {others + 1}" if others else name] = extension
    return named


def _unlike(wrapper: Wrapper, entry: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return how a layer's saved state is of another configuration."""
    faults = [
        f'"{wrapper.name}" {key}: the state has none'
        for key in _tensors(wrapper)
        if key not in entry["buffers"]
    ]
    for key, value in entry["attributes"].items():
        own = wrapper.attributes().get(key)
        if key in wrapper._own:
            faults.append(f'"{wrapper.name}" {key} cannot be restored')
        elif key.endswith(("_qmin", "_qmax")) and own not in (None, value):
            faults.append(f'"{wrapper.name}" {key}: {value}, here it is {own}')
    return faults


def load_model(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Load ``state`` into ``model`` when every key and shape fits, else change nothing.

    Raises:
        CheckpointError: missing, unexpected or differently shaped entries; all of them named.
    """
    if not isinstance(state, Mapping):
        raise CheckpointError(f"a state_dict maps names to tensors, this is a {_class_of(state)}")
    own = model.state_dict()
    faults = [
        f'"{key}" is not in the model' + (f', did you mean "{near}"?' if near else "")
        for key in state
        if key not in own
        for near in [nearest(key, own)]
    ]
    faults += [f'"{key}" is missing' for key in own if key not in state]
    for key, value in state.items():
        current = own.get(key)
        if isinstance(current, Tensor):
            if not isinstance(value, Tensor):
                faults.append(f'"{key}" is a {_class_of(value)}, not a tensor')
            elif value.shape != current.shape:
                faults.append(
                    f'"{key}": {tuple(value.shape)}, the model has {tuple(current.shape)}'
                )
    if faults:
        raise CheckpointError(_list("the state_dict does not fit this model", faults))
    model.load_state_dict(state)


def _wrapper_state(wrapper: Wrapper) -> dict[str, Any]:
    return {
        "buffers": {
            key: None if value is None else value.detach().clone()
            for key, value in _tensors(wrapper).items()
        },
        "attributes": copy.deepcopy(wrapper.attributes()),
    }


def _tensors(wrapper: Wrapper) -> dict[str, Tensor | None]:
    """Return what is saved of a wrapper: buffers, those of its submodules, learned parameters."""
    inner = {**dict(wrapper.named_buffers()), **dict(wrapper.named_parameters())}
    return {**wrapper._buffers, **inner}


def _set_tensor(wrapper: Wrapper, key: str, value: Tensor | None) -> None:
    owner, _, name = key.rpartition(".")
    module = wrapper.get_submodule(owner)
    current: Tensor | None = module._parameters.get(name)
    if current is None and owner:
        current = module._buffers[name]
    if current is None or value is None:
        wrapper.set_attribute(key, value)
        return
    if current.shape != value.shape:
        raise ValueError(f"{key} has shape {tuple(value.shape)}, not {tuple(current.shape)}")
    with torch.no_grad():  # in place: an optimizer may hold it
        current.copy_(value)


def _class_of(value: object) -> str:
    return type(value).__name__


def _list(title: str, faults: list[str]) -> str:
    shown = faults[:8] + ([f"and {len(faults) - 8} more"] if len(faults) > 8 else [])
    return "\n  ".join([f"{title}; nothing was changed", *shown])
