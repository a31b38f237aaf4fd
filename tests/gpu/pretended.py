"""A pretended CUDA device: tensors that say that they are on a card and are computed on the CPU.

It finds without a card what only a card would complain of. Operators refuse operands of different
devices, as PyTorch does (a number, that is a CPU tensor without dimensions, may go with anything),
and every wait for the device is counted: where values are read (``item``, a mask used as an index)
or copied between the host and the card.
"""

from __future__ import annotations

import copy
import sys
import warnings
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_iter, tree_map

import engine
import plugins_builtin

aten = torch.ops.aten
NAME = "card"
_OURS = [Path(package.__file__).parent for package in (engine, plugins_builtin)]
_PASSED_OVER = [
    *(Path(torch.__file__).parent, Path(warnings.__file__), Path(__file__)),
    Path(__file__).with_name("conftest.py"),
]
_CPU = torch.device("cpu")

#: Operators that copy from one device to another: they take operands of both.
_COPIES = {aten.copy_, aten._to_copy, aten._foreach_copy_}
#: Indices on the CPU may be used on a tensor of the card (they are copied there).
_INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._unsafe_index}
#: Operators that read a value of the device, or whose result's shape depends on one.
_WAITS = {
    aten._local_scalar_dense, aten.item, aten.nonzero, aten.equal, aten.is_nonzero,
    aten.masked_select, aten.bincount, aten._unique2, aten.unique_dim, aten.unique_consecutive,
    aten.repeat_interleave, aten.linalg_cholesky_ex, aten._linalg_eigh, aten._linalg_svd,
}  # fmt: skip


class MixedDevicesError(RuntimeError):
    """What PyTorch raises on a machine with a card."""


class Pretended(Tensor):
    """A tensor of the pretended device; ``inner`` is the CPU tensor with its values."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor, requires_grad: bool = False) -> Pretended:
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=torch.device(NAME, 0),
            requires_grad=requires_grad,
        )
        made.inner = inner.detach()
        return made  # type: ignore[no-any-return]

    # What C++ refuses to tell of a subclass.

    def tolist(self) -> Any:
        return self.to(_CPU).tolist()

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.inner.untyped_storage()

    def __deepcopy__(self, memo: dict[int, Any]) -> Pretended:
        if id(self) not in memo:
            made = Pretended(self.inner.clone(), self.requires_grad)
            made.__dict__.update({k: v for k, v in self.__dict__.items() if k != "inner"})
            made.grad = copy.deepcopy(self.grad, memo)
            memo[id(self)] = made
        return memo[id(self)]  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        return f"Pretended({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {}, None)


class Card(TorchDispatchMode):
    """Within, ``device="cuda"`` makes pretended tensors.

    Attributes:
        waits: where in the source the device was waited for, and how often.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {}, self)


def run(func: Any, args: Any, kwargs: dict[str, Any], card: Card | None) -> Any:
    packet = func.overloadpacket
    given, _ = tree_flatten((args, kwargs))
    tensors = [x for x in given if isinstance(x, Tensor)]
    theirs = [t for t in tensors if isinstance(t, Pretended)]
    named = kwargs.get("device")
    target = torch.device(named) if named is not None else None
    if packet not in _COPIES:
        check(func, packet, args, tensors, theirs)
    if card is not None:
        reason = waits(packet, args, theirs, target)
        if reason:
            card.waits[f"{place()}: {reason}"] += 1
    plain_kwargs = tree_map(unwrap, kwargs)
    if target is not None:
        plain_kwargs["device"] = _CPU
    result = func(*tree_map(unwrap, args), **plain_kwargs)
    on_card = bool(theirs) if target is None else target.type == NAME
    if packet is aten.copy_:
        on_card = isinstance(args[0], Pretended)
    if not on_card:
        return result
    inside = [x for x in tree_iter((args, kwargs)) if isinstance(x, Pretended)]
    by_inner = {id(p.inner): p for p in inside}

    def wrap(value: Any) -> Any:
        if not isinstance(value, Tensor) or isinstance(value, Pretended):
            return value
        known = by_inner.get(id(value))
        return Pretended(value) if known is None else known

    return tree_map(wrap, result)


def unwrap(value: Any) -> Any:
    return value.inner if isinstance(value, Pretended) else value


def check(func: Any, packet: Any, args: Any, tensors: list[Tensor], theirs: list[Any]) -> None:
    if not theirs:
        return
    others = [t for t in tensors if not isinstance(t, Pretended) and t.dim() > 0]
    if packet in _INDEXING and isinstance(args[0], Pretended):
        indices = [i for i in args[1] if i is not None]
        others = [t for t in others if not any(t is i for i in indices)]
    if others:
        raise MixedDevicesError(
            f"{func} got tensors on {NAME} and on cpu: shapes "
            f"{[tuple(t.shape) for t in theirs]} and {[tuple(t.shape) for t in others]}"
        )


def waits(packet: Any, args: Any, theirs: list[Any], target: torch.device | None) -> str | None:
    """Return why the host waits for the card in this call, or None."""
    if packet in _WAITS and theirs:
        return packet.__name__
    if packet in _INDEXING and theirs:
        indices = [i for i in args[1] if i is not None]
        if any(i.dtype in (torch.bool, torch.uint8) for i in indices):
            return "index by a mask"
        if any(not isinstance(i, Pretended) for i in indices):
            return "index on the CPU"
    moves = packet is aten._to_copy and target is not None
    if moves and isinstance(args[0], Pretended) != (target.type == NAME):
        return f"copy to {target.type}"
    if packet is aten.copy_ and isinstance(args[0], Pretended) != isinstance(args[1], Pretended):
        return "copy between devices"
    return None


def place() -> str:
    """Return the line of the engine, or of a plugin, that is running; else the caller's own."""
    frame: FrameType | None = sys._getframe(1)
    outside = ""
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        line = f"{'/'.join(file.parts[-3:])}:{frame.f_lineno}"
        if any(file.is_relative_to(folder) for folder in _OURS):
            return line
        if not outside and not any(file.is_relative_to(other) for other in _PASSED_OVER):
            outside = line
        frame = frame.f_back
    return outside


class _Backend(backend_registration._DummyBackendModule):
    """``torch.card``: random numbers are the CPU's."""

    def get_rng_state(self, device: Any = 0) -> Tensor:
        return torch.zeros(1, dtype=torch.uint8)

    def set_rng_state(self, state: Tensor, device: Any = 0) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


def card() -> Card:
    """Give this process a pretended card; all that follows can use it. It cannot be taken away."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Backend())
    torch.autograd.set_multithreading_enabled(False).__enter__()
    made = Card()
    made.__enter__()
    return made
