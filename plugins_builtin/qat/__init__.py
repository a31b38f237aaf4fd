"""Quantization-aware training.

Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-
Only Inference", arXiv 1712.05877, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from engine import Quantizer, QuantType, Wrapper
from engine.quantization import Delay, average_ranges, keep_grid, scheme_of, update_waits
from engine.quantization.batch_norm import FloatStatistics, FrozenNorms, norm_pairs
from engine.quantization.quantizer import of_type, quant_types_of


class QAT_Quantizer(Quantizer):
    """Fake-quantizes weights over their extremes and activations over smoothed ranges.

    ``quant_start_step`` optimizer steps pass before anything is quantized; activation ranges are
    followed meanwhile. In evaluation mode ranges stand still, and an activation that never had a
    range passes unchanged.
    """

    reads_weights = True

    quant_grad = None
    ema_decay: float
    fold_batch_norm: str
    freeze_norms_step: int | None = None
    freeze_norms_epoch: int | None = None
    freeze_ranges_step: int | None = None
    freeze_ranges_epoch: int | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.delay = Delay()
        self._following = True
        self._frozen: FrozenNorms | None = None
        self._second_passes: list[FloatStatistics] = []
        norms = norm_pairs(self.bound_model) if self.fold_batch_norm != "none" else {}
        for wrapper in self.wrappers:
            for quant_type in quant_types_of(wrapper):
                norm = norms.get(wrapper.module) if quant_type == QuantType.WEIGHT else None
                grid = keep_grid(wrapper, quant_type, scheme_of(wrapper, quant_type), norm)
                grid.start = of_type(wrapper.config["quant_start_step"], quant_type) or 0
                grid.delay = self.delay
        self._waiting = update_waits(self.wrappers)

    @property
    def steps(self) -> int:
        """How many optimizer steps were done."""
        return self.delay.steps

    def quantize_weight(self, weight: Tensor, wrapper: Wrapper) -> Tensor:
        """Return the weight, its batch norm folded in, on the grid over its extremes."""
        return wrapper.grids["weight"].over_extremes(weight)

    def quantize_input(self, input: Tensor, wrapper: Wrapper) -> Tensor:
        """Return the input on the grid of its smoothed range."""
        follows = self._following and wrapper.module.training
        if not (wrapper.module.training or wrapper.__dict__["input_seen"]):
            self.warn_uncalibrated(wrapper, "input")
        return wrapper.grids["input"].over_range(input, self.ema_decay if follows else None)

    def quantize_output(self, output: Tensor, wrapper: Wrapper) -> Tensor:
        """Return the output on the grid of its smoothed range."""
        follows = self._following and wrapper.module.training
        if not (wrapper.module.training or wrapper.__dict__["output_seen"]):
            self.warn_uncalibrated(wrapper, "output")
        return wrapper.grids["output"].over_range(output, self.ema_decay if follows else None)

    def compress(self) -> nn.Module:
        """Attach; the unfused variant of folding runs each folded layer in float, too."""
        attached = self._stack is not None
        model = super().compress()
        if self.fold_batch_norm == "unfused" and not attached:
            for grid in (w.grids["weight"] for w in self.wrappers if "weight" in w.grids):
                if grid.norm is not None:
                    self._second_passes.append(FloatStatistics(grid.wrapper.module, grid.norm))
        return model

    def update_epoch(self, epoch: int) -> None:
        """Freeze what is due."""
        self._freeze()

    def step(self) -> None:
        """Count an optimizer step; freeze what is due."""
        self.delay.steps += 1
        self._waiting = self._waiting and update_waits(self.wrappers)
        average_ranges(self.wrappers)
        self._freeze()

    def restore_model(self, compressor: Any, model: nn.Module) -> None:
        """Let norms go and take second passes away."""
        for second_pass in self._second_passes:
            second_pass.remove()
        if self._frozen is not None:
            self._frozen.remove(model.training)
        self._second_passes, self._frozen = [], None

    def get_extra_state(self) -> dict[str, Any]:
        """Return the number of steps so far."""
        return {"steps": self.steps}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`get_extra_state`."""
        self.delay.steps = state["steps"]
        self._waiting = update_waits(self.wrappers)
        self._freeze()

    def _freeze(self) -> None:
        self._following = not self._due(self.freeze_ranges_step, self.freeze_ranges_epoch)
        due = self._due(self.freeze_norms_step, self.freeze_norms_epoch)
        if due and self._frozen is None:
            self._frozen = FrozenNorms(self.bound_model)
        elif not due and self._frozen is not None:
            self._frozen.remove(self.bound_model.training)
            self._frozen = None

    def _due(self, step: int | None, epoch: int | None) -> bool:
        by_step = step is not None and self.steps >= step
        return by_step or (epoch is not None and self.epoch >= epoch)
