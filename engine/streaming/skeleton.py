"""A model without weights, whose blocks get theirs one at a time."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from engine.calibration.blocks import blocks_of
from engine.errors import EngineError, nearest
from engine.streaming.weights import Weights


class _Slot(NamedTuple):
    """A parameter or buffer of a module, and under which name a file holds it."""

    module: nn.Module
    name: str
    key: str
    source: str


class Skeleton:
    """The model of a folder: what does not belong to a loaded block is on the meta device.

    A unit is what is loaded at a time: a block, or a layer in no list, such as an embedding. What a
    module around blocks has by itself stays loaded.

    Attributes:
        model: in evaluation mode.
        units: by name, in the model's order.

    Args:
        model: parameters on the meta device.
        weights: the folder's.

    Raises:
        EngineError: the folder lacks a tensor of the model, or has it in another shape.

    Warns:
        UserWarning: it has tensors that the model has not.
    """

    def __init__(self, model: nn.Module, weights: Weights) -> None:
        self.model = model.eval()
        self._weights = weights
        names = {module: name for name, module in model.named_modules()}
        self.units = {names[unit]: unit for unit in blocks_of(model, _leaves(model))}
        self._empty: dict[tuple[nn.Module, str], nn.Parameter] = {}
        self._slots = self._find_slots(names)
        inside = {module for unit in self.units.values() for module in unit.modules()}
        #: What is loaded for good.
        self.resident = [slot for slot in self._slots.values() if slot.module not in inside]
        self._warn_of_others()
        for slot in self.resident:
            self._fill(slot)

    def load(self, unit: nn.Module) -> None:
        """Give a unit its weights."""
        for slot in self._of(unit):
            self._fill(slot)

    def unload(self, unit: nn.Module) -> None:
        """Take a unit's weights away."""
        for slot in self._of(unit):
            if (slot.module, slot.name) in self._empty:
                slot.module._parameters[slot.name] = self._empty[slot.module, slot.name]

    def keys(self, name: str) -> list[str]:
        """Return the names of a unit's tensors; one that units share is the first one's."""
        return [slot.key for slot in self._of(self.units[name]) if slot.key not in self._second]

    @property
    def resident_keys(self) -> list[str]:
        """Names of tensors that belong to no unit."""
        return [slot.key for slot in self.resident]

    @property
    def fingerprint(self) -> list[list[object]]:
        """What tells the folder's weights from others: names, sizes and dates of the files."""
        stats = [(file.name, file.stat()) for file in self._weights.files]
        return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]

    def tied(self, keys: Mapping[str, str]) -> tuple[str, str] | None:
        """Return a layer of ``keys`` (key of its weight: name) that shares it, and with which."""
        for key, first in self._second.items():
            if key in keys or first in keys:
                return key.rpartition(".")[0], first.rpartition(".")[0]
        return None

    def _of(self, unit: nn.Module) -> list[_Slot]:
        inside = set(unit.modules())
        return [slot for slot in self._slots.values() if slot.module in inside]

    def _fill(self, slot: _Slot) -> None:
        value = self._weights.read(slot.source)
        empty = self._empty.get((slot.module, slot.name))
        if empty is None:
            slot.module._buffers[slot.name] = value
        else:
            parameter = nn.Parameter(value.to(empty.dtype), requires_grad=empty.requires_grad)
            slot.module._parameters[slot.name] = parameter

    def _find_slots(self, names: Mapping[nn.Module, str]) -> dict[str, _Slot]:
        state = self.model.state_dict(keep_vars=True)
        same: dict[int, list[str]] = {}
        for key, value in state.items():
            same.setdefault(id(value), []).append(key)
        #: Keys that are another key's tensor, with that.
        self._second = {key: keys[0] for keys in same.values() for key in keys[1:]}
        self._aliases = set(state)
        found = {}
        for module, name in names.items():
            for own, value in _own_tensors(module).items():
                key = f"{name}.{own}" if name else own
                held = [each for each in same[id(value)] if each in self._weights]
                found[key] = _Slot(module, own, key, held[0] if held else key)
                self._check(found[key], value)
                if isinstance(value, nn.Parameter):
                    self._empty[module, own] = value
        return found

    def _check(self, slot: _Slot, value: Tensor) -> None:
        if slot.source not in self._weights:
            near = nearest(slot.key, list(self._weights))
            hint = f'\n  the nearest that is there is "{near}"' if near else ""
            raise EngineError(
                f'the model has a tensor "{slot.key}", and no file of {self._weights.folder} '
                f"holds it{hint}\n  the model must be that of the folder, its names those of its "
                "state_dict"
            )
        shape = self._weights.place(slot.source).shape
        if shape != tuple(value.shape):
            raise EngineError(
                f'"{slot.source}" is {shape} in {self._weights.folder} and {tuple(value.shape)} in '
                "the model"
            )

    def _warn_of_others(self) -> None:
        known = {slot.source for slot in self._slots.values()} | self._aliases
        others = sorted(set(self._weights) - known)
        if others:
            shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
            warnings.warn(
                f"{self._weights.folder} holds {len(others)} tensors that the model has not, which "
                f"are left out: {shown}",
                stacklevel=5,
            )


def skeleton_of(folder: Path, factory: Callable[[], nn.Module] | None) -> Skeleton:
    """Return the model of a folder without weights.

    Args:
        folder: of transformers, unless there is a ``factory``.
        factory: returns the model; its parameters are made on the meta device.

    Raises:
        EngineError: the folder is no model's, is quantized already, or has a class that
            transformers does not know.
    """
    weights = Weights(folder)
    with without_weights():
        model = _pretrained(folder, weights) if factory is None else factory()
    if not isinstance(model, nn.Module):
        raise EngineError(f"the factory returned a {type(model).__name__}, no nn.Module")
    return Skeleton(model, weights)


@contextmanager
def without_weights() -> Iterator[None]:
    """Within, modules that are made have their parameters on the meta device; buffers are real."""
    own = nn.Module.register_parameter

    def register(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:
            param = nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)
        own(self, name, param)

    nn.Module.register_parameter = register  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = own  # type: ignore[method-assign]


def _pretrained(folder: Path, weights: Weights) -> nn.Module:
    file = folder / "config.json"
    if not file.exists():
        raise EngineError(
            f"{folder} has no config.json\n  give the model by a factory: model=lambda: MyModel()"
        )
    try:
        stated = json.loads(file.read_text(encoding="utf-8"))
        quantized, names = "quantization_config" in stated, stated.get("architectures") or [""]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise EngineError(f"{file} cannot be read: {error}") from error
    if quantized:
        raise EngineError(f"{folder} is quantized already: config.json has a quantization_config")
    try:
        import transformers
    except ImportError as error:
        raise EngineError(
            f"{folder} is a model of transformers, which is not installed\n"
            "  pip install 'engine[transformers]', or give the model by a factory"
        ) from error
    cls: Any = getattr(transformers, str(names[0]), None)
    if cls is None:
        raise EngineError(f'{file}: transformers has no class "{names[0]}" (architectures)')
    config = transformers.AutoConfig.from_pretrained(folder)
    floating = (weights.place(name).dtype for name in weights)
    dtype = next((each for each in floating if each.is_floating_point), torch.float32)
    model: nn.Module = cls._from_config(config, dtype=config.dtype or dtype)
    return model


def _leaves(model: nn.Module) -> list[nn.Module]:
    """Return modules with tensors of their own and none below them."""
    own = {module: bool(_own_tensors(module)) for module in model.modules()}
    return [
        module
        for module, has in own.items()
        if has and not any(own[inner] for inner in module.modules() if inner is not module)
    ]


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    passing = module._non_persistent_buffers_set
    found = {**module._parameters, **module._buffers}
    return {name: x for name, x in found.items() if x is not None and name not in passing}
