"""Masks of plans on the model: for good, or for the time of a trial."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from engine.plugins.blame import at_fault
from engine.pruning.automatic.planned import PlannedPruner
from engine.pruning.automatic.snapshot import restored


class TrialMasks:
    """Sets the plan of a pruner and the masks that follow from it.

    Args:
        pruner: whose ``plan`` is set.
        look: runs the model on data, for pruners that rank by what they see.
    """

    def __init__(self, pruner: PlannedPruner, look: Callable[[], object]) -> None:
        self._pruner = pruner
        self._look = look

    def set(self, layers: Mapping[str, float]) -> None:
        """Mask the model by sparsities of layers.

        Raises:
            PluginError: the pruner inside makes no mask without training, or removes something
                else than each layer was asked to lose.
        """
        pruner = self._pruner
        pruner.plan = dict(layers)
        pruner.update_masks(every_layer=True)
        if self._undecided():
            self._look()
            pruner.update_masks(every_layer=True)
        undecided = self._undecided()
        if undecided:
            raise at_fault(
                pruner.base,
                f'has no mask for layer "{undecided[0]}": it ranks by what it sees in training\n'
                "  use a base_algo that ranks by weights, such as l1_filter",
                layer=undecided[0],
            )
        self._check_obeyed(layers)

    @contextmanager
    def tried(self, layers: Mapping[str, float]) -> Iterator[None]:
        """Mask the model within; afterwards it is as before, whatever was trained."""
        with restored(self._pruner):
            self.set(layers)
            yield

    def of_weights(
        self, weights: Mapping[str, Tensor], layers: Mapping[str, float]
    ) -> dict[str, Tensor]:
        """Return other weights, by layer, as sparsities would mask them."""
        wrappers = [w for w in self._pruner.wrappers if w.name in weights]
        with restored(self._pruner):
            with torch.no_grad():
                for wrapper in wrappers:
                    wrapper.weight.copy_(weights[wrapper.name])
            self.set(layers)
            return {w.name: w.weight.detach().clone() for w in wrappers}

    def _check_obeyed(self, layers: Mapping[str, float]) -> None:
        """Raise PluginError where masks are not the plan's: the search would be about nothing."""
        pruner = self._pruner
        if pruner.extensions:
            return  # they may have changed the masks, as to multiples of 8
        plan = {u.name: layers.get(u.wrappers[0].name, 0.0) for u in pruner.units}
        asked = pruner._cost.by_layer(plan)
        for wrapper in pruner.wrappers:
            mask = wrapper.weight_mask
            if mask is None or wrapper.name not in asked:
                continue
            removed = 1.0 - float(mask.float().mean())
            if abs(removed - asked[wrapper.name]) > 0.5 / mask.numel() + 1e-6:
                raise at_fault(
                    pruner.base,
                    f'removes {removed:.4g} of layer "{wrapper.name}", which was asked to lose '
                    f"{asked[wrapper.name]:.4g}\n"
                    "  a search needs a base_algo that looks at each layer by itself, such as "
                    "l1_filter; one that ranks all layers together decides by itself",
                    layer=wrapper.name,
                )

    def _undecided(self) -> list[str]:
        asked = [w for w in self._pruner.wrappers if self._pruner.plan.get(w.name, 0.0) > 0]
        return [wrapper.name for wrapper in asked if wrapper.sparsity is None]
