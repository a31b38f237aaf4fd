"""How long a forward pass takes on the machine at hand."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import nn

from engine.attach.undisturbed import undisturbed
from engine.errors import EngineError
from engine.user_code.example import Example, call, example_of


class Latency(NamedTuple):
    """Seconds of one forward pass, over ``runs`` of them.

    ``low`` and ``high`` are the first and third quartile: half of the passes lie between.
    """

    median: float
    low: float
    high: float
    minimum: float
    runs: int
    threads: int
    device: str

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' if self.threads != 1 else ''}"
        where = threads if self.device.startswith("cpu") else self.device
        spread = f"{_time(self.low)} to {_time(self.high)}"
        return f"{_time(self.median)} (half of {self.runs} runs: {spread}; {where})"


class LatencyRatio(NamedTuple):
    """Two models timed in turn. ``ratio`` is the median of ``b / a``, pass by pass.

    ``low`` and ``high`` are its quartiles. Below one, ``b`` is the faster model.
    """

    a: Latency
    b: Latency
    ratio: float
    low: float
    high: float

    def __str__(self) -> str:
        factor = f"b takes {self.ratio:.3g} times as long as a ({self.low:.3g} to {self.high:.3g})"
        return f"a: {self.a}\nb: {self.b}\n{factor}"


def measure_latency(
    model: nn.Module,
    args: Any,
    kwargs: Mapping[str, Any] | None = None,
    *,
    runs: int = 50,
    warmup: int = 5,
) -> Latency:
    """Return the time of one forward pass in evaluation mode without gradients.

    On an accelerator each pass is timed until its work is done. The number of threads is PyTorch's
    (``torch.set_num_threads``) and is part of the result.

    Args:
        model: the model; left as found.
        args: one tensor, a tuple of positional arguments, or the shape of the one input.
        kwargs: keyword arguments.
        runs: passes that count.
        warmup: passes before them that do not.

    Raises:
        EngineError: the model does not run on the example, or ``runs`` is below one.
    """
    return _times([model], [example_of(model, args, kwargs)], runs, warmup)[0][0]


def compare_latency(
    a: nn.Module,
    b: nn.Module,
    args: Any,
    kwargs: Mapping[str, Any] | None = None,
    *,
    runs: int = 50,
    warmup: int = 5,
) -> LatencyRatio:
    """Return the times of two models on the same inputs, taken in turn in one run.

    Whatever else the machine does meets both alike, so that the ratio says more than two
    measurements that were made one after the other. The order changes with each pair.

    Args:
        a: the model that is compared with; left as found.
        b: the model that is compared; left as found.
        args: one tensor, a tuple of positional arguments, or the shape of the one input.
        kwargs: keyword arguments.
        runs: passes of each model that count.
        warmup: passes of each before them that do not.

    Raises:
        EngineError: a model does not run on the example, or ``runs`` is below one.
    """
    example = example_of(a, args, kwargs)
    (first, taken_a), (second, taken_b) = _times([a, b], [example, example], runs, warmup)
    low, ratio, high = _quartiles([y / x for x, y in zip(taken_a, taken_b, strict=True)])
    return LatencyRatio(first, second, ratio, low, high)


def _times(
    models: Sequence[nn.Module], examples: Sequence[Example], runs: int, warmup: int
) -> list[tuple[Latency, list[float]]]:
    if runs < 1 or warmup < 0:
        raise EngineError(f"runs is at least 1 and warmup at least 0, got {runs} and {warmup}")
    devices = [_device(model, e) for model, e in zip(models, examples, strict=True)]
    taken: list[list[float]] = [[] for _ in models]
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(undisturbed(model, fused_attention=True))
        for turn in range(warmup + runs):
            places = range(len(models))
            for place in reversed(places) if turn % 2 else places:
                device = devices[place]
                _wait(device)
                start = time.perf_counter()
                call(models[place], examples[place])
                _wait(device)
                if turn >= warmup:
                    taken[place].append(time.perf_counter() - start)
    return [(_latency(t, d), t) for t, d in zip(taken, devices, strict=True)]


def _latency(taken: Sequence[float], device: torch.device) -> Latency:
    low, median, high = _quartiles(taken)
    name = platform.machine() if device.type == "cpu" else str(device)
    shown = f"cpu {name}" if device.type == "cpu" else name
    return Latency(median, low, high, min(taken), len(taken), torch.get_num_threads(), shown)


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high


def _device(model: nn.Module, example: Example) -> torch.device:
    for tensor in [*model.parameters(), *model.buffers(), *example.tensors()]:
        if tensor.device.type != "cpu":
            return tensor.device
    return torch.device("cpu")


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _time(seconds: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"
