"""What can be scaled together: channels that one layer makes and others read, all of them known.

Whether a norm's or a layer's channels can be divided by factors, and columns of what reads them be
multiplied by the same, with nothing else changed, depends on everything between and on every
reader. It is found by trying: the factors are put in, the block is run on a batch, and its output
tells. So no architecture has a name here; what is tried are pairs that the running order suggests.
Lin et al. 2023, "AWQ", arXiv 2306.00978; Xiao et al. 2022, "SmoothQuant", arXiv 2211.10438.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from engine.attach.layout import Layout, layout_of
from engine.calibration.patches import has_rows
from engine.calibration.replay import EnoughError, Outputs, Replay, recorded

#: How far outputs may be apart, relative to the largest, by rounding of the model's dtype.
_TOLERANCE = 64
#: Writes a value into a parameter.
Change = Callable[[Tensor, Tensor], None]


class Pattern(NamedTuple):
    """A maker and its readers by their names in a block: what is tried first in the next one.

    Attributes:
        maker: makes the channels.
        readers: linear layers, all that read them.
        offset: 1 where a norm multiplies by 1 + w.
        repeats: of grouped queries: how many heads read each head of the maker.
        size: the channels of a head; of all channels where ``repeats`` is 1.
    """

    maker: str
    readers: tuple[str, ...]
    offset: int
    repeats: int
    size: int

    def channel_of(self, columns: int) -> Tensor:
        """Return for each column that is read the channel that makes it, int64."""
        place = torch.arange(columns)
        if self.repeats == 1:
            return place
        head = place // self.size
        return head // self.repeats * self.size + place % self.size


class Pair(NamedTuple):
    """Channels of one module, and the columns of linear layers that read them."""

    maker: nn.Module
    readers: list[nn.Module]
    pattern: Pattern

    @property
    def channels(self) -> int:
        """How many channels there are."""
        return _channels(self.maker)

    def channel_of(self) -> Tensor:
        """Return for each column the channel that makes it, int64 on the readers' device."""
        weight = _weight(self.readers[0])
        rows = _layout(self.readers[0]).rows(weight)
        return self.pattern.channel_of(rows.shape[1]).to(weight.device)

    @torch.no_grad()
    def multiply(self, factors: Tensor, change: Change) -> None:
        """Multiply the readers' columns and divide what makes them; outputs stay the same.

        Args:
            factors: (channels,), above 0.
            change: writes a value into a parameter, such as ``compressor.change``.
        """
        for parameter, value in self.scaled(factors):
            change(parameter, value)

    def scaled(self, factors: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each parameter with its value under ``factors``."""
        offset = self.pattern.offset
        for name in ("weight", "bias"):
            parameter = self.maker._parameters.get(name)
            if parameter is None:
                continue
            plus = offset if name == "weight" else 0
            if parameter.dim() == 1:
                yield parameter, (parameter + plus) / factors.to(parameter) - plus
            else:
                rows = _layout(self.maker).rows(parameter) / factors.to(parameter)[:, None]
                yield parameter, _layout(self.maker).restored(rows, parameter.shape)
        for reader in self.readers:
            weight = reader._parameters["weight"]
            assert weight is not None
            rows = _layout(reader).rows(weight) * factors.to(weight)[self.channel_of()]
            yield weight, _layout(reader).restored(rows, weight.shape)


class Finder:
    """Finds the pairs of one block after the other.

    Blocks of one class are alike mostly: what was found in one is tried in the next, and what was
    not found there is not looked for again.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], list[Pattern]] = {}

    def pairs(self, block: nn.Module, replay: Replay) -> list[Pair]:
        """Return the pairs in ``block``, in the order in which their readers run."""
        trial = _Trial(block, replay)
        kind = (type(block), tuple((n, tuple(p.shape)) for n, p in block.named_parameters()))
        modules = dict(block.named_modules())
        if kind in self._known:
            patterns = self._known[kind]
            pairs = [
                Pair(modules[p.maker], [modules[name] for name in p.readers], p) for p in patterns
            ]
            return [pair for pair in pairs if trial.holds(pair)]
        found = list(_found(trial, {module: name for name, module in modules.items()}))
        self._known[kind] = [pair.pattern for pair in found]
        return found


def _found(trial: _Trial, names: dict[nn.Module, str]) -> Iterator[Pair]:
    for readers, before in trial.groups():
        columns = _layout(readers[0]).rows(_weight(readers[0])).shape[1]
        read = tuple(names[reader] for reader in readers)
        for maker in reversed(before):
            # The nearest that holds: anything before it is scaled through it.
            patterns = _patterns(names[maker], read, _channels(maker), columns, maker)
            pairs = (Pair(maker, readers, pattern) for pattern in patterns)
            pair = next((pair for pair in pairs if trial.holds(pair)), None)
            if pair is not None:
                yield pair
                break


def _patterns(
    maker: str, readers: tuple[str, ...], channels: int, columns: int, module: nn.Module
) -> Iterator[Pattern]:
    if channels == columns:
        yield Pattern(maker, readers, 0, 1, columns)
        if _weight(module).dim() == 1:
            yield Pattern(maker, readers, 1, 1, columns)
    elif columns % channels == 0 and _weight(module).dim() == 2:
        repeats = columns // channels
        sizes = [size for size in range(channels, 7, -1) if channels % size == 0]
        # Heads of 64 and 128 are the usual ones.
        for size in sorted(sizes, key=lambda size: (size not in (64, 128), size)):
            yield Pattern(maker, readers, 0, repeats, size)


class _Trial:
    """Runs one block on the first batch, as it is or with factors in it."""

    def __init__(self, block: nn.Module, replay: Replay) -> None:
        self._block = block
        self._replay = replay
        self._output: list[Tensor] | None = None

    def groups(self) -> list[tuple[list[nn.Module], list[nn.Module]]]:
        """Return linear layers by the tensor that they get, each with what ran before them.

        What runs before are norms and linear layers that can be makers. Modules that run several
        times, or share a weight, are neither.
        """
        order: list[nn.Module] = []
        inputs: dict[nn.Module, list[Any]] = {}
        candidates = [m for m in self._block.modules() if _can_take_part(m)]
        shared = _shared(self._replay.model)

        def note(module: nn.Module, args: Any, kwargs: Any) -> None:
            order.append(module)
            inputs.setdefault(module, []).append(next(iter(tree_leaves((args, kwargs))), None))

        hooks = [m.register_forward_pre_hook(note, with_kwargs=True) for m in candidates]
        try:
            self._run()
        finally:
            for hook in hooks:
                hook.remove()
        once = [m for m in order if len(inputs[m]) == 1 and id(_weight(m)) not in shared]
        groups: list[tuple[list[nn.Module], list[nn.Module]]] = []
        for place, module in enumerate(once):
            if not has_rows(module) or _weight(module).dim() != 2:
                continue
            value = inputs[module][0]
            same = [group for group, _ in groups if inputs[group[0]][0] is value]
            if same:
                same[0].append(module)
            else:
                groups.append(([module], once[:place]))
        return groups

    def holds(self, pair: Pair) -> bool:
        """Return whether the block's output stays as it is with factors in it: powers of two."""
        if self._output is None:
            self._output = self._run()
        generator = torch.Generator().manual_seed(len(pair.pattern.maker))
        exponents = torch.randint(-2, 3, (pair.channels,), generator=generator)
        factors = torch.exp2(exponents.float()).to(_weight(pair.maker).device)
        with _put_in(pair, factors):
            try:
                output = self._run()
            except EnoughError:
                raise
            except Exception:  # whatever the model's own code makes of it
                return False
        return len(output) == len(self._output) and all(map(_close, output, self._output))

    def _run(self) -> list[Tensor]:
        outputs: Outputs = []
        with recorded({self._block: outputs}, stop=True):
            self._replay.run(0)
        return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]


@contextmanager
def _put_in(pair: Pair, factors: Tensor) -> Iterator[None]:
    changed = list(pair.scaled(factors))
    before = [(parameter, parameter.detach().clone()) for parameter, _ in changed]
    try:
        for parameter, value in changed:
            parameter.copy_(value)
        yield
    finally:
        for parameter, value in before:
            parameter.copy_(value)


def _can_take_part(module: nn.Module) -> bool:
    weight = module._parameters.get("weight")
    if weight is None or not weight.is_floating_point():
        return False
    if weight.dim() == 1:
        return not isinstance(module, nn.modules.batchnorm._NormBase)
    return weight.dim() == 2 and has_rows(module)


def _shared(model: nn.Module) -> set[int]:
    """Return the ids of parameters that several modules hold."""
    seen: set[int] = set()
    twice: set[int] = set()
    for module in model.modules():
        for parameter in module._parameters.values():
            (twice if id(parameter) in seen else seen).add(id(parameter))
    return twice


def _close(first: Tensor, second: Tensor) -> bool:
    if first.shape != second.shape or not first.is_floating_point():
        return first.shape == second.shape
    largest = float(second.abs().amax()) if second.numel() else 0.0
    allowed = _TOLERANCE * torch.finfo(second.dtype).eps * largest
    return bool((first - second).abs().amax() <= allowed) if second.numel() else True


def _weight(module: nn.Module) -> Tensor:
    weight = module._parameters["weight"]
    assert weight is not None
    return weight.detach()


def _layout(module: nn.Module) -> Layout:
    return layout_of(module) or Layout(0)


def _channels(module: nn.Module) -> int:
    return _layout(module).count(_weight(module).shape)
