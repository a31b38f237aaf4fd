"""torch's own attention and transformer layers, with their options."""

import torch
from torch import nn
from torch.nn import functional as F

from graphs.registry import N, flags, graph, real

TOKENS = real(N, 6, 24)


class Attend(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.enter = nn.Linear(24, 24)
        self.attention = nn.MultiheadAttention(24, 4, **options)
        self.leave = nn.Linear(24, 4)

    def forward(self, x, mask=None):
        x = F.relu(self.enter(x))
        y, _ = self.attention(x, x, x, need_weights=False, key_padding_mask=mask)
        return self.leave(x + y)


@graph(real(6, N, 24))
def MultiheadSequenceFirst():
    return Attend()


@graph(TOKENS, mask=flags(N, 6))
def MultiheadPadded():
    return Attend(batch_first=True)


@graph(TOKENS)
def MultiheadBiasAndZero():
    return Attend(batch_first=True, add_bias_kv=True, add_zero_attn=True)


@graph(TOKENS)
def MultiheadWithoutBias():
    return Attend(batch_first=True, bias=False)


@graph(TOKENS, real(N, 9, 10), real(N, 9, 14))
class MultiheadOtherWidths(nn.Module):
    """Keys and values of other widths than the queries; the weights are an output, too."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(24, 4, kdim=10, vdim=14, batch_first=True)
        self.leave = nn.Linear(24, 4)

    def forward(self, x, key, value):
        y, weights = self.attention(x, key, value)
        return self.leave(y), weights


@graph(TOKENS)
def EncoderLayer():
    return nn.TransformerEncoderLayer(24, 4, 64, batch_first=True)


@graph(TOKENS, src_key_padding_mask=flags(N, 6))
def EncoderStack():
    layer = nn.TransformerEncoderLayer(
        24, 4, 64, activation="gelu", batch_first=True, norm_first=True
    )
    return nn.TransformerEncoder(layer, 2, nn.LayerNorm(24), enable_nested_tensor=False)


@graph(real(5, N, 24), real(7, N, 24))
def DecoderStack():
    layer = nn.TransformerDecoderLayer(24, 2, 48, norm_first=True)
    return nn.TransformerDecoder(layer, 2)


@graph(real(N, 5, 24), real(N, 4, 24))
class FullTransformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Transformer(24, 4, 1, 1, 48, batch_first=True)
        self.head = nn.Linear(24, 6)

    def forward(self, source, target):
        mask = nn.Transformer.generate_square_subsequent_mask(4, dtype=source.dtype)
        return self.head(self.net(source, target, tgt_mask=mask, tgt_is_causal=True))


@graph(TOKENS)
class FunctionalAttention(nn.Module):
    """The functional form with parameters of the model's own."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.randn(72, 24) / 5),
            nn.Parameter(torch.randn(72)),
        )
        self.out, self.out_bias = (
            nn.Parameter(torch.randn(24, 24) / 5),
            nn.Parameter(torch.randn(24)),
        )
        self.up, self.down = nn.Linear(24, 96), nn.Linear(96, 4)

    def forward(self, x):
        x = x.transpose(0, 1)
        y, _ = F.multi_head_attention_forward(
            x, x, x, 24, 4, self.weight, self.bias, None, None, False, 0.0, self.out, self.out_bias,
            training=False,
        )  # fmt: skip
        return self.down(F.relu(self.up(y.transpose(0, 1))))
