"""Steps of a fused optimizer under a ``GradScaler``: what the scaler leaves to the optimizer.

For any other optimizer the scaler divides the gradients by its scale and calls ``step`` only if all
are finite. A fused one is called in any case, with scaled gradients; it finds the scale and whether
to skip in two attributes that it has for the time of the call.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer


def is_skipped(optimizer: Optimizer) -> bool:
    """Return whether the step that ``optimizer`` is about to do changes nothing.

    Reading it waits for the device once, as the scaler itself does for other optimizers.
    """
    found: Tensor | None = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)


@torch.no_grad()
def unscale(optimizer: Optimizer) -> None:
    """Divide the gradients by the scale, and let the optimizer know that this is done."""
    scale: Tensor | None = getattr(optimizer, "grad_scale", None)
    if scale is None:
        return
    inverse = scale.double().reciprocal().float()  # as GradScaler.unscale_
    by_device: dict[torch.device, list[Tensor]] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                by_device.setdefault(parameter.device, []).append(parameter.grad)
    for device, gradients in by_device.items():
        torch._foreach_mul_(gradients, inverse.to(device, non_blocking=True))
    optimizer.grad_scale = None  # type: ignore[attr-defined]
