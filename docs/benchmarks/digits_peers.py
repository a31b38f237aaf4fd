"""The digits network quantized by torch.ao, torchao, brevitas and NNI 3.0, trained or not.

All get the same float32 network, images to calibrate with, epochs, order of images, learning rate
and schedule, and quantize what the engine is told to: weights and inputs of every layer. What
differs is each package's own: torch.ao and torchao fold the batch norms; brevitas collects ranges
before it trains, and trains them after that; NNI has 2^bits - 1 values for a signed weight.
"""

import copy
import logging

import torch
from digits_accuracy import fit
from digits_net import train_epoch
from quantized_peers import brevitas, brevitas_calibrated, torch_ao, torchao_pt2e
from torch.optim.lr_scheduler import CosineAnnealingLR

EPOCHS = 5


def order(seed):
    """Return the generator that shuffles images while a quantized network is trained."""
    return torch.Generator().manual_seed(1000 + seed)


def torch_ao_calibrated(model, images, bits):
    from torch.ao import quantization as tq

    prepared = torch_ao(model, images[0], bits, training=False).eval()
    prepared.apply(tq.disable_fake_quant)
    with torch.no_grad():
        for batch in images:
            prepared(batch)
    prepared.apply(tq.enable_fake_quant)
    return prepared.apply(tq.disable_observer)


def torch_ao_trained(model, data, images, seed, bits, rate):
    from torch.ao import quantization as tq

    prepared = fit(torch_ao(model, images[0], bits), data, order(seed), EPOCHS, lr=rate)
    return prepared.apply(tq.disable_observer)


def torchao_calibrated(model, images, bits):
    from torchao.quantization import pt2e
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    prepared = torchao_pt2e(model, images[0], bits, training=False)
    with torch.no_grad():
        for batch in images:
            prepared(batch)
    converted = convert_pt2e(prepared)
    pt2e.allow_exported_model_train_eval(converted)
    return converted


def torchao_trained(model, data, images, seed, bits, rate):
    from torchao.quantization import pt2e

    prepared = fit(torchao_pt2e(model, images[0], bits), data, order(seed), EPOCHS, lr=rate)
    return prepared.apply(pt2e.disable_observer)


def brevitas_ptq(model, images, bits):
    return brevitas_calibrated(brevitas(model, bits), images, bias_correction=True)


def brevitas_trained(model, data, images, seed, bits, rate):
    prepared = brevitas_calibrated(brevitas(model, bits), images)
    return fit(prepared, data, order(seed), EPOCHS, lr=rate)


def nni(kind):
    """Return what quantizes with NNI's quantizer of that name, in its evaluator."""

    def run(model, data, images, seed, bits, rate):
        import nni as package
        from nni.compression import quantization
        from nni.compression.utils import TorchEvaluator

        logging.getLogger("nni").setLevel(logging.ERROR)
        model = copy.deepcopy(model)
        optimizer = package.trace(torch.optim.Adam)(model.parameters(), lr=rate)
        schedule = package.trace(CosineAnnealingLR)(optimizer, EPOCHS)
        generator = order(seed)

        def train(model, optimizer, step, schedule, max_steps, max_epochs):
            for _ in range(max_epochs):
                train_epoch(model, data, optimizer, generator)
                schedule.step()

        def calibrate(model):
            model.eval()
            with torch.no_grad():
                for batch in images:
                    model(batch)
            return 0.0

        learned = kind == "LsqQuantizer"
        inputs = {"quant_dtype": f"uint{bits}", "granularity": "default"}
        inputs["quant_scheme"] = "symmetric" if learned else "affine"
        weights = {"quant_dtype": f"int{bits}", "quant_scheme": "symmetric"}
        weights["granularity"] = "default" if learned else "out_channel"
        entry = {
            "op_types": ["Conv2d", "Linear"],
            "target_names": ["_input_", "weight"],
            "quant_dtype": f"int{bits}",
            "target_settings": {"_input_": inputs, "weight": weights},
        }
        evaluator = TorchEvaluator(
            train, optimizer, lambda batch, model: None, schedule, evaluating_func=calibrate
        )
        quantizer = getattr(quantization, kind)(model, [entry], evaluator)
        quantizer.compress(None, 0 if kind == "PtqQuantizer" else EPOCHS)
        return model

    return run


def nni_calibrated(model, images, bits):
    return nni("PtqQuantizer")(model, None, images, 0, bits, 1e-3)


CALIBRATED = {
    "torch.ao": torch_ao_calibrated,
    "torchao PT2E": torchao_calibrated,
    "brevitas, bias correction": brevitas_ptq,
    "NNI": nni_calibrated,
}
TRAINED = {
    "torch.ao QAT": torch_ao_trained,
    "torchao PT2E QAT": torchao_trained,
    "brevitas QAT": brevitas_trained,
    "NNI QAT": nni("QATQuantizer"),
    "NNI LSQ": nni("LsqQuantizer"),
}
