"""Network slimming: batch norm scales, pushed towards zero while training, say which channels go.

Liu et al. 2017, "Learning Efficient Convolutional Networks through Network Slimming",
arXiv 1708.06519, eq. 1 and section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engine import Pruner, Wrapper
from engine.pruning import prune_count, smallest_removed


class SlimPruner(Pruner):
    """Removes the channels of smallest ``|gamma|`` over all layers of one asked sparsity.

    Until the masks are made, ``regular_scale * sign(gamma)`` is added to the gradient of each
    scale: the subgradient of the paper's penalty. Each layer keeps its strongest channel.
    """

    one_shot = True
    default_op_types = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d")
    regular_scale: float
    training_epochs: int

    def check_layer(self, module: nn.Module) -> str | None:
        """Refuse layers whose weight is no scale per channel."""
        weight = module._parameters["weight"]
        if weight is not None and weight.dim() == 1:
            return None
        return f"{type(module).__name__} has no scale per channel, as norm layers have"

    @torch.no_grad()
    def before_step(self) -> None:
        """Add the penalty's subgradient ``lambda * sign(gamma)``."""
        for wrapper in self.wrappers:
            if wrapper.sparsity is None and wrapper.weight.grad is not None:
                wrapper.weight.grad.add_(wrapper.weight.sign(), alpha=self.regular_scale)

    def calc_mask(self, wrapper: Wrapper, sparsity: float) -> dict[str, Tensor] | None:
        """Return the layer's part of the global ranking; None while training with the penalty."""
        if self.host.epoch < self.training_epochs:
            return None
        group = [w for w in self.wrappers if w.config["sparsity"] == wrapper.config["sparsity"]]
        scores = []
        for member in group:
            score = member.weight.detach().abs().flatten()
            mask = member.mask("weight")
            if mask is not None:
                score[mask.flatten() == 0] = -1
            score[score.argmax()] = torch.inf
            scores.append(score)
        ranking = torch.cat(scores)
        count = min(prune_count(len(ranking), sparsity), len(ranking) - len(group))
        kept = torch.split(smallest_removed(ranking, count), [len(score) for score in scores])
        own = kept[next(i for i, member in enumerate(group) if member is wrapper)]
        masks = {"weight_mask": own.view_as(wrapper.weight)}
        if wrapper.bias is not None:
            masks["bias_mask"] = own.view_as(wrapper.bias)
        return masks
