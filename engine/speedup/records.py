"""What a tracer writes down: calls, sizes that code asks for, constants that flow on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from engine.speedup.tags import Owner
from engine.speedup.tracked import Tracked

#: Propagates need from the outputs of a call to its inputs.
Back = Callable[[], None]


class Call(NamedTuple):
    """One operator call: its number, its tensors, and where in the model it happened."""

    number: int
    name: str
    path: str
    inputs: list[Tracked]
    outputs: list[Tracked]
    back: Back


class Record:
    """A call as it is found again when the smaller model runs; no outputs: any shape will do."""

    def __init__(self, number: int, name: str, given: list[Any]) -> None:
        self.number = number
        self.name = name
        self.given = given
        self.outputs: list[Tracked] | None = None


class Size(NamedTuple):
    """A size that the model's code asks for: it must become the number of ``labels`` kept."""

    number: int
    path: str
    size: int
    labels: Tensor
    owner: Owner | None = None


#: A dimension of the input of a call, by the call's number.
Place = tuple[int, int]


class Split(NamedTuple):
    """A dimension split in several of which any may carry its labels."""

    place: Place
    labels: Tensor
    candidates: list[int]
    chosen: int


class Held(NamedTuple):
    """A module without weights of its own, run before its operators are looked at."""

    module: nn.Module
    calls: list[tuple[Record, Any, Any, Any, Any]]


class Fold(NamedTuple):
    """Constants that flow into a contraction: what removed channels would have contributed.

    Attributes:
        source: what is contracted; ``dim`` is its channel dimension.
        dim: see ``source``.
        contribution: gives the contribution of some input channels, of the output's shape.
        channel_dim: the output's channel dimension.
        weight: the layer's weight.
        inside: the weight's dimension that counts the input channels, None where it counts those
            of one group only.
        values: by input channel, float64 (channels,): the constant, NaN where it is none or
            differs between positions.
        bias: the layer's bias, if it has one.
        path: the module that ran.
    """

    source: Tracked
    dim: int
    contribution: Callable[[Tensor], Tensor]
    channel_dim: int
    weight: Tracked
    inside: int | None
    values: Tensor
    bias: Tracked | None
    path: str
