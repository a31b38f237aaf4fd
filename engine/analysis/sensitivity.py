"""How much a metric suffers when one layer at a time is pruned."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from engine.analysis.plot import plot_lines
from engine.analysis.progress import Progress
from engine.analysis.single_layer import SingleLayerPruning
from engine.attach.checkpoint import load_model
from engine.attach.undisturbed import State
from engine.errors import EngineError, nearest
from engine.files import PathLike
from engine.files.table import write_csv
from engine.pruning.pruner import Pruner
from engine.user_code.fingerprint import fingerprint
from engine.user_code.metric import number

#: When to stop with a layer: the metric, the value given and the metric of the model as it is.
_STOPS: Mapping[str, Callable[[float, float, float], bool]] = {
    "minimize": lambda metric, value, base: metric < value,
    "maximize": lambda metric, value, base: metric > value,
    "dropped": lambda metric, value, base: metric < base - value,
    "raised": lambda metric, value, base: metric > base + value,
}
_SPARSITIES = tuple(round(0.1 * step, 1) for step in range(1, 10))


class SensitivityAnalysis:
    """Prunes each layer alone, at several sparsities, and asks for the metric each time.

    Han et al. 2015, "Learning both Weights and Connections for Efficient Neural Networks", arXiv
    1506.02626, section 3.3 and figure 6. Nothing is trained. After each measurement, and after an
    exception, the model's parameters, buffers and training modes are what they were.

    Args:
        model: the model; on its device, in any mode.
        val_func: returns the metric of ``model``, a number; it is given ``val_args`` and
            ``val_kwargs`` and holds on to the model by itself.
        sparsities: fractions of a layer to remove, each above 0 and below 1; by default 0.1, 0.2
            and so on to 0.9. They are measured in rising order.
        prune_type: the pruning algorithm, by any name that ``engine list-algorithms`` knows
            (``"l1"`` is ``l1_filter``'s other name), or its class. One that ranks by activations
            lets ``val_func`` run once more per measurement, to see them.
        early_stop_mode: go on to the next layer after a metric that is below
            ``early_stop_value`` (``"minimize"``), above it (``"maximize"``), below the unpruned
            model's by more than it (``"dropped"``), or above that by more than it (``"raised"``).
            The metric that stopped a layer is kept.
        early_stop_value: see ``early_stop_mode``.
        progress: a JSON file that is written whole after each measurement. If it exists, what it
            holds is not measured again; with it a run that was killed goes on.

    Attributes:
        sensitivities: ``{layer: {sparsity: metric}}``, what was measured so far.
        base: the metric of the unpruned model, None before :meth:`analysis`.

    Raises:
        EngineError: sparsities or early stopping make no sense, or ``prune_type`` is no pruning
            algorithm that takes a sparsity.
        PluginError: the algorithm is unknown or broken.
        ConfigError: the model has no layer that the algorithm prunes.
        CheckpointError: the progress file is damaged or belongs to another model or settings.
    """

    def __init__(
        self,
        model: nn.Module,
        val_func: Callable[..., Any],
        sparsities: Iterable[float] | None = None,
        prune_type: str | type[Pruner] = "l1",
        early_stop_mode: str | None = None,
        early_stop_value: float | None = None,
        *,
        progress: PathLike | None = None,
    ) -> None:
        self.model = model
        self.val_func = val_func
        self.sparsities = _checked_sparsities(sparsities)
        self.early_stop_mode = _checked_stop(early_stop_mode, early_stop_value)
        self.early_stop_value = early_stop_value
        self._pruning = SingleLayerPruning(model, prune_type)
        self._file = progress
        self._progress = Progress(progress, self._settings())

    @property
    def sensitivities(self) -> dict[str, dict[float, float]]:
        """The metric by layer and sparsity, layers and sparsities in order."""
        measured = self._progress.layers
        names = [name for name, _ in self.model.named_modules() if measured.get(name)]
        return {name: dict(sorted(measured[name].items())) for name in names}

    @property
    def base(self) -> float | None:
        """The metric of the model as it is."""
        return self._progress.base

    def analysis(
        self,
        val_args: Sequence[Any] | None = None,
        val_kwargs: Mapping[str, Any] | None = None,
        specified_layers: Sequence[str] | None = None,
    ) -> dict[str, dict[float, float]]:
        """Measure, and return ``{layer: {sparsity: metric}}``.

        Without a progress file everything asked for is measured anew.

        Args:
            val_args: positional arguments of ``val_func``.
            val_kwargs: keyword arguments of ``val_func``.
            specified_layers: names of the layers to prune, by default all that the algorithm
                prunes by default.

        Raises:
            EngineError: a layer does not exist or cannot be pruned, with the nearest name; or
                ``val_func`` returned something else than a number, or NaN.
        """
        pruning, args, kwargs = self._pruning, val_args or (), dict(val_kwargs or {})
        layers = pruning.layers if specified_layers is None else pruning.checked(specified_layers)
        if self._file is None:
            self._progress.base = None
            for layer in layers:
                self._progress.layers.pop(layer, None)
        state = State(self.model, parameters=True)

        def value() -> Any:
            return self.val_func(*args, **kwargs)

        if self._progress.base is None:
            try:
                self._progress.set_base(number(value(), "val_func", "the model as it is"))
            finally:
                state.restore()
        for layer in layers:
            for sparsity in self.sparsities:
                if sparsity not in self._progress.layers.get(layer, {}):
                    with pruning.pruned(layer, sparsity, state, value):
                        metric = number(value(), "val_func", f"{layer} at sparsity {sparsity:g}")
                    self._progress.add(layer, sparsity, metric)
                if self._stops(self._progress.layers[layer][sparsity]):
                    break
        found = self.sensitivities
        return {layer: found[layer] for layer in layers}

    def export(self, filepath: PathLike) -> None:
        """Write CSV: the header ``layername,0.1,...,0.9``, then one row per layer.

        The row of a layer that was stopped early is shorter.

        Raises:
            ExportError: the file cannot be written.
        """
        rows = [[name, *metrics.values()] for name, metrics in self.sensitivities.items()]
        write_csv(filepath, [["layername", *self.sparsities], *rows])

    def plot(self, path: PathLike) -> None:
        """Draw the metric over sparsity, one line per layer; needs the extra ``engine[plot]``.

        Args:
            path: a file whose name ends in ``.png``, ``.svg`` or ``.pdf``.

        Raises:
            ExportError: the extra is not installed, there is nothing to draw, or the file cannot be
                written.
        """
        title = f"Each layer alone, pruned by {self._pruning.name}"
        plot_lines(path, self.sensitivities, self.base, title, "sparsity", "metric")

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load other weights into the model; what was measured with the old ones is forgotten.

        Raises:
            CheckpointError: keys or shapes differ, and the model is unchanged; or the progress file
                belongs to the old weights.
        """
        load_model(self.model, state_dict)
        self._progress = Progress(self._file, self._settings())

    def _settings(self) -> dict[str, Any]:
        settings = {
            "prune_type": self._pruning.name,
            "sparsities": list(self.sparsities),
            "early_stop_mode": self.early_stop_mode,
            "early_stop_value": self.early_stop_value,
        }
        return settings if self._file is None else {"model": fingerprint(self.model), **settings}

    def _stops(self, metric: float) -> bool:
        base, value = self._progress.base, self.early_stop_value
        if self.early_stop_mode is None or value is None or base is None:
            return False
        return _STOPS[self.early_stop_mode](metric, value, base)


def _checked_sparsities(sparsities: Iterable[float] | None) -> tuple[float, ...]:
    given = list(_SPARSITIES if sparsities is None else sparsities)
    wrong = [s for s in given if not isinstance(s, int | float) or not 0 < s < 1]
    if wrong or not given:
        raise EngineError(
            f"sparsities are fractions to remove, above 0 and below 1, got {wrong or given}"
        )
    return tuple(sorted({float(s) for s in given}))


def _checked_stop(mode: str | None, value: float | None) -> str | None:
    if mode is not None and mode not in _STOPS:
        near = nearest(mode, _STOPS)
        hint = f'\n  did you mean "{near}"?' if near else ""
        raise EngineError(
            f"early_stop_mode: {mode!r} is unknown; allowed: {', '.join(_STOPS)}{hint}"
        )
    if (mode is None) != (value is None):
        raise EngineError("early_stop_mode and early_stop_value go together: give both or neither")
    if value is not None and (not isinstance(value, int | float) or math.isnan(value)):
        raise EngineError(f"early_stop_value is a number, got {value!r}")
    return mode
