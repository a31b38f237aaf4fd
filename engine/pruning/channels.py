"""What one filter (output channel) of a layer is, as rows of its weight.

Where they lie is known by ``engine.attach.layout``; a layer norm has one for each normalized
element.
"""

from __future__ import annotations

from torch import Tensor, nn

from engine.attach.layout import ELEMENTWISE, Layout, layout_of, output_axis
from engine.attach.parametrized import own_weight


class Channels:
    """The filters of one layer.

    Args:
        module: a layer with a weight.

    Attributes:
        count: number of filters (output channels, features).

    Raises:
        TypeError: the layer's type has no known layout.
    """

    def __init__(self, module: nn.Module) -> None:
        weight = own_weight(module)
        layout = layout_of(module)
        if layout is None or weight is None:
            raise TypeError(
                f"{type(module).__name__} has no filters that can be ranked; layers that have: "
                "convolutions (transposed ones too), Linear, Bilinear, Embedding, norm layers"
            )
        self._module = module
        self._shape = weight.shape
        self._layout: Layout = layout
        self._elementwise = isinstance(module, ELEMENTWISE)
        self.count = weight.numel() if self._elementwise else layout.count(weight.shape)

    def rows(self, tensor: Tensor) -> Tensor:
        """Return ``tensor`` (the weight or something of its shape) as (filters, elements).

        A view where the layout allows it, else a copy.
        """
        return tensor.reshape(self.count, 1) if self._elementwise else self._layout.rows(tensor)

    def left(self, mask: Tensor) -> Tensor:
        """Return which filters ``mask``, zeros and ones like the weight, leaves any of, (filters,).

        On the mask's device.
        """
        return self.rows(mask).amax(dim=1) != 0

    def spread(self, per_filter: Tensor) -> Tensor:
        """Return ``per_filter`` (filters,) expanded to the weight's shape, without copying it."""
        if self._elementwise:
            return per_filter.view(self._shape)
        return self._layout.spread(per_filter, self._shape)

    def of_output(self, output: Tensor) -> Tensor:
        """Return ``output``, the layer's or what was computed from it alike, as (filters, samples).

        With or without a batch dimension, where the layer allows both.
        """
        if self._elementwise:
            output = output.flatten(-len(self._shape))
        if self.count > 1:
            output = output.movedim(output_axis(self._module), 0)
        return output.reshape(self.count, -1)
