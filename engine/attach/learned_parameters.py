"""Parameters of an algorithm's own, trained by the optimizer that trains the model.

``wrapper.learn(name, value)`` makes one. It joins the parameter group of its layer's weight, so
that it has that group's learning rate and weight decay and a scheduler made before goes on; when no
optimizer is given, at the first step of the one that trains the model. It is part of the
compressor's ``state_dict``, not of the model's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.optim import Optimizer

from engine.attach.parametrized import source_of
from engine.attach.wrapper import Wrapper


class LearnedParameters:
    """What the wrappers of one compressor have learned parameters of, between two steps.

    Args:
        model: the user's model.
        wrappers: one for each layer that the algorithm works on.
    """

    def __init__(self, model: nn.Module, wrappers: Sequence[Wrapper]) -> None:
        self._model = model
        self._wrappers = wrappers

    def __bool__(self) -> bool:
        return next(self.all(), None) is not None

    def all(self) -> Iterator[nn.Parameter]:
        """Yield each of them, in the model's order."""
        return (parameter for wrapper in self._wrappers for parameter in wrapper.parameters())

    def join(self, optimizer: Optimizer) -> None:
        """Put those that are in no group of ``optimizer`` into the group of their layer's weight.

        A layer without a trained weight has them in the group of the first parameter of the model.
        """
        groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        trained = (groups[id(p)] for p in self._model.parameters() if id(p) in groups)
        first = next(trained, None)
        for wrapper in self._wrappers:
            group = groups.get(id(source_of(wrapper.module)), first)
            for parameter in wrapper.parameters():
                if group is not None and id(parameter) not in groups:
                    group["params"].append(parameter)

    def leave(self, optimizer: Optimizer) -> None:
        """Take all of them, and what ``optimizer`` keeps for them, out of it."""
        own = {id(parameter): parameter for parameter in self.all()}
        for group in optimizer.param_groups:
            group["params"][:] = [p for p in group["params"] if id(p) not in own]
        for parameter in own.values():
            optimizer.state.pop(parameter, None)

    @torch.no_grad()
    def agree_between_processes(self) -> None:
        """Average gradients, and what each process began with from its own first batch."""
        distributed = torch.distributed
        if not (distributed.is_available() and distributed.is_initialized()):
            return
        learned = list(self.all())
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in learned]
        flat = torch.cat([tensor.reshape(-1) for tensor in (*learned, *grads)])
        distributed.all_reduce(flat)
        flat /= distributed.get_world_size()
        parts = flat.split([tensor.numel() for tensor in (*learned, *grads)])
        for place, parameter in enumerate(learned):
            parameter.copy_(parts[place].view_as(parameter))
            parameter.grad = parts[len(learned) + place].view_as(parameter)

    def clear_gradients(self) -> None:
        """Drop the gradients: a loop that clears the model's alone would add them up."""
        for parameter in self.all():
            parameter.grad = None
