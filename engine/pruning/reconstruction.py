"""Weights fitted anew, so that the layers of a pruned model put out what they did before.

He et al. 2017, "Channel Pruning for Accelerating Very Deep Neural Networks", arXiv 1707.06168,
section 3.1, equation 1: with the channels chosen, each layer's weight is the least-squares solution
for the outputs that the layer had in the dense model, from inputs of the pruned one, whose earlier
layers are fitted already. No labels and no training are needed.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from engine.analysis.example import undisturbed
from engine.batches import Forward, call_with_batch
from engine.errors import EngineError
from engine.pruning.least_squares import LayerProblem
from engine.pruning.patches import outputs_at, patches_at, positions

_FITTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


class Refit(NamedTuple):
    """What fitting did to one layer.

    ``before`` and ``after`` are the squared errors of the filters that are left, at the places that
    were looked at, relative to the sum of squares of their outputs in the dense model.
    """

    layer: str
    before: float
    after: float


class Reconstruction:
    """What the layers of a model put out on some inputs, to come back to after pruning.

    Make it of the dense model, prune, then :meth:`apply`. Convolutions (not transposed ones) and
    linear layers are fitted in the order in which they run; those that share their weight are not.
    Weights that are zero stay zero, biases of filters without any weight stay as they are.

    Args:
        model: the model, before pruning. It is run in evaluation mode, and left as it is.
        batches: inputs, as for ``calibrate`` of ``ptq``: tensors, mappings of keyword arguments, or
            tuples whose first item is the input. They are kept.
        forward: ``forward(model, batch)`` runs the model, where that is not right.
        points: at how many places of each example a layer is looked at (the paper: 10).
        damping: how much a weight is held where it is, relative to the mean square of its inputs.

    Raises:
        EngineError: there are no batches, no layer that can be fitted ran, ``points`` is below 1,
            or ``damping`` is not above 0.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        forward: Forward | None = None,
        *,
        points: int = 10,
        damping: float = 1e-2,
    ) -> None:
        if points < 1 or not damping > 0:
            raise EngineError(
                f"a reconstruction needs points >= 1 and damping > 0, got {points} and {damping}"
            )
        self._model = model
        self._batches = list(batches)
        self._forward = forward or call_with_batch
        self._points = points
        self._damping = damping
        self._names = _fitted_layers(model)
        #: By layer, in the order of running: for each call in each batch, places and outputs there.
        self._noted: dict[nn.Module, list[list[tuple[Tensor, Tensor]]]] = {}
        self._note()
        if not self._batches:
            raise EngineError("a reconstruction needs batches, and got none")
        if not self._noted:
            raise EngineError(
                "a reconstruction fits convolutions and linear layers, and none ran with these "
                "batches"
            )

    def apply(self) -> list[Refit]:
        """Fit the model as it is now; return what that did to each layer, in the order of running.

        Masks stand; an optimizer's state is not touched. It may be called again, as after more was
        pruned: the dense outputs remain what is wanted.

        Raises:
            EngineError: the layers do not run as they did, or see NaN or infinity; no weight is
                changed.
        """
        report = []
        changed: list[tuple[Tensor, Tensor]] = []
        with undisturbed(self._model):
            try:
                for module, name in self._names.items():
                    own = [p for p in module._parameters.values() if p is not None]
                    changed += [(parameter, parameter.clone()) for parameter in own]
                    report.append(Refit(name, *self._fit(module, name)))
            except BaseException:
                for parameter, value in changed:
                    parameter.copy_(value)
                raise
        return report

    def _note(self) -> None:
        generator = torch.Generator().manual_seed(0)
        calls: dict[nn.Module, list[tuple[Tensor, Tensor]]] = collections.defaultdict(list)

        def look(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            places = positions(module, output, self._points, generator)
            calls[module].append((places, outputs_at(module, output, places)))

        hooks = [module.register_forward_hook(look) for module in self._names]
        try:
            with undisturbed(self._model):
                for number, batch in enumerate(self._batches):
                    self._forward(self._model, batch)
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

    def _fit(self, module: nn.Module, name: str) -> tuple[float, float]:
        problem = LayerProblem(module)
        for batch, calls in zip(self._batches, self._noted[module], strict=True):
            seen = self._seen(module, batch, [places for places, _ in calls])
            if len(seen) < len(calls):
                times = f"{len(calls)} times before pruning and {len(seen)} times now"
                raise EngineError(f'layer "{name}" ran {times}, with the same batch')
            for patches, (_, output) in zip(seen, calls, strict=True):
                problem.add(patches, output)
        try:
            change, errors = problem.solve(self._damping)
        except EngineError as error:
            raise EngineError(f'layer "{name}" cannot be fitted: {error}') from error
        problem.write(change)
        return errors

    def _seen(self, module: nn.Module, batch: Any, places: list[Tensor]) -> list[Tensor]:
        """Return what a layer sees in each of its calls, at these places."""
        seen: list[Tensor] = []
        if not places:
            return seen

        def look(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            seen.append(patches_at(layer, inputs[0], places[len(seen)]))
            if len(seen) == len(places):
                raise _EnoughError

        hook = module.register_forward_pre_hook(look)
        try:
            self._forward(self._model, batch)
        except _EnoughError:
            pass
        finally:
            hook.remove()
        return seen


class _EnoughError(Exception):
    """The layer was reached; what comes after it need not run."""


def _fitted_layers(model: nn.Module) -> dict[nn.Module, str]:
    """Return the layers with a weight parameter of their own, and their names."""
    users = collections.Counter(
        id(parameter) for module in model.modules() for parameter in module._parameters.values()
    )
    return {
        module: name
        for name, module in model.named_modules()
        if isinstance(module, _FITTED)
        and module._parameters.get("weight") is not None
        and users[id(module._parameters["weight"])] == 1
    }
