"""Weights of linear layers rounded by torchao and brevitas, for MiniLM in few bits.

Each changes the model that it is given and returns the bytes that the weights take as the package
holds them in memory, scales and zero points included.
"""

import itertools

from torch import nn


def linears(model):
    return [layer for layer in model.modules() if isinstance(layer, nn.Linear)]


def torchao(bits, group=None, affine=False):
    """Return what quantizes weights with ``quantize_``, by channel or in groups.

    In 4 bits its tensors hold one integer in a byte: none of the formats of its
    ``Int4WeightOnlyConfig`` takes float32 weights on the CPU.
    """

    def run(model):
        import torch
        from torchao import quantization as ao
        from torchao.quantization.granularity import PerGroup

        if group is None:
            config = ao.Int8WeightOnlyConfig()
        else:
            kind = ao.MappingType.ASYMMETRIC if affine else ao.MappingType.SYMMETRIC
            config = ao.IntxWeightOnlyConfig(
                weight_dtype=getattr(torch, f"int{bits}"),
                granularity=PerGroup(group),
                mapping_type=kind,
            )
        ao.quantize_(model, config)
        weights = [layer.weight for layer in linears(model)]
        parts = itertools.chain.from_iterable(
            (getattr(weight, name) for name in weight.__tensor_flatten__()[0]) for weight in weights
        )
        return sum(part.nbytes for part in parts)

    return run


def brevitas(bits, group=None, affine=False):
    """Return what puts brevitas's layers in place; they hold float32 weights."""

    def run(model):
        import brevitas.nn as qnn
        from brevitas import config, quant
        from brevitas.graph.quantize import layerwise_quantize
        from brevitas.quant import shifted_scaled_int
        from brevitas_examples.common.generative import quantizers

        config.IGNORE_MISSING_KEYS = True
        chosen = {"weight_quant": quant.Int8WeightPerChannelFloat, "weight_bit_width": bits}
        if group is not None:
            chosen["weight_quant"] = quantizers.IntWeightSymmetricGroupQuant
            if affine:
                chosen["weight_quant"] = shifted_scaled_int.ShiftedUint8WeightGroupQuantFloat
            chosen["weight_group_size"] = group
        layerwise_quantize(model, {nn.Linear: (qnn.QuantLinear, chosen)})
        return sum(layer.weight.nbytes for layer in linears(model))

    return run


VARIANTS = {
    "torchao, 8 bit, per channel": torchao(8),
    "torchao, 4 bit, groups of 32": torchao(4, 32),
    "torchao, 4 bit, groups, affine": torchao(4, 32, affine=True),
    "brevitas, 8 bit, per channel": brevitas(8),
    "brevitas, 4 bit, groups of 32": brevitas(4, 32),
    "brevitas, 4 bit, groups, affine": brevitas(4, 32, affine=True),
}
