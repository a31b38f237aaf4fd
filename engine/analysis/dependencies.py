"""Layers that must lose the same channels, and the counts that grouped convolutions allow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import lcm
from typing import Any

from torch import nn

from engine.analysis.bound import bound_channels
from engine.files import PathLike
from engine.files.table import write_csv


class ChannelDependency:
    """Sets of layers whose output channels must go together.

    Two layers are bound where their outputs are added, multiplied or otherwise meet channel by
    channel, and where one filter reads one channel: a depthwise convolution is bound to the layer
    before it. Sets that touch are merged, each layer is in one. A layer none of whose channels can
    be removed, such as the last one, is in no set. Layers that only follow, such as norms, are not
    listed.

    Args:
        model: the model; left as found.
        dummy_input: one tensor, a tuple of positional arguments, or the shape of the one input.
        kwargs: keyword arguments.

    Attributes:
        dependency_sets: the sets, in the order in which the model's layers come.

    Raises:
        EngineError: the model does not run on the example.
    """

    _side = "outputs"

    def __init__(
        self, model: nn.Module, dummy_input: Any, kwargs: Mapping[str, Any] | None = None
    ) -> None:
        order = {name: place for place, (name, _) in enumerate(model.named_modules())}
        self._sets = merged(
            getattr(channel, self._side)
            for block in bound_channels(model, dummy_input, kwargs)
            for channel in block[:1]
        )
        for layers in self._sets:
            layers.sort(key=order.__getitem__)
        self._sets.sort(key=lambda layers: order[layers[0]])

    @property
    def dependency_sets(self) -> list[set[str]]:
        """The sets of layer names; one layer alone is a set, too."""
        return [set(layers) for layers in self._sets]

    def rows(self) -> list[list[str]]:
        """Return one row per set: ``Set 1`` and the names of its layers, in the model's order."""
        return [[f"Set {number}", *layers] for number, layers in enumerate(self._sets, 1)]

    def export(self, filepath: PathLike) -> None:
        """Write the sets as CSV with the header ``Dependency Set,Layers``.

        Raises:
            ExportError: the file cannot be written.
        """
        write_csv(filepath, [["Dependency Set", "Layers"], *self.rows()])


class InputChannelDependency(ChannelDependency):
    """Sets of layers whose input channels must go together: they read the same channels.

    See :class:`ChannelDependency`, which is the same for outputs. Grouped convolutions are not
    listed: what they read goes with their own filters, see :class:`GroupDependency`.
    """

    _side = "inputs"


class GroupDependency:
    """How many output channels of each convolution go at a time.

    A grouped convolution keeps its groups equal, so that its own channels, and those of the layers
    that it reads, go one from each group together. Groups of layers that are bound together are
    combined by the least common multiple. A depthwise convolution constrains nothing: its channels
    go one by one, each with the group itself.

    Args:
        model: the model; left as found.
        dummy_input: one tensor, a tuple of positional arguments, or the shape of the one input.
        kwargs: keyword arguments.

    Attributes:
        dependency_sets: for each convolution the number by which the count of its channels must be
            divisible; its own ``groups`` where none of its channels can be removed.

    Raises:
        EngineError: the model does not run on the example.
    """

    def __init__(
        self, model: nn.Module, dummy_input: Any, kwargs: Mapping[str, Any] | None = None
    ) -> None:
        steps: dict[str, set[int]] = {}
        for block in bound_channels(model, dummy_input, kwargs):
            for channel in block:
                for name, filters in channel.outputs.items():
                    steps.setdefault(name, set()).add(len(filters))
        self.dependency_sets: dict[str, int] = {
            name: lcm(*steps[name]) if name in steps else module.groups
            for name, module in model.named_modules()
            if isinstance(module, nn.modules.conv._ConvNd)
        }

    def rows(self) -> list[list[str | int]]:
        """Return one row per convolution: its name and its number."""
        return [[name, groups] for name, groups in self.dependency_sets.items()]

    def export(self, filepath: PathLike) -> None:
        """Write the numbers as CSV with the header ``Conv Layer Name,Group``.

        Raises:
            ExportError: the file cannot be written.
        """
        write_csv(filepath, [["Conv Layer Name", "Group"], *self.rows()])


def merged(sets: Iterable[Iterable[str]]) -> list[list[str]]:
    """Return the sets with those merged that have a name in common; empty ones are left out."""
    owner: dict[str, str] = {}

    def root(name: str) -> str:
        while owner[name] != name:
            owner[name] = owner[owner[name]]
            name = owner[name]
        return name

    for names in map(list, sets):
        for name in names:
            owner.setdefault(name, name)
            owner[root(name)] = root(names[0])
    result: dict[str, list[str]] = {}
    for name in owner:
        result.setdefault(root(name), []).append(name)
    return list(result.values())
