"""Base of the algorithms that rank filters by what they see over some minibatches."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from engine.attach.wrapper import Wrapper
from engine.pruning.activations import ActivationWatch
from engine.pruning.channels import Channels
from engine.pruning.structured import FilterPruner


class StatisticsFilterPruner(FilterPruner):
    """Averages a per-filter statistic over ``statistics_batch_num`` minibatches, then ranks.

    A subclass calls :meth:`record`. Until enough was recorded no mask is made. Recording starts
    again with each epoch, so that a schedule ranks by the network as it is by then.
    """

    statistics_batch_num: int
    #: What the statistic is made of, and why there may be none.
    seen: ClassVar[str] = "statistic"
    unseen: ClassVar[str] = "nothing was recorded for it"
    _steps = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for wrapper in self.wrappers:
            wrapper.set_attribute("statistic", torch.zeros(Channels(wrapper.module).count))
            wrapper.set_attribute("batches", 0)

    def wants(self, wrapper: Wrapper) -> bool:
        """Return whether this layer still needs minibatches."""
        return bool(wrapper.batches < self.statistics_batch_num)

    def record(self, wrapper: Wrapper, per_filter: Tensor) -> None:
        """Add one minibatch's statistic, shape (filters,), accumulated in float32."""
        if self.wants(wrapper):
            if wrapper.statistic.device != per_filter.device:
                wrapper.statistic = wrapper.statistic.to(per_filter.device)
            wrapper.statistic += per_filter.detach().float()
            wrapper.batches += 1

    def filter_importance(self, wrapper: Wrapper, channels: Channels) -> Tensor | None:
        """Return the mean over the recorded minibatches, None before there are enough."""
        if self.wants(wrapper):
            return None
        mean: Tensor = wrapper.statistic / wrapper.batches
        return mean

    def update_epoch(self, epoch: int) -> None:
        """Record anew where recording was complete; else go on."""
        for wrapper in self.wrappers:
            if wrapper.batches >= self.statistics_batch_num:
                wrapper.statistic.zero_()
                wrapper.set_attribute("batches", 0)

    def step(self) -> None:
        """Say which layers nothing is recorded for, once, rather than wait in silence."""
        self._steps += 1
        if self._steps == self.statistics_batch_num:
            missing = [f'"{wrapper.name}"' for wrapper in self.wrappers if wrapper.batches == 0]
            if missing:
                warnings.warn(
                    f"no {self.seen} of {', '.join(missing)} in {self._steps} steps, so there is "
                    f"no mask yet: {self.unseen}",
                    stacklevel=2,
                )


class ActivationFilterPruner(StatisticsFilterPruner):
    """Ranks filters by the activation that they lead to; a subclass gives the statistic.

    The activation is the output of the first ``activation`` function after the layer, also where a
    batch norm stands between; a layer that none follows is ranked by ``activation`` of its output.
    """

    activation: str
    seen = "activation"
    unseen = "the layer is not called by itself, or runs in torch.compile (run it eagerly first)"
    _watch: ActivationWatch | None = None

    def activation_statistic(self, activation: Tensor) -> Tensor:
        """Return one number per filter; ``activation`` is (filters, samples)."""
        raise NotImplementedError

    def preprocess_model(self, model: nn.Module) -> None:
        """Start watching the model's forward passes."""
        self._watch = ActivationWatch(
            model, self.wrappers, self.activation, self.wants, self._observe
        )

    def unwrap(self, *, bake: bool = False) -> nn.Module:
        """Detach; see :meth:`Pruner.unwrap`."""
        if self._watch is not None:
            self._watch.remove()
            self._watch = None
        return super().unwrap(bake=bake)

    def _observe(self, wrapper: Wrapper, activation: Tensor) -> None:
        self.record(wrapper, self.activation_statistic(activation))
