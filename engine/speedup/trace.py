"""What is known of the tensors of a model while it runs: what the rules of operators talk to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from engine.speedup.aliases import Aliases
from engine.speedup.labels import Labels
from engine.speedup.living import Living
from engine.speedup.records import Back, Call, Fold, Place, Record, Size, Split
from engine.speedup.tags import Owner, Tagged, bounds_in, owner_of
from engine.speedup.tracked import Slot, Tracked
from engine.speedup.widen import Widened

#: A rule looks at one finished call and returns what propagates need from outputs to inputs.
Rule = Callable[["Trace", Any, Sequence[Any], Mapping[str, Any], Any], Back | None]


class Trace:
    """Labels of every tensor that was seen, and what operators and modules said of them.

    Args:
        model: the model.
        planning: ask what could be removed once it is masked, not what is masked now.
        choices: which candidate each of ``splits`` takes; the first where none is given.

    Attributes:
        labels: the union-find of all labels.
        calls: the operator calls, in order.
        calls_of: all calls of each module, by its path, also those without labels.
        folds: constants that removal must fold into a bias.
        parameters: what is known of each parameter and buffer that was used.
        unknown: operators without a rule, with the places where they were met.
        splits: views that could be followed in several ways, in the order in which they ran.
        sizes: sizes that views and factories ask for.
        grouped: the modules that ran a grouped convolution, with its weight.
        widened: modules that see zeros where channels are removed.
        copies: the first label of each dimension that copies of one slice were given.
    """

    def __init__(
        self, model: nn.Module, *, planning: bool, choices: Mapping[Place, int] | None
    ) -> None:
        self.model = model
        self.planning = planning
        self.labels = Labels()
        self.calls: list[Call] = []
        self.calls_of: dict[str, list[Record]] = {}
        self.folds: list[Fold] = []
        self.parameters: list[Tracked] = []
        self.unknown: dict[str, str] = {}
        #: What modules were given, by their paths.
        self._given_to: dict[str, list[Tracked]] = {}
        self.splits: list[Split] = []
        self.sizes: list[Size] = []
        self.grouped: list[tuple[str, Tracked]] = []
        self.widened: dict[str, Widened] = {}
        self.copies: set[int] = set()
        #: Which tensors share memory.
        self.aliases = Aliases()
        self._choices = choices or {}
        self._known: Living[Tracked] = Living()
        #: Tagged numbers that the call that runs was given.
        self._given: list[Any] = []
        #: The number of the call that runs.
        self._number = 0
        self._path: list[str] = [""]
        self._slots: dict[int, list[Slot]] = {}
        self._modules: dict[str, nn.Module] = dict(model.named_modules())
        for path, module in self._modules.items():
            for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
                if tensor is not None:
                    self._slots.setdefault(id(tensor), []).append(Slot(module, name, path))

    def of(self, tensor: Tensor) -> Tracked:
        """Return what is known of ``tensor``; a parameter gets its labels when first asked for."""
        known = self._known.get(tensor)
        if known is not None:
            return known
        slots = self._slots.get(id(tensor), [])
        if not slots:
            known = Tracked(tensor.shape, constant=True)
        else:
            sizes = tensor.shape
            if isinstance(slots[0].module, nn.modules.conv._ConvNd):
                sizes = sizes[:2]  # a kernel keeps its size
            labels = [self.labels.fresh(n) if n > 1 else None for n in sizes]
            labels += [None] * (tensor.dim() - len(sizes))
            known = Tracked(tensor.shape, labels, constant=True, origin=slots[0].path)
            known.slots = slots
            known.unmasked = self.planning
            known.unseen = set(known.dims())
            self.parameters.append(known)
        self._known.put(tensor, known)
        return known

    def put(self, tensor: Tensor, tracked: Tracked) -> Tracked:
        """Say what is known of a call's output."""
        tracked.origin = tracked.origin or self._path[-1]
        self._known.put(tensor, tracked)
        return tracked

    def pin(self, tracked: Tracked, reason: str, dims: Sequence[int] | None = None) -> None:
        """Say that ``tracked`` keeps its size, in ``dims`` or everywhere."""
        for dim in tracked.dims():
            labels = tracked.labels[dim]
            if labels is not None and (dims is None or dim in dims):
                self.labels.pin(labels, reason)
                # Rules ask for what they work on; of a size that stays, all is asked for.
                tracked.want(dim, True)

    def choose(self, dim: int, labels: Tensor, candidates: list[int]) -> int:
        """Return which of ``candidates`` carries the labels of ``dim``, which is split."""
        place = (self._number, dim)
        chosen = self._choices.get(place, 0)
        self.splits.append(Split(place, labels, candidates, chosen))
        return candidates[chosen]

    def ask(self, size: int, labels: Tensor, dim: int, rank: int) -> None:
        """Say that the code may have asked for ``size``, the number of ``labels``, as ``dim``."""
        owner = self.owner(size, dim, rank)
        self.sizes.append(Size(self._number, self.path, size, labels, owner))

    def follow(self, owner: Owner, labels: Tensor) -> None:
        """Say that the attribute ``owner`` is the number of ``labels``: a place among channels."""
        self.sizes.append(Size(self._number, self.path, labels.numel(), labels, owner))

    def follow_number(self, number: int, labels: Tensor) -> None:
        """Say that ``number``, if the call was given it by an attribute, is that of ``labels``."""
        owners = [g.owner for g in self._given if isinstance(g, Tagged) and g == number]
        if len(owners) == 1:
            self.follow(owners[0], labels)

    def bounds(self) -> list[tuple[Any, Any]]:
        """Return where slices of the call that runs begin and end, as the model's code gave it."""
        return bounds_in(self._given)

    def owner(self, size: int, place: int, count: int) -> Owner | None:
        """Return the attribute that the call took ``size``, number ``place`` of ``count``, from."""
        return owner_of(self._given, size, place, count)

    def inputs(self, path: str) -> list[Size]:
        """Return the sizes with labels of what the module at ``path`` was given."""
        return [
            Size(0, path, known.shape[dim], labels)
            for known in self._given_to.get(path, ())
            for dim, labels in enumerate(known.labels)
            if labels is not None
        ]

    def join(self, tracked: Tracked, dim: int, labels: Tensor) -> None:
        """Say that the indices of ``dim`` go with ``labels``; ``dim`` has labels of its own."""
        own = tracked.labels[dim]
        assert own is not None
        if dim in tracked.unseen:
            tracked.labels[dim] = labels
            tracked.unseen.discard(dim)
        else:
            self.labels.unite(labels, own)

    def pin_values(self, labels: Tensor, reason: str) -> None:
        """Say that ``labels`` must stay because of values that a mask would make zero."""
        if not self.planning:
            self.labels.pin(labels, reason)

    @property
    def path(self) -> str:
        """The path of the module that runs."""
        return self._path[-1]

    @property
    def replaceable(self) -> bool:
        """Whether the module that runs gets a forward that follows its weights' sizes."""
        return type(self.running).forward is nn.MultiheadAttention.forward

    @property
    def running(self) -> nn.Module:
        """The module that runs."""
        return self._modules[self.path]

    def refuse(self, reason: str, inputs: Sequence[Tracked], outputs: Sequence[Tensor]) -> Back:
        """Treat a call as unknown: everything that it touches keeps its size."""
        for tracked in inputs:
            self.pin(tracked, reason)
        constant = all(tracked.constant for tracked in inputs)
        made = [self.put(t, Tracked(t.shape, constant=constant)) for t in outputs]

        def back() -> None:
            if any(t.used for t in made):
                for tracked in inputs:
                    tracked.used = True
                    for dim in tracked.dims():
                        tracked.want(dim, True)

        return back

    def read_stale(self, tracked: Tracked) -> None:
        """Use a tensor whose memory was changed through a view: all that is involved stays."""
        assert tracked.stale is not None
        name, written = tracked.stale
        tracked.stale = None
        if not all(each.constant for each in written):
            tracked.constant = False
            tracked.dead = [None if d is None else torch.zeros_like(d) for d in tracked.dead]
        for each in [tracked, *written]:
            self.pin(each, f"{name} changes it through a view")
            each.used = True
            for dim in each.dims():
                each.want(dim, True)

    def observe(self, tracked: Tracked) -> None:
        """Say that Python code has read the value: what it depends on is needed, in full."""
        tracked.used = True
        for dim in tracked.dims():
            tracked.want(dim, True)
        self.pin(tracked, "Python code reads its value")
