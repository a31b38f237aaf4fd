"""Networks that torch.ao, torchao and brevitas quantize in floating point, in any number of bits.

Weights have a symmetric scale for each output channel and inputs one unsigned affine scale, unless
said otherwise: inputs here are images and outputs of ReLU. What the packages offer as their default
is taken where they have one, which is at 8 bits; fewer bits narrow its integer range.
"""

import copy
import dataclasses

import torch
from torch import nn


def torch_ao(model, x, bits=8, training=True):
    """Return torch.ao's FX graph of ``model``, norms folded, the logits left as they are.

    To train: its defaults for x86 at 8 bits. Its fused kernel takes another scale than its observer
    below 8 bits, so that less is trained there with the operators that are not fused. Not to train:
    histograms for inputs; ranges are observed by every call until ``disable_observer``.
    """
    from torch.ao import quantization as tq
    from torch.ao.quantization import quantize_fx

    inputs = {"quant_min": 0, "quant_max": 2**bits - 1, "dtype": torch.quint8}
    weights = {"quant_min": -(2 ** (bits - 1)), "quant_max": 2 ** (bits - 1) - 1}
    observers = (tq.HistogramObserver, tq.PerChannelMinMaxObserver)
    if training:
        observers = (tq.MovingAverageMinMaxObserver, tq.MovingAveragePerChannelMinMaxObserver)
    own = tq.QConfig(
        activation=tq.FakeQuantize.with_args(observer=observers[0], **inputs),
        weight=tq.FakeQuantize.with_args(
            observer=observers[1],
            dtype=torch.qint8,
            qscheme=torch.per_channel_symmetric,
            **weights,
        ),
    )
    mapping = tq.QConfigMapping().set_global(own)
    if training and bits == 8:
        mapping = tq.get_default_qat_qconfig_mapping("x86")
    prepared = quantize_fx.prepare_qat_fx(copy.deepcopy(model).train(), mapping, (x,))
    (last,) = prepared.graph.output_node().args
    setattr(prepared, last.target, nn.Identity())
    return prepared


def torchao_pt2e(model, x, bits=8, training=True, any_batch=True):
    """Return what torchao's PT2E makes of ``model`` with its quantizer for x86.

    Below 8 bits it trains with operators that are not fused, for the reason in :func:`torch_ao`.
    The exported program takes batches of any size, or only that of ``x``.
    """
    from torchao.quantization import pt2e
    from torchao.quantization.pt2e import quantize_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    config = x86.get_default_x86_inductor_quantization_config(is_qat=training)
    if bits < 8:
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        inputs = dataclasses.replace(config.input_activation, quant_max=2**bits - 1)
        weights = dataclasses.replace(config.weight, quant_min=low, quant_max=high)
        if training:
            plain = [
                pt2e.FakeQuantize.with_args(observer=kind, eps=2**-12)
                for kind in (
                    pt2e.MovingAverageMinMaxObserver,
                    pt2e.MovingAveragePerChannelMinMaxObserver,
                )
            ]
            inputs = dataclasses.replace(inputs, observer_or_fake_quant_ctr=plain[0])
            weights = dataclasses.replace(weights, observer_or_fake_quant_ctr=plain[1])
        config = dataclasses.replace(
            config, input_activation=inputs, output_activation=inputs, weight=weights
        )
    quantizer = x86.X86InductorQuantizer().set_global(config)
    sizes = ({0: torch.export.Dim("batch", min=2, max=4096)},) if any_batch else None
    whole = copy.deepcopy(model).train(training)
    exported = torch.export.export(whole, (x,), dynamic_shapes=sizes).module()
    prepare = quantize_pt2e.prepare_qat_pt2e if training else quantize_pt2e.prepare_pt2e
    prepared = prepare(exported, quantizer)
    pt2e.allow_exported_model_train_eval(prepared)
    return prepared


def brevitas(model, bits=8, per_channel=True, unsigned=True):
    """Return a copy of ``model`` whose convolutions and linear layers are brevitas's."""
    import brevitas.nn as qnn
    from brevitas import config, quant
    from brevitas.graph.quantize import layerwise_quantize

    config.IGNORE_MISSING_KEYS = True  # a float32 model has no scales to load
    chosen = {
        "weight_quant": quant.Int8WeightPerTensorFloat,
        "input_quant": quant.Int8ActPerTensorFloat,
        "weight_bit_width": bits,
        "input_bit_width": bits,
        "return_quant_tensor": False,
    }
    if per_channel:
        chosen["weight_quant"] = quant.Int8WeightPerChannelFloat
    if unsigned:
        chosen["input_quant"] = quant.Uint8ActPerTensorFloat
    layers = {nn.Conv2d: (qnn.QuantConv2d, chosen), nn.Linear: (qnn.QuantLinear, chosen)}
    return layerwise_quantize(copy.deepcopy(model), layers)


def brevitas_calibrated(model, batches, bias_correction=False):
    """Return ``model``, of brevitas, after its ranges have been collected from ``batches``."""
    from brevitas.graph import calibrate

    modes = [calibrate.calibration_mode]
    if bias_correction:
        modes.append(calibrate.bias_correction_mode)
    model.eval()
    for mode in modes:
        with torch.no_grad(), mode(model):
            for batch in batches:
                model(batch)
    return model
