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


def involved(tracer: Tracer, number: int) -> list[Tensor]:
    """Return the labels that the call ``number`` depends on: its sizes', else its inputs'."""
    asked = [size.labels for size in tracer.sizes if size.number == number]
    asked = [labels for labels in asked if bool(removed(tracer, labels).any())]
    if asked:
        return asked
    call = next((c for c in tracer.calls if c.number == number), None)
    inputs = [] if call is None else call.inputs
    found = [labels for tracked in inputs for labels in tracked.labels if labels is not None]
    return [labels for labels in found if bool(removed(tracer, labels).any())]
