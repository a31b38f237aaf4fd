"""Running a model and watching every ATen call: labels flow as values do.

Whatever Python does in ``forward`` has happened by the time an operator runs, so that any control
flow is followed. Operators without a rule pin what they touch: they are correct, only not smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary

from engine.speedup.aliases import Aliases
from engine.speedup.labels import Labels
from engine.speedup.nested import tensors_in
from engine.speedup.records import Back as Back
from engine.speedup.records import Call, Fold, Held, Place, Record, Rule, Size, Split
from engine.speedup.tags import Owner, Tags, owner_of, tagged
from engine.speedup.tracked import Slot, Tracked
from engine.speedup.widen import (
    Widened,
    constant_slices,
    is_alike,
    is_light,
    join,
    takes_statistics,
)


class Tracer(TorchDispatchMode):
    """Watches the forward of ``model``; afterwards the attributes tell what was seen.

    Args:
        model: the model.
        rules: a rule for each operator.
        zeros: classes of modules that go on seeing removed channels, as zeros.
        planning: ask what could be removed once it is masked, not what is masked now.
        choices: which candidate each of ``splits`` takes; the first where none is given.

    Attributes:
        labels: the union-find of all labels.
        calls: the operator calls, in order.
        calls_of: all calls of each module, by its path, also those without labels.
        folds: constants that removal must fold into a bias.
        parameters: what is known of each parameter and buffer that was used.
        unknown: operators without a rule, with the places where they were met.
        inputs: sizes of what modules were given, by the modules' paths.
        splits: views that could be followed in several ways, in the order in which they ran.
        sizes: sizes that views and factories ask for.
        grouped: the modules that ran a grouped convolution, with its weight.
        widened: modules that see zeros where channels are removed.
    """

    def __init__(
        self,
        model: nn.Module,
        rules: Mapping[str, Rule],
        *,
        zeros: tuple[type[nn.Module], ...] = (),
        planning: bool = False,
        choices: Mapping[Place, int] | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._zeros = zeros
        self.planning = planning
        self.splits: list[Split] = []
        self._choices = choices or {}
        self.model = model
        self.labels = Labels()
        self.calls: list[Call] = []
        self.folds: list[Fold] = []
        self.unknown: dict[str, str] = {}
        self._rules = rules
        self._known: Any = WeakTensorKeyDictionary()
        self.inputs: dict[str, list[Size]] = {}
        self.sizes: list[Size] = []
        self.grouped: list[tuple[str, Tracked]] = []
        self.widened: dict[str, Widened] = {}
        self.aliases = Aliases()
        self.calls_of: dict[str, list[Record]] = {}
        self._tags = Tags()
        self._given: list[Any] = []
        self._number = 0
        self._numbers = 0
        self._held: Held | None = None
        self._watching = True
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
            known.unseen = set(known.dims())
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
                # Rules ask for what they work on; of a size that stays, all is asked for.
                tracked.want(dim, True)

    def choose(self, dim: int, labels: Tensor, candidates: list[int]) -> int:
        """Return which of ``candidates`` carries the labels of ``dim``, which is split."""
        place = (self._number, dim)
        chosen = self._choices.get(place, 0)
        self.splits.append(Split(place, labels, candidates, chosen))
        return candidates[chosen]

    def ask(self, size: int, labels: Tensor, dim: int, rank: int) -> None:
        """Say that the code may have asked for ``size``, the number of ``labels``, as ``dim``."""
        owner = self.owner(size, dim, rank)
        self.sizes.append(Size(self._number, self.path, size, labels, owner))

    def owner(self, size: int, place: int, count: int) -> Owner | None:
        """Return the attribute that the call took ``size``, number ``place`` of ``count``, from."""
        return owner_of(self._given, size, place, count)

    def join(self, tracked: Tracked, dim: int, labels: Tensor) -> None:
        """Say that the indices of ``dim`` go with ``labels``; ``dim`` has labels of its own."""
        own = tracked.labels[dim]
        assert own is not None
        if dim in tracked.unseen:
            tracked.labels[dim] = labels
            tracked.unseen.discard(dim)
        else:
            self.labels.unite(labels, own)

    def pin_values(self, labels: Tensor, reason: str) -> None:
        """Say that ``labels`` must stay because of values that a mask would make zero."""
        if not self.planning:
            self.labels.pin(labels, reason)

    @property
    def path(self) -> str:
        """The module that runs."""
        return self._path[-1]

    @property
    def replaceable(self) -> bool:
        """Whether the module that runs gets a forward that follows its weights' sizes."""
        forward = type(self.model.get_submodule(self.path)).forward
        return forward is nn.MultiheadAttention.forward

    # -- running -------------------------------------------------------------------------------

    @torch.no_grad()
    def run(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run the model once and return its output.

        Args:
            args: positional example inputs.
            kwargs: keyword example inputs.
        """
        handles: list[RemovableHandle] = []
        for path, module in self.model.named_modules():
            light = path != "" and (is_light(module) or isinstance(module, self._zeros))
            handles.append(module.register_forward_pre_hook(self._enter(path, light), prepend=True))
            handles.append(
                module.register_forward_hook(self._leave, with_kwargs=True, always_call=True)
            )
        for tensor in tensors_in((args, kwargs)):
            self._known[tensor] = Tracked(tensor.shape, origin="input")
        try:
            with tagged(self.model) as self._tags, self, _plain_recurrent(self.model):
                output = self.model(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
        for tensor in tensors_in(output):
            tracked = self.of(tensor)
            tracked.used = True
            for dim in tracked.dims():
                tracked.want(dim, True)
            self.pin(tracked, "it is part of the model's output")
        for call in reversed(self.calls):
            if any(out.used for out in call.outputs):
                # Constants pass no need on, but what is computed of them is used all the same.
                for tracked in call.inputs:
                    tracked.used |= tracked.constant
                call.back()
        return output

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the operator, then its rule."""
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if self._held is None and not self._watching:
            return output
        self._numbers += 1
        name = func._schema.name.removeprefix("aten::")
        record = Record(self._numbers, name, self._tags.given)
        self.calls_of.setdefault(self.path, []).append(record)
        if self._held is not None:
            self._held.calls.append((record, func, args, kwargs, output))
        else:
            self._see(record, func, args, kwargs, output)
        return output

    def _see(self, record: Record, func: Any, args: Any, kwargs: Any, output: Any) -> None:
        self._number, self._given = record.number, record.given
        inputs = [self.of(t) for t in tensors_in((args, kwargs))]
        outputs = tensors_in(output)
        if not outputs:
            # A value leaves for Python (item, equal, ...): what it depends on is needed, in full.
            for tracked in inputs:
                self._observe(tracked)
            return
        name = record.name
        rule = self._rules.get(name) or self._rules.get(name.rstrip("_"))
        if rule is None and all(t.constant and not list(t.dims()) for t in inputs):
            for tensor in outputs:
                self.put(tensor, Tracked(tensor.shape, constant=True))
            return
        for tracked in inputs:
            if tracked.stale is not None:
                self._read_stale(tracked)
        shared = self.aliases.others(args[0]) if name.endswith("_") and args else []
        # Of no elements nothing can be said: experts that the example did not choose, for one.
        empty = not outputs[0].numel() or (
            name != "cat" and any(not t.numel() for t in tensors_in((args, kwargs)))
        )
        back = rule(self, func, args, kwargs, output) if rule is not None and not empty else None
        for tracked in inputs:
            tracked.unseen.clear()
        for tensor in shared:
            seen = self.of(tensor)
            fresh = self.put(tensor, Tracked(seen.shape, seen.labels, seen.dead))
            fresh.constant, fresh.stale = seen.constant, (name, inputs)
        if back is None:
            reason = f"{name} has no rule for removing channels"
            if empty:
                reason = "nothing went through it with the example inputs"
            else:
                self.unknown.setdefault(name, self.path)
            back = self.refuse(reason, inputs, outputs)
        record.outputs = [self.of(t) for t in outputs]
        self.calls.append(Call(record.number, name, self.path, inputs, record.outputs, back))

    def refuse(self, reason: str, inputs: Sequence[Tracked], outputs: Sequence[Tensor]) -> Back:
        """Treat a call as unknown: everything that it touches keeps its size."""
        for tracked in inputs:
            self.pin(tracked, reason)
        constant = all(tracked.constant for tracked in inputs)
        made = [self.put(t, Tracked(t.shape, constant=constant)) for t in outputs]

        def back() -> None:
            if any(t.used for t in made):
                for tracked in inputs:
                    tracked.used = True
                    for dim in tracked.dims():
                        tracked.want(dim, True)

        return back

    def _read_stale(self, tracked: Tracked) -> None:
        """Use a tensor whose memory was changed through a view: all that is involved stays."""
        assert tracked.stale is not None
        name, written = tracked.stale
        tracked.stale = None
        if not all(each.constant for each in written):
            tracked.constant = False
            tracked.dead = [None if d is None else torch.zeros_like(d) for d in tracked.dead]
        for each in [tracked, *written]:
            self.pin(each, f"{name} changes it through a view")
            each.used = True
            for dim in each.dims():
                each.want(dim, True)

    def _observe(self, tracked: Tracked) -> None:
        tracked.used = True
        for dim in tracked.dims():
            tracked.want(dim, True)
        self.pin(tracked, "Python code reads its value")

    # -- modules -------------------------------------------------------------------------------

    def _enter(self, path: str, light: bool) -> Callable[..., None]:
        def enter(module: nn.Module, args: Any) -> None:
            self._path.append(path)
            for tensor in tensors_in(args):
                known = self._known.get(tensor)
                for labels in known.labels if known is not None else ():
                    if labels is not None:
                        size = Size(0, path, len(labels), labels)
                        self.inputs.setdefault(path, []).append(size)
            if light and self._held is None:
                self._held = Held(module, [])

        return enter

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        held = self._held
        if held is not None and held.module is module:
            self._held = None
            # Outside of an operator's call the mode is on: what the rules compute is not watched.
            self._watching = False
            try:
                if self._sees_zeros(held, args, kwargs, output):
                    self._widen(module, args, kwargs, output)
                else:
                    for call in held.calls:
                        self._see(*call)
            finally:
                self._watching = True
        self._path.pop()

    def _sees_zeros(self, held: Held, args: Any, kwargs: Any, output: Any) -> bool:
        own = isinstance(held.module, self._zeros)
        operators = [call[1:3] for call in held.calls]
        alike = is_alike(args, kwargs, output)
        return alike and (own or takes_statistics(operators)) and any(self.of(args[0]).dims())

    def _widen(self, module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
        """See a norm or the like as one operator, which can be given zeros for what is removed."""
        x, path = self.of(args[0]), self.path
        constant = constant_slices(module, args, kwargs, output, x)
        reason = "its constant takes part in a norm's statistics"
        labels: dict[int, Tensor] = {}
        for dim in x.dims():
            mine = x.labels[dim]
            assert mine is not None
            labels[dim] = mine
            slices = args[0].detach().movedim(dim, 0).reshape(len(mine), -1)
            self.pin_values(mine[x.flags(dim) & (slices != 0).any(dim=1).cpu()], reason)
            for tensor in [*module.parameters(), *module.buffers()]:
                if tensor.shape == mine.shape:
                    number = self.of(tensor)
                    number.whole = True
                    if number.labels[0] is not None:
                        self.labels.unite(mine, number.labels[0])
        widened = Widened(module, path, len(x.shape), labels)
        if fault := join(self.labels, self.widened.get(path), widened):
            self.pin(x, fault)
        self.widened.setdefault(path, widened)
        made = self.put(output, Tracked(x.shape, x.labels, [None] * len(x.shape)))
        made.constant = x.constant
        for dim, same in constant.items():
            made.dead[dim] = same

        def back() -> None:
            if made.used and not made.constant:
                x.used = True
                for dim in x.dims():
                    x.want(dim, True)

        self.calls.append(Call(0, type(module).__name__, path, [x], [made], back))


@contextmanager
def _plain_recurrent(model: nn.Module) -> Iterator[None]:
    """Let recurrent layers run as the operators that they consist of, not as one fused call."""
    if not any(isinstance(module, nn.RNNBase) for module in model.modules()):
        yield
        return
    # Not mkldnn.flags(), which also sets TF32 and warns of it.
    enabled = torch.backends.mkldnn.set_flags(False, _fp32_precision=None)[0]
    try:
        with torch.backends.cudnn.flags(enabled=False):
            yield
    finally:
        torch.backends.mkldnn.set_flags(enabled, _fp32_precision=None)
