"""The weights that masks have removed, to give back a model that was not trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class RemovedWeights:
    """By parameter, its values from before any mask.

    A parameter that was written to since its mask was applied, by whomever, is not known any more:
    its version number, which PyTorch raises with each write, tells.
    """

    def __init__(self) -> None:
        #: By id of a parameter: itself, its values before masks, its version after them.
        self._known: dict[int, tuple[Tensor, Tensor, int]] = {}

    @contextmanager
    def noting(self, parameters: Sequence[Tensor]) -> Iterator[None]:
        """Note the parameters' values; masks are multiplied into them within.

        Of those that are known already the older values stay.
        """
        dense = []
        for parameter in parameters:
            kept = self._known.get(id(parameter))
            unchanged = kept is not None and kept[2] == parameter._version
            dense.append(kept[1] if kept is not None and unchanged else parameter.detach().clone())
        yield
        self._known = {
            id(parameter): (parameter, values, parameter._version)
            for parameter, values in zip(parameters, dense, strict=True)
        }

    @torch.no_grad()
    def put_back(self) -> None:
        """Give the parameters their values back, but for those written to since; forget them."""
        for parameter, values, version in self._known.values():
            if parameter._version == version:
                parameter.copy_(values)
        self._known.clear()

    def clear(self) -> None:
        """Forget all values: training has begun."""
        self._known.clear()

    def copy(self) -> RemovedWeights:
        """Return the same knowledge, without parameters that were written to since."""
        other = RemovedWeights()
        other._known = {k: v for k, v in self._known.items() if v[0]._version == v[2]}
        return other

    def renewed(self) -> RemovedWeights:
        """Return the same knowledge, of parameters whose values were restored to those of then."""
        other = RemovedWeights()
        other._known = {k: (p, values, p._version) for k, (p, values, _) in self._known.items()}
        return other
