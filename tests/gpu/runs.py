"""Runs of a plugin on a device, the same on any: what the tests of this folder compare."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from engine import Compressor
from engine.plugins import registry
from engine.testing.subject import Subject


def _named(*kinds: str) -> list[Any]:
    """Every installed algorithm that can be used; searches, which train many times, are slow."""
    return [
        pytest.param(plugin.name, marks=[pytest.mark.slow] * (plugin.role == "search"))
        for plugin in registry.algorithms()
        if plugin.status == "ok" and plugin.kind in kinds
    ]


ALGORITHMS = _named("pruning", "quantization")
PRUNERS = [
    each for each in _named("pruning") if registry.find(str(each.values[0])).role != "blocks"
]
QUANTIZERS = _named("quantization")

CPU = torch.device("cpu")

#: Returns the number of waits of the engine and its plugins in one call, by place in the source.
CountWaits = Callable[[Callable[[], object]], Counter[str]]


def subject(name: str) -> Subject:
    return Subject(registry.find(name))


def standing(model: nn.Module) -> Optimizer:
    """An optimizer that steps and moves nothing: weights stay those of another device."""
    return torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)


def moving(model: nn.Module) -> Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def train(of: Subject, compressor: Compressor, optimizer: Optimizer, forward: Any = None) -> None:
    """Train until nothing is due any more."""
    rounds, batches = range(of.rounds()), of.batches()
    of.train(compressor, optimizer, rounds, batches=batches, forward=forward)
    of.calibrate(compressor)


def at_rest(
    of: Subject, device: torch.device, make_optimizer: Any = moving, **settings: Any
) -> tuple[nn.Module, Compressor, Optimizer]:
    """The algorithm on a model of ``device``, trained until nothing is due any more."""
    model = of.model().to(device)
    optimizer = make_optimizer(model)
    compressor = of.attach(model, optimizer, **settings)
    train(of, compressor, optimizer)
    return model, compressor, optimizer


def tensors(compressor: Compressor) -> dict[str, Tensor]:
    """Masks, grids and statistics by layer and name, on the CPU."""
    return {
        f"{layer}.{name}": value.cpu()
        for layer, kept in compressor.state_dict()["wrappers"].items()
        for name, value in kept["buffers"].items()
        if value is not None
    }


def assert_alike(found: Compressor, wanted: Compressor) -> None:
    """Masks are equal; grids and statistics close: sums run in another order on a card."""
    ours, theirs = tensors(found), tensors(wanted)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        if name.endswith("_mask"):
            assert torch.equal(value, theirs[name]), name
        else:
            torch.testing.assert_close(value, theirs[name], rtol=1e-3, atol=1e-4, equal_nan=True)


def assert_on(compressor: Compressor, device: torch.device) -> None:
    for wrapper in compressor.get_modules_wrapper():
        for name in [*wrapper._buffers, *wrapper._parameters]:
            value = getattr(wrapper, name)
            assert value is None or value.device == device, f"{wrapper.name} {name}"


def assert_masked(compressor: Compressor) -> int:
    """Every masked parameter is zero where its mask is; return how many elements are removed."""
    removed = 0
    for wrapper in compressor.get_modules_wrapper():
        for name in ("weight", "bias"):
            mask = wrapper.mask(name)
            if mask is not None:
                value = getattr(wrapper.module, name)  # what the layer computes with
                assert not bool(value[mask == 0].any()), f"{wrapper.name}.{name}"
                removed += int((mask == 0).sum())
    return removed
