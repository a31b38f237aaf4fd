"""A model run again and again up to some place, without what lies before it being computed twice.

Blocks are finished one after the other. From then on a block puts out what it put out when it was
finished, for each batch, and computes nothing; the code between blocks, whatever it does, is run as
it stands. So each block is run as often as its own layers need, not as often as the whole model
has layers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from engine.calibration.states import States, TemporaryStates
from engine.user_code.batches import Forward

#: What a block put out in each of its calls.
Outputs = list[Any]


class EnoughError(BaseException):
    """What was looked for was reached; the rest need not run. No ``except Exception`` stops it."""


class Replay:
    """Runs batches through a model whose first blocks may be finished.

    Args:
        model: in evaluation mode.
        batches: all of them.
        forward: calls the model with a batch.
        blocks: what is finished one by one.
        states: makes what keeps a block's outputs; in memory without it.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Any],
        forward: Forward,
        blocks: Sequence[nn.Module],
        states: Callable[[nn.Module], States] = lambda block: TemporaryStates(None),
    ) -> None:
        self.model = model
        self._batches = batches
        self._forward = forward
        self._blocks = blocks
        self._kept: dict[nn.Module, States] = {}
        self._parts: dict[nn.Module, tuple[States, _State]] = {}
        self._states = states
        self._place = 0
        self.lean = False

    def __len__(self) -> int:
        return len(self._batches)

    def __enter__(self) -> Replay:
        return self

    def __exit__(self, *error: object) -> None:
        for states in self._kept.values():
            states.close()
        self._forget_parts()

    def run(self, number: int) -> None:
        """Run a batch, until something raises :class:`EnoughError` or to the end."""
        self._place = number
        torch.clear_autocast_cache()  # it may hold weights from before they were changed
        try:
            with self._replaced():
                self._forward(self.model, self._batches[number])
        except EnoughError:
            pass

    def look_ahead(self, seen: Mapping[nn.Module, States], once: Collection[nn.Module]) -> None:
        """Find out whether a block needs the one before it alone, from what the first batch gave.

        If so, outputs are forgotten as soon as the block after the next one begins.

        Args:
            seen: what each block put out for the first batch.
            once: the blocks that are called once in a forward pass.
        """
        steady = [block for block in self._blocks if block in once]
        try:
            self.lean = all(self._needs_one(seen, steady, place) for place in range(2, len(steady)))
        except Exception:  # whatever the code between blocks makes of zeros
            self.lean = False
        self._kept.clear()

    def finish(self, block: nn.Module, calls: int) -> None:
        """Let ``block`` put out what it puts out now, from here on.

        One that is called several times in a forward pass, between others, goes on computing.
        """
        if calls != 1:
            return
        states = self.outputs(block)
        self._forget_parts()
        self.keep(block, states)
        self.forget_before(block)

    def outputs(self, block: nn.Module) -> States:
        """Return what ``block``, or a part of one, puts out for each batch."""
        states = self._states(block)
        for number in range(len(self._batches)):
            outputs: Outputs = []
            with recorded({block: outputs}, stop=True):
                self.run(number)
            states.put(number, outputs)
        return states

    def keep(self, block: nn.Module, states: States) -> None:
        """Let ``block`` put out these from here on, and compute nothing."""
        self._kept[block] = states

    def forget_before(self, block: nn.Module) -> None:
        """Forget what no block after ``block`` reads: what was finished before it."""
        if self.lean:
            for before, states in self._kept.items():
                if before is block:
                    break
                states.forget()

    def finish_part(self, part: nn.Module) -> None:
        """Let a part of the block put out what it puts out now, until the block is finished.

        It computes again as soon as a parameter or a buffer of its own is written to.
        """
        if part in self._standing():
            return
        self._parts[part] = self.outputs(part), _state(part)
        for within in set(part.modules()).intersection(self._parts) - {part}:
            self._parts.pop(within)[0].close()

    def is_past(self, module: nn.Module) -> bool:
        """Return whether a module is in what was finished, and does not run any more."""
        return any(module in done.modules() for done in [*self._kept, *self._standing()])

    def _standing(self) -> dict[nn.Module, States]:
        """Return the finished parts that are as they were."""
        return {
            part: states for part, (states, state) in self._parts.items() if _state(part) == state
        }

    def _forget_parts(self) -> None:
        for states, _ in self._parts.values():
            states.close()
        self._parts.clear()

    def _needs_one(
        self, seen: Mapping[nn.Module, States], blocks: Sequence[nn.Module], place: int
    ) -> bool:
        """Return whether a block gets the same where those before it but one give zeros."""
        arguments: list[list[Any]] = []
        for forgotten in (0, place - 1):
            self._kept = {
                block: seen[block].shapes() if index < forgotten else seen[block]
                for index, block in enumerate(blocks[:place])
            }
            got: list[Any] = []

            def note(module: nn.Module, args: Any, kwargs: Any, got: list[Any] = got) -> None:
                got.extend(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
                raise EnoughError

            hook = blocks[place].register_forward_pre_hook(note, prepend=True, with_kwargs=True)
            try:
                self.run(0)
            finally:
                hook.remove()
            arguments.append(got)
        whole, lean = arguments
        return len(whole) == len(lean) and all(map(_equal, whole, lean))

    @contextmanager
    def _replaced(self) -> Iterator[None]:
        """Within, finished blocks put out what is kept of them."""
        kept = {**self._kept, **self._standing()}
        played = {block: _Played(states, self._place) for block, states in kept.items()}
        with replaced_forward({block: each.around for block, each in played.items()}):
            yield


#: Which parameters and buffers a module has, and how often each was written to.
_State = list[tuple[int, int]]


def _state(module: nn.Module) -> _State:
    return [(id(t), t._version) for t in [*module.parameters(), *module.buffers()]]


class _Played:
    """Puts out what a block put out before, call by call."""

    def __init__(self, states: States, number: int) -> None:
        self._left = iter(states.get(number))

    def around(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def played(*args: Any, **kwargs: Any) -> Any:
            for output in self._left:
                return output
            return forward(*args, **kwargs)

        return played


def _equal(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and bool(torch.equal(first, second))


@contextmanager
def replaced_forward(
    around: Mapping[nn.Module, Callable[[Callable[..., Any]], Callable[..., Any]]],
) -> Iterator[None]:
    """Within, the ``forward`` of these modules is what ``around`` makes of it; hooks stay."""
    own = {module: module.__dict__.get("forward") for module in around}
    try:
        for module, make in around.items():
            module.__dict__["forward"] = make(module.forward)
        yield
    finally:
        for module, forward in own.items():
            if forward is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = forward


@contextmanager
def recorded(outputs: Mapping[nn.Module, Outputs], *, stop: bool = False) -> Iterator[None]:
    """Within, what these modules' own ``forward`` returns is added to their lists.

    Args:
        outputs: a list for each module.
        stop: run no further than to the first.
    """

    def around(module: nn.Module) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def make(forward: Callable[..., Any]) -> Callable[..., Any]:
            def recording(*args: Any, **kwargs: Any) -> Any:
                output = forward(*args, **kwargs)
                outputs[module].append(output)
                if stop:
                    raise EnoughError
                return output

            return recording

        return make

    with replaced_forward({module: around(module) for module in outputs}):
        yield
