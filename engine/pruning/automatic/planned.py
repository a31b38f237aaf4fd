"""A pruner whose sparsities are a plan: what a search searches in, and what a plan removes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any

from engine.attach.wrapper import Wrapper
from engine.hookspecs import hookimpl
from engine.pruning.automatic.cost import Cost, Unit
from engine.pruning.automatic.fitting import fit
from engine.pruning.schedule import Schedule

#: Sparsity by the name of a unit, or of a layer.
Plan = Mapping[str, float]


#: What NNI's SensitivityPruner and NetAdaptPruner call ``trainer``.
_NNIS_TRAINERS = {"finetuner", "short_term_fine_tuner"}


class PlannedPruner(Schedule):
    """A schedule that gives each layer the sparsity of ``plan``, with what a search is given.

    Args:
        model: the user's model, trained.
        config_list: as for any pruner. ``sparsity`` is the fraction of the whole, the same in all
            entries.
        optimizer: the optimizer that ``trainer`` uses.
        evaluator: ``evaluator(model)`` returns a number that says how good the model is.
        trainer: ``trainer(model, optimizer, epoch)`` trains for one epoch.
        reconstruction_batches: inputs on which the layers of each candidate are fitted to the
            dense model's before it is trained or evaluated, see
            :class:`engine.pruning.Reconstruction`.
        **arguments: as for any schedule; ``dummy_input`` for layers bound together, and for
            budgets other than weights.

    Attributes:
        plan: the sparsity of each layer; those that are not in it lose nothing.
        units: what gets a sparsity of its own, in the model's order.
    """

    base_argument = "base_algo"
    #: Whether a search needs these from its user.
    needs_evaluator = True
    needs_trainer = False

    budget: str = "weights"
    optimize_mode: str = "maximize"
    max_layer_sparsity: float = 0.95
    experiment_data_dir: str | None = None
    verbose: bool = True
    random_seed: int = 0
    fine_tune_epochs: int | None = None

    _cost: Cost

    def __init__(
        self,
        *args: Any,
        evaluator: Any = None,
        trainer: Any = None,
        reconstruction_batches: Iterable[Any] | None = None,
        **kwargs: Any,
    ) -> None:
        for name in _NNIS_TRAINERS & kwargs.keys():
            trainer = kwargs.pop(name) if trainer is None else trainer
        self.evaluator = evaluator
        self.trainer = trainer
        self.reconstruction_batches = reconstruction_batches
        self.plan: dict[str, float] = {}
        super().__init__(*args, **kwargs)
        self.units: list[Unit] = []

    @property
    def target(self) -> float:
        """The fraction of the whole that shall go."""
        return float(self.wrappers[0].config["sparsity"])

    @property
    def candidate_epochs(self) -> int:
        """How long a candidate is trained before it is evaluated, in epochs."""
        if self.fine_tune_epochs is not None:
            return self.fine_tune_epochs
        return 1 if self.trainer is not None else 0

    def removed(self, plan: Plan) -> float:
        """Return the fraction of the whole that a plan, by unit, removes."""
        return self._cost.removed(plan)

    def fit(self, family: Callable[[float], Plan], goal: float) -> dict[str, float]:
        """Return the weakest plan of a family that removes ``goal``; see :func:`fit`.

        Raises:
            EngineError: none does.
        """
        # A time is measured for each step, and is no more exact than this.
        steps = {"steps": 7} if self.budget == "latency" else {}
        return fit(family, self.removed, goal, **steps)

    def better(self, metric: float, than: float) -> bool:
        """Return whether one value of the evaluator is better than another."""
        return self.score(metric) > self.score(than)

    def score(self, metric: float) -> float:
        """Return the metric with the sign that makes larger ones better."""
        return metric if self.optimize_mode == "maximize" else -metric

    def strongest(self, strength: float = 1.0) -> dict[str, float]:
        """Return the plan that gives each unit ``strength`` times the most that it may get."""
        return {unit.name: self.max_layer_sparsity * strength for unit in self.units}

    def layers_of(self, plan: Plan) -> dict[str, float]:
        """Return the sparsity by layer of a plan by unit, layers that lose nothing left out."""
        return {
            wrapper.name: float(plan[unit.name])
            for unit in self.units
            if plan.get(unit.name, 0.0) > 0
            for wrapper in unit.wrappers
        }

    @hookimpl(wrapper=True)
    def sparsity(  # type: ignore[override]
        self, wrapper: Wrapper, epoch: int
    ) -> Generator[None, float, float]:
        """Return the plan's sparsity of the layer."""
        yield
        return self.plan.get(wrapper.name, 0.0)
