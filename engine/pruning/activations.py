"""Seeing the activation that follows a layer, wherever in the model it is computed.

What matters of a filter is what the network computes from it: the output of the activation
function, after any norm in between. While a model runs, a torch function mode follows each watched
layer's output through norms and dropout to the activation function, be it a module or a call.
A compiled model has neither modules nor calls any more: only forwards that run eagerly are watched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from engine.attach.model_hooks import OwnHook
from engine.attach.recomputed import is_recomputed
from engine.attach.wrapper import Wrapper
from engine.pruning.channels import Channels

_ACTIVATIONS: dict[str, tuple[Any, ...]] = {
    "relu": (F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_),
    "relu6": (F.relu6, F.hardtanh),
}
_APPLY: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "relu6": F.relu6}
#: Functions that an activation may come after, their first argument followed.
_TRANSPARENT = frozenset(
    (F.batch_norm, F.layer_norm, F.group_norm, F.instance_norm, F.rms_norm, F.dropout,
     F.dropout2d, F.dropout3d, Tensor.contiguous)
)  # fmt: skip


class ActivationWatch(TorchFunctionMode):
    """Calls ``observe(wrapper, activation)`` in each forward of ``model``.

    Args:
        model: the model whose forward is watched.
        wrappers: the layers whose activations are wanted.
        activation: "relu" or "relu6".
        wants: says whether a layer's activation is wanted now; where none is, nothing is followed.
        observe: gets the activation as (filters, samples), under ``torch.no_grad()``.
    """

    def __init__(
        self,
        model: nn.Module,
        wrappers: Sequence[Wrapper],
        activation: str,
        wants: Callable[[Wrapper], bool],
        observe: Callable[[Wrapper, Tensor], None],
    ) -> None:
        super().__init__()
        self._functions = _ACTIVATIONS[activation]
        self._apply = _APPLY[activation]
        self._wrappers = wrappers
        self._wants = wants
        self._observe = observe
        self._running = False
        self._followed: dict[int, tuple[Wrapper, Tensor]] = {}
        self._handles: list[RemovableHandle] = [
            model.register_forward_pre_hook(OwnHook(self._start)),
            model.register_forward_hook(OwnHook(self._stop), always_call=True),
        ]
        for wrapper in wrappers:
            follow = OwnHook(lambda module, args, out, w=wrapper: self._follow(w, out))
            self._handles.append(wrapper.module.register_forward_hook(follow))

    def remove(self) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run ``func`` and follow what came out of a watched layer."""
        found = self._followed.get(id(args[0])) if args else None
        result = func(*args, **(kwargs or {}))
        if found is not None:
            if func in self._functions:
                del self._followed[id(args[0])]
                self._report(found[0], result)
            elif func in _TRANSPARENT and isinstance(result, Tensor):
                del self._followed[id(args[0])]
                self._followed[id(result)] = (found[0], result)
        return result

    def _start(self, module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling():
            return
        if any(self._wants(wrapper) for wrapper in self._wrappers):
            self._running = True
            self._followed.clear()
            self.__enter__()  # type: ignore[no-untyped-call]

    def _stop(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._running:
            self._running = False
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            for wrapper, tensor in self._followed.values():
                self._report(wrapper, self._apply(tensor.detach()))
            self._followed.clear()

    def _follow(self, wrapper: Wrapper, output: Any) -> None:
        if torch.compiler.is_compiling() or is_recomputed():
            return
        if not isinstance(output, Tensor) or not self._wants(wrapper):
            return
        if self._running:
            self._followed[id(output)] = (wrapper, output)
        else:  # the layer was called by itself, not through the model
            self._report(wrapper, self._apply(output.detach()))

    @torch.no_grad()
    def _report(self, wrapper: Wrapper, activation: Tensor) -> None:
        self._observe(wrapper, Channels(wrapper.module).of_output(activation.detach()))
