"""Checks of extensions: they work with every algorithm, and what they do not constrain stays."""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from engine.errors import ConfigError, PluginError
from engine.plugins import registry
from engine.pruning.pruner import Pruner
from engine.testing.counting import removes_filters, weight_masks
from engine.testing.lifecycle import resume, values_of
from engine.testing.outcome import (
    CONSTRAINT,
    EXTENSION_ROLES,
    SEARCH,
    TRAINING,
    WATCHER,
    CheckFailedError,
    CheckSkippedError,
    check,
    require,
)
from engine.testing.subject import Subject, detach_all


@check(*EXTENSION_ROLES)
def it_works_with_every_algorithm(subject: Subject) -> str:
    """Each algorithm of its kind trains with it, or is refused with the reason at compress()."""
    refused = []
    for other in _in_scratch(_algorithms(subject)):
        try:
            compressor = other.at_rest(other.model(), extensions=[subject.extension()])
        except Exception as error:
            # A hook that raised anything of its own is no refusal: see engine.plugins.blame.
            fault = error.__cause__ or error
            if not isinstance(fault, (ConfigError, PluginError)):
                raise CheckFailedError(
                    f"with {other.plugin.name}: {type(fault).__name__}: {fault}"
                ) from error
            refused.append(f"{other.plugin.name} ({str(fault).splitlines()[0]})")
            continue
        compressor.unwrap()
    return f"refused: {', '.join(refused)}" if refused else ""


@check(WATCHER)
def watching_changes_nothing(subject: Subject) -> None:
    """A training that is watched ends with the same weights, bit for bit."""
    for other in _in_scratch(_without_searches(subject)):
        plain, watched = other.model(), other.model()
        other.at_rest(plain)
        other.at_rest(watched, extensions=[subject.extension()])
        for name, value in values_of(plain).items():
            require(
                torch.equal(value, values_of(watched)[name]),
                f"{name} is trained otherwise under {other.plugin.name}",
            )


@check(TRAINING)
def its_loss_counts_in_training_alone(subject: Subject) -> None:
    """Training ends otherwise than without it, and evaluation adds nothing to a loss."""
    other = next(_in_scratch(_without_searches(subject)))
    plain, changed = other.model(), other.model()
    other.at_rest(plain)
    compressor = other.at_rest(changed, extensions=[subject.extension()])
    require(
        any(not torch.equal(v, values_of(changed)[k]) for k, v in values_of(plain).items()),
        f"{other.plugin.name} trains as it does without it",
    )
    loss = torch.zeros(())
    with torch.no_grad():
        changed.train()(*other.inputs())
    changed.eval()(*other.inputs())
    require(compressor.loss(loss) is loss, "something is added to a loss in evaluation")


@check(*EXTENSION_ROLES)
def nothing_is_left_behind(subject: Subject) -> None:
    """After unwrap() modules, hooks and parameters are as they were without the extension."""
    for other in _in_scratch(_without_searches(subject)):
        model = other.model()
        before, values = _structure(model), values_of(model)
        with contextlib.suppress(ConfigError, PluginError):  # refused: see above
            compressor = other.attach(model, extensions=[subject.extension()])
            compressor.unwrap()
            for name, value in values_of(model).items():
                require(
                    torch.equal(value, values[name]),
                    f"{name} has other values after unwrap() of {other.plugin.name}",
                )
        require(_structure(model) == before, f"hooks or attributes of {other.plugin.name} stay")


@check(*EXTENSION_ROLES)
def copies_do_not_report(subject: Subject) -> None:
    """A deepcopy of the model can be made and trained; the compressor hears nothing of it."""
    for other in _in_scratch(_algorithms(subject)[:1]):
        model = other.model()
        other.at_rest(model, extensions=[subject.extension()])
        before = values_of(model)
        twin = copy.deepcopy(model)
        optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
        twin(*subject.inputs()).square().sum().backward()
        optimizer.step()
        for name, value in values_of(model).items():
            require(torch.equal(value, before[name]), f"training a copy has changed {name}")


@check(*EXTENSION_ROLES)
def training_with_it_resumes_bit_exactly(subject: Subject) -> None:
    """A run that was saved halfway and loaded into a fresh model ends as one that was not."""
    for other in _in_scratch(_algorithms(subject)[:1]):
        resume(other, lambda: [subject.extension()])


@check(CONSTRAINT)
def speedup_of_its_masks_is_exact(subject: Subject) -> str:
    """For every pruner of filters, speedup of the constrained masks gives the same outputs."""
    names = []
    for other in _in_scratch(_algorithms(subject)):
        if other.role != "pruner" or not removes_filters(other.at_rest(other.model())):
            continue
        model = other.model().double()
        compressor = other.at_rest(model, extensions=[subject.extension()])
        assert isinstance(compressor, Pruner)
        weight_masks(compressor)
        x = other.inputs(99, model)
        with torch.no_grad():
            expected = model.eval()(*x)
            output = compressor.apply_speedup(x)(*x)
        close = torch.allclose(output, expected, rtol=1e-9, atol=1e-10)
        require(close, f"speedup of the masks of {other.plugin.name} changes the outputs")
        names.append(other.plugin.name)
    if not names:
        raise CheckSkippedError("no pruner of filters is installed")
    return ", ".join(names)


def _algorithms(subject: Subject) -> list[Subject]:
    """Return the engine's own algorithms of the extension's kind; see ``subject.partners``."""
    return [
        Subject(plugin)
        for plugin in registry.algorithms()
        if plugin.status == "ok"
        and plugin.comes_from(registry.OWN_DISTRIBUTION)
        and subject.plugin.kind in (plugin.kind, "any")
    ]


def _without_searches(subject: Subject) -> list[Subject]:
    """Return those that train as the check does: a search trains by itself, and for long."""
    return [other for other in _algorithms(subject) if other.role != SEARCH]


def _in_scratch(others: Iterable[Subject]) -> Iterator[Subject]:
    """Yield each in a new working folder, for an extension that writes files."""
    for other in others:
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            yield other
            detach_all()  # before the folder goes


def _structure(model: torch.nn.Module) -> dict[str, Any]:
    return {
        name: (type(module), sorted(vars(module)), len(module._forward_hooks))
        for name, module in model.named_modules()
    }
