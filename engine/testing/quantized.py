"""Checks of what a quantizer makes of weights, inputs and outputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from engine.attach.compressor import Compressor
from engine.attach.wrapper import Wrapper
from engine.testing.networks import residual_net
from engine.testing.outcome import QUANTIZER, CheckSkippedError, check, require
from engine.testing.settings import coarse
from engine.testing.subject import Subject, loss_of, make_optimizer

_TYPES = ("weight", "input", "output")


@check(QUANTIZER)
def values_lie_on_the_grid(subject: Subject) -> str:
    """A tensor of b bits has at most 2^b values, for each scale that it is quantized with."""
    found = []
    for quant_type in _TYPES:
        settings = coarse(subject.plugin, quant_type)
        if settings is None:
            continue
        bits = settings["config_list"][0]["quant_bits"]
        model = subject.model()
        compressor = subject.at_rest(model, settings=settings)
        for wrapper, tensor in _quantized(subject, compressor, quant_type):
            _require_few(wrapper, quant_type, tensor, bits)
        found.append(f"{quant_type} of {bits} bits")
    if not found:
        raise CheckSkippedError("its schema has no quant_types or quant_bits")
    return ", ".join(found)


@check(QUANTIZER)
def quantized_tensors_fit(subject: Subject) -> None:
    """Quantized tensors have the shape, dtype and device of what they stand for, half ones too."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        model = subject.model().to(dtype)
        plain = subject.model().to(dtype)
        compressor = subject.at_rest(model)
        x = subject.inputs(99, model)
        with torch.no_grad():
            output, expected = model.eval()(*x), plain.eval()(*x)
        require(
            output.shape == expected.shape and output.dtype == dtype,
            f"outputs are {tuple(output.shape)} of {output.dtype} in a model of {dtype}",
        )
        require(output.isfinite().all(), f"outputs are not finite in {dtype}")
        for wrapper in compressor.get_modules_wrapper():
            parameter = wrapper.module._parameters.get("weight")
            weight: Any = getattr(wrapper.module, "weight", None)
            if parameter is not None:
                fits = weight.shape == parameter.shape and weight.dtype == parameter.dtype
                require(fits, f'the weight of layer "{wrapper.name}" has become {weight.dtype}')


@check(QUANTIZER)
def gradients_reach_weights_and_input(subject: Subject) -> None:
    """Gradients are finite, and reach the weights of every layer and the model's input."""
    model = subject.model()
    subject.at_rest(model)
    x = tuple(
        value.requires_grad_() if value.is_floating_point() else value
        for value in subject.inputs(99)
    )
    model.zero_grad()
    loss_of(model.train()(*x)).backward()
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        require(
            gradient is not None and gradient.isfinite().all(), f"{name} has no finite gradient"
        )
        assert gradient is not None
        require(parameter.dim() < 2 or bool(gradient.any()), f"no gradient reaches {name}")
    for value in x:
        if value.requires_grad:
            reached = value.grad is not None and value.grad.isfinite().all() and value.grad.any()
            require(reached, "no gradient reaches the model's input")


@check(QUANTIZER)
def weights_stay_as_the_optimizer_left_them(subject: Subject) -> None:
    """A forward pass changes no parameter and no input: quantized values are computed."""
    model = subject.model()
    subject.at_rest(model)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    x = subject.inputs(99)
    kept = [value.clone() for value in x]
    model(*x)
    for (name, parameter), value in zip(model.named_parameters(), before, strict=True):
        require(torch.equal(parameter, value), f"a forward pass has changed {name}")
    same = all(torch.equal(value, copy) for value, copy in zip(x, kept, strict=True))
    require(same, "a forward pass has changed the model's input")


@check(QUANTIZER)
def evaluation_changes_nothing(subject: Subject) -> None:
    """In evaluation mode the same input gives the same output, whatever was seen in between."""
    model = subject.model()
    subject.at_rest(model)
    model.eval()
    x = subject.inputs(99)
    with torch.no_grad():
        first = model(*x)
        model(*(10 * y if y.is_floating_point() else y for y in subject.inputs(7)))
        second = model(*x)
    require(torch.equal(first, second), "outputs change between two evaluations")


@check(QUANTIZER)
def degenerate_tensors_are_survived(subject: Subject) -> None:
    """Weights or inputs that are all zero or all equal, and single channels, give finite values."""
    for value in (0.0, 0.3):
        model = subject.model()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(value)
        _require_finite(subject, model, f"all weights are {value:g}")
    model = subject.model()
    zeros = tuple(torch.zeros_like(x) for x in subject.inputs())
    compressor = subject.attach(model, make_optimizer(model))
    require(compressor.bound_model(*zeros).isfinite().all(), "an input of zeros gives no numbers")
    if "model" not in subject.hints:
        _require_finite(subject, residual_net(channels=1), "layers have one channel")


def _require_finite(subject: Subject, model: nn.Module, when: str) -> None:
    subject.at_rest(model)
    output = model(*subject.inputs())
    require(output.isfinite().all(), f"outputs are not finite where {when}")
    loss_of(output).backward()
    for name, parameter in model.named_parameters():
        finite = parameter.grad is not None and bool(parameter.grad.isfinite().all())
        require(finite, f"the gradient of {name} is not finite where {when}")


def _quantized(
    subject: Subject, compressor: Compressor, quant_type: str
) -> Iterator[tuple[Wrapper, Tensor]]:
    """Yield each layer with its quantized tensor, as it is in evaluation."""
    if quant_type == "weight":
        for wrapper in compressor.get_modules_wrapper():
            weight: Any = wrapper.module.weight
            yield wrapper, weight.detach()
        return
    seen: list[tuple[Wrapper, Tensor]] = []

    def collect(wrapper: Wrapper, inputs: tuple[Any, ...], output: Any) -> None:
        for value in inputs if quant_type == "input" else (output,):
            if isinstance(value, Tensor) and value.is_floating_point():
                seen.append((wrapper, value.detach().clone()))

    # Added after the quantizer's own hooks, so that it sees what they made of the tensors.
    identifier = compressor.add_activation_collector(collect)
    with torch.no_grad():
        compressor.bound_model.eval()(*subject.inputs(99))
    compressor.remove_activation_collector(identifier)
    yield from seen


def _require_few(wrapper: Wrapper, quant_type: str, tensor: Tensor, bits: int) -> None:
    scale = getattr(wrapper, f"{quant_type}_scale", None)
    several = isinstance(scale, Tensor) and scale.numel() > 1
    rows = tensor.flatten(1) if several and tensor.dim() > 1 else tensor.reshape(1, -1)
    grid = wrapper.grids.get(quant_type)
    if grid is not None and grid.scheme.group_size is not None:
        rows = grid.scheme.arranged(tensor).flatten(0, 1)
    count = max(len(row.unique()) for row in rows)
    require(
        count <= 2**bits,
        f'the {quant_type} of layer "{wrapper.name}" has {count} different values, '
        f"{bits} bits have {2**bits}",
    )
