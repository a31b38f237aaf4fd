"""Every algorithm trains on the device as on the CPU, and keeps its promises there."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from runs import (
    ALGORITHMS,
    CPU,
    PRUNERS,
    QUANTIZERS,
    assert_alike,
    assert_masked,
    assert_on,
    at_rest,
    standing,
    subject,
    train,
)  # fmt: skip
from torch import Tensor, nn

from engine.testing.subject import loss_of, make_optimizer


@pytest.mark.parametrize("name", ALGORITHMS)
def test_masks_grids_and_statistics_are_those_of_the_cpu(name: str, device: torch.device) -> None:
    of = subject(name)
    _, wanted, _ = at_rest(of, CPU, standing)
    model, found, _ = at_rest(of, device, standing)
    assert_alike(found, wanted)
    assert_on(found, next(model.parameters()).device)


@pytest.mark.parametrize("name", PRUNERS)
def test_masked_weights_are_zero_after_each_step(name: str, device: torch.device) -> None:
    of = subject(name)
    model, pruner, optimizer = at_rest(of, device)
    assert assert_masked(pruner) > 0
    for place in range(2):
        step(of, model, optimizer, place)
        assert_masked(pruner)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_model_of_half_precision_trains(
    name: str, dtype: torch.dtype, device: torch.device
) -> None:
    of = subject(name)
    model = of.model().to(device, dtype)
    optimizer = make_optimizer(model)
    compressor = of.attach(model, optimizer)
    train(of, compressor, optimizer)
    assert_masked(compressor)
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert {p.dtype for p in model.parameters()} == {dtype}


@pytest.mark.parametrize("name", [*PRUNERS, *QUANTIZERS])
def test_channels_last_stays_and_changes_nothing(name: str, device: torch.device) -> None:
    of = subject(name)
    _, wanted, _ = at_rest(of, device, standing)
    model = of.model().to(device).to(memory_format=torch.channels_last)
    optimizer = standing(model)
    compressor = of.attach(model, optimizer)
    train(of, compressor, optimizer, lambda x: model(x.to(memory_format=torch.channels_last)))
    assert_alike(compressor, wanted)
    weight = model.body._parameters["weight"]
    assert weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_autocast_and_a_scaler(name: str, dtype: torch.dtype, real_device: torch.device) -> None:
    of = subject(name)
    model = of.model().to(real_device)
    optimizer = make_optimizer(model)
    compressor = of.attach(model, optimizer)
    scaler = torch.amp.GradScaler(real_device.type, init_scale=64.0, enabled=dtype == torch.float16)
    scaled_train(of, compressor, model, optimizer, scaler, dtype)
    of.calibrate(compressor)
    assert_masked(compressor)
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.parametrize("name", ALGORITHMS)
def test_compiled_is_as_eager(name: str, real_device: torch.device) -> None:
    of = subject(name)
    _, wanted, _ = at_rest(of, real_device, standing)
    model = of.model().to(real_device)
    optimizer = standing(model)
    compressor = of.attach(model, optimizer)
    torch.compiler.reset()
    # Kernels are made for a card only: on the CPU this test is about graphs.
    backend = "inductor" if real_device.type == "cuda" else "aot_eager"
    compiled: Callable[..., Any] = torch.compile(model, backend=backend)
    # What ranks activations watches eager forwards: a compiled model has no modules any more.
    watches = hasattr(compressor, "activation_statistic")
    train(of, compressor, optimizer, None if watches else compiled)
    assert_alike(compressor, wanted)
    model.eval()
    torch.testing.assert_close(compiled(*of.inputs(7, model)), model(*of.inputs(7, model)))


def step(of: Any, model: nn.Module, optimizer: torch.optim.Optimizer, place: int) -> None:
    optimizer.zero_grad()
    loss_of(model(*of.inputs(place, model))).backward()
    optimizer.step()


def scaled_train(
    of: Any,
    compressor: Any,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    dtype: torch.dtype,
) -> None:
    for number in range(of.rounds()):
        begin = getattr(compressor, "prune_iteration_start", None)
        if begin is None:
            compressor.update_epoch(number)
        else:
            begin()
        for batch in range(of.batches()):
            optimizer.zero_grad()
            with torch.autocast(next(model.parameters()).device.type, dtype):
                loss: Tensor = loss_of(model(*of.inputs(batch, model)))
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
