"""The layers of a model in the order in which they run, each with what it gets by then."""

from __future__ import annotations

import collections
import warnings
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from engine.attach.undisturbed import undisturbed
from engine.attach.wrapper import Wrapper
from engine.calibration.blocks import blocks_of, finished_parts
from engine.calibration.inputs import LayerInputs, Source
from engine.calibration.replay import Outputs, Replay, recorded
from engine.calibration.scalings import Finder, Pair
from engine.calibration.states import States, TemporaryStates
from engine.user_code.batches import Forward, batches_in, call_or_explain


class Calibrated(NamedTuple):
    """What a model is calibrated with.

    Attributes:
        batches: inputs: tensors, mappings of keyword arguments, or tuples whose first item is the
            input.
        forward: ``forward(model, batch)`` runs the model, where that is not right.
        folder: where hidden states are kept from block to block; in memory without it.
    """

    batches: Iterable[Any]
    forward: Forward | None = None
    folder: str | None = None


def walk(
    model: nn.Module, wrappers: Sequence[Wrapper], data: Calibrated
) -> Generator[tuple[Wrapper, LayerInputs]]:
    """Yield layers in the order in which they run, each with its inputs.

    What the consumer makes of a layer before it asks for the next one is what later layers see:
    weights may change, in the layer and in those that run before it in the same block. Of each
    block the batches' inputs are kept, and what parts of it put out that are done; nothing else of
    the data. The model is run in evaluation
    mode and without gradients, and its buffers, modes and random state are left as they were.

    Args:
        model: the model.
        wrappers: its layers that are asked for.
        data: batches, all of which are run.

    Raises:
        EngineError: there are no batches, or one does not go through the model.

    Warns:
        UserWarning: no batch reached some layers; what they get is taken to be white.
    """
    forward = data.forward or call_or_explain
    batches = list(batches_in(data.batches, "calibration"))
    with _observable(model), ExitStack() as stack:
        seen = _observe(model, wrappers, batches[0], forward)
        kept = partial(_kept_in, data.folder)
        replay = stack.enter_context(Replay(model, batches, forward, seen.blocks, kept))
        _look_ahead(replay, seen)
        unreached = []
        finder = Finder()
        wrapper_of = {wrapper.module: wrapper for wrapper in wrappers}
        for block in seen.blocks:
            pairs = _Pairs(finder, block, replay, wrapper_of)
            calls = len(seen.outputs[block])
            seen.outputs[block].clear()
            left = {wrapper.module for layers in seen.groups[block] for wrapper in layers}
            own = frozenset(left)
            for layers in seen.groups[block]:
                if calls == 1:
                    for part in finished_parts(block, own, left, seen.calls):
                        replay.finish_part(part)
                left.difference_update(wrapper.module for wrapper in layers)
                number = seen.calls[layers[0].module]
                whole = calls > 1 or layers[0].module in seen.several
                source = Source(replay, block, layers, number, whole=whole)
                source.pairs = pairs
                for wrapper in layers:
                    if not seen.calls[wrapper.module] and not _reached(source):
                        unreached.append(wrapper.name)
                    yield wrapper, LayerInputs(source, wrapper)
            if block is not seen.blocks[-1]:
                replay.finish(block, calls)
    if unreached:
        names = ", ".join(f'"{name}"' for name in unreached[:5])
        more = f" and {len(unreached) - 5} more" if len(unreached) > 5 else ""
        warnings.warn(
            f"no calibration batch reached {names}{more}: done by their weights alone\n"
            "  give batches that reach them, or leave them out with exclude: true",
            stacklevel=4,
        )


def _kept_in(folder: str | None, block: nn.Module) -> States:
    return TemporaryStates(folder)


def _look_ahead(replay: Replay, seen: _Observed) -> None:
    first = {block: TemporaryStates(None) for block in seen.blocks}
    for block, states in first.items():
        states.put(0, seen.outputs[block])
    replay.look_ahead(first, [block for block in first if len(seen.outputs[block]) == 1])


class _Pairs:
    """What can be scaled together in one block; told once."""

    def __init__(
        self,
        finder: Finder,
        block: nn.Module,
        replay: Replay,
        wrapper_of: Mapping[nn.Module, Wrapper],
    ) -> None:
        self._finder = finder
        self._block = block
        self._replay = replay
        self._wrapper_of = wrapper_of
        self._told = False

    def __call__(self) -> list[tuple[Pair, list[Wrapper]]]:
        if self._told:
            return []
        self._told = True
        found = []
        for pair in self._finder.pairs(self._block, self._replay):
            own = [self._wrapper_of[r] for r in pair.readers if r in self._wrapper_of]
            if own:
                found.append((pair, own))
        return found


class _Observed(NamedTuple):
    """What the first batch shows.

    Attributes:
        blocks: in the order in which they run; those that do not run come last.
        outputs: what each block put out in each of its calls.
        groups: of each block its layers, in the order in which they run; those that get the same
            tensor stand together.
        calls: how often each layer runs, and each module of a block.
        several: layers that several blocks hold; they count to the first that runs.
    """

    blocks: list[nn.Module]
    outputs: dict[nn.Module, Outputs]
    groups: dict[nn.Module, list[list[Wrapper]]]
    calls: collections.Counter[nn.Module]
    several: set[nn.Module]


def _observe(
    model: nn.Module, wrappers: Sequence[Wrapper], batch: Any, forward: Forward
) -> _Observed:
    wrapper_of = {wrapper.module: wrapper for wrapper in wrappers}
    blocks = blocks_of(model, wrapper_of)
    # Inputs are held until all layers have run, so that none has the identity of another.
    got: dict[nn.Module, list[Any]] = {layer: [] for layer in wrapper_of}
    order: dict[nn.Module, None] = {}
    calls: collections.Counter[nn.Module] = collections.Counter()
    inner = {module: None for block in blocks for module in block.modules()}

    def count(module: nn.Module, args: Any) -> None:
        order.setdefault(module)
        calls[module] += 1

    def note(module: nn.Module, args: Any, kwargs: Any) -> None:
        order.setdefault(module)
        got[module].append(next(iter(tree_leaves((args, kwargs))), None))

    outputs: dict[nn.Module, Outputs] = {block: [] for block in blocks}
    hooks = [m.register_forward_pre_hook(note, with_kwargs=True) for m in wrapper_of]
    hooks += [m.register_forward_pre_hook(count) for m in inner if m not in wrapper_of]
    try:
        with recorded(outputs):
            forward(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    last = len(order)
    place = {module: number for number, module in enumerate(order)}
    ordered = sorted(blocks, key=lambda block: place.get(block, last))
    groups = {}
    known: set[nn.Module] = set()
    several: set[nn.Module] = set()
    for block in ordered:
        several |= known.intersection(blocks[block])
        layers = [layer for layer in blocks[block] if layer not in known]
        known.update(layers)
        layers.sort(key=lambda layer: place.get(layer, last))
        groups[block] = _together([wrapper_of[layer] for layer in layers], got)
    calls.update({layer: len(inputs) for layer, inputs in got.items()})
    return _Observed(ordered, outputs, groups, calls, several)


def _together(wrappers: Sequence[Wrapper], got: dict[nn.Module, list[Any]]) -> list[list[Wrapper]]:
    """Return layers by what they get: linear layers that are called once, with the same tensor."""
    groups: list[list[Wrapper]] = []
    for wrapper in wrappers:
        inputs = got[wrapper.module]
        if groups and len(inputs) == 1 and _is_linear(wrapper):
            before = got[groups[-1][0].module]
            if len(before) == 1 and before[0] is inputs[0] and _is_linear(groups[-1][0]):
                groups[-1].append(wrapper)
                continue
        groups.append([wrapper])
    return groups


def _is_linear(wrapper: Wrapper) -> bool:
    weight = wrapper.module._parameters.get("weight")
    return isinstance(weight, Tensor) and weight.dim() == 2


def _reached(source: Source) -> bool:
    return any(True for _ in source.seen(range(len(source.replay))))


@contextmanager
def _observable(model: nn.Module) -> Iterator[None]:
    """Leave the model as it is, and let hooks see its layers, also where it was compiled."""
    with undisturbed(model), torch.compiler.set_stance("force_eager"):
        yield
