"""One layer at a time pruned by some installed algorithm, and the model put back afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from engine.attach.undisturbed import State
from engine.errors import ConfigError, EngineError, PluginError, nearest
from engine.plugins import registry
from engine.pruning.pruner import Pruner


class SingleLayerPruning:
    """Prunes a layer of ``model`` for a while.

    Args:
        model: the model; only changed within :meth:`pruned`.
        prune_type: a pruning algorithm by any of its names, or its class.

    Attributes:
        name: of the algorithm.
        layers: the names of the layers that it prunes by default, in the model's order.

    Raises:
        EngineError: ``prune_type`` is no pruning algorithm by itself.
        PluginError: it is unknown or broken.
        ConfigError: the model has no layer that it prunes by default.
    """

    def __init__(self, model: nn.Module, prune_type: str | type[Pruner]) -> None:
        self._model = model
        self._class, self.name = _algorithm(prune_type)
        self.layers = [wrapper.name for wrapper in self._on({"op_types": ["default"]}).wrappers]

    @contextmanager
    def pruned(
        self, layer: str, sparsity: float, state: State, look: Callable[[], object]
    ) -> Iterator[None]:
        """Prune ``layer`` to ``sparsity`` within; put everything back afterwards.

        Args:
            layer: its name.
            sparsity: the fraction to remove.
            state: what the model is to be afterwards.
            look: runs the model on data, for an algorithm that ranks by what it sees.

        Raises:
            PluginError: the algorithm fails, or makes no mask without training.
        """
        # A model that is one layer has no name for it.
        pruner = self._on({"op_names": [layer]} if layer else {"op_types": ["default"]}, sparsity)
        try:
            pruner.compress()
            if pruner.wrappers[0].sparsity is None:
                look()
                pruner.update_masks()
            if pruner.wrappers[0].sparsity is None:
                raise PluginError(
                    f'{self.name} has no mask for layer "{layer}": it ranks by what it sees in '
                    "training\n  use one that ranks by weights, such as l1",
                    plugin=self.name,
                    layer=layer,
                )
            yield
        finally:
            pruner.unwrap()
            state.restore()

    def checked(self, names: Sequence[str]) -> list[str]:
        """Return each layer's first name.

        Raises:
            EngineError: some do not exist or cannot be pruned; all of them, with the nearest names.
        """
        first = {id(module): name for name, module in self._model.named_modules()}
        every = dict(self._model.named_modules(remove_duplicate=False))
        faults, chosen = [], []
        for name in [names] if isinstance(names, str) else names:
            reason = "the model has no such layer"
            if name in every:
                chosen.append(first[id(every[name])])
                reason = self._refusal(chosen[-1])
            if reason:
                near = nearest(name, self.layers)
                hint = f'; did you mean "{near}"?' if near else ""
                faults.append(f'  "{name}": {reason}{hint}')
        if faults:
            some = ", ".join(self.layers[:6]) + (", ..." if len(self.layers) > 6 else "")
            raise EngineError(
                "\n".join([f"{self.name} cannot prune:", *faults, f"  it prunes: {some}"])
            )
        return list(dict.fromkeys(chosen))

    def _refusal(self, layer: str) -> str:
        if layer in self.layers:
            return ""
        if not layer:
            return "this is the whole model"
        try:
            self._on({"op_names": [layer]})
        except ConfigError as error:
            return error.problems[0].message
        return ""

    def _on(self, selection: dict[str, list[str]], sparsity: float = 0.5) -> Pruner:
        return self._class(self._model, [{**selection, "sparsity": sparsity}])


def _algorithm(prune_type: str | type[Pruner]) -> tuple[type[Pruner], str]:
    """Return the class of the pruning algorithm and its name."""
    if isinstance(prune_type, type):
        plugin = registry.find_class(prune_type)
        found: type = prune_type
        name = prune_type.__name__ if plugin is None else plugin.name
    else:
        plugin = registry.find(prune_type)
        name = plugin.name
        if plugin.kind != "pruning" or plugin.role != "provider":
            raise EngineError(
                f'prune_type: "{prune_type}" is a {plugin.label}\n  allowed: {_pruners()}'
            )
        if plugin.finds_sparsity:
            raise EngineError(
                f'prune_type: "{prune_type}" finds its sparsity itself\n  allowed: {_pruners()}'
            )
        found = plugin.load()
    if not issubclass(found, Pruner):
        raise EngineError(f"prune_type: {found.__name__} is no pruner\n  allowed: {_pruners()}")
    return found, name


def _pruners() -> str:
    usable = [p for p in registry.algorithms() if p.status == "ok" and p.kind == "pruning"]
    asked = [p for p in usable if p.role == "provider" and not p.finds_sparsity]
    return ", ".join(plugin.name for plugin in asked)
