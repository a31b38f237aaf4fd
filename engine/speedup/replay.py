"""Finding the call whose size is written into the model's code, by running the smaller model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import RemovableHandle

from engine.speedup import compare
from engine.speedup.nested import tensors_in
from engine.speedup.records import Record
from engine.speedup.solve import removed
from engine.speedup.tracer import Tracer

Inputs = tuple[Sequence[Any], Mapping[str, Any]]


class _Beside(TorchDispatchMode):
    """Runs a model beside the recorded calls.

    Calls are matched by module and by their place among the module's calls, so that a module whose
    forward was replaced does not disturb the others.
    """

    def __init__(self, model: nn.Module, tracer: Tracer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._model = model
        self._tracer = tracer
        self._path = [""]
        self._done: dict[str, int] = {}

    @property
    def path(self) -> str:
        """The path of the module that runs, or in which the model failed."""
        return self._path[-1]

    def _next(self, func: Any) -> Record | None:
        """Return the recorded call that this one is, None where the two went other ways."""
        path = self._path[-1]
        place = self._done[path] = self._done.get(path, -1) + 1
        recorded = self._tracer.calls_of.get(path, [])
        known = recorded[place] if place < len(recorded) else None
        name = func._schema.name.removeprefix("aten::")
        return known if known is not None and known.name == name else None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Know within which module runs."""
        handles: list[RemovableHandle] = []
        for path, module in self._model.named_modules():
            handles.append(module.register_forward_pre_hook(self._enter(path), prepend=True))
            # Not after an error: then the path says where it was.
            handles.append(module.register_forward_hook(self._leave))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def _run(self, inputs: Inputs) -> bool:
        """Run the model; return whether it came to its end."""
        with self.watching():
            try:
                compare.run(self._model, inputs, self)
            except Exception:
                return False
        return True

    def _enter(self, path: str) -> Any:
        return lambda module, args: self._path.append(path)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._path.pop()


class Recording(_Beside):
    """The values of all calls of the masked model, to tell where a smaller one goes wrong.

    Attributes:
        values: the output tensors of each call, by its number.
    """

    def __init__(self, model: nn.Module, tracer: Tracer, inputs: Inputs) -> None:
        super().__init__(model, tracer)
        self.values: dict[int, list[Tensor]] = {}
        self._run(inputs)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the operator and keep what it returned."""
        known = self._next(func)
        output = func(*args, **(kwargs or {}))
        if known is not None:
            self.values[known.number] = [t.clone() for t in tensors_in(output)]
        return output


class Replay(_Beside):
    """Runs a smaller model up to the first call that goes another way.

    Its output has an unexpected shape, or other values than were recorded.

    Args:
        model: the smaller model.
        tracer: what was seen of the masked one.
        recording: the values of the masked one, if they are known.

    Attributes:
        culprit: the number of the recorded call that failed, None while there is none.
    """

    def __init__(self, model: nn.Module, tracer: Tracer, recording: Recording | None) -> None:
        super().__init__(model, tracer)
        self._values = recording.values if recording is not None else {}
        self.culprit: int | None = None

    def run(self, inputs: Inputs) -> None:
        """Run the model by itself."""
        if not self._run(inputs):
            self.blame_coming()

    def blame_coming(self) -> None:
        """Say that there was an error: before any operator ran it is of the call to come."""
        path = self._path[-1]
        coming = self._tracer.calls_of.get(path, [])[self._done.get(path, -1) + 1 :]
        if self.culprit is None and coming:
            self.culprit = coming[0].number

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the operator and compare its outputs with what was decided."""
        known = self._next(func)
        looking = known is not None and self.culprit is None
        if known is not None and looking:
            self.culprit = known.number
        output = func(*args, **(kwargs or {}))
        if known is not None and looking and self._as_expected(known, tensors_in(output)):
            self.culprit = None
        return output

    def _as_expected(self, known: Record, outputs: list[Tensor]) -> bool:
        if known.outputs is None:
            return True
        values = self._values.get(known.number, [None] * len(outputs))
        for ours, tracked, theirs in zip(outputs, known.outputs, values, strict=False):
            for dim, labels in enumerate(tracked.labels):
                kept = None if labels is None else ~removed(self._tracer, labels)
                size = tracked.shape[dim] if kept is None else int(kept.sum())
                if ours.dim() <= dim or ours.shape[dim] != size:
                    return False
                if theirs is not None and kept is not None:
                    keep = kept.nonzero().flatten().to(theirs.device)
                    theirs = theirs.index_select(dim, keep)
            if theirs is not None and not _close(ours, theirs):
                return False
        return True


def _close(ours: Tensor, theirs: Tensor) -> bool:
    if not theirs.is_floating_point() or not theirs.numel() or ours.shape != theirs.shape:
        return True
    scale = float(theirs.abs().max())
    # Wider than what is asked of outputs: rounding must not be blamed.
    eps = 1e-7 if theirs.dtype == torch.float64 else 1e-2
    return not float((ours - theirs).abs().max()) > eps * max(scale, 1e-30)


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
        [given.labels for given in tracer.inputs(path) if given.size in sizes],
        # Or from which it computed one.
        [given.labels for given in tracer.inputs(path)],
    )
    for labels in choices:
        going = [each for each in labels if bool(removed(tracer, each).any())]
        if going:
            return going
    return []
