"""Parameters and floating-point operations of a model, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from engine.attach.undisturbed import undisturbed
from engine.files import PathLike
from engine.files.table import shape_text, short, text_table, write_table
from engine.pruning.costs.flops import FlopCounter, Tally, nonzeros
from engine.pruning.mask_files import masked_parameters
from engine.user_code.example import call, example_of

#: What one unit of ``flops`` is; stands in files and above tables.
CONVENTION = "FLOPs: 2 per multiply-add of matrix products and convolutions, whole batch"


class LayerCount(NamedTuple):
    """One module: its own parameters and operations, not those of modules inside it.

    ``nonzero_params`` and ``masked_flops`` leave out weights that are zero. ``weight_shape`` is
    ``()`` for a module without parameters, ``output_shape`` for one that did not run; ``calls`` is
    how often it ran. Parameters that layers share count for the first of them.
    """

    name: str
    type: str
    weight_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    calls: int
    params: int
    nonzero_params: int
    flops: int
    masked_flops: int


class ModelCount(NamedTuple):
    """A model's totals and layers: ``flops, params, layers = count_flops_params(model, x)``."""

    flops: int
    params: int
    layers: tuple[LayerCount, ...]

    @property
    def nonzero_params(self) -> int:
        """Number of parameters that are not zero."""
        return sum(layer.nonzero_params for layer in self.layers)

    @property
    def masked_flops(self) -> int:
        """Operations of the weights that are not zero."""
        return sum(layer.masked_flops for layer in self.layers)

    def rows(self) -> list[dict[str, Any]]:
        """Return the layers as plain values, in the model's order."""
        return [layer._asdict() for layer in self.layers]

    def as_dict(self) -> dict[str, Any]:
        """Return totals and layers as plain values, for JSON."""
        totals = ("params", "nonzero_params", "flops", "masked_flops")
        return {
            "convention": CONVENTION,
            **{name: getattr(self, name) for name in totals},
            "layers": self.rows(),
        }

    def export(self, path: PathLike) -> None:
        """Write the layers as CSV, or everything as JSON where ``path`` ends in ``.json``."""
        write_table(path, self.rows(), self.as_dict())

    def __str__(self) -> str:
        header = ("LAYER", "TYPE", "WEIGHT", "OUTPUT", "PARAMS", "NONZERO", "FLOPS", "NONZERO")
        rows = [
            (
                layer.name or "(model)",
                layer.type,
                shape_text(layer.weight_shape) or "-",
                shape_text(layer.output_shape) or "-",
                *map(short, layer[5:]),
            )
            for layer in self.layers
        ]
        sums = (self.params, self.nonzero_params, self.flops, self.masked_flops)
        rows.append(("total", "", "", "", *map(short, sums)))
        return f"{text_table(header, rows, 4)}\n{CONVENTION}"


def count_flops_params(
    model: nn.Module,
    args: Any,
    kwargs: Mapping[str, Any] | None = None,
    *,
    masks: Mapping[str, Any] | PathLike | None = None,
) -> ModelCount:
    """Return the parameters and floating-point operations of one forward pass.

    The model runs once on the example, in evaluation mode, and every ATen operator is counted for
    the module that calls it: functional calls, attention and a layer that runs several times
    included. One multiply-add of a matrix product or convolution is two operations; biases, norms,
    activations and pooling count nothing. That is the convention of
    ``torch.utils.flop_counter.FlopCounterMode``, and totals are equal to its; ``nn.Bilinear`` and
    fused recurrent layers, which it does not see, are counted alike; branches of ``torch.cond`` are
    not. Operations are those of the whole batch: give a batch of one for those of one sample.

    Masks that a pruner has applied are zeros in the weights; ``nonzero_params`` and
    ``masked_flops`` leave them out. A model that was made smaller is counted by the same call.

    Args:
        model: the model; parameters, buffers, modes and random state are left as found.
        args: one tensor, a tuple of positional arguments, or the shape of the one input.
        kwargs: keyword arguments.
        masks: count as if these were applied: a mask file or what ``engine.load_masks`` returns.

    Raises:
        EngineError: the model does not run on the example.
        CheckpointError: the masks do not fit the model.
    """
    example = example_of(model, args, kwargs)
    with _masked(model, masks), undisturbed(model):
        counter = FlopCounter(model, example.tensors())
        with counter.watching():
            call(model, example)
        layers = tuple(_layers(model, counter.tallies))
    return ModelCount(sum(x.flops for x in layers), sum(x.params for x in layers), layers)


def _layers(model: nn.Module, tallies: Mapping[str, Tally]) -> Iterator[LayerCount]:
    seen: set[int] = set()
    for name, module in model.named_modules():
        own = {key: p for key, p in module._parameters.items() if p is not None}
        new = {key: p for key, p in own.items() if id(p) not in seen}
        seen.update(map(id, new.values()))
        tally = tallies.get(name) or Tally()
        if own or tally.flops:
            yield LayerCount(
                name,
                type(module).__name__,
                _weight_shape(own),
                tally.output_shape,
                tally.calls,
                sum(p.numel() for p in new.values()),
                sum(_nonzeros(module, key, p) for key, p in new.items()),
                tally.flops,
                tally.masked_flops,
            )


def _weight_shape(own: Mapping[str, Tensor]) -> tuple[int, ...]:
    matrices = [p for p in own.values() if p.dim() > 1]
    weight = own.get("weight", next(iter([*matrices, *own.values()]), None))
    return () if weight is None else tuple(weight.shape)


def _nonzeros(module: nn.Module, name: str, parameter: Tensor) -> int:
    # Soft masks and quantizers compute the weight that the layer uses from its parameter.
    value = getattr(module, name)
    used = value if isinstance(value, Tensor) and value.shape == parameter.shape else parameter
    return nonzeros(used)


@contextmanager
def _masked(model: nn.Module, masks: Mapping[str, Any] | PathLike | None) -> Iterator[None]:
    """Let parameters be masked copies of themselves, everywhere that they are used."""
    copies: dict[int, nn.Parameter] = {}
    for module, name, mask in [] if masks is None else masked_parameters(model, masks):
        old = module._parameters[name]
        assert old is not None
        value = copies.get(id(old), old).detach() * mask.to(old.device, old.dtype)
        copies[id(old)] = nn.Parameter(value, requires_grad=old.requires_grad)
    places = [
        (module._parameters, name, p)
        for module in model.modules()
        for name, p in module._parameters.items()
        if p is not None and id(p) in copies
    ]
    try:
        for holder, name, p in places:
            holder[name] = copies[id(p)]
        yield
    finally:
        for holder, name, p in places:
            holder[name] = p
