"""Which layer's output goes where, as far as a model can be traced symbolically."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import fx, nn

#: What a path may lead through: a layer, or the node of a function.
Passes = Callable[[nn.Module | fx.Node], bool]


def layer_paths(model: nn.Module, passes: Passes) -> list[list[nn.Module]]:
    """Return the layers on the way from each layer to the next that is more than passed through.

    A layer is a module that holds no other. A path begins at each layer and ends at the first that
    ``passes`` is false for; each result on it is read by one operation alone, each layer is called
    once. What a path leads through that is no module is not listed.

    The model is traced symbolically; of one that cannot be, only what stands in an
    ``nn.Sequential`` is known. The model is not changed.
    """
    try:
        graph = _Tracer().trace(model)
    except Exception:  # whatever the model's own forward makes of symbols
        return _in_sequentials(model, passes)
    return _in_graph(model, graph, passes)


class _Tracer(fx.Tracer):
    """Goes into modules that hold modules, whoever wrote them, and into no others."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not any(True for _ in m.children())


def _in_graph(model: nn.Module, graph: fx.Graph, passes: Passes) -> list[list[nn.Module]]:
    layers = dict(model.named_modules(remove_duplicate=False))
    called = {n: layers[str(n.target)] for n in graph.nodes if n.op == "call_module"}
    times = Counter(called.values())
    paths = []
    for node, layer in called.items():
        path, place = [layer], node
        while times[path[-1]] == 1 and len(place.users) == 1:
            (reader,) = place.users
            if reader.op == "call_module":
                if reader.args != (place,) or reader.kwargs:
                    break
                path.append(called[reader])
                if not passes(called[reader]):
                    paths.append(path)
                    break
            elif not passes(reader):
                break
            place = reader
    return [path for path in paths if times[path[-1]] == 1]


def _in_sequentials(model: nn.Module, passes: Passes) -> list[list[nn.Module]]:
    times = Counter(module for _, module in model.named_modules(remove_duplicate=False))
    paths = []
    for sequence in model.modules():
        if type(sequence) is not nn.Sequential:
            continue
        layers: list[Any] = list(sequence)
        for place, layer in enumerate(layers):
            path = []
            for following in layers[place:]:
                if times[following] > 1 or any(True for _ in following.children()):
                    break
                path.append(following)
                if following is not layer and not passes(following):
                    paths.append(path)
                    break
    return paths
