"""A folder with a random Llama of any size, written shard by shard: never in memory as a whole.

python docs/benchmarks/random_llama.py FOLDER --hidden 4096 --mlp 11008 --heads 32 --layers 8
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Size, Tensor

from engine.export import write_safetensors


def shapes(hidden: int, mlp: int, layers: int, words: int) -> list[dict[str, tuple[int, ...]]]:
    """Return names and shapes of the tensors of each shard."""
    shards: list[dict[str, tuple[int, ...]]] = [{"model.embed_tokens.weight": (words, hidden)}]
    for layer in range(layers):
        own = {f"self_attn.{name}_proj.weight": (hidden, hidden) for name in "qkvo"}
        own |= {f"mlp.{name}_proj.weight": (mlp, hidden) for name in ("gate", "up")}
        own |= {"mlp.down_proj.weight": (hidden, mlp)}
        own |= {f"{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
        shards.append({f"model.layers.{layer}.{name}": shape for name, shape in own.items()})
    shards.append({"model.norm.weight": (hidden,), "lm_head.weight": (words, hidden)})
    return shards


def write(
    folder: Path, hidden: int, mlp: int, heads: int, layers: int, words: int, dtype: torch.dtype
) -> None:
    """Write the folder: normal weights of the width that keeps activations in range."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)

    def drawn(own: dict[str, tuple[int, ...]]) -> Iterator[tuple[str, Tensor]]:
        for name, shape in own.items():
            if len(shape) == 1:
                yield name, torch.ones(shape, dtype=dtype)
            else:
                value = torch.empty(shape, dtype=torch.float32).normal_(generator=generator)
                yield name, value.mul_(shape[1] ** -0.5).to(dtype)

    found = shapes(hidden, mlp, layers, words)
    index: dict[str, str] = {}
    for number, own in enumerate(found, 1):
        name = f"model-{number:05}-of-{len(found):05}.safetensors"
        stated = {key: (Size(shape), dtype) for key, shape in own.items()}
        write_safetensors(folder / name, stated, drawn(own), {"format": "pt"})
        index |= dict.fromkeys(own, name)
    text = json.dumps({"metadata": {}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "vocab_size": words,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    (folder / "config.json").write_text(json.dumps(config))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    for name, size in (("hidden", 4096), ("mlp", 11008), ("heads", 32), ("layers", 8)):
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--words", type=int, default=32000)
    parser.add_argument("--dtype", default="float16")
    args = parser.parse_args()
    sizes = args.hidden, args.mlp, args.heads, args.layers, args.words
    write(args.folder, *sizes, getattr(torch, args.dtype))


if __name__ == "__main__":
    main()
