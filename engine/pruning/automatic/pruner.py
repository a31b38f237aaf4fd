"""Pruners that find out by themselves how much each layer loses."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from engine.attach.compressor import Compressor
from engine.plugins.stack import placeholder
from engine.pruning import Reconstruction
from engine.pruning.automatic.cost import Cost
from engine.pruning.automatic.fitting import fit
from engine.pruning.automatic.journal import Journal, Trial
from engine.pruning.automatic.layers import find_units, removes_filters, smaller_copy
from engine.pruning.automatic.needs import checked_user_code
from engine.pruning.automatic.planned import Plan, PlannedPruner
from engine.pruning.automatic.results import config_list, trials_table, write_results
from engine.pruning.automatic.snapshot import Attempt, Snapshot
from engine.pruning.automatic.trial_masks import TrialMasks
from engine.pruning.costs.latency import compare_latency
from engine.user_code.example import arguments_of
from engine.user_code.fingerprint import fingerprint


class AutomaticPruner(PlannedPruner):
    """Base of pruners that search, around any pruner that says which weights or filters go.

    ``compress()`` runs the search. A subclass implements :meth:`search`, which tries plans with
    :meth:`try_plan` and calls :meth:`adopt` for what it decides on; the masks of the last plan
    stand when it returns, and training goes on as with any pruner.

    With whole filters to remove and ``dummy_input`` at hand, layers that are bound together
    (additions, groups, ...) are one unit with one sparsity, so that what is masked is what speedup
    removes. Layers whose filters cannot go, such as the last one, are left alone then.

    Arguments are those of :class:`PlannedPruner`: ``evaluator``, ``trainer`` and
    ``reconstruction_batches`` beside any schedule's.
    """

    reads_weights = False  # a plan is tried on the weights themselves

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._steps = 0
        self._journal = Journal(None, {})
        self._restored = False
        #: What plans scored that remove the same from the model as it is now, by that and epochs.
        self._metrics: dict[tuple[str, int], float] = {}
        self._reconstruction: Reconstruction | None = None

    # -- what a subclass implements, and what it has for that ----------------------------------

    @placeholder
    def search(self) -> None:
        """Find a plan and :meth:`adopt` it."""
        raise NotImplementedError

    @property
    def trials(self) -> list[Trial]:
        """What was tried, in order; the model as it was comes first."""
        return list(self._journal.trials)

    def try_plan(self, plan: Plan, what: str, *, epochs: int = 0, keep: bool = False) -> Attempt:
        """Return how good the model is under a plan; the model is as before afterwards.

        Args:
            plan: sparsity by unit; units that are not in it lose nothing.
            what: what it is tried for, in one short line.
            epochs: how many epochs it is trained before.
            keep: keep what training made of it, for :meth:`adopt`.
        """
        layers = self.layers_of(plan)
        key = self._cost.key(plan), epochs
        known = self._journal.known(what, layers)
        if known is not None:
            self._metrics[key] = known.metric
            return Attempt(known, dict(plan), epochs, None)
        state = None
        metric = self._metrics.get(key)
        if metric is None or (keep and epochs):
            with self._masks.tried(layers):
                self._fine_tune(epochs)
                state = Snapshot(self) if keep and epochs else None
                metric = self._user.evaluate(self.bound_model)
            self._metrics[key] = metric
        trial = self._journal.add(what, layers, metric, self.removed(plan))
        self._say(trial)
        return Attempt(trial, dict(plan), epochs, state)

    def adopt(self, attempt: Attempt) -> None:
        """Let the model be what it was in a trial: its masks and, if trained, its weights.

        Trained weights that are not at hand (the trial is an earlier run's) are trained again.
        """

        def work() -> None:
            if attempt.state is not None:
                attempt.state.restore()
                return
            self.set_plan(attempt.plan)
            self._fine_tune(attempt.epochs)

        self.once(work)

    def set_plan(self, plan: Plan) -> None:
        """Mask the model by a plan, sparsity by unit. Filters that are gone already stay gone."""
        self._metrics.clear()
        self._masks.set(self.layers_of(plan))

    def masked(self, weights: Mapping[str, Tensor], plan: Plan) -> dict[str, Tensor]:
        """Return other weights, by layer, as a plan would mask them; the model stays as it is."""
        return self._masks.of_weights(weights, self.layers_of(plan))

    def train(self, epochs: int, first: int = 0) -> None:
        """Train the model under its masks, for epochs that count from ``first``."""
        self._metrics.clear()
        for epoch in range(first, first + epochs):
            self.update_epoch(epoch)
            self._user.train(self.bound_model, epoch)

    def reconstruct(self) -> None:
        """Fit the layers to what they put out before the search, if there are batches for that."""
        if self._reconstruction is not None and self.plan:
            self._reconstruction.apply()

    def once(self, work: Callable[[], None]) -> None:
        """Do a step that changes the model, or load what it made if an earlier run has done it."""
        self._steps += 1
        self._metrics.clear()
        if self._steps < self._journal.saved_steps:
            return
        if self._steps == self._journal.saved_steps:
            self._load(self._journal.load())
            return
        work()
        if self._trained or self.get_extra_state()["search"]:
            self._journal.save(self._steps, self._saved())

    def search_state(self) -> dict[str, Any]:
        """Return tensors and plain values that a subclass keeps from step to step."""
        return {}

    def set_search_state(self, state: dict[str, Any]) -> None:
        """Restore :meth:`search_state`."""

    def say(self, text: str) -> None:
        """Write a line of progress to standard error, unless ``verbose`` is false."""
        if self.verbose:
            sys.stderr.write(f"{self.plugin_name}: {text}\n")

    # -- surface -------------------------------------------------------------------------------

    def compress(self) -> nn.Module:
        """Search, and return the model under the masks that were found.

        After :meth:`load_state_dict` of a pruner that has searched, its masks are taken and nothing
        is searched.

        Raises:
            ConfigError: the search lacks something (an evaluator, a trainer, ``dummy_input``);
                nothing has run yet.
            CheckpointError: ``experiment_data_dir`` holds another search.
            EngineError: the budget cannot be reached, or the evaluator returned no number; the
                model is as it was found.
        """
        if self._stack is not None:
            return self.bound_model
        self.base.dependency_aware = removes_filters(self.base) and self.dummy_input is not None
        if self._restored:
            return super().compress()
        self._user = checked_user_code(self)
        self._prepare()
        if self.reconstruction_batches is not None:
            self._reconstruction = Reconstruction(self.bound_model, self.reconstruction_batches)
        super().compress()
        found = Snapshot(self)
        try:
            self._check_reachable()
            if self.evaluator is not None:
                self.baseline = self.try_plan({}, "the model as it is").metric
            self.search()
            if self.experiment_data_dir is not None:
                end = self._user.evaluate(self.bound_model) if self.evaluator else None
                write_results(self.experiment_data_dir, self.trials, self.plan, end)
        except BaseException:
            found.restore()
            self.unwrap()
            raise
        return self.bound_model

    def unfinished(self) -> None:
        """Nothing is: the search is over when ``compress`` returns."""

    def found_config_list(self) -> list[dict[str, Any]]:
        """Return the plan as a ``config_list`` for the pruner inside, one entry per layer."""
        return config_list(self.plan)

    def search_report(self) -> str:
        """Return a table of all trials, the best of those that reach the budget marked."""
        return trials_table(self.trials, self.target, self.score)

    def get_extra_state(self) -> dict[str, Any]:
        """Return the plan and what the subclass keeps."""
        return {"plan": dict(self.plan), "search": self.search_state()}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`get_extra_state`."""
        self.plan = dict(state["plan"])
        self._restored = self._stack is None and bool(self.plan)
        self.set_search_state(state["search"])

    def __getstate__(self) -> dict[str, Any]:
        """Leave the user's functions out of a pickled model."""
        own = ("evaluator", "trainer", "reconstruction_batches")
        made = ("_reconstruction", "_user", "_cost", "_masks")
        return {**super().__getstate__(), **dict.fromkeys((*own, *made)), "units": []}

    # -- inside --------------------------------------------------------------------------------

    def _prepare(self) -> None:
        example = arguments_of(self.dummy_input)
        self.units = find_units(self, example if self.base.dependency_aware else None)
        self._cost = Cost(
            self.bound_model,
            self.wrappers,
            self.units,
            self.budget,
            filters=removes_filters(self.base),
            example=example,
            latency=self._latency,
        )
        self._masks = TrialMasks(self, lambda: self._user.evaluate(self.bound_model))
        self._steps = 0
        self._journal = Journal(self.experiment_data_dir, self._settings())
        if self._journal.resumed:
            self.say(f"goes on after {self._journal.resumed} trials of an earlier run")

    def _check_reachable(self) -> None:
        """Raise EngineError when no plan can remove what shall go."""
        fit(self.strongest, self.removed, self.target, steps=0)

    def _fine_tune(self, epochs: int) -> None:
        """Fit and train a candidate: no epochs of the training that the masks are made for."""
        self.reconstruct()
        for epoch in range(epochs):
            self._user.train(self.bound_model, epoch)

    def _settings(self) -> dict[str, Any]:
        own = self.plugin.schema["properties"] if self.plugin is not None else {}
        return {
            "algorithm": self.plugin_name,
            "pruner": self.base.plugin_name,
            "model": fingerprint(self.bound_model),
            "layers": {w.name: w.config["sparsity"] for w in self.wrappers},
            "units": [[w.name for w in unit.wrappers] for unit in self.units],
            "reconstruction": self.reconstruction_batches is not None,
            **{
                name: getattr(self, name)
                for name in own
                if name not in ("config_list", "experiment_data_dir", "verbose")
            },
        }

    def _latency(self, plan: Plan) -> float:
        key = self._cost.key(plan)
        known = self._journal.measured(key)
        if known is not None:
            return known
        example = arguments_of(self.dummy_input)
        with self._masks.tried(self.layers_of(plan)):
            small = smaller_copy(self.bound_model, *example)
        with self._masks.tried({}):
            ratio = compare_latency(self.bound_model, small, *example, runs=20).ratio
        return self._journal.measure(key, ratio)

    def _saved(self) -> dict[str, Any]:
        return {
            "model": self.bound_model.state_dict(),
            "optimizer": None if self.optimizer is None else self.optimizer.state_dict(),
            "compressor": self.state_dict(),
        }

    def _load(self, state: dict[str, Any]) -> None:
        self._trained = True
        self._changes.clear()
        self.bound_model.load_state_dict(state["model"])
        if self.optimizer is not None and state["optimizer"] is not None:
            self.optimizer.load_state_dict(state["optimizer"])
        Compressor.load_state_dict(self, state["compressor"])

    def _say(self, trial: Trial) -> None:
        self.say(
            f"{trial.number:4d}  {trial.what:<32}  removed {trial.removed:.4f}  "
            f"metric {trial.metric:.6g}"
        )
