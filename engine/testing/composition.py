"""Checks of what plugins do together: schedules, constraints, and a pruner with a quantizer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from engine.errors import ConfigError
from engine.plugins import registry
from engine.testing.counting import removed, removes_filters, weight_masks
from engine.testing.outcome import (
    PRUNER,
    QUANTIZER,
    SCHEDULE,
    CheckFailedError,
    CheckSkippedError,
    check,
    require,
)
from engine.testing.settings import coarse
from engine.testing.subject import Subject, make_optimizer, partners


@check(PRUNER)
def every_schedule_drives_it(subject: Subject) -> str:
    """Inside each schedule it ends at the asked sparsity; if that is found, it is refused."""
    use = _refuse if subject.plugin.finds_sparsity else _drive
    return _with_each(
        partners("pruning", "schedule"), "schedule", lambda schedule: use(schedule, subject)
    )


@check(SCHEDULE)
def it_drives_every_pruner(subject: Subject) -> str:
    """Around each pruner that can be asked it ends at the sparsity that was asked."""
    asked = (each for each in partners("pruning", "provider") if not each.plugin.finds_sparsity)
    return _with_each(asked, "pruner", lambda pruner: _drive(subject, pruner))


@check(SCHEDULE)
def sparsity_never_falls(subject: Subject) -> str:
    """From epoch to epoch the sparsity stays or rises, and it ends at what was asked."""
    model = subject.model()
    optimizer = make_optimizer(model)
    compressor = subject.attach(model, optimizer, sparsity=0.75)
    shares = []
    for number in range(subject.rounds()):
        subject.train(compressor, optimizer, range(number, number + 1), batches=subject.batches())
        found = removed(compressor)
        shares.append(found.units / found.total)
    text = ", ".join(f"{share:.2f}" for share in shares)
    require(shares == sorted(shares), f"the sparsity falls: {text}")
    require(found.is_about(0.75), f"0.75 was asked, the sparsities were {text}")
    return text


@check(PRUNER, SCHEDULE)
def it_composes_with_constraints(subject: Subject) -> str:
    """Under each constraint of the engine's every layer has masks, and the model trains on."""
    if subject.plugin.finds_sparsity:
        raise CheckSkippedError("its sparsity is an outcome: it is asked for none")
    if not removes_filters(subject.at_rest(subject.model())):
        raise CheckSkippedError("its masks remove single weights, not filters")

    def constrained(constraint: Subject) -> None:
        model = subject.model()
        weight_masks(subject.at_rest(model, extensions=[constraint.extension()]))
        require(model(*subject.inputs()).isfinite().all(), "outputs are not finite")

    constraints = (
        Subject(plugin)
        for plugin in registry.extensions()
        if plugin.comes_from(registry.OWN_DISTRIBUTION)
        and (plugin.status, plugin.kind, plugin.role) == ("ok", "pruning", "constraint")
    )
    return _with_each(constraints, "constraint", constrained)


@check(PRUNER, SCHEDULE)
def it_composes_with_quantizers(subject: Subject) -> str:
    """With each quantizer of the engine's, in either order, removed weights are exactly zero."""
    return _with_each(
        partners("quantization", "provider"), "quantizer", lambda other: _both(subject, other)
    )


@check(QUANTIZER)
def it_composes_with_pruners(subject: Subject) -> str:
    """With each pruner of the engine's, in either order, removed weights are exactly zero."""
    return _with_each(
        partners("pruning", "provider"), "pruner", lambda other: _both(other, subject)
    )


def _drive(schedule: Subject, pruner: Subject) -> None:
    found = removed(schedule.at_rest(pruner.model(), base=pruner.plugin))
    require(found.is_about(0.5), f"{found} are removed in the end, a fraction of 0.5 was asked")


def _refuse(schedule: Subject, pruner: Subject) -> None:
    try:
        schedule.attach(pruner.model(), base=pruner.plugin)
    except ConfigError as refused:
        named = pruner.plugin.name in str(refused)
        require(named, f"it is refused, and not named: {refused}")
    else:
        raise CheckFailedError("it is taken, though nobody can ask it for a sparsity")


def _both(pruner: Subject, quantizer: Subject) -> None:
    for pruner_first in (True, False):
        own = quantizer if "model" in quantizer.hints else pruner
        model = own.model()
        settings = coarse(quantizer.plugin, "weight")
        if pruner_first:
            compressor = pruner.at_rest(model)
            quantizer.at_rest(model, settings=settings)
        else:
            quantizer.at_rest(model, settings=settings)
            compressor = pruner.at_rest(model)
        for wrapper in compressor.get_modules_wrapper():
            mask = wrapper.mask("weight")
            assert mask is not None
            weight: Any = wrapper.module.weight
            alive = int(torch.count_nonzero(weight.detach()[mask == 0]))
            order = "first" if pruner_first else "second"
            require(
                alive == 0,
                f'{alive} removed weights of layer "{wrapper.name}" are not zero, pruned {order}',
            )


def _with_each(others: Iterable[Subject], word: str, use: Any) -> str:
    """Call ``use`` for each plugin; return their names. A failure names the other plugin."""
    names = []
    for other in others:
        with _named(other):
            use(other)
        names.append(other.plugin.name)
    if not names:
        raise CheckSkippedError(f"no {word} is installed")
    return ", ".join(names)


@contextmanager
def _named(other: Subject) -> Iterator[None]:
    try:
        yield
    except CheckSkippedError:
        raise
    except CheckFailedError as error:
        raise CheckFailedError(f"with {other.plugin.name}: {error}") from error
    except Exception as error:
        raise CheckFailedError(
            f"with {other.plugin.name} ({other.plugin.origin}): {type(error).__name__}: {error}"
        ) from error
