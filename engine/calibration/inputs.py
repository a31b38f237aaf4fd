"""What one layer gets in some batches: the only thing that a one-shot algorithm sees of data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from engine.attach.layout import Layout, layout_of
from engine.attach.wrapper import Wrapper
from engine.calibration.patches import all_rows, count_places, has_rows
from engine.calibration.replay import EnoughError, Replay, recorded
from engine.calibration.scalings import Change, Pair
from engine.errors import EngineError

#: One of so many parts of the inputs is kept apart, to see how well the others were fitted.
PARTS = 4
#: Rows of one batch that are looked at together hold about so many numbers at most.
_AT_ONCE = 1 << 25


class _Seen(NamedTuple):
    """An input of the layer: the batch's number, and which of its tokens are no padding."""

    batch: int
    value: Tensor
    kept: Tensor | None


class Source:
    """Runs the model up to layers that get the same input, and sums what they need of it.

    Args:
        replay: the model, the blocks before these layers finished.
        block: the block that they are in.
        layers: those that get the same tensor, in the order in which they run.
        calls: how often one of them runs in a forward pass; 0 where that is not known.
        whole: whether they may run again behind the block's first call.
    """

    def __init__(
        self,
        replay: Replay,
        block: nn.Module,
        layers: Sequence[Wrapper],
        calls: int,
        *,
        whole: bool = False,
    ) -> None:
        self.layers = layers
        self.replay = replay
        self.block = block
        self._once = calls == 1
        self._until: dict[nn.Module, list[Any]] = {} if whole else {block: []}
        self.pairs: Callable[[], list[tuple[Pair, list[Wrapper]]]] = list
        self._sums: dict[tuple[str, str], tuple[Tensor, int]] = {}

    def forget(self) -> None:
        """Sum anew when asked again: what comes before the layers was changed."""
        self._sums.clear()

    def seen(self, numbers: Sequence[int]) -> Iterator[_Seen]:
        """Yield each input of the first of the layers, batch by batch, call by call.

        Raises:
            EngineError: the walk has gone on to later layers.
        """
        wrapper = self.layers[0]
        if self.replay.is_past(wrapper.module):
            raise EngineError(
                f'what layer "{wrapper.name}" gets can be asked for in its turn only\n  keep what '
                "is needed of it for later"
            )
        for number in numbers:
            found: list[Tensor] = []
            padding: list[Tensor] = []

            def look(
                module: nn.Module, args: Any, kwargs: Any, found: list[Tensor] = found
            ) -> None:
                found.append(args[0] if args else next(iter(kwargs.values())))
                if self._once:
                    raise EnoughError

            def note(
                module: nn.Module, args: Any, kwargs: Any, padding: list[Tensor] = padding
            ) -> None:
                mask = kwargs.get("attention_mask")
                if isinstance(mask, Tensor) and mask.dim() == 2:
                    padding.append(mask)

            hooks = [
                wrapper.module.register_forward_pre_hook(look, with_kwargs=True),
                self.replay.model.register_forward_pre_hook(note, with_kwargs=True),
            ]
            try:
                with recorded(self._until, stop=True):
                    self.replay.run(number)
                for outputs in self._until.values():
                    outputs.clear()
            finally:
                for hook in hooks:
                    hook.remove()
            for value in found:
                yield _Seen(number, value, real_tokens(value, padding))

    def rows(self, part: str) -> Iterator[tuple[Tensor, str]]:
        """Yield rows, (n, columns) or (groups, n, columns), n above 0, and their part."""
        module = self.layers[0].module
        for batch, value, kept in self.seen(self._numbers(part)):
            if not bool(value.isfinite().all()):
                raise EngineError(
                    f'what layer "{self.layers[0].name}" gets holds NaN or infinity in calibration '
                    f"batch {batch}\n  check the batch, and the model in float32"
                )
            places = torch.arange(count_places(module, value), device=value.device)
            if kept is not None and len(kept) == len(places):
                places = places[kept]
            for of, own in self._parted(batch, places, part):
                if not len(own):
                    continue
                columns = max(_columns(module), 1)
                for some in own.split(max(_AT_ONCE // columns, 1)):
                    whole = len(some) == count_places(module, value)
                    yield all_rows(module, value, None if whole else some), of

    def sum(self, kind: str, part: str) -> tuple[Tensor, int]:
        """Return a sum over all rows of a part, and how many there were.

        One pass over the batches tells all sums that are cheap; one for "gram" tells them as well.

        Args:
            kind: of :data:`_SUMS`.
            part: "all", "fitted" or "apart".
        """
        if (kind, part) not in self._sums:
            both = [self._sums[kind, p] for p in ("fitted", "apart") if (kind, p) in self._sums]
            if part == "all" and len(both) == 2:
                (one, few), (other, more) = both
                if few and more:
                    joined = torch.maximum(one, other) if kind == "largest" else one + other
                else:  # what has no rows is white
                    joined = one if few else other
                self._sums[kind, part] = joined, few + more
            else:
                self._add(kind, part)
        return self._sums[kind, part]

    def _add(self, kind: str, part: str) -> None:
        wanted = ("all",) if part == "all" else ("fitted", "apart")
        kinds = [each for each in _SUMS if each != "gram" or kind == "gram"]
        totals: dict[tuple[str, str], Tensor] = {}
        count = dict.fromkeys(wanted, 0)
        for rows, piece in self.rows("all" if part == "all" else "both"):
            rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
            for each in kinds:
                totals[each, piece] = _SUMS[each](rows, totals.get((each, piece)))
            count[piece] += rows.shape[-2]
        for each in kinds:
            for piece in wanted:
                known = totals.pop((each, piece), None)
                self._sums[each, piece] = _over_processes(known, count[piece], self.layers[0], each)

    def _numbers(self, part: str) -> list[int]:
        numbers = range(len(self.replay))
        if len(numbers) < PARTS or part in ("all", "both"):
            return list(numbers)
        return [number for number in numbers if _is_apart(number) == (part == "apart")]

    def _parted(self, batch: int, places: Tensor, part: str) -> Iterator[tuple[str, Tensor]]:
        """Yield places with the part that they are of: whole batches where there are enough."""
        if part == "all":
            yield "all", places
        elif len(self.replay) >= PARTS:
            yield ("apart" if _is_apart(batch) else "fitted"), places
        else:
            at = len(places) - len(places) // PARTS
            for of, own in (("fitted", places[:at]), ("apart", places[at:])):
                if part in ("both", of):
                    yield of, own


class LayerInputs:
    """What one layer gets, behind what became of the layers before it.

    Nothing is stored: each question runs the batches up to the layer, unless its answer is known,
    and layers that get the same tensor share the answers. Tokens that an ``attention_mask`` leaves
    out are not counted. ``columns`` are the places of a weight's row: the inputs of a linear layer,
    channels times window of a convolution. Of a layer with groups, what is said of columns has a
    first dimension of groups. Sums are over all processes of a distributed run.

    A layer that no batch reaches gets white inputs: each column has mean square 1, no two have
    anything to do with each other.
    """

    def __init__(self, source: Source, wrapper: Wrapper, part: str = "all") -> None:
        self._source = source
        self._wrapper = wrapper
        self._part = part

    @property
    def fitted(self) -> LayerInputs:
        """Three quarters of the inputs, to fit to while the others tell how well."""
        return LayerInputs(self._source, self._wrapper, "fitted")

    @property
    def apart(self) -> LayerInputs:
        """The quarter that is not in :attr:`fitted`: whole batches where there are four."""
        return LayerInputs(self._source, self._wrapper, "apart")

    @property
    def shared(self) -> list[Wrapper]:
        """All layers that get this very tensor, this one among them, in the order of running."""
        return list(self._source.layers)

    @property
    def has_rows(self) -> bool:
        """Whether the layer's output is its weight times rows of what it gets."""
        return has_rows(self._wrapper.module)

    @property
    def samples(self) -> int:
        """How many rows there are."""
        return self._source.sum("square norms", self._part)[1]

    def __iter__(self) -> Iterator[Tensor]:
        """Yield the inputs as the layer gets them, batch by batch."""
        for seen in self._source.seen(self._source._numbers(self._part)):
            yield seen.value

    def rows(self, points: int | None = None) -> Tensor:
        """Return the rows that the layer's outputs are weighted sums of.

        Args:
            points: of each batch about so many, evenly spread; all of them by default.

        Returns:
            (n, columns), or (groups, n, columns).

        Raises:
            EngineError: the layer has no rows, or inputs hold NaN or infinity.
        """
        self._require_rows()
        found = []
        for rows, _ in self._source.rows(self._part):
            step = 1 if points is None else max(rows.shape[-2] // points, 1)
            found.append(rows[..., ::step, :].clone())
        if not found:
            return self.weight()[..., :0, :]
        return torch.cat(found, -2)

    def square_norms(self) -> Tensor:
        """Return the sum of squares of each column, float32 or wider: (columns,).

        Raises:
            EngineError: the layer has no rows, or inputs hold NaN or infinity.
        """
        self._require_rows()
        return self._source.sum("square norms", self._part)[0]

    def means(self) -> Tensor:
        """Return the mean of absolute values of each column: (columns,).

        Raises:
            EngineError: the layer has no rows, or inputs hold NaN or infinity.
        """
        self._require_rows()
        total, count = self._source.sum("absolute values", self._part)
        return total / max(count, 1)

    def largest(self) -> Tensor:
        """Return the largest absolute value of each column: (columns,).

        Raises:
            EngineError: the layer has no rows, or inputs hold NaN or infinity.
        """
        self._require_rows()
        return self._source.sum("largest", self._part)[0]

    def gram(self) -> Tensor:
        """Return the sum of ``x x^T`` over rows x, float32 or wider: (columns, columns).

        ``((q - w) @ gram * (q - w)).sum()`` is the squared error of the layer's outputs when its
        weight is q in place of w. The same tensor each time: it must not be changed in place. The
        pass over the batches that this takes tells all other sums, too: ask for this one first.

        Raises:
            EngineError: the layer has no rows, or inputs hold NaN or infinity.
        """
        self._require_rows()
        return self._source.sum("gram", self._part)[0]

    def weight(self) -> Tensor:
        """Return the layer's weight as a matrix, float32 or wider: (output channels, columns).

        (groups, channels of a group, columns) where the layer has groups. A copy.
        """
        weight = self._wrapper.weight.detach()
        dtype = torch.promote_types(weight.dtype, torch.float32)
        return self.matrix(weight.to(dtype, copy=True))

    def matrix(self, tensor: Tensor) -> Tensor:
        """Return what has the weight's own shape, shaped as :meth:`weight`."""
        rows = self._layout().rows(tensor)
        groups = _groups(self._wrapper.module)
        return rows if groups == 1 else rows.reshape(groups, -1, rows.shape[1])

    def restored(self, matrix: Tensor) -> Tensor:
        """Return what is shaped as :meth:`weight` in the weight's own shape, its dtype kept."""
        shape = self._wrapper.weight.shape
        return self._layout().restored(matrix.reshape(-1, matrix.shape[-1]), shape)

    def scalings(self) -> list[Scaling]:
        """Return what can be scaled together in the layer's block, in the order of running.

        Once: for the first layer of a block that asks, while all of the block is as it was;
        nothing afterwards. Only what some layer of the compressor reads is told.
        """
        return [
            Scaling(pair, readers, Source(self._source.replay, self._source.block, readers, 1))
            for pair, readers in self._source.pairs()
        ]

    def forget(self) -> None:
        """Look at the inputs anew from here on: what comes before the layer was changed."""
        self._source.forget()

    def _layout(self) -> Layout:
        return layout_of(self._wrapper.module) or Layout(0)

    def _require_rows(self) -> None:
        if not self.has_rows:
            raise EngineError(
                f'layer "{self._wrapper.name}" is a {self._wrapper.type}: its outputs are not its '
                "weight times rows of what it gets"
            )


class Scaling:
    """Channels that some module makes, and all linear layers that read them.

    Attributes:
        readers: those of the readers that the compressor works on, in the order of running.
        inputs: what they get, all the same.
    """

    def __init__(self, pair: Pair, readers: Sequence[Wrapper], source: Source) -> None:
        self._pair = pair
        self._source = source
        self.readers = list(readers)
        self.inputs = self.inputs_of(readers[0])

    def inputs_of(self, reader: Wrapper) -> LayerInputs:
        """Return what one of the readers gets, and its weight."""
        return LayerInputs(self._source, reader)

    def by_channel(self, columns: Tensor) -> Tensor:
        """Return one number for each channel that is made: the mean of those of its columns.

        Args:
            columns: (columns,), of what readers get.
        """
        index = self._pair.channel_of()
        channels = self._pair.channels
        total = torch.zeros(channels, dtype=columns.dtype, device=columns.device)
        return total.index_add_(0, index, columns) / index.bincount(minlength=channels)

    def by_column(self, channels: Tensor) -> Tensor:
        """Return for each column what stands for its channel: (columns,)."""
        return channels[self._pair.channel_of()]

    def multiply(self, factors: Tensor, change: Change) -> None:
        """Multiply what readers do with each channel, and divide the channel where it is made.

        The model computes the same, up to rounding.

        Args:
            factors: (channels,), above 0 and finite.
            change: writes a value into a parameter: ``compressor.change``.

        Raises:
            EngineError: a factor is not above 0 and finite.
        """
        if not bool(((factors > 0) & factors.isfinite()).all()):
            raise EngineError("channels are scaled by factors above 0 and finite")
        self._pair.multiply(factors, change)
        self._source.forget()


def _squares(rows: Tensor, total: Tensor | None) -> Tensor:
    new = rows.square().sum(-2)
    return new if total is None else total.add_(new)


def _absolutes(rows: Tensor, total: Tensor | None) -> Tensor:
    new = rows.abs().sum(-2)
    return new if total is None else total.add_(new)


def _largest(rows: Tensor, total: Tensor | None) -> Tensor:
    new = rows.abs().amax(-2)
    return new if total is None else torch.maximum(total, new)


def _grams(rows: Tensor, total: Tensor | None) -> Tensor:
    with torch.autocast(rows.device.type, enabled=False):
        if total is None:
            return rows.mT @ rows
        if rows.dim() == 2:
            return total.addmm_(rows.T, rows)
        return total.baddbmm_(rows.mT, rows)


#: What is known of inputs by sums: each adds rows, (..., n, columns), to the sum until now.
_SUMS: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {
    "square norms": _squares,
    "absolute values": _absolutes,
    "largest": _largest,
    "gram": _grams,
}


def _over_processes(
    total: Tensor | None, count: int, wrapper: Wrapper, kind: str
) -> tuple[Tensor, int]:
    """Return a sum over all processes; that of white inputs where there is nothing."""
    columns, groups = _columns(wrapper.module), _groups(wrapper.module)
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        shape = (columns, columns) if kind == "gram" else (columns,)
        if total is None:
            total = torch.zeros(*((groups,) if groups > 1 else ()), *shape, device=wrapper.device)
        number = torch.tensor(count, device=total.device)
        how = distributed.ReduceOp.MAX if kind == "largest" else distributed.ReduceOp.SUM
        distributed.all_reduce(total, how)
        distributed.all_reduce(number)
        count = int(number)
    if total is not None and count:
        return total, count
    white = torch.eye(columns, device=wrapper.device)
    if kind != "gram":
        white = torch.ones(columns, device=wrapper.device)
    return (white.expand(groups, *white.shape) if groups > 1 else white), 0


def real_tokens(value: Tensor, masks: Sequence[Tensor]) -> Tensor | None:
    """Return which tokens of a layer's input are no padding, flat; None where nobody says so."""
    for mask in masks:
        if value.dim() > 2 and value.shape[:-1] == mask.shape:
            return (mask != 0).flatten().to(value.device)
        if value.dim() == 2 and len(value) == mask.numel():
            return (mask != 0).flatten().to(value.device)
    return None


def _is_apart(number: int) -> bool:
    return number % PARTS == PARTS - 1


def _groups(module: nn.Module) -> int:
    return int(getattr(module, "groups", 1))


def _columns(module: nn.Module) -> int:
    weight = module._parameters["weight"]
    assert weight is not None
    channels = (layout_of(module) or Layout(0)).count(weight.shape)
    return weight.numel() // max(channels, 1)
