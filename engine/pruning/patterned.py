"""Pruners whose masks may follow an N:M pattern in place of a sparsity."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from engine.attach.wrapper import Wrapper
from engine.calibration import LayerInputs
from engine.calibration.n_m import pattern_of
from engine.calibration.patches import has_rows
from engine.errors import ConfigError, Problem
from engine.plugins.blame import describe
from engine.pruning.pruner import Pruner


class PatternedPruner(Pruner):
    """Base of one-shot pruners of single weights that see rows of inputs.

    Attributes:
        pattern: an argument of the algorithm, "2:4" for example: of each 4 weights 2 stay at most.
        removes: how many weights go of how many; None without a pattern.
    """

    one_shot = True
    pattern: str | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.removes = pattern_of(self.pattern)
        if self.removes is None:
            missing = [w.name for w in self.wrappers if "sparsity" not in w.config]
            if missing:
                message = f'"sparsity" is missing for layer "{missing[0]}"'
                problem = Problem(message, "/config_list", None, "needs: a sparsity, or a pattern")
                raise ConfigError([problem], describe(self))
            return
        fraction = self.removes[0] / self.removes[1]
        if self.removes[0] <= 0:
            raise ConfigError(
                [Problem(f"{self.pattern} removes nothing", "/pattern", None, "needs: N below M")],
                describe(self),
            )
        asked = {float(w.config.get("sparsity", fraction)) for w in self.wrappers}
        for sparsity in sorted(asked - {fraction}):
            message = f"{self.pattern} removes {fraction:g} of each layer, an entry asks for "
            needs = f"needs: sparsity {fraction:g}, or no sparsity where there is a pattern"
            problem = Problem(f"{message}{sparsity:g}", "/config_list", None, needs)
            raise ConfigError([problem], describe(self))
        for wrapper in self.wrappers:
            wrapper.config["sparsity"] = fraction

    def gone(self, wrapper: Wrapper, inputs: LayerInputs) -> Tensor:
        """Return which weights are masked already, bool, as ``inputs.weight()``: they stay so."""
        mask = wrapper.mask("weight")
        return inputs.matrix(torch.ones_like(wrapper.weight) if mask is None else mask) == 0

    def check_layer(self, module: nn.Module) -> str | None:
        """Return why a layer's inputs cannot be told, or None."""
        return None if has_rows(module) else "it is no linear layer and no plain convolution"
