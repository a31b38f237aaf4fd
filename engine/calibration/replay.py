"""A model run again and again up to some place, without what lies before it being computed twice.

Blocks are finished one after the other. From then on a block puts out what it put out when it was
finished, for each batch, and computes nothing; the code between blocks, whatever it does, is run as
it stands. So each block is run as often as its own layers need, not as often as the whole model
has layers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from engine.user_code.batches import Forward

#: What a block put out in each of its calls.
Outputs = list[Any]


class EnoughError(BaseException):
    """What was looked for was reached; the rest need not run. No ``except Exception`` stops it."""


class _Skipped:
    """Stands for a tensor that nobody reads any more: its shape alone is kept."""

    def __init__(self, tensor: Tensor) -> None:
        self._like = torch.empty_like(tensor, device="meta")
        self._device = tensor.device

    def tensor(self) -> Tensor:
        return torch.zeros_like(self._like, device=self._device)


class Replay:
    """Runs batches through a model whose first blocks may be finished.

    Args:
        model: in evaluation mode.
        batches: all of them.
        forward: calls the model with a batch.
        blocks: what is finished one by one.
        folder: where outputs of blocks are kept; in memory without it.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Any],
        forward: Forward,
        blocks: Sequence[nn.Module],
        folder: str | None = None,
    ) -> None:
        self.model = model
        self._batches = batches
        self._forward = forward
        self._blocks = blocks
        self._kept: dict[nn.Module, _Store] = {}
        self._parts: dict[nn.Module, tuple[_Store, _State]] = {}
        self._folder = folder
        self._place = 0
        self._lean = False

    def __len__(self) -> int:
        return len(self._batches)

    def __enter__(self) -> Replay:
        return self

    def __exit__(self, *error: object) -> None:
        for store in self._kept.values():
            store.close()
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

    def look_ahead(self, seen: Mapping[nn.Module, Outputs]) -> None:
        """Find out whether a block needs the one before it alone, from what the first batch gave.

        If so, outputs are forgotten as soon as the block after the next one begins.

        Args:
            seen: what each block put out in each of its calls.
        """
        steady = [block for block in self._blocks if len(seen.get(block, ())) == 1]
        try:
            self._lean = all(
                self._needs_one(seen, steady, place) for place in range(2, len(steady))
            )
        except Exception:  # whatever the code between blocks makes of zeros
            self._lean = False
        self._kept.clear()

    def finish(self, block: nn.Module, calls: int) -> None:
        """Let ``block`` put out what it puts out now, from here on.

        One that is called several times in a forward pass, between others, goes on computing.
        """
        if calls != 1:
            return
        store = self._recorded(block)
        self._forget_parts()
        if self._lean:
            for before in self._kept.values():
                before.forget()
        self._kept[block] = store

    def finish_part(self, part: nn.Module) -> None:
        """Let a part of the block put out what it puts out now, until the block is finished.

        It computes again as soon as a parameter or a buffer of its own is written to.
        """
        if part in self._standing():
            return
        self._parts[part] = self._recorded(part), _state(part)
        for within in set(part.modules()).intersection(self._parts) - {part}:
            self._parts.pop(within)[0].close()

    def is_past(self, module: nn.Module) -> bool:
        """Return whether a module is in what was finished, and does not run any more."""
        return any(module in done.modules() for done in [*self._kept, *self._standing()])

    def _recorded(self, module: nn.Module) -> _Store:
        store = _Store(self._folder)
        for number in range(len(self._batches)):
            outputs: Outputs = []
            with recorded({module: outputs}, stop=True):
                self.run(number)
            store.put(number, outputs)
        return store

    def _standing(self) -> dict[nn.Module, _Store]:
        """Return the finished parts that are as they were."""
        return {
            part: store for part, (store, state) in self._parts.items() if _state(part) == state
        }

    def _forget_parts(self) -> None:
        for store, _ in self._parts.values():
            store.close()
        self._parts.clear()

    def _needs_one(
        self, seen: Mapping[nn.Module, Outputs], blocks: Sequence[nn.Module], place: int
    ) -> bool:
        """Return whether a block gets the same where those before it but one give zeros."""
        arguments: list[list[Any]] = []
        for forgotten in (0, place - 1):
            self._kept = {}
            for index, block in enumerate(blocks[:place]):
                store = self._kept[block] = _Store(None)
                store.put(0, seen[block])
                if index < forgotten:
                    store.forget()
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
        stores = {**self._kept, **self._standing()}
        played = {block: _Played(store, self._place) for block, store in stores.items()}
        with replaced_forward({block: each.around for block, each in played.items()}):
            yield


#: Which parameters and buffers a module has, and how often each was written to.
_State = list[tuple[int, int]]


def _state(module: nn.Module) -> _State:
    return [(id(t), t._version) for t in [*module.parameters(), *module.buffers()]]


class _Played:
    """Puts out what a block put out before, call by call."""

    def __init__(self, store: _Store, number: int) -> None:
        self._left = iter(store.get(number))

    def around(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def played(*args: Any, **kwargs: Any) -> Any:
            for output in self._left:
                return output
            return forward(*args, **kwargs)

        return played


class _Store:
    """What a block put out, for each batch: its tensors in memory or in a file, the rest beside."""

    def __init__(self, folder: str | None) -> None:
        self._outputs: dict[int, tuple[list[Any], TreeSpec]] = {}
        self._folder = None if folder is None else tempfile.TemporaryDirectory(dir=folder)

    def put(self, number: int, outputs: Outputs) -> None:
        leaves, spec = tree_flatten(outputs)
        if self._folder is not None:
            torch.save([leaf for leaf in leaves if isinstance(leaf, Tensor)], self._file(number))
            leaves = [_FILED if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self._outputs[number] = leaves, spec

    def get(self, number: int) -> Outputs:
        """Return fresh tensors: the code after a block may change them in place."""
        if number not in self._outputs:
            return []
        leaves, spec = self._outputs[number]
        fresh: Outputs = tree_unflatten([_fresh(leaf) for leaf in self._read(number, leaves)], spec)
        return fresh

    def forget(self) -> None:
        """Keep the shapes alone."""
        for number, (leaves, spec) in self._outputs.items():
            skipped = [
                _Skipped(leaf) if isinstance(leaf, Tensor) else leaf
                for leaf in self._read(number, leaves)
            ]
            self._outputs[number] = skipped, spec
        self.close()

    def close(self) -> None:
        """Remove the files."""
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _read(self, number: int, leaves: list[Any]) -> list[Any]:
        if not any(leaf is _FILED for leaf in leaves):
            return leaves
        tensors = iter(torch.load(self._file(number), weights_only=True))
        return [next(tensors) if leaf is _FILED else leaf for leaf in leaves]

    def _file(self, number: int) -> Path:
        assert self._folder is not None
        return Path(self._folder.name, str(number))


#: Stands for a tensor that is in the batch's file.
_FILED = object()


def _fresh(leaf: Any) -> Any:
    if isinstance(leaf, _Skipped):
        return leaf.tensor()
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


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
