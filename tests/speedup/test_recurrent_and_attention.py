"""Attention, recurrent layers, and norms that go on seeing zeros."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import engine
from engine.speedup import channel_blocks, speedup
from engine.speedup.attention import PrunedMultiheadAttention

N, L, E = 2, 5, 16


class SelfAttention(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.enter, self.out = nn.Linear(10, E), nn.Linear(E, 3)
        self.attention = nn.MultiheadAttention(E, 4, **options)
        self.norm = nn.LayerNorm(E)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = self.enter(x)
        y, weights = self.attention(x, x, x, key_padding_mask=mask)
        return self.out(self.norm(x + y)), weights


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.enter = nn.Linear(10, E)
        self.recurrent = kind(E, 12, batch_first=True, **options)
        width = options.get("proj_size") or 12
        self.out = nn.Linear(width * (2 if options.get("bidirectional") else 1), 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.recurrent(torch.relu(self.enter(x)))[0][:, -1])


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.out = nn.Linear(10, E), nn.Linear(E, 3)
        layer = nn.TransformerEncoderLayer(E, 4, 32, batch_first=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.encoder(self.enter(x)))


class Rms(nn.Module):
    """A norm by hand, which the engine has never heard of."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(E))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-6) * self.scale[:, None, None]


def normed(norm: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, E, 3, padding=1), norm, nn.GELU(), nn.Conv2d(E, 4, 3, padding=1)
    )


X = torch.randn(N, L, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
IMAGE = torch.randn(N, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
MODELS: dict[str, tuple[Any, Tensor]] = {
    "attention": (SelfAttention, X),
    "attention, batch first": (lambda: SelfAttention(batch_first=True), X),
    "attention, bias_kv": (lambda: SelfAttention(add_bias_kv=True, add_zero_attn=True), X),
    "attention, no bias": (lambda: SelfAttention(bias=False), X),
    "encoder": (Encoder, X),
    "lstm": (lambda: Recurrent(nn.LSTM), X),
    "lstm, two layers": (lambda: Recurrent(nn.LSTM, num_layers=2, bidirectional=True), X),
    "lstm, projected": (lambda: Recurrent(nn.LSTM, proj_size=6), X),
    "gru": (lambda: Recurrent(nn.GRU), X),
    "rnn": (lambda: Recurrent(nn.RNN), X),
    "group norm": (lambda: normed(nn.GroupNorm(4, E)), IMAGE),
    "instance norm": (lambda: normed(nn.InstanceNorm2d(E, affine=True)), IMAGE),
    "local response": (lambda: normed(nn.LocalResponseNorm(3)), IMAGE),
    "rms by hand": (lambda: normed(Rms()), IMAGE),
}


def masked(name: str) -> tuple[nn.Module, Tensor]:
    """Return a model half of whose channels are zero."""
    make, x = MODELS[name]
    torch.manual_seed(0)
    model = make().double().eval()
    for module in model.modules():
        if isinstance(module, nn.LayerNorm | nn.GroupNorm):
            nn.init.normal_(module.weight, 0.5)
            nn.init.normal_(module.bias, 0.5)
    with torch.no_grad():
        for block in channel_blocks(model, x):
            for channel in block.channels[: len(block.channels) // 2]:
                for part in channel:
                    if part.is_parameter:
                        part.tensor.index_fill_(part.dim, torch.tensor(part.indices), 0)
    return model, x


def close(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_half_of_it_goes_and_the_outputs_stay(name: str) -> None:
    model, x = masked(name)
    other = torch.randn_like(x)
    expected = model(other)
    report = speedup(model, x)
    assert report.parameters_after < 0.75 * report.parameters_before
    close(model(other), expected)


@pytest.mark.parametrize("name", MODELS)
def test_a_fresh_model_becomes_as_small_from_the_file(name: str, tmp_path: Path) -> None:
    model, x = masked(name)
    speedup(model, x)
    engine.save_compressed(model, tmp_path / "small.pt")
    fresh = MODELS[name][0]().double().eval()
    assert engine.load_compressed(fresh, tmp_path / "small.pt") is fresh
    close(fresh(x), model(x))
    assert [p.shape for p in fresh.parameters()] == [p.shape for p in model.parameters()]


@pytest.mark.parametrize("name", MODELS)
def test_copies_pickles_and_backward_work(name: str) -> None:
    model, x = masked(name)
    speedup(model, x)
    expected = model(x)
    close(copy.deepcopy(model)(x), expected)
    if "by hand" not in name:
        close(pickle.loads(pickle.dumps(model))(x), expected)
    model.train()
    sum(t.sum() for t in torch.utils._pytree.tree_leaves(model(x))).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", ["attention, batch first", "encoder", "lstm", "group norm"])
def test_it_can_be_exported(name: str) -> None:
    model, x = masked(name)
    speedup(model, x)
    close(torch.export.export(model, (x,)).module()(x), model(x))


@pytest.mark.parametrize("name", ["attention, batch first", "group norm"])
def test_it_compiles_as_one_graph(name: str) -> None:
    model, x = masked(name)
    speedup(model, x)
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="eager")(x)
        close(compiled, model(x))


def test_masks_and_kept_heads_agree_with_pytorch() -> None:
    """The subclass by itself, all heads kept, against the class that it stands in for."""
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(E, 4, batch_first=True).double().eval()
    ours = copy.deepcopy(theirs)
    from engine.speedup.attention import shrink_attention

    shrink_attention(ours, (E // 4) ** -0.5, 4)
    assert isinstance(ours, PrunedMultiheadAttention)
    q, kv = torch.randn(N, L, E).double(), torch.randn(N, 7, E).double()
    padding = torch.tensor([[0] * 7, [0] * 5 + [1] * 2], dtype=torch.bool)
    causal = torch.full((L, 7), -torch.inf, dtype=torch.float64).triu(1)
    per_head = torch.randn(N * 4, L, 7).double()
    for options in (
        {},
        {"key_padding_mask": padding},
        {"attn_mask": causal},
        {"attn_mask": causal, "key_padding_mask": padding.double() * -1e9},
        {"attn_mask": per_head},
        {"need_weights": False, "key_padding_mask": padding},
        {"average_attn_weights": False},
    ):
        for a, b in zip(ours(q, kv, kv, **options), theirs(q, kv, kv, **options), strict=True):
            if a is not None or b is not None:
                close(a, b)
    close(ours(q[0], kv[0], kv[0]), theirs(q[0], kv[0], kv[0]))


def test_the_padding_mask_of_a_pruned_layer_still_counts() -> None:
    model, x = masked("attention, batch first")
    padding = torch.tensor([[0, 0, 0, 1, 1], [0, 0, 0, 0, 1]], dtype=torch.bool)
    expected = model(x, padding)
    speedup(model, (x, padding))
    close(model(x, padding), expected)


def test_a_model_can_be_made_smaller_twice() -> None:
    torch.manual_seed(0)
    model = normed(nn.BatchNorm2d(E)).double().eval()
    x = IMAGE
    with torch.no_grad():
        for rows in (slice(0, 4), slice(0, 6)):
            model[0].weight[rows] = 0
            model[0].bias[rows] = 0
            model[1].weight[rows] = 0
            model[1].bias[rows] = 0
            expected = model(x)
            speedup(model, x)
            close(model(x), expected)
    assert model[0].weight.shape[0] == E - 4 - 6
    fresh = normed(nn.BatchNorm2d(E)).double().eval()
    engine.speedup.recipe._reshape(
        fresh, model._speedup_recipe, engine.speedup.rewrite.Snapshot(fresh)
    )
    fresh.load_state_dict(model.state_dict())
    close(fresh(x), model(x))


def test_half_precision_models_become_smaller() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2)).bfloat16().eval()
    with torch.no_grad():
        model[0].weight[:8] = 0
        model[0].bias[:8] = 0
    x = torch.randn(4, 8).bfloat16()
    expected = model(x)
    speedup(model, x)
    assert model[0].weight.shape == (8, 8)
    torch.testing.assert_close(model(x), expected, rtol=2e-2, atol=2e-2)
