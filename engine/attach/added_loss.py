"""What plugins add to the loss of a training step: made in the forward pass, added by the user."""

from __future__ import annotations

import warnings
from collections.abc import Callable, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from engine.attach.model_hooks import OwnHook
from engine.attach.recomputed import is_recomputed
from engine.errors import PluginError


class AddedLoss:
    """Asks ``extra_loss`` after each forward in training, and keeps answers until they are added.

    A model that puts out a ``loss`` of its own (those of transformers, given labels) has them added
    to that at once; otherwise :meth:`total` adds them to the loss of the user's. A tensor hook on
    the outputs could do without that line, but it knows neither how a loss is scaled nor over how
    many batches it is averaged.

    Args:
        model: the model.
        ask: the stack's ``extra_loss``.
        compressor: what hooks are told.
        source: what warnings call the plugins.
    """

    def __init__(
        self, model: nn.Module, ask: Callable[..., Any], compressor: Any, source: str
    ) -> None:
        self._ask = ask
        self._compressor = compressor
        self._source = source
        self._pending: list[Tensor] = []
        self._told = False
        self._handle: RemovableHandle = model.register_forward_hook(
            OwnHook(self._after_forward), with_kwargs=True
        )

    def total(self, loss: Tensor) -> Tensor:
        """Return ``loss`` with everything added that forward passes since the last call gave."""
        pending, self._pending = self._pending, []
        for extra in pending:
            loss = loss + extra.to(loss.device)
        return loss

    def stepped(self) -> None:
        """Be told of an optimizer step: what was not added by now never was."""
        if self._pending and not self._told:
            self._told = True
            warnings.warn(
                f"{self._source}: what is added to the loss was left out of this step\n"
                "  write loss = compressor.loss(loss) before loss.backward()",
                stacklevel=3,
            )
        self._pending.clear()

    def remove(self) -> None:
        """Ask no more."""
        self._handle.remove()
        self._pending.clear()

    def _after_forward(self, model: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not (model.training and torch.is_grad_enabled()) or is_recomputed():
            return
        answer = self._ask(self._compressor, args, kwargs, output)
        extras = [
            each for each in (answer if isinstance(answer, list) else [answer]) if each is not None
        ]
        for extra in extras:
            if not isinstance(extra, Tensor) or extra.numel() != 1:
                what = tuple(extra.shape) if isinstance(extra, Tensor) else type(extra).__name__
                raise PluginError(
                    f"{self._source}: extra_loss returned {what}\n"
                    "  it must return one number, a tensor"
                )
        own = output.get("loss") if isinstance(output, MutableMapping) else None
        if isinstance(own, Tensor) and own.requires_grad and own.numel() == 1:
            for extra in extras:
                own = own + extra.reshape(own.shape)
            output["loss"] = own
        else:
            self._pending += [extra.reshape(()) for extra in extras]
