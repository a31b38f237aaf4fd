"""Which layers an algorithm works on, and whether it can do so one block at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from engine.attach.changes import NoChanges
from engine.attach.compressor import Compressor
from engine.config.check import Settings
from engine.errors import ConfigError, EngineError
from engine.plugins import registry
from engine.pruning.constraint import GroupConstraint
from engine.streaming.skeleton import Skeleton

if TYPE_CHECKING:
    from engine.user_code.batches import Forward

#: A capability that a schema states: each layer's result depends on that layer alone.
_ALONE = "layer_by_layer"


class Plan:
    """An algorithm, and the layers of each unit that it works on.

    Args:
        settings: the configuration, checked by itself.
        skeleton: the model.

    Raises:
        ConfigError: the configuration does not fit the model.
        EngineError: the algorithm needs the whole model, or works on a layer whose weight is
            shared with another.
    """

    def __init__(self, settings: Settings, skeleton: Skeleton) -> None:
        self.settings = settings
        self._skeleton = skeleton
        self._class: type[Compressor] = settings.plugin.load()
        _refuse(settings, self._class, self._extensions())
        try:
            chosen = self._class.selection(
                skeleton.model, settings.config_list, **settings.given_arguments
            )
        except ConfigError as error:
            raise settings.located(error) from error
        unit_of = {m: name for name, unit in skeleton.units.items() for m in unit.modules()}
        #: Names of layers, by unit.
        self.layers: dict[str, list[str]] = {}
        for name, module in chosen:
            self.layers.setdefault(unit_of[module], []).append(name)
        tied = skeleton.tied({f"{name}.weight": name for name, _ in chosen})
        if tied is not None:
            raise EngineError(
                f'"{tied[0]}" and "{tied[1]}" share one weight, and are not in memory at the same '
                "time: neither can be compressed block by block\n  leave both out: "
                f'{{"op_names": ["{tied[0]}", "{tied[1]}"], "exclude": true}}'
            )

    @property
    def kind(self) -> str:
        """ "pruning" or "quantization"."""
        return self.settings.kind

    def compressor(self, unit: str, count: int, forward: Forward | None) -> Compressor:
        """Return a compressor, not attached, for the layers of one unit, which is loaded.

        Args:
            unit: its name.
            count: how many batches there are.
            forward: runs the model with the batch of a number; None without batches.
        """
        own = set(self.layers[unit])
        others = [name for names in self.layers.values() for name in names if name not in own]
        entries: list[Any] = list(self.settings.config_list or ())
        if others:
            entries.append({"op_names": others, "exclude": True})
        given = dict(self.settings.given_arguments)
        for name in ("batches", "forward", "states_folder"):
            given.pop(name, None)
        if forward is not None:
            given |= {"batches": range(count), "forward": forward}
        made: Compressor = self._class(
            self._skeleton.model, entries, extensions=self._extensions(), **given
        )
        made._changes = NoChanges()
        return made

    def _extensions(self) -> list[Any]:
        return [
            registry.find(each.name, registry.EXTENSIONS).load()(**each.arguments)
            for each in self.settings.extensions
        ]


def require_masks(compressor: Compressor) -> None:
    """Raise EngineError where a pruner has no mask yet: it makes them while the model trains."""
    for wrapper in compressor.wrappers:
        asked = wrapper.config.get("sparsity", 0)
        if compressor.kind == "pruning" and asked and wrapper.sparsity is None:
            raise EngineError(
                f'{compressor.plugin_name} has no mask for "{wrapper.name}" before the model is '
                "trained: it cannot compress it block by block"
            )


def _refuse(settings: Settings, cls: type, extensions: Iterable[object]) -> None:
    """Raise EngineError where an algorithm or extension looks at several layers at once."""
    plugin = settings.plugin
    if plugin.role != "provider":
        raise _whole(plugin.name, f"it is a {plugin.role}")
    alone = hasattr(cls, "calibrate_layer") or plugin.calibration or _ALONE in plugin.capabilities
    if not alone:
        able = [
            other.name
            for other in registry.algorithms()
            if other.role == "provider" and (other.calibration or _ALONE in other.capabilities)
        ]
        raise _whole(
            plugin.name,
            f"its schema does not say that it works layer by layer\n  these do: {_listed(able)}",
        )
    for extension in extensions:
        if isinstance(extension, GroupConstraint):
            raise _whole(extension.name, "it decides over layers together")
    if settings.arguments.get("dependency_aware"):
        raise _whole("dependency_aware", "it decides over layers together")


def _whole(name: str, reason: str) -> EngineError:
    return EngineError(f"{name} needs the whole model in memory: {reason}")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(sorted(names))
