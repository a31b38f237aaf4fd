"""What the engine and its algorithms changed in a model, to give it back as it was found.

Masks remove weights, one-shot algorithms write new ones, equalization rescales: all go through one
log. It counts for as long as nobody else writes: training, or weights that are loaded, make what
was there before the user's past.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import CheckpointError, EngineError
from engine.user_code.fingerprint import mark


class _Entry:
    """One tensor, its values from before any change, and how to know what it was changed to."""

    def __init__(self, tensor: Tensor, before: Tensor, restored: str | None = None) -> None:
        self.tensor = tensor
        self.before = before
        self._version = None if restored is not None else tensor._version
        self._mark = restored

    @property
    def stands(self) -> bool:
        """Whether nobody has written to the tensor since; of a restored entry its values tell."""
        if self._version is not None:
            return self.tensor._version == self._version
        return self.mark == self._mark

    @property
    def mark(self) -> str:
        """What tells its values of now apart."""
        return mark(self.tensor)


class Changes:
    """By tensor, its values from before any change.

    A tensor that was written to since, by whomever, is not known any more: its version number,
    which PyTorch raises with each write, tells.
    """

    def __init__(self) -> None:
        self._known: dict[int, _Entry] = {}

    def __bool__(self) -> bool:
        return bool(self._known)

    @contextmanager
    def noting(self, tensors: Sequence[Tensor]) -> Iterator[None]:
        """Note the tensors' values; they are changed within.

        Of those that are known already the older values stay.
        """
        before = [self._before(tensor) for tensor in tensors]
        yield
        for tensor, values in zip(tensors, before, strict=True):
            self._known[id(tensor)] = _Entry(tensor, values)

    def _before(self, tensor: Tensor) -> Tensor:
        entry = self._known.get(id(tensor))
        return entry.before if entry is not None and entry.stands else tensor.detach().clone()

    def before(self, tensor: Tensor) -> Tensor | None:
        """Return what a tensor was before the first change that is known; None of others."""
        entry = self._known.get(id(tensor))
        return None if entry is None else entry.before

    @torch.no_grad()
    def put_back(self) -> None:
        """Give the tensors their values back, but for those written to since; forget them."""
        for entry in self._known.values():
            if entry.stands:
                entry.tensor.copy_(entry.before)
        self._known.clear()

    def clear(self) -> None:
        """Forget all values: training has begun, or the changes stay."""
        self._known.clear()

    def copy(self) -> Changes:
        """Return the same knowledge, without tensors that were written to since."""
        other = Changes()
        other._known = {key: entry for key, entry in self._known.items() if entry.stands}
        return other

    def renewed(self) -> Changes:
        """Return the same knowledge, of tensors whose values were restored to those of then."""
        other = Changes()
        other._known = {k: _Entry(e.tensor, e.before) for k, e in self._known.items()}
        return other

    # -- state ---------------------------------------------------------------------------------

    def state(self, model: nn.Module) -> dict[str, dict[str, Any]]:
        """Return the values from before, by the tensors' names in ``model``."""
        names = {id(tensor): name for name, tensor in _tensors(model).items()}
        return {
            names[key]: {"before": entry.before.clone(), "mark": entry.mark}
            for key, entry in self._known.items()
            if key in names and entry.stands and not torch.equal(entry.before, entry.tensor)
        }

    def restore(self, model: nn.Module, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state`: the model's own values may be loaded before or after.

        Raises:
            CheckpointError: a tensor is of another model; nothing was changed.
        """
        tensors = _tensors(model)
        known = {}
        for name, entry in state.items():
            tensor, before = tensors.get(name), entry["before"]
            if tensor is None or not isinstance(before, Tensor) or tensor.shape != before.shape:
                raise CheckpointError(f'"{name}" of the state is no tensor of this model')
            known[id(tensor)] = _Entry(tensor, before.to(tensor.device, copy=True), entry["mark"])
        self._known = known


class NoChanges(Changes):
    """A log that keeps nothing, for a model that is thrown away: unwrapping undoes nothing."""

    @contextmanager
    def noting(self, tensors: Sequence[Tensor]) -> Iterator[None]:
        """Look at what is changed, and let it be changed.

        Raises:
            EngineError: it has no values: it belongs to a part of the model that is not loaded.
        """
        if any(tensor.is_meta for tensor in tensors):
            raise EngineError("it changes a tensor of another block, which is not loaded")
        yield


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
