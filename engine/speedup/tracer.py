"""Running a model and watching every ATen call: labels flow as values do.

Whatever Python does in ``forward`` has happened by the time an operator runs, so that any control
flow is followed. Operators without a rule pin what they touch: they are correct, only not smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.hooks import RemovableHandle

from engine.speedup.guesses import Guesses
from engine.speedup.nested import tensors_given, tensors_in
from engine.speedup.records import Call, Held, Place, Record
from engine.speedup.seen_as_one import see_as_one
from engine.speedup.tags import Tags, tagged
from engine.speedup.trace import Rule, Trace
from engine.speedup.tracked import Tracked
from engine.speedup.widen import is_alike, light_modules, takes_statistics
from engine.speedup.writes import write


class Tracer(TorchDispatchMode, Trace):
    """Watches the forward of ``model``; afterwards its :class:`Trace` tells what was seen.

    Args:
        model: the model.
        rules: a rule for each operator.
        zeros: classes of modules that go on seeing removed channels, as zeros.
        planning: ask what could be removed once it is masked, not what is masked now.
        choices: which candidate each of ``splits`` takes; the first where none is given.
        guesses: spares the products; without it all is computed.
    """

    def __init__(
        self,
        model: nn.Module,
        rules: Mapping[str, Rule],
        *,
        zeros: tuple[type[nn.Module], ...] = (),
        planning: bool = False,
        choices: Mapping[Place, int] | None = None,
        guesses: Guesses | None = None,
    ) -> None:
        TorchDispatchMode.__init__(self)
        Trace.__init__(self, model, planning=planning, choices=choices)
        self._rules = rules
        self._zeros = zeros
        self._tags = Tags(self._read)
        self._numbers = 0
        self._guesses = guesses
        self._names: dict[Any, str] = {}
        self._held: Held | None = None
        #: Whether modules that run are the model's, not what rules run of it.
        self._watching = True

    @torch.no_grad()
    def run(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run the model once and return its output.

        Args:
            args: positional example inputs.
            kwargs: keyword example inputs.
        """
        handles: list[RemovableHandle] = []
        lights = light_modules(self.model)
        for path, module in self.model.named_modules():
            light = path != "" and (module in lights or isinstance(module, self._zeros))
            handles.append(module.register_forward_pre_hook(self._enter(path, light), prepend=True))
            handles.append(
                module.register_forward_hook(self._leave, with_kwargs=True, always_call=True)
            )
        for tensor in tensors_in((args, kwargs)):
            self.put(tensor, Tracked(tensor.shape, origin="input"))
        try:
            with tagged(self.model, self._read) as self._tags, self, _plain_recurrent(self.model):
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
        name = self._names.get(func)
        if name is None:
            name = self._names[func] = func._schema.name.removeprefix("aten::")
        output = self._output(func, name, args, kwargs)
        self._numbers += 1
        record = Record(self._numbers, name, self._tags.given)
        self.calls_of.setdefault(self.path, []).append(record)
        if self._held is not None:
            self._held.calls.append((record, func, args, kwargs, output))
        else:
            self._see(record, func, args, kwargs, output)
        return output

    def _output(self, func: Any, name: str, args: Sequence[Any], kwargs: Any) -> Any:
        """Return the operator's output, or zeros of its shape where that is enough."""
        guesses = self._guesses
        if guesses is None:
            return func(*args, **kwargs)
        given = tensors_given(args, kwargs)
        # What is constant is computed; of what a module that is held does nothing is known yet.
        if self._held is None and not kwargs and not all(self.of(t).constant for t in given):
            output = guesses.spare(name, args)
            if output is not None:
                return output
        output = func(*args, **kwargs)
        guesses.follow(func, name, given, tensors_given((output,), {}))
        return output

    def _see(self, record: Record, func: Any, args: Any, kwargs: Any, output: Any) -> None:
        self._number, self._given = record.number, record.given
        given = tensors_given(args, kwargs)
        inputs = [self.of(t) for t in given]
        outputs = tensors_given((output,), {})
        if not outputs:
            # A value leaves for Python (item, equal, ...): what it depends on is needed, in full.
            for tracked in inputs:
                self.observe(tracked)
            return
        name = record.name
        rule = self._rules.get(name) or self._rules.get(name.rstrip("_"))
        if rule is None and all(t.constant and not list(t.dims()) for t in inputs):
            for tensor in outputs:
                self.put(tensor, Tracked(tensor.shape, constant=True))
            return
        for tracked in inputs:
            if tracked.stale is not None:
                self.read_stale(tracked)
        shared = self.aliases.others(args[0]) if name.endswith("_") and args else []
        # Of no elements nothing can be said: experts that the example did not choose, for one.
        empty = not outputs[0].numel() or (name != "cat" and any(not t.numel() for t in given))
        back = rule(self, func, args, kwargs, output) if rule is not None and not empty else None
        for tracked in inputs:
            tracked.unseen.clear()
        known = back is not None
        if not known:
            for tensor in shared:
                self._stale(tensor, name, inputs)
        if back is None:
            reason = f"{name} has no rule for removing channels"
            if empty:
                reason = "nothing went through it with the example inputs"
            else:
                self.unknown.setdefault(name, self.path)
            back = self.refuse(reason, inputs, outputs)
        record.outputs = [self.of(t) for t in outputs]
        self.calls.append(Call(record.number, name, self.path, inputs, record.outputs, back))
        for tensor in shared:
            if known and not write(self, name, tensor, args[0], record.outputs[0]):
                self._stale(tensor, name, inputs)

    def _stale(self, tensor: torch.Tensor, name: str, written: list[Tracked]) -> None:
        """Note that ``tensor`` shares memory with what was changed: it stays, if it is used."""
        seen = self.of(tensor)
        fresh = self.put(tensor, Tracked(seen.shape, seen.labels, seen.dead))
        before = seen.stale[1] if seen.stale is not None else []
        fresh.constant, fresh.stale = seen.constant, (name, [*before, seen, *written])

    def _read(self, tensor: torch.Tensor) -> None:
        """See that Python code gets at the values of ``tensor`` without an operator."""
        if self._guesses is not None:
            self._guesses.need(tensor)
        known = self._known.get(tensor)
        if known is not None:
            self.observe(known)

    # -- modules -------------------------------------------------------------------------------

    def _enter(self, path: str, light: bool) -> Callable[..., None]:
        def enter(module: nn.Module, args: Any) -> None:
            if not self._watching:
                return
            self._path.append(path)
            for tensor in tensors_in(args):
                known = self._known.get(tensor)
                if known is not None:
                    self._given_to.setdefault(path, []).append(known)
            if light and self._held is None:
                self._held = Held(module, [])

        return enter

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not self._watching:
            return
        held = self._held
        if held is not None and held.module is module:
            self._held = None
            # Outside of an operator's call the modes are on: what rules compute is not watched.
            self._watching = False
            try:
                with torch._C.DisableTorchFunction(), _disable_current_modes():
                    self._look(held, args, kwargs, output)
            finally:
                self._watching = True
        self._path.pop()

    def _look(self, held: Held, args: Any, kwargs: Any, output: Any) -> None:
        if self._sees_zeros(held, args, kwargs, output):
            see_as_one(self, held.module, args, kwargs, output)
        else:
            for call in held.calls:
                self._see(*call)

    def _sees_zeros(self, held: Held, args: Any, kwargs: Any, output: Any) -> bool:
        own = isinstance(held.module, self._zeros)
        operators = [call[1:3] for call in held.calls]
        alike = is_alike(args, kwargs, output)
        return alike and (own or takes_statistics(operators)) and any(self.of(args[0]).dims())


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
