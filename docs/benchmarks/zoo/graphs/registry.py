"""The list of graphs, and how their inputs are drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

#: Draws one input for a generator and a batch size.
Draw = Callable[[torch.Generator, int], Any]


class Graph(NamedTuple):
    """One model: its name, what makes it, what draws its inputs, why speedup falls short if so.

    ``draw`` holds positional and keyword arguments; callables in it are drawn, the rest is passed
    as it is. ``batched`` says that other batch sizes than the example's must work, too.
    """

    name: str
    make: Callable[[], nn.Module]
    draw: tuple[tuple[Any, ...], dict[str, Any]]
    theme: str
    shortfall: str

    def model(self) -> nn.Module:
        """Return the model in float64 and evaluation mode, always with the same weights."""
        torch.manual_seed(0)
        return self.make().double().eval()

    def inputs(self, seed: int = 0, batch: int = 2) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return positional and keyword inputs for one seed and batch size."""
        generator = torch.Generator().manual_seed(seed)
        drawn: tuple[tuple[Any, ...], dict[str, Any]] = tree_map(
            lambda leaf: leaf(generator, batch) if callable(leaf) else leaf, self.draw
        )
        return drawn


GRAPHS: list[Graph] = []

#: Stands for the batch size in a shape.
N = -1


def graph(
    *args: Any, shortfall: str = "", **kwargs: Any
) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    """Register a model class or factory with its inputs."""

    def register(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        theme = make.__module__.rpartition(".")[2]
        name: str = make.__name__
        assert all(g.name != name for g in GRAPHS), f"two graphs are called {name}"
        GRAPHS.append(Graph(name, make, (args, kwargs), theme, shortfall))
        return make

    return register


def real(*shape: int) -> Draw:
    """Draw float64 values from a normal distribution."""

    def draw(generator: torch.Generator, batch: int) -> Tensor:
        sizes = [batch if n == N else n for n in shape]
        return torch.randn(sizes, generator=generator, dtype=torch.float64)

    return draw


def whole(high: int, *shape: int) -> Draw:
    """Draw whole numbers from 0 to ``high`` - 1."""

    def draw(generator: torch.Generator, batch: int) -> Tensor:
        sizes = [batch if n == N else n for n in shape]
        return torch.randint(high, sizes, generator=generator)

    return draw


def flags(*shape: int) -> Draw:
    """Draw booleans, the first of each row False: a padding mask that leaves something."""

    def draw(generator: torch.Generator, batch: int) -> Tensor:
        sizes = [batch if n == N else n for n in shape]
        drawn = torch.rand(sizes, generator=generator) < 0.4
        drawn[..., 0] = False
        return drawn

    return draw
