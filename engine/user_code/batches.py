"""What a person's batch is to a model that is run without labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from engine.errors import EngineError

#: Calls a model with a batch, where what a batch usually is does not hold.
Forward = Callable[[nn.Module, Any], object]


def batches_in(
    batches: object, purpose: str, error: type[EngineError] = EngineError
) -> Iterator[Any]:
    """Return what a person gave as batches, one by one.

    Args:
        batches: a list of batches, a loader, or whatever else can be gone through.
        purpose: what they are for, the subject of a message: ``"calibration"``.
        error: what is raised.

    Raises:
        EngineError: at once where ``batches`` cannot be gone through, or is one batch of keywords;
            at the end where there were none.
    """
    if not isinstance(batches, Iterable) or isinstance(batches, (Mapping, str)):
        raise error(
            f"{purpose} got {type(batches).__name__} in place of batches\n"
            "  it needs a list of batches, or a loader"
        )
    return _at_least_one(batches, purpose, error)


def _at_least_one(batches: Iterable[Any], purpose: str, error: type[EngineError]) -> Iterator[Any]:
    empty = True
    for batch in batches:
        empty = False
        yield batch
    if empty:
        raise error(
            f"{purpose} got no batches\n"
            "  it needs at least one: a list of batches, or a loader that is not used up"
        )


def call_with_batch(model: nn.Module, batch: Any) -> object:
    """Call ``model`` with a batch: a mapping as keywords, of a tuple or list the first item."""
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, (tuple, list)):
        return model(batch[0])
    return model(batch)


def call_or_explain(model: nn.Module, batch: Any) -> None:
    """Call ``model`` with a batch as :func:`call_with_batch` does.

    Raises:
        EngineError: the model fails; the message says what the batch was and what it may be.
    """
    try:
        call_with_batch(model, batch)
    except EngineError:
        raise
    except Exception as error:  # whatever the model makes of a shape, dtype or keyword
        first = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
        what = type(first).__name__
        if isinstance(first, Tensor):
            what = f"{first.dtype} of shape {list(first.shape)}"
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise EngineError(
            f"a batch ({what}) does not go through the model: {lines[0]}\n"
            "  a batch is a tensor, a tuple whose first item is the input, or a mapping of "
            "keywords; for anything else give forward=lambda model, batch: ..."
        ) from error
