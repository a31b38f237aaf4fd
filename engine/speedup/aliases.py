"""Which tensors share memory, so that a change in place is seen by all of them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef


class Aliases:
    """Views of each storage that are still alive; memory is used again, so liveness counts."""

    def __init__(self) -> None:
        self._by_address: dict[int, list[TensorWeakRef]] = {}

    def add(self, view: Tensor, source: Tensor) -> None:
        """Say that ``view`` may share memory with ``source``."""
        known = self._by_address.setdefault(_address(source), [])
        held = {id(ref()) for ref in known}
        known.extend(TensorWeakRef(t) for t in (source, view) if id(t) not in held)

    def others(self, tensor: Tensor) -> list[Tensor]:
        """Return the living tensors, beside ``tensor`` itself, that see a change of its memory."""
        address = _address(tensor)
        alive = [ref() for ref in self._by_address.get(address, ())]
        others = [t for t in alive if t is not None and t is not tensor and _address(t) == address]
        if not others:
            return []
        # Parts of one tensor (the gates of a recurrent cell) lie interleaved, without overlap.
        touched = torch.zeros(_elements(tensor), dtype=torch.bool)
        _within(touched, tensor).fill_(True)
        return [t for t in others if t.dtype != tensor.dtype or bool(_within(touched, t).any())]


def _elements(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes() // tensor.element_size()


def _within(memory: Tensor, tensor: Tensor) -> Tensor:
    return memory.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
