"""How much each block does to what runs through it, over some batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from engine.attach.undisturbed import undisturbed
from engine.attach.wrapper import Wrapper
from engine.calibration.inputs import real_tokens
from engine.errors import EngineError, PluginError
from engine.plugins.blame import at_fault
from engine.pruning.blocks.found import hidden_in
from engine.user_code.batches import Forward, batches_in, call_or_explain


def influence_of(
    model: nn.Module,
    wrappers: Sequence[Wrapper],
    score: Callable[[Wrapper, Tensor, Tensor], Tensor],
    batches: Iterable[Any],
    forward: Forward | None,
    provider: object,
) -> list[float]:
    """Return the mean score of each block over all tokens that are no padding, of all processes.

    The whole model is run on each batch once.

    Args:
        model: the model, left undisturbed.
        wrappers: of the blocks.
        score: the stack's ``score_block``.
        batches: inputs, as for any compressor.
        forward: runs the model with a batch.
        provider: the algorithm, for messages.

    Raises:
        EngineError: a score is NaN or infinite, or a block saw nothing.
        PluginError: the algorithm failed, or returned no number for each token.
    """
    totals = torch.zeros(len(wrappers), 2, dtype=torch.float64)
    padding: list[Tensor] = []

    def look(module: nn.Module, args: Any, kwargs: Any) -> None:
        mask = kwargs.get("attention_mask")
        padding[:] = [mask] if isinstance(mask, Tensor) and mask.dim() == 2 else []

    def hook(place: int) -> Callable[..., None]:
        def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            before, after = hidden_in((*args, *kwargs.values())), hidden_in(output)
            assert before is not None
            assert after is not None
            kept = real_tokens(before, padding)
            rows = [_rows(x) if kept is None else _rows(x)[kept] for x in (before, after)]
            scores = score(wrappers[place], *rows)
            if not isinstance(scores, Tensor) or scores.shape != rows[0].shape[:1]:
                raise _fault(provider, wrappers[place], scores, len(rows[0]))
            totals[place] += torch.tensor([float(scores.double().sum()), len(scores)])

        return note

    hooks = [model.register_forward_pre_hook(look, with_kwargs=True)]
    hooks += [
        wrapper.module.register_forward_hook(hook(place), with_kwargs=True)
        for place, wrapper in enumerate(wrappers)
    ]
    try:
        with undisturbed(model), torch.compiler.set_stance("force_eager"):
            for batch in batches_in(batches, "calibration"):
                (forward or call_or_explain)(model, batch)
    finally:
        for each in hooks:
            each.remove()
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        totals = totals.to(wrappers[0].device, torch.float32)
        distributed.all_reduce(totals)
    means = (totals[:, 0] / totals[:, 1]).tolist()
    for wrapper, mean in zip(wrappers, means, strict=True):
        if not torch.isfinite(torch.tensor(mean)):
            raise EngineError(
                f'the influence of block "{wrapper.name}" is {mean}: it saw no token, or NaN\n'
                "  check the batches, and the model in float32"
            )
    return means


def _rows(value: Tensor) -> Tensor:
    """Return (tokens, features), at least float32: channels of images, else the last dimension."""
    value = value.movedim(1, -1) if value.dim() > 3 else value
    dtype = torch.promote_types(value.dtype, torch.float32)
    return value.reshape(-1, value.shape[-1]).to(dtype)


def _fault(provider: object, wrapper: Wrapper, got: Any, tokens: int) -> PluginError:
    what = tuple(got.shape) if isinstance(got, Tensor) else type(got).__name__
    return at_fault(
        provider,
        f'for block "{wrapper.name}" ({wrapper.type}) returned {what}\n'
        f"  it must return one number for each token: a tensor of shape ({tokens},)",
        more=".score_block",
        hook="score_block",
        layer=wrapper.name,
    )
