"""A plugin under test, attached to a small model and trained in the loop that it asks for."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from engine.attach.compressor import Compressor
from engine.config.choose import choose
from engine.plugins import registry
from engine.plugins.registry import Plugin
from engine.testing.networks import INPUT_SHAPE, residual_net
from engine.testing.settings import (
    Settings,
    extension_arguments,
    hints_of,
    longest,
    settings_for,
)

#: How many minibatches make an epoch, unless a setting counts more.
_BATCHES = 2
#: How many batches an algorithm is calibrated with.
_CALIBRATED = 4
#: What checks have attached, for :func:`detach_all`.
_attached: list[Compressor] = []


class Subject:
    """One plugin with all that a check needs to use it.

    Attributes:
        plugin: what the registry knows of it.
        hints: ``x-engine.check`` of its schema, see :func:`~engine.testing.settings.hints_of`.
    """

    def __init__(self, plugin: Plugin) -> None:
        self.plugin = plugin
        self.hints = hints_of(plugin)

    @property
    def role(self) -> str:
        """The plugin's label: pruner, quantizer, schedule, search, watcher or constraint."""
        return self.plugin.label

    @property
    def expected_failures(self) -> Mapping[str, str]:
        """Names of checks that the plugin says it fails, with its reasons."""
        declared = self.hints.get("expected_failures", {})
        return declared if isinstance(declared, dict) else {}

    @cached_property
    def cls(self) -> type:
        """The plugin's class, imported. PluginError when that fails."""
        return self.plugin.load()

    # -- model and data ------------------------------------------------------------------------

    def model(self, seed: int = 0) -> nn.Module:
        """Return a fresh model in training mode; the same for the same seed."""
        return self._example(seed)[0]

    def inputs(self, seed: int = 0, like: nn.Module | None = None) -> tuple[Tensor, ...]:
        """Return example inputs for :meth:`model`, of the floating dtype and device of ``like``."""
        inputs = self._example(seed)[1]
        if like is None:
            return inputs
        first = next(like.parameters())
        return tuple(
            x.to(first.device, first.dtype if x.is_floating_point() else x.dtype) for x in inputs
        )

    def _example(self, seed: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if "model" not in self.hints:
                return residual_net(), (torch.randn(INPUT_SHAPE),)
            model, inputs = self.example_model(seed)
            return model, inputs if isinstance(inputs, tuple) else (inputs,)

    def example_model(self, seed: int = 0) -> tuple[nn.Module, Any]:
        """Return a fresh model and its example inputs as ``x-engine.check.model`` gives them."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module, _, name = str(self.hints["model"]).partition(":")
            model, inputs = getattr(importlib.import_module(module), name)()
            return model, inputs

    # -- use -----------------------------------------------------------------------------------

    def attach(
        self,
        model: nn.Module,
        optimizer: Optimizer | None = None,
        *,
        sparsity: float = 0.5,
        base: Plugin | None = None,
        extensions: Sequence[object] = (),
        settings: Settings | None = None,
        without: Collection[str] = (),
        batches: Sequence[Any] | None = None,
    ) -> Compressor:
        """Return the algorithm, attached to ``model``.

        Args:
            model: from :meth:`model`, or another.
            optimizer: the optimizer that will train it; a trainer gets one in any case.
            sparsity: the fraction that is asked for in the end.
            base: the pruner inside a schedule; by default the schema's.
            extensions: extension instances.
            settings: other settings than :func:`settings_for` gives.
            without: names of :meth:`user_functions` that it does not get.
            batches: what it is calibrated with, if it is, in place of inputs of :meth:`model`.
        """
        settings = dict(settings or settings_for(self.plugin, sparsity, base))
        entries = settings.pop("config_list")
        functions = {k: v for k, v in self.user_functions().items() if k not in without}
        if "trainer" in functions and optimizer is None:
            optimizer = make_optimizer(model)
        compressor: Compressor = self.cls(
            model,
            entries,
            optimizer,
            extensions=extensions,
            dummy_input=self.inputs(like=model),
            **self.calibration_data(model, base, batches),
            **functions,
            **settings,
        )
        compressor.compress()
        _attached.append(compressor)
        return compressor

    def user_functions(self) -> dict[str, Any]:
        """Return what a search asks its user for, as far as ``runtime_arguments`` names it.

        ``evaluator`` is the negative loss of one batch, ``trainer`` takes some steps; both depend
        on the model and the epoch alone.
        """

        @torch.no_grad()
        def evaluator(model: nn.Module) -> float:
            training = model.training
            loss = loss_of(model.eval()(*self.inputs(99, model)))
            model.train(training)
            return -float(loss)

        def trainer(model: nn.Module, optimizer: Optimizer, epoch: int) -> None:
            for batch in range(_BATCHES):
                self._step(model, model, optimizer, 1000 * epoch + batch)

        offered = {"evaluator": evaluator, "trainer": trainer}
        return {name: offered[name] for name in self.plugin.runtime_arguments if name in offered}

    @cached_property
    def _inside(self) -> Plugin | None:
        """The pruner inside a schedule, as its schema has it."""
        if self.plugin.base_argument is None:
            return None
        return choose(self.plugin, {}, []).base

    @property
    def is_one_shot(self) -> bool:
        """Whether masks or weights are made in ``calibrate_layer``, by the plugin or inside it."""
        cls = self.cls if self._inside is None else self._inside.load()
        return hasattr(cls, "calibrate_layer")

    def calibration_data(
        self,
        model: nn.Module,
        base: Plugin | None = None,
        batches: Sequence[Any] | None = None,
    ) -> dict[str, Any]:
        """Return ``batches`` and ``forward``, if the algorithm or the pruner inside has a use."""
        if not (self.plugin.calibration or (base or self._inside or self.plugin).calibration):
            return {}
        if batches is None:
            batches = [self.inputs(place, model) for place in range(_CALIBRATED)]
        return {"batches": batches, "forward": lambda model, batch: model(*batch)}

    def extension(self) -> object:
        """Return an instance of an extension, its arguments from its schema's first example."""
        return self.cls(**extension_arguments(self.plugin))

    def rounds(self, base: Plugin | None = None, *, at_least: int = 1) -> int:
        """Return how many epochs it takes to come to rest; all rounds of an iterative schedule."""
        settings = settings_for(self.plugin, base=base)
        rounds = longest(self.plugin, settings, "rounds")
        return 1 + rounds if rounds else max(at_least, 1 + longest(self.plugin, settings, "epochs"))

    def batches(self, base: Plugin | None = None) -> int:
        """Return how many minibatches an epoch needs, so that statistics are complete."""
        counted = longest(self.plugin, settings_for(self.plugin, base=base), "minibatches")
        return max(_BATCHES, counted + 1)

    def train(
        self,
        compressor: Compressor,
        optimizer: Optimizer,
        rounds: range,
        *,
        batches: int = _BATCHES,
        forward: Callable[..., Any] | None = None,
    ) -> None:
        """Train the compressor's model for ``rounds``, each an epoch of ``batches`` minibatches.

        An iterative schedule, which has ``prune_iteration_start``, is told of each round, any
        other algorithm of each epoch. Data and random numbers depend on the place in training
        alone.
        """
        for number in rounds:
            start = getattr(compressor, "prune_iteration_start", None)
            if start is None:
                compressor.update_epoch(number)
            else:
                start()
            for batch in range(batches):
                model = compressor.bound_model
                run = model if forward is None else forward  # a compiled one has no truth value
                self._step(run, model, optimizer, 1000 * number + batch, compressor)

    def _step(
        self,
        forward: Callable[..., Any],
        model: nn.Module,
        optimizer: Optimizer,
        place: int,
        compressor: Compressor | None = None,
    ) -> None:
        torch.manual_seed(place)
        optimizer.zero_grad()
        loss = loss_of(forward(*self.inputs(place, model)))
        (loss if compressor is None else compressor.loss(loss)).backward()
        optimizer.step()

    def at_rest(
        self,
        model: nn.Module,
        *,
        sparsity: float = 0.5,
        base: Plugin | None = None,
        extensions: Sequence[object] = (),
        settings: Settings | None = None,
    ) -> Compressor:
        """Return the algorithm attached to ``model`` and trained until nothing is due any more."""
        optimizer = make_optimizer(model)
        compressor = self.attach(
            model,
            optimizer,
            sparsity=sparsity,
            base=base,
            extensions=extensions,
            settings=settings,
        )
        self.train(compressor, optimizer, range(self.rounds(base)), batches=self.batches(base))
        self.calibrate(compressor)
        return compressor

    def calibrate(self, compressor: Compressor) -> None:
        """Show batches to a quantizer that learns its ranges from them, not from training."""
        calibrate = getattr(compressor, "calibrate", None)
        if calibrate is not None:
            batches = [self.inputs(place, compressor.bound_model) for place in range(_BATCHES)]
            calibrate(batches, lambda model, batch: model(*batch))


def detach_all() -> None:
    """Detach everything that was attached: each would be told of every optimizer step to come."""
    while _attached:
        with contextlib.suppress(Exception):  # a plugin may fail here, too; one check is about it
            _attached.pop().unwrap()


def make_optimizer(model: nn.Module) -> Optimizer:
    """Return an optimizer whose momentum moves weights also where a mask has just removed them."""
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def loss_of(output: Tensor) -> Tensor:
    """Return a loss of any output: it depends on each value, and not by symmetry."""
    values = output.float()
    weights = torch.linspace(0.5, 1.5, values.numel(), device=values.device)
    return (values.flatten() * weights).sum() / len(weights) + values.square().mean()


def partners(kind: str, role: str) -> Iterator[Subject]:
    """Yield the engine's own algorithms of a kind and role, to compose with.

    Not what else is installed: a fault of a neighbour's would be this plugin's verdict.
    """
    for plugin in registry.algorithms():
        own = plugin.status == "ok" and plugin.comes_from(registry.OWN_DISTRIBUTION)
        if own and (plugin.kind, plugin.role) == (kind, role):
            yield Subject(plugin)
