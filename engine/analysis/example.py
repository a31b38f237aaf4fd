"""Running a model on example inputs, and leaving it exactly as it was found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from engine.errors import EngineError


class Example(NamedTuple):
    """Positional and keyword arguments of one call of a model."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def tensors(self) -> list[Tensor]:
        """Return every tensor among the arguments."""
        return [leaf for leaf in tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor)]


def example_of(model: nn.Module, args: Any, kwargs: Mapping[str, Any] | None = None) -> Example:
    """Return what ``args`` stands for.

    Args:
        model: says on which device and in which dtype a tensor for a bare shape is made.
        args: one tensor, a tuple or list of positional arguments, or the shape of the one input: a
            tuple of whole numbers, batch included, filled with standard normal values.
        kwargs: keyword arguments.

    Raises:
        EngineError: a shape with a size below one.
    """
    named = dict(kwargs or {})
    if not isinstance(args, tuple | list):
        return Example((args,), named)
    sizes = [size for size in args if isinstance(size, int) and not isinstance(size, bool)]
    if not args or len(sizes) < len(args):
        return Example(tuple(args), named)
    if min(sizes) < 1:
        raise EngineError(f"an input's shape has sizes of at least 1, got {tuple(args)}")
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    with _random_state(model):
        return Example((torch.randn(*sizes, dtype=like.dtype, device=like.device),), named)


def call(model: nn.Module, example: Example) -> Any:
    """Return the model's output.

    Raises:
        EngineError: the model does not run on the example, with the shapes that it was given.
    """
    try:
        return model(*example.args, **example.kwargs)
    except Exception as error:
        shapes = ", ".join(f"{tuple(t.shape)} {t.dtype}" for t in example.tensors()) or "no tensor"
        raise EngineError(
            f"the model does not run on the example inputs: {type(error).__name__}: {error}\n"
            f"  it was given: {shapes}"
        ) from error


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
        with torch.no_grad(), _random_state(model):
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


@contextmanager
def _random_state(model: nn.Module) -> Iterator[None]:
    devices = {p.device for p in model.parameters() if p.device.type not in ("cpu", "meta")}
    kinds = {device.type for device in devices} or {"cuda"}
    numbers = [device.index for device in devices if device.index is not None]
    with torch.random.fork_rng(numbers, device_type=kinds.pop()):
        yield
