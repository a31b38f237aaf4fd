"""The least-squares problem of one layer: a better weight from what it sees and should put out."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from engine.errors import EngineError
from engine.pruning.masked_systems import is_cheaper, solve_masked

#: What is tried, strongest first, where nobody says how much damping is right.
_DAMPINGS = (100.0, 10.0, 1.0, 0.1, 0.01)
#: Where no sample tells either.
_CAUTIOUS = 1.0
#: Dampings are compared on this many systems: each filter has its own where masks are of weights.
_TRIED = 32


class Errors(NamedTuple):
    """Squared errors relative to the sum of squares that was wanted, before and after."""

    before: float
    after: float


class _System(NamedTuple):
    """Filters of one group that lack the same columns, so that one matrix is decomposed for all."""

    group: int
    filters: Tensor
    columns: Tensor


class _Sums:
    """Products of samples with themselves and with what is missing, in float64."""

    def __init__(self, weight: Tensor) -> None:
        groups, _, columns = weight.shape
        self.gram = weight.new_zeros(groups, columns, columns)
        self.cross = torch.zeros_like(weight)
        self.missing = self.wanted = 0.0

    def add(self, x: Tensor, missing: Tensor, wanted: Tensor) -> None:
        """Add samples: (groups, samples, columns), and twice (groups, samples, filters)."""
        self.gram += x.mT @ x
        self.cross += missing.mT @ x
        self.missing += float(missing.double().square().sum())
        self.wanted += float(wanted.double().square().sum())

    def gain(self, change: Tensor) -> float:
        """Return by how much a change makes the squared error of these samples smaller."""
        return float((change * (2 * self.cross - change @ self.gram)).sum())

    def errors(self, change: Tensor) -> Errors:
        """Return the squared errors without and with a change."""
        scale = self.wanted or 1.0
        after = max(self.missing - self.gain(change), 0.0)
        return Errors(self.missing / scale, after / scale)


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
        self._current = current.view(groups, -1, current.shape[1])
        self._fitted, self._apart = _Sums(self._current), _Sums(self._current)

    def add(self, seen: Tensor, wanted: Tensor, *, apart: bool = False) -> None:
        """Add samples: inputs (samples, groups, columns), outputs (samples, output channels).

        Args:
            seen: the inputs.
            wanted: the outputs.
            apart: these are not fitted to, but tell how well the others were.
        """
        if not len(seen):
            return
        # Sums of one batch in the model's precision: damping is far above their rounding.
        dtype = torch.promote_types(seen.dtype, torch.float32)
        x = seen.to(dtype).transpose(0, 1)
        if self._bias is not None:
            x = torch.cat([x, torch.ones_like(x[..., :1])], -1)
        live = self._live[:, None]
        y = wanted.to(dtype).view(len(wanted), *self._live.shape).transpose(0, 1) * live
        with torch.autocast(x.device.type, enabled=False):
            missing = y - (x @ self._current.to(dtype).mT) * live
            (self._apart if apart else self._fitted).add(x, missing, y)

    def solve(self, damping: float | None = None) -> tuple[Tensor, Errors]:
        """Return the change, (groups, filters of a group, columns), and the relative errors.

        It is the least of ``|wanted - seen (w + d)|^2 + h |d|^2``, where h is ``damping`` times the
        mean square of what is seen: what the samples do not determine stays as it is. Without a
        damping it is the one that suits the samples apart best, and no change at all if none suits
        them; the errors are theirs then.

        Raises:
            EngineError: samples hold NaN or infinity, or the damping is lost in rounding.
        """
        for sums in (self._fitted, self._apart):
            if not bool(sums.gram.isfinite().all() & sums.cross.isfinite().all()):
                raise EngineError("inputs or outputs hold NaN or infinity")
        systems = self._systems()
        if damping is None and self._apart.wanted > 0:
            damping = self._best_damping(systems)
            change = self._change(systems, damping)
            if self._apart.gain(change) < 0:
                change.zero_()
            return change, self._apart.errors(change)
        change = self._change(systems, _CAUTIOUS if damping is None else damping)
        return change, self._fitted.errors(change)

    def write(self, change: Tensor) -> None:
        """Add a change to the layer's own weight and bias."""
        rows = change.flatten(0, 1)
        if self._bias is not None:
            self._bias.add_(rows[:, -1].to(self._bias.dtype))
            rows = rows[:, :-1]
        self._weight.add_(rows.reshape(self._weight.shape).to(self._weight.dtype))

    def _systems(self) -> list[_System]:
        systems = []
        for group, (kept, live) in enumerate(zip(self._kept, self._live, strict=True)):
            patterns, kinds = torch.unique(kept, dim=0, return_inverse=True)
            seen = self._fitted.gram[group].diagonal() > 0
            for kind, pattern in enumerate(patterns):
                filters = ((kinds == kind) & live).nonzero().squeeze(1)
                if self._bias is not None:
                    pattern = torch.cat([pattern, pattern.new_ones(1)])
                columns = (pattern & seen).nonzero().squeeze(1)
                if len(filters) and len(columns):
                    systems.append(_System(group, filters, columns))
        return systems

    def _best_damping(self, systems: list[_System]) -> float:
        """Return the damping that suits the samples apart best, from the strongest downward."""
        tried = systems[:: -(-len(systems) // _TRIED) or 1]
        best, most = _DAMPINGS[0], -torch.inf
        for damping in _DAMPINGS:
            gain = self._apart.gain(self._change(tried, damping))
            if gain < most:
                break
            best, most = damping, gain
        return best

    def _change(self, systems: list[_System], damping: float) -> Tensor:
        change = torch.zeros_like(self._current)
        for group in range(len(change)):
            own = [system for system in systems if system.group == group]
            columns = change.shape[-1]
            sizes = [len(system.columns) for system in own]
            if is_cheaper(sizes, sum(len(system.filters) for system in own), columns):
                own = self._solve_together(change[group], own, damping)
            for system in own:
                self._solve_one(change[group], system, damping)
        return change

    def _solve_one(self, change: Tensor, system: _System, damping: float) -> None:
        group, filters, columns = system
        own = self._fitted.gram[group][columns][:, columns]
        own.diagonal().add_(damping * own.diagonal().mean())
        wanted = self._fitted.cross[group][filters][:, columns]
        factor, failed = torch.linalg.cholesky_ex(own)
        if failed:
            raise EngineError(f"a damping of {damping} is lost in the rounding of its inputs")
        change[filters[:, None], columns] = torch.cholesky_solve(wanted.mT, factor).mT

    def _solve_together(
        self, change: Tensor, systems: list[_System], damping: float
    ) -> list[_System]:
        """Solve one group's systems; return those that are to be solved one by one."""
        group = systems[0].group
        gram, cross = self._fitted.gram[group], self._fitted.cross[group]
        of_filter = {int(f): system for system in systems for f in system.filters}
        filters = torch.tensor(sorted(of_filter), device=cross.device)
        kept = torch.zeros(len(filters), cross.shape[1], dtype=torch.bool, device=cross.device)
        for row, number in enumerate(filters.tolist()):
            kept[row, of_filter[number].columns] = True
        held = damping * (kept.to(gram.dtype) @ gram.diagonal()) / kept.sum(1)
        change[filters], left = solve_masked(gram, cross[filters], kept, held)
        return [
            _System(group, filters[row : row + 1], of_filter[int(filters[row])].columns)
            for row in left
        ]
