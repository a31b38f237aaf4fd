"""The least-squares problem of one layer: a better weight from what it sees and should put out."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from engine.errors import EngineError


class Errors(NamedTuple):
    """Squared errors relative to the sum of squares that was wanted, before and after."""

    before: float
    after: float


class LayerProblem:
    """The normal equations for the change of a layer's weight and bias, in float64.

    One system for each group: (groups, columns, columns), a column of ones last where there is a
    bias. A weight that is zero stays zero. Filters whose weights are all zero are no part of it.

    Args:
        module: a convolution that is not transposed, or a linear layer.
    """

    def __init__(self, module: nn.Module) -> None:
        self._weight: Any = module._parameters["weight"]
        self._bias = module._parameters.get("bias")
        groups = getattr(module, "groups", 1)
        # The weight as it is masked, also while the layer computes that from a dense one.
        current = torch.as_tensor(module.weight).detach().flatten(1).double()
        self._kept = (current != 0).view(groups, -1, current.shape[1])
        self._live = self._kept.any(-1)
        if self._bias is not None:
            current = torch.cat([current, self._bias.detach().double()[:, None]], 1)
        columns = current.shape[1]
        self._current = current.view(groups, -1, columns)
        self._gram = current.new_zeros(groups, columns, columns)
        self._cross = torch.zeros_like(self._current)
        self._missing = self._wanted = 0.0

    def add(self, seen: Tensor, wanted: Tensor) -> None:
        """Add samples: inputs (samples, groups, columns), outputs (samples, output channels)."""
        # Sums of one batch in the model's precision: damping is far above their rounding.
        dtype = torch.promote_types(seen.dtype, torch.float32)
        x = seen.to(dtype).transpose(0, 1)
        if self._bias is not None:
            x = torch.cat([x, torch.ones_like(x[..., :1])], -1)
        live = self._live[:, None]
        y = wanted.to(dtype).view(len(wanted), len(x), -1).transpose(0, 1) * live
        missing = y - (x @ self._current.to(dtype).mT) * live
        self._gram += x.mT @ x
        self._cross += missing.mT @ x
        self._missing += float(missing.double().square().sum())
        self._wanted += float(y.double().square().sum())

    def solve(self, damping: float) -> tuple[Tensor, Errors]:
        """Return the change, (groups, filters of a group, columns), and the relative errors.

        It is the least of ``|wanted - seen (w + d)|^2 + h |d|^2``, where h is ``damping`` times the
        mean square of what is seen: what the samples do not determine stays as it is.

        Raises:
            EngineError: samples hold NaN or infinity.
        """
        if not bool(self._gram.isfinite().all() & self._cross.isfinite().all()):
            raise EngineError("inputs or outputs hold NaN or infinity")
        change = torch.zeros_like(self._current)
        for group, (kept, live) in enumerate(zip(self._kept, self._live, strict=True)):
            # Filters that lack the same columns, usually all, have one matrix to decompose.
            patterns, kinds = torch.unique(kept, dim=0, return_inverse=True)
            for kind, pattern in enumerate(patterns):
                filters = ((kinds == kind) & live).nonzero().squeeze(1)
                self._solve_alike(group, filters, pattern, damping, change)
        gain = 2 * (change * self._cross).sum() - ((change @ self._gram) * change).sum()
        scale = self._wanted or 1.0
        after = max(self._missing - float(gain), 0.0)
        return change, Errors(self._missing / scale, after / scale)

    def write(self, change: Tensor) -> None:
        """Add a change to the layer's own weight and bias."""
        rows = change.flatten(0, 1)
        if self._bias is not None:
            self._bias.add_(rows[:, -1].to(self._bias.dtype))
            rows = rows[:, :-1]
        self._weight.add_(rows.reshape(self._weight.shape).to(self._weight.dtype))

    def _solve_alike(
        self, group: int, filters: Tensor, kept: Tensor, damping: float, change: Tensor
    ) -> None:
        gram = self._gram[group]
        if self._bias is not None:
            kept = torch.cat([kept, kept.new_ones(1)])
        columns = (kept & (gram.diagonal() > 0)).nonzero().squeeze(1)
        if not len(columns) or not len(filters):
            return
        own = gram[columns][:, columns]
        own.diagonal().add_(damping * own.diagonal().mean())
        wanted = self._cross[group][filters][:, columns]
        found = torch.cholesky_solve(wanted.mT, torch.linalg.cholesky(own)).mT
        change[group, filters[:, None], columns] = found
