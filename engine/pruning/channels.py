"""What one filter (output channel) of a layer is, as rows of its weight.

The layouts differ: a convolution or linear layer has its filters along dimension 0, a transposed
convolution along dimension 1 within each group, an embedding's features are its columns, a batch
norm or PReLU has one number per channel, and a layer norm one per normalized element.
"""

from __future__ import annotations

from torch import Tensor, nn

_FIRST_DIMENSION = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.Linear,
    nn.Bilinear,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.PReLU,
)
_ELEMENTWISE = (nn.LayerNorm, nn.RMSNorm)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_COLUMNS = (nn.Embedding, nn.EmbeddingBag)
_LAST_AXIS = (nn.Linear, nn.Bilinear, *_COLUMNS, *_ELEMENTWISE)
#: Number of axes after the filters' in the output of a layer that also takes a single sample.
_SPATIAL = {"1d": 1, "2d": 2, "3d": 3}


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
        weight = module._parameters.get("weight")
        known = isinstance(module, _FIRST_DIMENSION + _ELEMENTWISE + _TRANSPOSED + _COLUMNS)
        if not known or weight is None:
            raise TypeError(
                f"{type(module).__name__} has no filters that can be ranked; layers that have: "
                "convolutions (transposed ones too), Linear, Bilinear, Embedding, norm layers"
            )
        self._module = module
        self._shape = weight.shape
        self._groups = module.groups if isinstance(module, _TRANSPOSED) else None
        self._columns = isinstance(module, _COLUMNS)
        self._elementwise = isinstance(module, _ELEMENTWISE)
        if self._groups is not None:
            self.count = int(weight.shape[1]) * int(self._groups)
        elif self._columns:
            self.count = int(weight.shape[1])
        elif self._elementwise:
            self.count = weight.numel()
        else:
            self.count = int(weight.shape[0])

    def rows(self, tensor: Tensor) -> Tensor:
        """Return ``tensor`` (the weight or something of its shape) as (filters, elements).

        A view where the layout allows it, else a copy.
        """
        if self._groups is not None:
            inputs, outputs = self._shape[0] // self._groups, self._shape[1]
            grouped = tensor.reshape(self._groups, inputs, outputs, -1)
            return grouped.transpose(1, 2).reshape(self.count, -1)
        if self._columns:
            return tensor.t()
        return tensor.reshape(self.count, -1)

    def spread(self, per_filter: Tensor) -> Tensor:
        """Return ``per_filter`` (filters,) expanded to the weight's shape, without copying it."""
        if self._groups is not None:
            inputs, outputs = self._shape[0] // self._groups, self._shape[1]
            grouped = per_filter.view(self._groups, 1, outputs)
            whole = grouped.expand(self._groups, inputs, outputs).reshape(self._shape[:2])
            return whole.view(*self._shape[:2], *[1] * (len(self._shape) - 2)).expand(self._shape)
        if self._columns:
            return per_filter.expand(self._shape)
        if self._elementwise:
            return per_filter.view(self._shape)
        return per_filter.view(-1, *[1] * (len(self._shape) - 1)).expand(self._shape)

    def of_output(self, output: Tensor) -> Tensor:
        """Return ``output``, the layer's or what was computed from it alike, as (filters, samples).

        With or without a batch dimension, where the layer allows both.
        """
        if self._elementwise:
            output = output.flatten(-len(self._shape))
        if self.count > 1:
            output = output.movedim(self._axis, 0)
        return output.reshape(self.count, -1)

    @property
    def _axis(self) -> int:
        """The axis of the layer's output that counts its filters."""
        if isinstance(self._module, _LAST_AXIS):
            return -1
        for name in (cls.__name__ for cls in type(self._module).__mro__):
            if name.startswith(("Conv", "InstanceNorm")) and name[-2:] in _SPATIAL:
                return -1 - _SPATIAL[name[-2:]]
        return 1
