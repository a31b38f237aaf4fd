"""Weights fitted anew, so that the layers of a pruned model put out what they did before.

He et al. 2017, "Channel Pruning for Accelerating Very Deep Neural Networks", arXiv 1707.06168,
section 3.1, equation 1: with the channels chosen, each layer's weight is the least-squares solution
for the outputs that the layer had in the dense model, from inputs of the pruned one, whose earlier
layers are fitted already. No labels and no training are needed.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from engine.attach.undisturbed import undisturbed
from engine.calibration.blocks import blocks_of
from engine.calibration.patches import LayerCall, input_of, weighted_sums
from engine.calibration.replay import EnoughError, Outputs, Replay, recorded
from engine.calibration.states import TemporaryStates
from engine.errors import EngineError
from engine.pruning.least_squares import LayerProblem
from engine.user_code.batches import Forward, batches_in, call_or_explain

#: One of so many parts of the inputs is kept apart, to see how well the others were fitted.
_PARTS = 4

#: A call in the dense model, and which of its places are kept apart.
_Noted = tuple[LayerCall, Tensor]


class Refit(NamedTuple):
    """What fitting did to one layer.

    ``before`` and ``after`` are the squared errors of the filters that are left, at the places that
    were looked at, relative to the sum of squares of their outputs in the dense model: on inputs
    kept apart from fitting, unless ``damping`` was given.
    """

    layer: str
    before: float
    after: float


class Reconstruction:
    """What the layers of a model put out on some inputs, to come back to after pruning.

    Make it of the dense model, prune, then :meth:`apply`. Convolutions (not transposed ones) and
    linear layers are fitted in the order in which they run; those that share their weight or bias,
    that compute either from other parameters, or that are subclasses with a ``forward`` of their
    own are not. Weights that are zero stay zero, biases of filters without any weight stay as they
    are.

    Args:
        model: the model, before pruning. It is run in evaluation mode, and left as it is.
        batches: inputs, as for ``calibrate`` of ``ptq``: tensors, mappings of keyword arguments, or
            tuples whose first item is the input. They are kept.
        forward: ``forward(model, batch)`` runs the model, where that is not right.
        points: at how many places of each example a layer is looked at (the paper: 10).
        damping: how much a weight is held where it is, relative to the mean square of its inputs.
            Without it, each layer has what suits inputs best that it is not fitted to: every
            fourth batch, or, of fewer than four batches, the last quarter of each.

    Raises:
        EngineError: there are no batches, one does not go through the model, no layer that can be
            fitted ran, lazy layers have no weights yet, ``points`` is no whole number above 0, or
            ``damping`` is no finite number above 0.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        forward: Forward | None = None,
        *,
        points: int = 10,
        damping: float | None = None,
    ) -> None:
        _check(model, points, damping)
        self._batches = list(batches_in(batches, "a reconstruction"))
        self._model = model
        self._forward = forward or call_or_explain
        self._points = points
        self._damping = damping
        self._names = weighted_sums(model)
        #: Whether running a batch draws random numbers: then no part of it can be left out.
        self._draws = False
        #: By layer, in the order of running: for each batch, its calls.
        self._noted: dict[nn.Module, list[list[_Noted]]] = {}
        with _observable(model):
            self._note()
        if not self._noted:
            raise EngineError("no convolution or linear layer ran that a reconstruction can fit")

    def apply(self) -> list[Refit]:
        """Fit the model as it is now; return what that did to each layer, in the order of running.

        Masks stand; an optimizer's state is not touched. It may be called again, as after more was
        pruned: the dense outputs remain what is wanted.

        Raises:
            EngineError: the layers do not run as they did, have other shapes, or see NaN or
                infinity; no weight is changed.
        """
        report = []
        changed: list[tuple[Tensor, Tensor]] = []
        with _observable(self._model):
            try:
                for module, name in self._in_order():
                    own = [p for p in module._parameters.values() if p is not None]
                    changed += [(parameter, parameter.clone()) for parameter in own]
                    try:
                        report.append(Refit(name, *self._fit(module)))
                    except EngineError as error:
                        raise EngineError(f'layer "{name}" cannot be fitted: {error}') from error
            except BaseException:
                for parameter, value in changed:
                    parameter.copy_(value)
                raise
        return report

    def _in_order(self) -> Iterator[tuple[nn.Module, str]]:
        """Yield layers in the order of running; a block whose layers are done runs no more."""
        blocks = blocks_of(self._model, self._names)
        block_of = {layer: block for block, own in blocks.items() for layer in own}
        left = {block: len(own) for block, own in blocks.items()}
        order = list(dict.fromkeys(block_of[layer] for layer in self._names))
        outputs: dict[nn.Module, Outputs] = {block: [] for block in order}
        numbers = list(range(len(self._batches)))
        with Replay(self._model, numbers, self._run_number, order) as replay:
            self._replay = replay
            with recorded(outputs):
                self._run_number(self._model, 0)
            calls = {block: len(own) for block, own in outputs.items()}
            first = {block: TemporaryStates() for block in order}
            for block, states in first.items():
                states.put(0, outputs.pop(block))
            replay.look_ahead(first, [block for block in order if calls[block] == 1])
            del first
            for layer, name in self._names.items():
                yield layer, name
                left[block_of[layer]] -= 1
                if not left[block_of[layer]] and not self._draws:
                    replay.finish(block_of[layer], calls[block_of[layer]])

    def _note(self) -> None:
        generator = torch.Generator().manual_seed(0)
        calls: dict[nn.Module, list[_Noted]] = collections.defaultdict(list)
        number = 0

        def look(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Tensor) -> None:
            value = input_of(args, kwargs)
            call = LayerCall.drawn(module, value, output, self._points, generator)
            calls[module].append((call, self._apart(number, call)))

        # Before other hooks: they may change what the layer itself puts out.
        hooks = [m.register_forward_hook(look, prepend=True, with_kwargs=True) for m in self._names]
        try:
            for number in range(len(self._batches)):
                self._run(number)
                for module, own in calls.items():
                    before = self._noted.setdefault(module, [[] for _ in range(number)])
                    before.append(own)
                for module in self._noted.keys() - calls.keys():
                    self._noted[module].append([])
                calls.clear()
        finally:
            for hook in hooks:
                hook.remove()
        self._names = {module: self._names[module] for module in self._noted}

    def _apart(self, number: int, call: LayerCall) -> Tensor:
        """Return which places of a batch's output are kept apart: whole examples as far as can be.

        The last part of a batch is the same examples in each layer, also where they were cut up.
        """
        if self._damping is not None:
            return torch.zeros_like(call.places, dtype=torch.bool)
        if len(self._batches) >= _PARTS:
            return torch.full_like(call.places, number % _PARTS == _PARTS - 1, dtype=torch.bool)
        return call.places * _PARTS >= call.of * (_PARTS - 1)

    def _run(self, number: int) -> None:
        """Run a batch, with the same random numbers each time."""
        devices = {p.device.index for p in self._model.parameters() if p.is_cuda}
        generators = [torch.default_generator]
        generators += [torch.cuda.default_generators[index] for index in devices]
        before = [each.manual_seed(number).get_state() for each in generators]
        torch.clear_autocast_cache()  # it may hold weights from before they were fitted
        self._forward(self._model, self._batches[number])
        after = [each.get_state() for each in generators]
        self._draws |= not all(map(torch.equal, before, after))

    def _run_number(self, model: nn.Module, number: Any) -> None:
        self._run(number)

    def _fit(self, module: nn.Module) -> tuple[float, float]:
        problem = LayerProblem(module)
        for number, calls in enumerate(self._noted[module]):
            if not calls:
                continue
            seen = self._seen(module, number, calls)
            if len(seen) < len(calls):
                times = f"{len(calls)} times before pruning and {len(seen)} times now"
                raise EngineError(f"it ran {times}, with the same batch")
            for patches, (call, apart) in zip(seen, calls, strict=True):
                problem.add(patches[~apart], call.outputs[~apart])
                problem.add(patches[apart], call.outputs[apart], apart=True)
        change, errors = problem.solve(self._damping)
        problem.write(change)
        return errors

    def _seen(self, module: nn.Module, number: int, calls: list[_Noted]) -> list[Tensor]:
        """Return what a layer sees in each of its calls, at their places."""
        seen: list[Tensor] = []

        def look(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.append(calls[len(seen)][0].seen_again(layer, input_of(args, kwargs)))
            if len(seen) == len(calls):
                raise EnoughError

        hook = module.register_forward_pre_hook(look, with_kwargs=True)
        try:
            self._replay.run(number)
        finally:
            hook.remove()
        return seen


@contextmanager
def _observable(model: nn.Module) -> Iterator[None]:
    """Leave the model as it is, and let hooks see its layers, also where it was compiled."""
    with undisturbed(model), torch.compiler.set_stance("force_eager"):
        yield


def _check(model: nn.Module, points: Any, damping: Any) -> None:
    held = 1.0 if damping is None else damping
    right = isinstance(points, int) and isinstance(held, int | float)
    if not right or points < 1 or not 0 < held < math.inf:
        raise EngineError(
            "a reconstruction needs points >= 1, a whole number, and a finite damping > 0, got "
            f"{points!r} and {damping!r}"
        )
    if any(is_lazy(value) for value in [*model.parameters(), *model.buffers()]):
        raise EngineError("the model has lazy layers without weights: run it once before")
