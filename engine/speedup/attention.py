"""``nn.MultiheadAttention`` with fewer heads than its width says: a subclass with its own forward.

PyTorch's takes the width of a head to be the embedding's width divided by the number of heads, and
checks that. Neither holds when heads, head features or the embedding are pruned by themselves.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PrunedMultiheadAttention(nn.MultiheadAttention):
    """Multi-head attention whose sizes follow its weights.

    Made from a ``nn.MultiheadAttention`` by :func:`shrink_attention`, with the same parameters,
    arguments and results.

    Attributes:
        num_heads: heads that are left.
        scale: what products of queries and keys are multiplied with: of the original head width.
    """

    scale: float

    def forward(  # noqa: D102
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        batched = query.dim() == 3
        if not batched:
            query, key, value = (t.unsqueeze(0) for t in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        q, k, v = self._project(query, key, value)
        mask = self._mask(attn_mask, key_padding_mask, q, key.shape[1], k.shape[2])
        if need_weights:
            scores = (q * self.scale) @ k.mT
            weights = (scores if mask is None else scores + mask).softmax(-1)
            weights = F.dropout(weights, self.dropout, self.training)
            out = weights @ v
        else:
            dropout = self.dropout if self.training else 0.0
            out = F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=self.scale)
        result = self.out_proj(out.transpose(1, 2).flatten(2))
        if not batched:
            result = result.squeeze(0)
        elif not self.batch_first:
            result = result.transpose(0, 1)
        if not need_weights:
            return result, None
        if average_attn_weights:
            weights = weights.mean(1)
        return result, weights if batched else weights.squeeze(0)

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """Return queries, keys and values, each (batch, heads, positions, head features)."""
        own = self._parameters
        together, bias = own["in_proj_weight"], own["in_proj_bias"]
        weights: list[Any] = [own[f"{name}_proj_weight"] for name in "qkv"]
        if together is not None:
            weights = list(together.chunk(3))
        biases: list[Any] = [None] * 3
        if bias is not None:
            biases = list(bias.split([len(weight) for weight in weights]))
        parts = [
            F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True)
        ]
        for place, name in ((1, "bias_k"), (2, "bias_v")):
            row = getattr(self, name)
            if row is not None:
                parts[place] = torch.cat([parts[place], row.expand(len(query), -1, -1)], 1)
        if self.add_zero_attn:
            for place in (1, 2):
                parts[place] = F.pad(parts[place], (0, 0, 0, 1))
        return [p.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for p in parts]

    def _mask(
        self,
        attn_mask: Tensor | None,
        key_padding_mask: Tensor | None,
        q: Tensor,
        given: int,
        positions: int,
    ) -> Tensor | None:
        """Return what is added to the scores, (batch or 1, heads or 1, queries or 1, keys)."""
        total: Tensor | None = None
        for mask, shape in (
            (attn_mask, None),
            (key_padding_mask, (len(q), 1, 1, given)),
        ):
            if mask is None:
                continue
            if mask.dtype == torch.bool:
                mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(mask, float("-inf"))
            if shape is not None:
                mask = mask.view(shape)
            elif mask.dim() == 3:
                mask = mask.view(len(q), self.num_heads, *mask.shape[1:])
            # Keys that the layer itself appends (bias_k, the zero key) are never masked.
            mask = F.pad(mask, (0, positions - given))
            total = mask if total is None else total + mask
        return total


def shrink_attention(module: nn.MultiheadAttention, scale: float, heads: int) -> None:
    """Let ``module``, whose parameters have been sliced, compute with ``heads`` heads."""
    module.__class__ = PrunedMultiheadAttention
    plain: dict[str, Any] = module.__dict__
    out_weight = module.out_proj.weight
    plain.update(scale=scale, num_heads=heads, embed_dim=int(out_weight.shape[0]))
    plain["head_dim"] = int(out_weight.shape[1]) // heads
    # PyTorch's fused kernels read the sizes that it checks; this keeps callers from them.
    plain["_qkv_same_embed_dim"] = False
    own = module._parameters
    key, value = own.get("k_proj_weight"), own.get("v_proj_weight")
    together = own.get("in_proj_weight")
    for name, weight in (("kdim", key), ("vdim", value)):
        weight = together if together is not None else weight
        plain[name] = int(weight.shape[1]) if weight is not None else plain[name]
