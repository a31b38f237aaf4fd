"""The alternating direction method of multipliers: training weights towards a sparse set.

Zhang et al. 2018, "A Systematic DNN Weight Pruning Framework using Alternating Direction Method of
Multipliers", arXiv 1804.03294, section 3: minimize f(W) + g(Z) with W = Z, where g is zero for
weights of the asked sparsity and infinite for others.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from engine.pruning.automatic.pruner import AutomaticPruner


class AlternatingDirections:
    """Z, the sparse weights, and U, the scaled dual variables, of each layer that a plan names.

    Args:
        pruner: has the weights W and says what of them a plan keeps.
        plan: sparsity by unit.
        rho: weight of the penalty rho / 2 ||W - Z + U||^2 (eq. 5).
    """

    def __init__(self, pruner: AutomaticPruner, plan: Mapping[str, float], rho: float) -> None:
        self._pruner = pruner
        self._plan = dict(plan)
        self.rho = rho
        layers = pruner.layers_of(plan)
        self._wrappers = [w for w in pruner.wrappers if layers.get(w.name, 0.0) > 0]
        self._u = {w.name: torch.zeros_like(w.weight) for w in self._wrappers}
        self._z = self._projected()

    def add_penalty(self) -> None:
        """Add the penalty's gradient rho (W - Z + U) to the weights' gradients."""
        for wrapper in self._wrappers:
            weight = wrapper.weight
            if weight.grad is not None:
                difference = weight.detach() - self._z[wrapper.name] + self._u[wrapper.name]
                weight.grad.add_(difference, alpha=self.rho)

    @torch.no_grad()
    def update(self) -> None:
        """Set Z to the projection of W + U (eq. 7), then U to U + W - Z (eq. 8)."""
        self._z = self._projected()
        for wrapper in self._wrappers:
            self._u[wrapper.name] += wrapper.weight.detach() - self._z[wrapper.name]

    @property
    def distance(self) -> float:
        """``||W - Z|| / ||W||`` over all layers: how far the weights are from sparse ones."""
        gaps = [(w.weight.detach() - self._z[w.name]).double().norm() for w in self._wrappers]
        norms = [w.weight.detach().double().norm() for w in self._wrappers]
        whole = torch.stack(norms).norm() if norms else torch.zeros(())
        return float(torch.stack(gaps).norm() / whole) if whole else 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return Z and U by layer."""
        return {"z": dict(self._z), "u": dict(self._u)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        for own, saved in ((self._z, state["z"]), (self._u, state["u"])):
            for name, tensor in own.items():
                own[name] = saved[name].to(tensor)

    def _projected(self) -> dict[str, Tensor]:
        shifted = {w.name: w.weight.detach() + self._u[w.name] for w in self._wrappers}
        return self._pruner.masked(shifted, self._plan)


class ADMMSearch(AutomaticPruner):
    """Base of searches that train the weights towards a plan before they mask."""

    needs_trainer = True
    _admm: AlternatingDirections | None = None

    def train_towards(
        self,
        plan: Mapping[str, float],
        iterations: int,
        epochs: int,
        rho: float,
        *,
        growth: float = 1.0,
        label: str = "",
    ) -> None:
        """Alternate between training with the penalty and projecting, then mask.

        Args:
            plan: sparsity by unit.
            iterations: how many projections.
            epochs: epochs of training before each of them.
            rho: weight of the penalty.
            growth: factor by which it rises from one projection to the next.
            label: what progress is called.
        """
        self._admm = AlternatingDirections(self, plan, rho)
        for number in range(iterations):
            self.once(partial(self._iterate, number, epochs, rho * growth**number, label))
        self._admm = None

        def work() -> None:
            self.set_plan(plan)
            self.reconstruct()

        self.once(work)

    def before_step(self) -> None:
        """Add the penalty's gradient; the loss stays the trainer's own."""
        if self._admm is not None:
            self._admm.add_penalty()

    def search_state(self) -> dict[str, Any]:
        """Return Z and U."""
        return self._admm.state_dict() if self._admm is not None else {}

    def set_search_state(self, state: dict[str, Any]) -> None:
        """Restore :meth:`search_state`."""
        if self._admm is not None and state:
            self._admm.load_state_dict(state)

    def _iterate(self, number: int, epochs: int, rho: float, label: str) -> None:
        assert self._admm is not None
        self._admm.rho = rho
        self.train(epochs, first=number * epochs)
        self._admm.update()
        self.say(f"{label}iteration {number + 1}  ||W - Z|| / ||W|| {self._admm.distance:.4f}")
