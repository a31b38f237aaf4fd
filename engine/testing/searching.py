"""Checks of what searches for each layer's sparsity by itself."""

from __future__ import annotations

from engine.errors import EngineError
from engine.testing.counting import removed, weight_masks
from engine.testing.lifecycle import values_of
from engine.testing.outcome import SEARCH, CheckSkippedError, check, require
from engine.testing.subject import Subject, make_optimizer


@check(SEARCH)
def the_search_reaches_what_was_asked(subject: Subject) -> str:
    """compress() ends with masks that remove the asked fraction of the whole, or a little more."""
    model = subject.model()
    compressor = subject.attach(model, make_optimizer(model))
    weight_masks(compressor)
    masks = [w.mask("weight") for w in compressor.get_modules_wrapper()]
    units = removed(compressor)
    gone = sum(int((mask == 0).sum()) for mask in masks if mask is not None)
    total = sum(mask.numel() for mask in masks if mask is not None)
    require(gone > 0, "nothing is removed")
    largest = max(mask.numel() for mask in masks if mask is not None)
    require(
        abs(gone - 0.5 * total) <= 0.5 * largest,
        f"{gone} of {total} weights are removed, a fraction of 0.5 was asked",
    )
    return f"{gone} of {total} weights, {units} units"


@check(SEARCH)
def what_it_needs_is_asked_for_at_once(subject: Subject) -> str:
    """Without its user's functions it is refused before anything runs, or does without them."""
    functions = subject.user_functions()
    if not functions:
        raise CheckSkippedError("it asks its user for nothing")
    model = subject.model()
    before = values_of(model)
    try:
        subject.attach(model, make_optimizer(model), without=functions)
    except EngineError as refused:
        for name, value in values_of(model).items():
            require(
                bool((value == before[name]).all()), f"{name} has changed before it was refused"
            )
        return str(refused).splitlines()[-1].strip()
    return "it does without them"
