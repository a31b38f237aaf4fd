"""Finding the call whose size is written into the model's code, by running the smaller model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import RemovableHandle

from engine.speedup.nested import tensors_in
from engine.speedup.solve import removed
from engine.speedup.tracer import Tracer
from engine.speedup.tracked import Tracked


class Replay(TorchDispatchMode):
    """Runs a smaller model beside the recorded calls, up to the first whose shape is unexpected.

    Calls are matched by module and by their place among the module's calls, so that a module whose
    forward was replaced does not disturb the others.

    Attributes:
        culprit: the number of the recorded call that failed, None while there is none.
    """

    def __init__(self, model: nn.Module, tracer: Tracer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._model = model
        self._tracer = tracer
        self._path = [""]
        self._done: dict[str, int] = {}
        self.culprit: int | None = None

    @torch.no_grad()
    def run(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int | None:
        """Run the model and return the number of the first call that went another way."""
        handles: list[RemovableHandle] = []
        for path, module in self._model.named_modules():
            handles.append(module.register_forward_pre_hook(self._enter(path), prepend=True))
            # Not after an error: then the path says where it was.
            handles.append(module.register_forward_hook(self._leave))
        try:
            with self:
                self._model(*args, **kwargs)
        except Exception:
            # An error before any operator ran is of the call that was to come.
            path = self._path[-1]
            coming = self._tracer.calls_of.get(path, [])[self._done.get(path, -1) + 1 :]
            if self.culprit is None and coming:
                self.culprit = coming[0].number
            return self.culprit
        finally:
            for handle in handles:
                handle.remove()
        return self.culprit

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the operator and compare its outputs' shapes with what was decided."""
        path = self._path[-1]
        place = self._done[path] = self._done.get(path, -1) + 1
        recorded = self._tracer.calls_of.get(path, [])
        name = func._schema.name.removeprefix("aten::")
        known = recorded[place] if place < len(recorded) else None
        matches = known is not None and known.name == name
        if matches and self.culprit is None:
            assert known is not None
            self.culprit = known.number
        output = func(*args, **(kwargs or {}))
        if matches and known is not None and self.culprit == known.number:
            shapes = [tuple(t.shape) for t in tensors_in(output)]
            if known.outputs is None or shapes == [self._expected(t) for t in known.outputs]:
                self.culprit = None
        return output

    def _expected(self, tracked: Tracked) -> tuple[int, ...]:
        return tuple(
            size if labels is None else int((~removed(self._tracer, labels)).sum())
            for size, labels in zip(tracked.shape, tracked.labels, strict=True)
        )

    def _enter(self, path: str) -> Any:
        return lambda module, args: self._path.append(path)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._path.pop()


def involved(model: nn.Module, tracer: Tracer, number: int) -> list[Tensor]:
    """Return the labels that go and that the call ``number`` depends on.

    The same call of other modules of the same class is taken to depend on its own likewise.
    """
    path, place = next(
        (path, place)
        for path, records in tracer.calls_of.items()
        for place, record in enumerate(records)
        if record.number == number
    )
    kind, name = type(model.get_submodule(path)), tracer.calls_of[path][place].name
    found = _labels(tracer, path, number)
    if not found:
        return []
    for other, records in tracer.calls_of.items():
        alike = other != path and place < len(records) and records[place].name == name
        if alike and type(model.get_submodule(other)) is kind:
            found += _labels(tracer, other, records[place].number)
    return found


def _labels(tracer: Tracer, path: str, number: int) -> list[Tensor]:
    """Return what goes of the sizes that a call asks for, else of its inputs, else the module's."""
    call = next((c for c in tracer.calls if c.number == number), None)
    sizes = {n for tracked in (call.outputs if call is not None else ()) for n in tracked.shape}
    inputs = call.inputs if call is not None else []
    choices = (
        [size.labels for size in tracer.sizes if size.number == number],
        [labels for tracked in inputs for labels in tracked.labels if labels is not None],
        # A size of the module's input that the code took for another one of the same number.
        [given.labels for given in tracer.inputs.get(path, ()) if given.size in sizes],
        # Or from which it computed one.
        [given.labels for given in tracer.inputs.get(path, ())],
    )
    for labels in choices:
        going = [each for each in labels if bool(removed(tracer, each).any())]
        if going:
            return going
    return []
