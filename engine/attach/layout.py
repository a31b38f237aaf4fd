"""Where the output channels of a layer's weight lie: known here, and nowhere else.

Pruning ranks channels, quantization gives each a scale, exports and norms multiply them: all ask
here. A convolution or linear layer has its channels along dimension 0; a transposed convolution
along dimension 1 within each group, so that channel ``group * outputs + index`` is a part of the
rows of its group; GPT-2's ``Conv1D`` (``transformers.pytorch_utils``) and an embedding along
dimension 1. What a class of somebody else does with its weight cannot be seen from its shape: it
says so in an attribute ``output_channel_axis``, or nothing is done by channel.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from engine.attach.parametrized import own_weight

_FIRST = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.Linear,
    nn.Bilinear,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.PReLU,
)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
#: Norms with a number for each element of what they normalize.
ELEMENTWISE = (nn.LayerNorm, nn.RMSNorm)
#: Number of axes after the channels' in the output of a layer that also takes a single sample.
_SPATIAL = {"1d": 1, "2d": 2, "3d": 3}
#: The attribute in which a class says where its weight's output channels are.
STATED = "output_channel_axis"


class Layout(NamedTuple):
    """The output channels of a weight.

    Attributes:
        axis: the dimension that they lie along.
        groups: into how many the other of the first two dimensions is divided, each group having
            channels of its own along ``axis``: those of a transposed convolution. Otherwise 1.
    """

    axis: int
    groups: int = 1

    def count(self, shape: torch.Size) -> int:
        """Return how many channels a weight of ``shape`` has."""
        return int(shape[self.axis]) * self.groups

    def rows(self, tensor: Tensor) -> Tensor:
        """Return ``tensor``, of a weight's shape, as (channels, elements); a view if possible."""
        count = self.count(tensor.shape)
        size = count, tensor.numel() // max(count, 1)
        if self.groups == 1:
            return tensor.movedim(self.axis, 0).reshape(size)
        split = tensor.reshape(self.groups, -1, tensor.shape[1], *tensor.shape[2:])
        return split.transpose(1, 2).reshape(size)

    def restored(self, rows: Tensor, shape: torch.Size) -> Tensor:
        """Return what :meth:`rows` made of a tensor of ``shape`` in that shape again."""
        if self.groups == 1:
            moved = [shape[self.axis], *shape[: self.axis], *shape[self.axis + 1 :]]
            return rows.reshape(moved).movedim(0, self.axis)
        split = rows.reshape(self.groups, shape[1], shape[0] // self.groups, *shape[2:])
        return split.transpose(1, 2).reshape(shape)

    def spread(self, per_channel: Tensor, shape: torch.Size) -> Tensor:
        """Return ``per_channel`` (channels,) expanded to ``shape``; a copy of two axes at most."""
        ones = [1] * (len(shape) - 2)
        if self.groups == 1:
            view = [-1 if dim == self.axis else 1 for dim in range(len(shape))]
            return per_channel.view(view).expand(shape)
        split = per_channel.view(self.groups, 1, shape[1])
        whole = split.expand(self.groups, shape[0] // self.groups, shape[1])
        return whole.reshape(*shape[:2], *ones).expand(shape)


def layout_of(module: nn.Module) -> Layout | None:
    """Return where the output channels of the weight of ``module`` lie; None: nobody knows.

    Of an embedding these are its features, of a layer norm the dimensions that it normalizes, the
    first of them.
    """
    weight = own_weight(module)
    stated = getattr(module, STATED, None)
    if weight is None:
        return None
    if type(stated) is int and -weight.dim() <= stated < weight.dim():
        return Layout(stated % weight.dim())
    if isinstance(module, TRANSPOSED):
        return Layout(1, module.groups)
    if isinstance(module, EMBEDDINGS) or is_linear_by_columns(module):
        return Layout(1)
    return Layout(0) if isinstance(module, _FIRST + ELEMENTWISE) else None


def scale_layout(module: nn.Module) -> Layout | None:
    """Return what of the weight of ``module`` has a scale of its own in quantization by channel.

    Its output channels; of an embedding the rows, which are read one by one; the elements of a
    weight of one dimension, whatever they are.
    """
    weight = own_weight(module)
    if weight is not None and (weight.dim() == 1 or isinstance(module, EMBEDDINGS)):
        return Layout(0)
    return layout_of(module)


def is_linear_by_columns(module: nn.Module) -> bool:
    """Return whether ``module`` is a linear layer that holds its weight as (inputs, outputs).

    Known are ``Conv1D`` of transformers, by its name or by ``nf``, the number of its outputs, and
    classes that are like it; transformers is not imported.
    """
    weight, bias = own_weight(module), module._parameters.get("bias")
    if weight is None or weight.dim() != 2 or isinstance(module, _FIRST + EMBEDDINGS):
        return False
    outputs = weight.shape[1]
    if bias is not None and bias.shape != (outputs,):
        return False
    if "nf" in module.__dict__:
        return bool(module.__dict__["nf"] == outputs)
    return any(cls.__name__ == "Conv1D" for cls in type(module).__mro__)


def output_axis(module: nn.Module) -> int:
    """Return the axis of the layer's output that counts its channels.

    With or without a batch dimension, where the layer allows both.
    """
    last = (nn.Linear, nn.Bilinear, *EMBEDDINGS, *ELEMENTWISE)
    if isinstance(module, last) or is_linear_by_columns(module):
        return -1
    for name in (cls.__name__ for cls in type(module).__mro__):
        if name.startswith(("Conv", "InstanceNorm")) and name[-2:] in _SPATIAL:
            return -1 - _SPATIAL[name[-2:]]
    return 1
