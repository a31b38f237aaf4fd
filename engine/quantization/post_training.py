"""Quantizers that do not train: weights at once or layer by layer, activations from batches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from torch import Tensor, nn

from engine.attach.wrapper import Wrapper
from engine.calibration import LayerInputs
from engine.errors import EngineError
from engine.quantization.calibration import Calibration
from engine.quantization.grid import Grid
from engine.quantization.grid_search import best_grid
from engine.quantization.layer_grids import keep_grid
from engine.quantization.observers import OBSERVERS, Observer
from engine.quantization.quant_types import QuantType, quant_types_of
from engine.quantization.quantizer import Quantizer
from engine.quantization.scheme import scheme_of
from engine.user_code.batches import Forward


class PostTrainingQuantizer(Quantizer):
    """Base of quantizers that keep affine grids and find ranges from batches.

    With ``batches``, ``compress()`` does all that needs them: ``calibrate_layer`` of a subclass,
    layer by layer, then the ranges of activations. Without, :meth:`calibrate` finds the ranges.

    Attributes:
        default_schemes: ``quant_scheme`` of weights and of activations whose entry names none.
    """

    quant_grad = None
    default_schemes: ClassVar[tuple[str, str]] = ("per_channel_symmetric", "per_tensor_affine")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._calibration: Calibration | None = None
        for wrapper in self.wrappers:
            for kind in quant_types_of(wrapper):
                weight = kind == QuantType.WEIGHT
                scheme = scheme_of(wrapper, kind, self.default_schemes[not weight])
                keep_grid(wrapper, kind, scheme, self.norm_behind(wrapper) if weight else None)

    def norm_behind(self, wrapper: Wrapper) -> nn.Module | None:
        """Return the batch norm that a layer's weight is rounded with as folded in, if any."""
        return None

    def clipped_grid(
        self, wrapper: Wrapper, inputs: LayerInputs, *, clip: bool
    ) -> tuple[Tensor, Tensor]:
        """Return scale and zero point of a layer's weight, see ``best_grid``.

        A squared error counts as much as the mean square of what the element is multiplied with,
        where the layer's inputs are rows.

        Args:
            wrapper: the layer's.
            inputs: what it gets.
            clip: False: the range over all values.
        """
        importance = None
        if clip and inputs.has_rows:
            squares = inputs.square_norms().unsqueeze(-2).expand_as(inputs.weight())
            importance = inputs.restored(squares)
        grid: Grid = wrapper.grids["weight"]  # type: ignore[assignment]
        return best_grid(grid, wrapper.weight.detach().float(), importance, clip=clip)

    def make_observer(self) -> Observer:
        """Return an observer for one activation; a subclass may return one of its own."""
        return OBSERVERS["min_max"]()

    def calibrate(self, batches: Iterable[Any], forward: Forward | None = None) -> nn.Module:
        """Set the ranges of activations from ``batches``; return the model.

        The model runs unquantized, in evaluation mode and without gradients. ``forward(model,
        batch)`` calls it; without one, of a tuple or list the first item is the input, and a
        mapping is passed as keywords.

        Raises:
            EngineError: no batches, an activation that is NaN or infinite, or none that a batch
                reached; the layer is named and no range is changed.

        Warns:
            UserWarning: some activations were not reached, such as an expert's: they stay in float.
        """
        if self._stack is None:
            raise EngineError("call compress() before calibrate()")
        self._calibration = Calibration(self.wrappers, self.make_observer)
        try:
            self._calibration.run(self.bound_model, batches, forward)
        finally:
            self._calibration = None
        return self.bound_model

    def quantize_weight(self, weight: Tensor, wrapper: Wrapper) -> Tensor:
        """Return the weight on its grid; as it is while ranges are found."""
        return weight if self._calibration else wrapper.grids["weight"].over_extremes(weight)

    def quantize_input(self, input: Tensor, wrapper: Wrapper) -> Tensor:
        """Return the input on its calibrated grid."""
        return self._activation(input, wrapper, "input")

    def quantize_output(self, output: Tensor, wrapper: Wrapper) -> Tensor:
        """Return the output on its calibrated grid."""
        return self._activation(output, wrapper, "output")

    def _use_batches(self) -> None:
        # Activations are in float meanwhile, and nobody needs to be told.
        told, self._told_uncalibrated = self._told_uncalibrated, True
        try:
            super()._use_batches()
        finally:
            self._told_uncalibrated = told
        if self.batches is not None:
            self.calibrate(self.batches, self.forward)

    def _activation(self, tensor: Tensor, wrapper: Wrapper, key: str) -> Tensor:
        if self._calibration is None:
            if not wrapper.__dict__[f"{key}_seen"]:
                self.warn_uncalibrated(wrapper, key)
            return wrapper.grids[key].over_range(tensor)
        self._calibration.observe(tensor, wrapper, key)
        return tensor
