"""Running a model, and leaving it exactly as it was found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from engine.user_code.randomness import random_state


@contextmanager
def undisturbed(model: nn.Module, *, fused_attention: bool = False) -> Iterator[None]:
    """Run what is inside in evaluation mode without gradients; put everything back afterwards.

    Training modes, the values of buffers and PyTorch's random state are as before, also after an
    exception.

    Args:
        model: the model that will run.
        fused_attention: let ``nn.MultiheadAttention`` and transformer layers take their fused fast
            path, whose inner operators cannot be seen.
    """
    state = State(model, parameters=False)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(fused_attention and fast_path)
    try:
        with torch.no_grad(), random_state(model):
            model.eval()
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        state.restore()


class State:
    """What a model is now, to put back: training modes, buffers and, if asked for, parameters.

    The tensors are copied, each on its device.
    """

    def __init__(self, model: nn.Module, *, parameters: bool) -> None:
        self._modes = [(module, module.training) for module in model.modules()]
        self._held: list[tuple[dict[str, Any], str, Tensor]] = []
        self._values: dict[int, tuple[Tensor, Tensor]] = {}
        for module in model.modules():
            holders: list[dict[str, Any]] = [module._buffers]
            if parameters:
                holders.append(module._parameters)
            for holder in holders:
                for name, tensor in holder.items():
                    if tensor is not None:
                        self._held.append((holder, name, tensor))
                        self._values.setdefault(id(tensor), (tensor, tensor.detach().clone()))

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back: the same tensors with the same values."""
        for module, training in self._modes:
            module.training = training
        for holder, name, tensor in self._held:
            holder[name] = tensor
        for tensor, value in self._values.values():
            if not tensor.is_inference():
                tensor.copy_(value)
