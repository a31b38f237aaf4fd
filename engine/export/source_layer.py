"""One layer of a compressed model as an exporter sees it: its weight, its integers, their grid."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from engine.attach.wrapper import Wrapper
from engine.errors import ExportError
from engine.quantization.affine import wide
from engine.quantization.form import AffineForm
from engine.quantization.layer_grids import begun
from engine.quantization.quant_types import QuantType, quant_types_of

if TYPE_CHECKING:
    from engine.attach.compressor import Compressor

#: Distance from the nearest integer, in steps, up to which a value is on its grid: half of what
#: rounding to bfloat16 moves the largest integer of 8 bits by is 0.25.
_OFF_GRID = 0.3


class GridFacts(NamedTuple):
    """A grid without its scales.

    Attributes:
        scheme: its name in a configuration, ``per_group_symmetric``: symmetric are integers of both
            signs around 0, whatever the configuration called them.
        bits: how many its integers take.
        group_size: the number of weights that share a scale, of a grid by groups; else None.
        turned: whether a scale is negative, from a batch norm that turns signs.
        half: the largest relative difference that half precision makes to a scale.
    """

    scheme: str
    bits: int
    group_size: int | None
    turned: bool
    half: float

    @property
    def symmetric(self) -> bool:
        """Whether the zero point is 0."""
        return self.scheme.endswith("symmetric")


def facts_of(form: AffineForm) -> GridFacts:
    """Return what is to be known of a grid without its scales."""
    symmetric = form.qmin < 0 and not bool(form.zero_point.any())
    shared = "tensor" if form.axis is None else "channel" if form.group_size is None else "group"
    off = (form.scale.half().float() - form.scale).abs() / form.scale.abs()
    return GridFacts(
        f"per_{shared}_{'symmetric' if symmetric else 'affine'}",
        max((form.qmax - form.qmin).bit_length(), 1),
        form.group_size,
        bool((form.scale < 0).any()),
        float(off.nan_to_num(nan=torch.inf).max()) if off.numel() else 0.0,
    )


class SourceLayer:
    """One layer that was pruned or quantized.

    Attributes:
        name: its dotted name in the model.
        module: the layer itself, not to be changed.
        key: the key of its weight in the model's ``state_dict``.
        kinds: what of it is quantized: "weight", "input", "output"; empty for a pruner's.
    """

    def __init__(self, compressor: Compressor, wrapper: Wrapper) -> None:
        self.name = wrapper.name
        self.module = wrapper.module
        self.key = f"{wrapper.name}.weight" if wrapper.name else "weight"
        quantized = compressor.kind == "quantization"
        self.kinds = tuple(kind.key for kind in quant_types_of(wrapper)) if quantized else ()
        self._compressor, self._wrapper = compressor, wrapper

    @property
    def type(self) -> str:
        """The name of the layer's class: "Linear"."""
        return str(self._wrapper.type)

    @property
    def shape(self) -> torch.Size:
        """The shape of the weight."""
        return self._wrapper.weight.shape

    def weight(self) -> Tensor:
        """Return the weight as the model computes with it, quantized and masked; no gradient."""
        with torch.no_grad(), begun(self._wrapper):
            weight = self.module.weight
            assert isinstance(weight, Tensor)
            mask = self._wrapper.mask("weight")
            return weight.detach() if mask is None else weight.detach() * mask

    @cached_property
    def facts(self) -> GridFacts:
        """What is to be known of the weight's grid before its values are.

        Raises:
            ExportError: the weight is not quantized, or its grid has no affine form.
        """
        form = self.grid()
        if form is None:
            raise ExportError(f'the weight of layer "{self.name}" is not quantized')
        # Scales are let go: those of all layers together are many.
        return facts_of(form)

    def grid(self, kind: str = "weight") -> AffineForm | None:
        """Return scale, zero point and integers of "weight", "input" or "output".

        None where that is not quantized.

        Raises:
            ExportError: it is, and has no affine form, or an activation has had no range yet.
        """
        if kind not in self.kinds:
            return None
        affine_form = self._compressor.affine_form  # type: ignore[attr-defined]
        form: AffineForm = affine_form(self._wrapper, QuantType[kind.upper()])
        return form

    def integers(self) -> tuple[Tensor, AffineForm]:
        """Return the int32 integers of the weight, in its shape, and their grid.

        Raises:
            ExportError: the weight is not quantized, is not finite, or not on the grid that the
                quantizer states; the layer is named.
        """
        form = self.grid()
        if form is None:
            raise ExportError(f'the weight of layer "{self.name}" is not quantized')
        weight = self.weight()
        if not bool(weight.isfinite().all()):
            raise ExportError(
                f'layer "{self.name}": the weight holds NaN or infinity, which no grid spans'
            )
        scale, zero_point = form.broadcast(weight.shape)
        steps = wide(weight) * scale.reciprocal()
        integers = steps.round()
        off = steps.sub_(integers).abs_()
        integers = integers.add_(zero_point).to(torch.int32)
        low, high = integers.aminmax() if integers.numel() else (form.qmin, form.qmax)
        if low < form.qmin or high > form.qmax or bool((off > _OFF_GRID).any()):
            raise ExportError(
                f'layer "{self.name}": its values are not on the grid that affine_form() states\n'
                "  return the scale, zero point and integers that quantize_weight() rounds to"
            )
        return integers, form
