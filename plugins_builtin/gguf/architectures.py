"""The architectures that GGUF has names for and that are written here, and their metadata."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine.export import Refused


class Architecture(NamedTuple):
    """One of transformers' model types.

    Attributes:
        name: GGUF's name for it.
        pairs_rows: whether rows of queries and keys are those of the original rotary embedding,
            which turns neighbours; transformers turns halves.
        biases: which biases there may be, by the names of the layers that have them.
        head_size: whether the size of a head has a key of its own.
    """

    name: str
    pairs_rows: bool = False
    biases: tuple[str, ...] = ()
    head_size: bool = False


#: By transformers' ``model_type``.
ARCHITECTURES = {
    "llama": Architecture("llama", pairs_rows=True),
    "qwen2": Architecture("qwen2", biases=("q_proj", "k_proj", "v_proj")),
    "qwen3": Architecture("qwen3", head_size=True),
}


def refused(model: Any) -> Iterator[Refused]:
    """Yield what of a transformers model its architecture in GGUF has no place for."""
    config = model.config
    architecture = ARCHITECTURES.get(config.model_type)
    if architecture is None:
        names = ", ".join(ARCHITECTURES)
        yield Refused("", f"is a {config.model_type}; it writes {names}")
        return
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "default":
        yield Refused(
            "", f'has rotary embeddings of type "{rope["rope_type"]}"; it writes "default"'
        )
    if getattr(config, "hidden_act", "silu") != "silu":
        yield Refused("", f"has the activation {config.hidden_act}; its readers compute silu")
    if getattr(config, "use_sliding_window", False):
        yield Refused("", "attends to a sliding window, which its readers do not")
    for name, module in model.named_modules():
        if getattr(module, "bias", None) is not None and isinstance(module, torch.nn.Linear):
            short = name.rpartition(".")[2]
            if short not in architecture.biases:
                yield Refused(name, f"has a bias, which {architecture.name} has not")


def write_metadata(writer: Any, config: Any) -> None:
    """Add what readers need to build the model to a ``gguf.GGUFWriter``."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = getattr(config, "rope_parameters", None) or {}
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(float(rope.get("rope_theta", getattr(config, "rope_theta", 10000.0))))
    writer.add_rope_dimension_count(head)
    writer.add_vocab_size(config.vocab_size)
    if ARCHITECTURES[config.model_type].head_size:
        writer.add_key_length(head)
        writer.add_value_length(head)
    for name in ("bos", "eos", "pad"):
        token = getattr(config, f"{name}_token_id", None)
        if isinstance(token, int) and token >= 0:
            getattr(writer, f"add_{name}_token_id")(token)


def rows_of(config: Any, key: str, rows: Tensor) -> Tensor:
    """Return the rows of a tensor of queries or keys in GGUF's order; of others as they are.

    Args:
        config: of the model.
        key: in the ``state_dict``.
        rows: (rows, ...).
    """
    if not ARCHITECTURES[config.model_type].pairs_rows:
        return rows
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    count = heads.get(key.rpartition(".")[0].rpartition(".")[2])
    if count is None:
        return rows
    halves = rows.reshape(count, 2, rows.shape[0] // count // 2, *rows.shape[1:])
    return halves.transpose(1, 2).reshape(rows.shape)
