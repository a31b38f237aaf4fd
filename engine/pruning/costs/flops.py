"""Floating-point operations, counted per ATen operator while a model runs.

A multiply-add counts as two, matrix products and convolutions alone are counted: the convention of
``torch.utils.flop_counter``. In both a weight is multiplied as often as its operator has output
positions, padding included, so that an operator's operations are ``2 * uses * weights`` and those
of its nonzero weights ``2 * uses * nonzeros``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch._subclasses import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


class Work(NamedTuple):
    """One contraction: its operations, and the operands that may be its weight, likeliest first."""

    flops: int
    operands: tuple[Tensor, ...] = ()


class Tally:
    """What one module did in its own frame, not in that of a module inside it."""

    def __init__(self) -> None:
        self.calls = 0
        self.flops = 0
        self.masked_flops = 0
        self.output_shape: tuple[int, ...] = ()


class FlopCounter(TorchDispatchMode):
    """Counts for each module of ``model`` what runs within :meth:`watching`.

    Functional calls count for the module whose ``forward`` makes them. A weight is whatever does
    not depend on the inputs: a parameter, or what was computed from parameters.

    Attributes:
        tallies: by the module's name; a module that runs several times adds up.
    """

    #: Branches (``torch.cond``) and flexible attention arrive whole: the latter has a formula.
    supports_higher_order_operators = True

    def __init__(self, model: nn.Module, inputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tallies: dict[str, Tally] = {"": Tally()}
        self._model = model
        self._path = [""]
        self._varying = {key for tensor in inputs if (key := _storage(tensor)) is not None}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count what runs within."""
        handles = []
        for name, module in self._model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # has no such hooks; what it does counts for the module around it
            handles.append(module.register_forward_pre_hook(self._enter_module(name), prepend=True))
            handles.append(module.register_forward_hook(self._leave_module(name), always_call=True))
        try:
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the operator and count it."""
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled() and _name(func) not in RULES:
            # There operators arrive before they are taken apart.
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        output = func(*args, **kwargs)
        tally = self.tallies[self._path[-1]]
        for work in _work(func, args, kwargs, output):
            tally.flops += work.flops
            tally.masked_flops += self._of_nonzeros(work)
        self._follow(func, (args, kwargs), output)
        return output

    def _of_nonzeros(self, work: Work) -> int:
        weight = next((t for t in work.operands if _storage(t) not in self._varying), None)
        if weight is None or not weight.numel():
            return work.flops
        return work.flops * nonzeros(weight) // weight.numel()

    def _follow(self, func: Any, given: Any, output: Any) -> None:
        """Keep track of which memory holds what depends on the model's inputs."""
        inputs = [t for t in tree_leaves(given) if isinstance(t, Tensor)]
        before = {_storage(tensor) for tensor in inputs}
        varies = not before.isdisjoint(self._varying)
        written = [t for t in tree_leaves(output) if isinstance(t, Tensor)]
        if isinstance(func, OpOverload) and func._schema.is_mutable:
            written += inputs[:1]
        for key in map(_storage, written):
            if key is None:
                continue
            if varies:
                self._varying.add(key)
            elif key not in before:
                # Memory that is used again: what was there is gone.
                self._varying.discard(key)

    def _enter_module(self, name: str) -> Callable[..., None]:
        def enter(module: nn.Module, args: Any) -> None:
            self._path.append(name)
            self.tallies.setdefault(name, Tally()).calls += 1

        return enter

    def _leave_module(self, name: str) -> Callable[..., None]:
        def leave(module: nn.Module, args: Any, output: Any) -> None:
            self._path.pop()
            shapes = [tuple(t.shape) for t in tree_leaves(output) if isinstance(t, Tensor)]
            self.tallies[name].output_shape = shapes[0] if shapes else ()

        return leave


Rule = Callable[[Sequence[Any], Any], list[Work]]


def _product(left: int, right: int) -> Rule:
    """Return the rule of a matrix product whose factors are these positional arguments."""

    def rule(args: Sequence[Any], output: Any) -> list[Work]:
        a, b = args[left], args[right]
        # Every element of (.., m, k) meets the n columns of (.., k, n); a vector has one column.
        columns = b.shape[-1] if b.dim() > 1 else 1
        return [Work(2 * a.numel() * columns, (b, a))]

    return rule


def _convolution(args: Sequence[Any], output: Any) -> list[Work]:
    x, weight, transposed = args[0], args[1], args[6]
    # Each weight meets every position of the output, or of the input when it scatters.
    at = x if transposed else output
    return [Work(2 * weight.numel() * (at.numel() // max(at.shape[1], 1)), (weight,))]


def _attention(args: Sequence[Any], output: Any) -> list[Work]:
    query, key, value = args[:3]
    rows = prod(query.shape[:-1])
    return [Work(2 * rows * key.shape[-2] * (query.shape[-1] + value.shape[-1]))]


def _bilinear(args: Sequence[Any], output: Any) -> list[Work]:
    x, weight = args[0], args[1]
    return [Work(2 * weight.numel() * (x.numel() // weight.shape[1]), (weight,))]


def _recurrent(args: Sequence[Any], output: Any) -> list[Work]:
    """Fused recurrent layers: every matrix is applied once at each position."""
    x, weights = args[0], args[1]
    weights = weights if isinstance(weights, list | tuple) else args[1:3]
    positions = x.numel() // max(x.shape[-1], 1)
    return [Work(2 * positions * w.numel(), (w,)) for w in weights if w.dim() > 1]


#: By the operator's name, the rule that takes its positional arguments and its output.
RULES: Mapping[str, Rule] = {
    "mm": _product(0, 1),
    "bmm": _product(0, 1),
    "mv": _product(0, 1),
    "dot": _product(0, 1),
    "addmm": _product(1, 2),
    "_addmm_activation": _product(1, 2),
    "addmv": _product(1, 2),
    "baddbmm": _product(1, 2),
    "addbmm": _product(1, 2),
    "convolution": _convolution,
    "_trilinear": _bilinear,
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_flash_attention": _attention,
    "_scaled_dot_product_efficient_attention": _attention,
    "_scaled_dot_product_cudnn_attention": _attention,
    "_scaled_dot_product_fused_attention_overrideable": _attention,
    "mkldnn_rnn_layer": _recurrent,
    "_cudnn_rnn": _recurrent,
    "miopen_rnn": _recurrent,
}


def _work(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> list[Work]:
    rule = RULES.get(_name(func))
    if rule is not None:
        return rule(args, output)
    formula = flop_registry.get(getattr(func, "overloadpacket", func))
    return [] if formula is None else [Work(int(formula(*args, **kwargs, out_val=output)))]


def nonzeros(tensor: Tensor) -> int:
    """Return how many elements are not zero; all of a tensor that holds no values (meta)."""
    if tensor.device.type == "meta" or isinstance(tensor, FakeTensor):
        return tensor.numel()
    dense = tensor if tensor.layout == torch.strided else tensor.to_dense()
    return int(torch.count_nonzero(dense))


def _name(func: Any) -> str:
    return str(func._schema.name).removeprefix("aten::") if isinstance(func, OpOverload) else ""


def _storage(tensor: Tensor) -> int | None:
    """Return what tells a tensor's memory apart, None where it has none (sparse, nested)."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return None
