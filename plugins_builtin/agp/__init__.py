"""Automated gradual pruning: a cubic rise of the sparsity, around any pruner.

Zhu and Gupta 2017, "To prune, or not to prune", arXiv 1710.01878, eq. 1.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

from engine import Schedule, Wrapper, hookimpl


class AGPPruner(Schedule):
    """Raises the sparsity from ``initial_sparsity`` to ``final_sparsity``."""

    @hookimpl(wrapper=True)
    def sparsity(  # type: ignore[override]
        self, wrapper: Wrapper, epoch: int
    ) -> Generator[None, float, float]:
        """Return eq. 1 at ``epoch``, the pruner's own fraction as the final one."""
        final = yield
        return self._at(wrapper.config, final, epoch)

    def compute_target_sparsity(self, config: Mapping[str, Any]) -> float:
        """Return what an entry of ``config_list`` asks for at the current epoch."""
        return self._at(config, config["final_sparsity"], self.epoch)

    @staticmethod
    def _at(config: Mapping[str, Any], final: float, epoch: int) -> float:
        """Return s_f + (s_i - s_f) (1 - (t - t_0) / (n dt))^3 from t_0 on, held at the end.

        Nothing is removed before t_0. From there t takes only the steps t_0 + k dt.
        """
        start, end = config["start_epoch"], config["end_epoch"]
        if epoch < start:
            return 0.0
        if epoch >= end:
            return final
        frequency = config["frequency"]
        t = start + (epoch - start) // frequency * frequency
        remaining = 1 - (t - start) / (end - start)
        return float(final + (config["initial_sparsity"] - final) * remaining**3)
