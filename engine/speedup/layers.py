"""Telling layers their new sizes: the attributes that repeat a parameter's shape."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from engine.speedup.attention import PrunedMultiheadAttention, shrink_attention
from engine.speedup.solve import removed
from engine.speedup.tracer import Tracer
from engine.speedup.tracked import Tracked

#: Layers whose sizes are all told here, so that no other attribute of theirs is a guess.
KNOWN = (
    nn.modules.conv._ConvNd,
    nn.Linear,
    nn.Bilinear,
    nn.modules.batchnorm._NormBase,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.PReLU,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
)
_GATES = {"LSTM": 4, "GRU": 3, "LSTMCell": 4, "GRUCell": 3}


def tell_sizes(model: nn.Module, tracer: Tracer) -> None:
    """Update the sizes that the layers of a model with sliced parameters state."""
    for path, weight in tracer.grouped:
        _tell_groups(model.get_submodule(path), weight, tracer)
    by_module: dict[int, dict[str, Tracked]] = {}
    modules: dict[int, nn.Module] = {}
    for tracked in tracer.parameters:
        for slot in tracked.slots:
            by_module.setdefault(id(slot.module), {})[slot.name] = tracked
            modules[id(slot.module)] = slot.module
    for key, module in modules.items():
        _tell(module, by_module[key], tracer)
    for module in model.modules():
        shrunk = (PrunedMultiheadAttention,)
        if isinstance(module, nn.Transformer):
            inner = [m for m in module.modules() if isinstance(m, nn.MultiheadAttention)]
            if inner:
                module.__dict__["d_model"] = inner[0].embed_dim
        if isinstance(module, nn.TransformerEncoder) and any(
            isinstance(inner, shrunk) for inner in module.modules()
        ):
            # Nested tensors exist for the fused kernels only.
            module.use_nested_tensor = False


def _tell(module: nn.Module, held: dict[str, Tracked], tracer: Tracer) -> None:
    weight = module._parameters.get("weight")
    if isinstance(module, nn.modules.conv._ConvNd) and weight is not None:
        inputs, outputs = weight.shape[1] * module.groups, weight.shape[0]
        if module.transposed:
            inputs, outputs = weight.shape[0], weight.shape[1] * module.groups
        module.in_channels, module.out_channels = int(inputs), int(outputs)
    elif isinstance(module, nn.Linear) and weight is not None:
        module.out_features, module.in_features = map(int, weight.shape)
    elif isinstance(module, nn.Bilinear) and weight is not None:
        module.out_features, module.in1_features, module.in2_features = map(int, weight.shape)
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        sizes = [t for t in (weight, module.running_mean) if t is not None]
        if sizes:
            module.num_features = int(sizes[0].shape[0])
    elif isinstance(module, nn.Embedding | nn.EmbeddingBag) and weight is not None:
        module.embedding_dim = int(weight.shape[1])
    elif isinstance(module, nn.PReLU) and weight is not None:
        module.num_parameters = int(weight.shape[0])
    elif isinstance(module, nn.RNNBase):
        rows, columns = module._parameters["weight_ih_l0"].shape  # type: ignore[union-attr]
        module.input_size = int(columns)
        module.hidden_size = int(rows) // _GATES.get(module.mode, 1)
        projection = module._parameters.get("weight_hr_l0")
        module.proj_size = 0 if projection is None else int(projection.shape[0])
        module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]
    elif isinstance(module, nn.RNNCellBase):
        gates = _GATES.get(type(module).__name__, 1)
        module.input_size = int(module.weight_ih.shape[1])
        module.hidden_size = int(module.weight_ih.shape[0]) // gates
    elif isinstance(module, nn.MultiheadAttention):
        _tell_heads(module, held, tracer)


def _tell_heads(module: nn.MultiheadAttention, held: dict[str, Tracked], tracer: Tracer) -> None:
    tracked = held.get("in_proj_weight") or held.get("q_proj_weight")
    plain = type(module).forward in (
        nn.MultiheadAttention.forward,
        PrunedMultiheadAttention.forward,
    )
    if tracked is None or not plain:
        return
    changed = any(
        labels is not None and bool(removed(tracer, labels).any())
        for each in held.values()
        for labels in each.labels
    )
    labels = tracked.labels[0]
    if not changed or labels is None:
        return
    parts = 3 if "in_proj_weight" in held else 1
    # Rows of the queries' weight: (heads, head features).
    rows = removed(tracer, labels)[: len(labels) // parts].view(module.num_heads, -1)
    width = rows.shape[1]
    heads = int((~rows).any(dim=1).sum())
    shrink_attention(module, getattr(module, "scale", 1 / math.sqrt(width)), heads)


def _tell_groups(module: nn.Module, weight: Tracked, tracer: Tracer) -> None:
    grouped = weight.grouped
    groups = getattr(module, "groups", None)
    if grouped is not None and groups == grouped.groups:
        kept = kept_by_group(tracer, grouped.outputs, grouped.groups, 0)
        module.__dict__["groups"] = int(kept.any(dim=1).sum())


def kept_by_group(tracer: Tracer, labels: Tensor | None, groups: int, count: int) -> Tensor:
    """Return which channels of each group stay, bool (groups, channels per group)."""
    if labels is None:
        return torch.ones(groups, count, dtype=torch.bool)
    return ~removed(tracer, labels).view(groups, -1)
