"""Masks for any model: half of the channels of every block of bound layers, by size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from engine.speedup import Block, channel_blocks


@torch.no_grad()
def randomize(model: nn.Module, seed: int = 1) -> None:
    """Give constant parameters and running statistics values that show leaks.

    A norm whose scale is 1, whose shift is 0 and whose running mean is 0 leaves nothing behind
    when a channel goes; a gate that starts at zero makes all behind it dead. Trained models have
    neither.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        values = parameter.flatten()
        if values.numel() and parameter.is_floating_point() and bool((values == values[0]).all()):
            noise = 0.2 * torch.randn(parameter.shape, generator=generator)
            # One number is a gate or a temperature: a positive scale. More are zeros or a scale.
            zero = bool(values[0] == 0) and values.numel() > 1
            parameter.copy_(noise if zero else 1 + noise)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None:
            shape = module.running_mean.shape
            module.running_mean.copy_(0.2 * torch.randn(shape, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(shape, generator=generator))


@torch.no_grad()
def mask_half(model: nn.Module, args: Any, kwargs: Mapping[str, Any] | None = None) -> int:
    """Set half of the channels of each block to zero, those of smallest L1 norm; return how many.

    A block has one norm per channel, the sum over everything that goes when the channel goes. It is
    found with one reduction for each dimension of each parameter, not for each channel.
    """
    return sum(_mask_block(block) for block in channel_blocks(model, args, kwargs))


@torch.no_grad()
def mask_rows(model: nn.Module) -> int:
    """Set half of the rows of every weight and bias to zero by itself; return how many.

    That is what a filter pruner does that knows nothing of dependencies: layers that are added
    lose different channels, norms keep their shifts. Little can go, and nothing may be wrong.
    """
    masked = 0
    for module in model.modules():
        weight, bias = (getattr(module, name, None) for name in ("weight", "bias"))
        if not isinstance(weight, Tensor) or weight.dim() < 2:
            continue
        rows = weight.detach().flatten(1).abs().sum(1).argsort()[: len(weight) // 2]
        weight.index_fill_(0, rows, 0)
        if bias is not None and len(bias) == len(weight):
            bias.index_fill_(0, rows, 0)
        masked += len(rows)
    return masked


def _mask_block(block: Block) -> int:
    parts = [member for member in block.members if isinstance(member.tensor, nn.Parameter)]
    scores = torch.zeros(block.count, dtype=torch.float64)
    for part in parts:
        tensor = part.tensor.detach().abs().movedim(part.dim, 0)
        sizes = tensor.reshape(len(tensor), -1).sum(1)
        scores.index_add_(0, part.channel, sizes[part.indices].double())
    gone = torch.zeros(block.count, dtype=torch.bool)
    gone[scores.argsort()[: block.count // 2]] = True
    for part in parts:
        part.tensor.index_fill_(part.dim, part.indices[gone[part.channel]], 0)
    return int(gone.sum())
