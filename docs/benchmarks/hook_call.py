"""What a hook costs in the forward pass: resolved when attached, against calling the method.

    python docs/benchmarks/hook_call.py

"identity" is a quantizer that returns the weight as it is, so that only the engine's own work is
timed: on a linear layer of 64 x 64, batch 64, forward only.
"""

import torch
from interleaved import compare, show
from torch import nn

import engine
from engine.plugins.stack import Stack


class Identity(engine.Quantizer):
    """Returns the weight."""

    quant_grad = None

    def quantize_weight(self, weight, wrapper):
        """Return ``weight``."""
        return weight


class Observed:
    """A plugin that wraps the hook, so that pluggy must be asked."""

    @engine.hookimpl(wrapper=True)
    def quantize_weight(self):
        """Return what comes out."""
        return (yield)


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    entry = {"quant_types": ["weight"], "quant_bits": 8, "op_types": ["Linear"]}
    quantizer = Identity(nn.Sequential(nn.Linear(64, 64)), [entry])
    weight, wrapper = torch.randn(64, 64), quantizer.get_modules_wrapper()[0]
    resolved = Stack([quantizer]).resolve("quantize_weight")
    wrapped = Stack([quantizer, Observed()]).resolve("quantize_weight")
    show(
        "one call",
        compare(
            {
                "method": lambda: quantizer.quantize_weight(weight, wrapper),
                "resolved hook": lambda: resolved(weight, wrapper),
                "hook with a wrapper (pluggy)": lambda: wrapped(weight, wrapper),
            },
            rounds=20,
            repeat=20000,
        ),
    )

    class Direct(nn.Linear):
        """A linear layer that calls the method itself in its forward."""

        def forward(self, x):
            weight = quantizer.quantize_weight(self.weight, wrapper)
            return nn.functional.linear(x, weight, self.bias)

    x = torch.randn(64, 64)
    direct = Direct(64, 64)
    attached = Identity(nn.Sequential(nn.Linear(64, 64)), [entry]).compress()[0]
    with torch.no_grad():
        show(
            "forward of a linear layer",
            compare(
                {"method in forward": lambda: direct(x), "engine hook": lambda: attached(x)},
                rounds=30,
                repeat=2000,
            ),
        )


if __name__ == "__main__":
    main()
