"""A linear rise of the sparsity, around any pruner: the same share of the weights in each step."""

from __future__ import annotations

from collections.abc import Generator

from engine import Schedule, Wrapper, hookimpl


class LinearPruner(Schedule):
    """Raises the sparsity evenly from ``initial_sparsity`` to ``final_sparsity``."""

    @hookimpl(wrapper=True)
    def sparsity(  # type: ignore[override]
        self, wrapper: Wrapper, epoch: int
    ) -> Generator[None, float, float]:
        """Return s_i + (s_f - s_i) (t - t_0) / (t_n - t_0), s_f being the pruner's own fraction.

        Nothing is removed before t_0. From there t takes only the steps t_0 + k ``frequency``; from
        t_n on the fraction is s_f, also where the last step falls short of it.
        """
        final = yield
        config = wrapper.config
        start, end, frequency = config["start_epoch"], config["end_epoch"], config["frequency"]
        if epoch < start:
            return 0.0
        if epoch >= end:
            return final
        share = (epoch - start) // frequency * frequency / (end - start)
        initial = config["initial_sparsity"]
        return float(initial + (final - initial) * share)
