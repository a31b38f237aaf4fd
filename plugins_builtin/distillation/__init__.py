"""Distillation: what is compressed learns to put out what the dense model puts out.

Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531,
section 2; hidden states after Romero et al. 2014, "FitNets", arXiv 1412.6550.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from engine import Compressor, EngineError, hookimpl
from engine.attach.model_hooks import OwnHook
from engine.attach.names import Names, NoLayerError
from engine.config.patterns import fault_of
from engine.user_code.model_factory import build


class Distillation:
    """Adds to the loss how far outputs, and hidden states, are from a teacher's.

    ``weight T^2 KL(teacher / T, student / T)``, the mean over all places that an ``attention_mask``
    leaves, plus ``hidden_weight`` times the mean squared difference of what the modules ``hidden``
    put out. ``loss = compressor.loss(loss)`` adds it, or a model of transformers its own loss.

    Args:
        teacher: the model to learn from, or "module:function" that returns one; by default a copy
            of the model as it is when ``compress()`` is called, saved with the compressor's state.
        temperature: T, what logits are divided by.
        weight: of the outputs' part.
        hidden: names or patterns of modules that both models have.
        hidden_weight: of their part.
        dim: the dimension of classes in the output.
    """

    def __init__(
        self,
        teacher: nn.Module | str | None = None,
        temperature: float = 2.0,
        weight: float = 1.0,
        hidden: Iterable[str] = (),
        hidden_weight: float = 1.0,
        dim: int = -1,
    ) -> None:
        self.given = build(teacher, "teacher") if isinstance(teacher, str) else teacher
        self.teacher: nn.Module | None = None
        self.temperature, self.weight = temperature, weight
        self.hidden, self.hidden_weight, self.dim = list(hidden), hidden_weight, dim
        self._hooks: list[RemovableHandle] = []
        self._seen: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
        #: A state that was loaded before there was a teacher.
        self._restored: Mapping[str, Any] = {}

    @hookimpl
    def preprocess_model(self, compressor: Compressor, model: nn.Module) -> None:
        """Take the dense model as the teacher, unless there is one, and find hidden states."""
        if self.given is model:
            raise EngineError("distillation: the teacher is the model itself\n  leave teacher out")
        names = [name for pattern in self.hidden for name in _called(model, pattern)]
        self.teacher = copy.deepcopy(model) if self.given is None else self.given
        self.teacher.eval()
        if self.given is None:
            self.teacher.requires_grad_(False)
            self.set_extra_state(self._restored)
        for which, net in enumerate((model, self.teacher)):
            for name in dict.fromkeys(names):
                module = dict(net.named_modules()).get(name)
                if module is None:
                    raise EngineError(f'distillation: the teacher has no module "{name}"')
                hook = OwnHook(_Note(self._seen[which], name, always=bool(which)))
                self._hooks.append(module.register_forward_hook(hook))

    @hookimpl
    def restore_model(self) -> None:
        """Forget the teacher."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self.teacher = None

    @hookimpl
    def extra_loss(self, args: Any, kwargs: Any, output: Any) -> Tensor:
        """Return how far the model is from its teacher in this forward pass."""
        assert self.teacher is not None
        student = _floating(output)
        device = next(self.teacher.parameters(), student).device
        if device != student.device:
            self.teacher.to(student.device)
        with torch.no_grad():
            teacher = _floating(self.teacher(*args, **kwargs))
        mask = kwargs.get("attention_mask")
        own, others = self._seen
        loss = self.weight * self._divergence(student, teacher, mask)
        for name, value in own.items():
            _same_shape(value, others[name], f'of "{name}"')
            kept = _places(mask, value.shape[:-1])
            square = (value - others[name]).square()
            square = square if kept is None else square[kept]
            loss = loss + self.hidden_weight / len(own) * square.mean()
        own.clear()
        others.clear()
        return loss

    def _divergence(self, student: Tensor, teacher: Tensor, mask: Any) -> Tensor:
        _same_shape(student, teacher, "put out")
        student, teacher = student.movedim(self.dim, -1), teacher.movedim(self.dim, -1)
        p, q = (F.log_softmax(x / self.temperature, dim=-1) for x in (teacher, student))
        divergence = (p.exp() * (p - q)).sum(-1)
        kept = _places(mask, divergence.shape)
        divergence = divergence if kept is None else divergence[kept]
        return self.temperature**2 * divergence.mean()

    def get_extra_state(self) -> dict[str, Any]:
        """Return the weights of the teacher, if it is the dense model."""
        if self.teacher is None or self.given is not None:
            return {}
        return {"teacher": {k: v.detach().clone() for k, v in self.teacher.state_dict().items()}}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`get_extra_state`: the dense model of then, not that of now."""
        if self.teacher is None:
            self._restored = state
        elif "teacher" in state:
            self.teacher.load_state_dict(state["teacher"])


class _Note:
    """Notes what a module puts out: the student's while gradients are made."""

    def __init__(self, seen: dict[str, Tensor], name: str, *, always: bool) -> None:
        self.seen, self.name, self.always = seen, name, always

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        """Note it."""
        if self.always or torch.is_grad_enabled():
            self.seen[self.name] = _floating(output)


def _called(model: nn.Module, pattern: str) -> Iterator[str]:
    known = [name for name, _ in model.named_modules()]
    if fault := fault_of(pattern):
        raise EngineError(f"distillation: hidden: {fault}")
    try:
        found = Names({name: name for name in known}, {}).called(pattern, None)
    except NoLayerError as missing:
        hint = f'\n  did you mean "{missing.hint}"?' if missing.hint else ""
        raise EngineError(
            f"distillation: hidden: {missing.message}\n  {missing.allowed}{hint}"
        ) from None
    yield from (name for name in known if name in found)


def _floating(output: Any) -> Tensor:
    """Return the logits of what a model puts out, or its first floating tensor."""
    if isinstance(output, Mapping):
        output = [output["logits"]] if "logits" in output else list(output.values())
    for value in output if isinstance(output, (tuple, list)) else [output]:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value
    raise EngineError(f"distillation: no floating tensor in a {type(output).__name__}")


def _same_shape(student: Tensor, teacher: Tensor, what: str) -> None:
    if student.shape != teacher.shape:
        raise EngineError(
            f"distillation: tensors {what} have shapes {tuple(student.shape)} in the model and "
            f"{tuple(teacher.shape)} in the teacher"
        )


def _places(mask: Any, shape: torch.Size) -> Tensor | None:
    """Return which places are no padding; None where nobody says so."""
    if isinstance(mask, Tensor) and mask.shape == shape:
        return mask != 0
    return None
