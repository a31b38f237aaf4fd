"""Running a model and watching every ATen call: labels flow as values do.

Whatever Python does in ``forward`` has happened by the time an operator runs, so that any control
flow is followed. Operators without a rule pin what they touch: they are correct, only not smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import TensorWeakRef, WeakTensorKeyDictionary

from engine.speedup.labels import Labels
from engine.speedup.tracked import Slot, Tracked

#: A rule looks at one finished call and returns what propagates need from outputs to inputs.
Back = Callable[[], None]
Rule = Callable[["Tracer", Any, Sequence[Any], Mapping[str, Any], Any], Back | None]


class Call:
    """One operator call: its tensors, and where in the model it happened."""

    def __init__(
        self, name: str, path: str, inputs: list[Tracked], outputs: list[Tracked], back: Back | None
    ) -> None:
        self.name = name
        self.path = path
        self.inputs = inputs
        self.outputs = outputs
        self.back = back


class Fold:
    """Constants that flow into a contraction: what removed channels would have contributed.

    ``contribution(indices)`` gives the contribution of these input channels, of the output's shape;
    ``channel_dim`` is the output's channel dimension.
    """

    def __init__(
        self,
        source: Tracked,
        dim: int,
        contribution: Callable[[Tensor], Tensor],
        channel_dim: int,
        weight: Tracked,
        bias: Tracked | None,
        path: str,
    ) -> None:
        self.source = source
        self.dim = dim
        self.contribution = contribution
        self.channel_dim = channel_dim
        self.weight = weight
        self.bias = bias
        self.path = path


class Tracer(TorchDispatchMode):
    """Watches the forward of ``model``; afterwards the attributes tell what was seen.

    Attributes:
        labels: the union-find of all labels.
        calls: the operator calls, in order.
        folds: constants that removal must fold into a bias.
        parameters: what is known of each parameter and buffer that was used.
        unknown: operators without a rule, with the places where they were met.
        computed_sizes: sizes that views ask for: module path, size, the labels of that dimension.
    """

    def __init__(self, model: nn.Module, rules: Mapping[str, Rule]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.model = model
        self.labels = Labels()
        self.calls: list[Call] = []
        self.folds: list[Fold] = []
        self.unknown: dict[str, str] = {}
        self._rules = rules
        self._known: Any = WeakTensorKeyDictionary()
        self.computed_sizes: list[tuple[str, int, Tensor]] = []
        self._views: dict[int, list[TensorWeakRef]] = {}
        self._path: list[str] = [""]
        self.parameters: list[Tracked] = []
        self._slots: dict[int, list[Slot]] = {}
        for path, module in model.named_modules():
            for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
                if tensor is not None:
                    self._slots.setdefault(id(tensor), []).append(Slot(module, name, path))

    # -- for rules -----------------------------------------------------------------------------

    def of(self, tensor: Tensor) -> Tracked:
        """Return what is known of ``tensor``; a parameter gets its labels when first asked for."""
        known: Tracked | None = self._known.get(tensor)
        if known is not None:
            return known
        slots = self._slots.get(id(tensor), [])
        known = Tracked(tensor.shape, constant=True)
        if slots:
            labels = [self.labels.fresh(n) if n > 1 else None for n in tensor.shape]
            known = Tracked(tensor.shape, labels, constant=True, origin=slots[0].path)
            known.slots = slots
            self.parameters.append(known)
        self._known[tensor] = known
        return known

    def put(self, tensor: Tensor, tracked: Tracked) -> Tracked:
        """Say what is known of a call's output."""
        tracked.origin = tracked.origin or self._path[-1]
        self._known[tensor] = tracked
        return tracked

    def pin(self, tracked: Tracked, reason: str, dims: Sequence[int] | None = None) -> None:
        """Say that ``tracked`` keeps its size, in ``dims`` or everywhere."""
        for dim in tracked.dims():
            labels = tracked.labels[dim]
            if labels is not None and (dims is None or dim in dims):
                self.labels.pin(labels, reason)

    def alias(self, tensor: Tensor) -> None:
        """Say that ``tensor`` is (perhaps) a view of another tensor."""
        self._views.setdefault(_address(tensor), []).append(TensorWeakRef(tensor))

    def is_aliased(self, tensor: Tensor) -> bool:
        """Return whether other tensors may see a change of ``tensor`` in place."""
        address = _address(tensor)
        views = [view() for view in self._views.get(address, ())]
        # Memory is used again: only views that live and still are there count.
        return any(view is not None and _address(view) == address for view in views)

    @property
    def path(self) -> str:
        """The module that runs."""
        return self._path[-1]

    # -- running -------------------------------------------------------------------------------

    @torch.no_grad()
    def run(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run the model once and return its output.

        Args:
            args: positional example inputs.
            kwargs: keyword example inputs.
        """
        handles = []
        for path, module in self.model.named_modules():
            handles.append(module.register_forward_pre_hook(self._enter(path), prepend=True))
            handles.append(module.register_forward_hook(self._leave, always_call=True))
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):
                self._known[tensor] = Tracked(tensor.shape, origin="input")
        try:
            with self:
                output = self.model(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                tracked = self.of(tensor)
                tracked.used = True
                for dim in tracked.dims():
                    tracked.want(dim, True)
                self.pin(tracked, "it is part of the model's output")
        for call in reversed(self.calls):
            if call.back is not None and any(out.used for out in call.outputs):
                call.back()
        return output

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the operator, then its rule."""
        kwargs = kwargs or {}
        inputs = [self.of(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        output = func(*args, **kwargs)
        outputs = [t for t in tree_leaves(output) if isinstance(t, Tensor)]
        if not outputs:
            # A value leaves for Python (item, equal, ...): what it depends on is needed, in full.
            for tracked in inputs:
                self._observe(tracked)
            return output
        name = func._schema.name.removeprefix("aten::")
        rule = self._rules.get(name) or self._rules.get(name.rstrip("_"))
        if rule is None and all(t.constant and not list(t.dims()) for t in inputs):
            for tensor in outputs:
                self.put(tensor, Tracked(tensor.shape, constant=True))
            return output
        back = rule(self, func, args, kwargs, output) if rule is not None else None
        if back is None:
            back = self.refuse(name, inputs, outputs)
        self.calls.append(Call(name, self.path, inputs, [self.of(t) for t in outputs], back))
        return output

    def refuse(self, name: str, inputs: Sequence[Tracked], outputs: Sequence[Tensor]) -> Back:
        """Treat a call as unknown: everything that it touches keeps its size."""
        self.unknown.setdefault(name, self.path)
        for tracked in inputs:
            self.pin(tracked, f"{name} has no rule for removing channels")
        constant = all(tracked.constant for tracked in inputs)
        made = [self.put(t, Tracked(t.shape, constant=constant)) for t in outputs]

        def back() -> None:
            if any(t.used for t in made):
                for tracked in inputs:
                    tracked.used = True
                    for dim in tracked.dims():
                        tracked.want(dim, True)

        return back

    def _observe(self, tracked: Tracked) -> None:
        tracked.used = True
        for dim in tracked.dims():
            tracked.want(dim, True)
        self.pin(tracked, "Python code reads its value")

    def _enter(self, path: str) -> Callable[..., None]:
        def enter(module: nn.Module, args: Any) -> None:
            self._path.append(path)

        return enter

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._path.pop()


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
