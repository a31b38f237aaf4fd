"""The networks that checks train: small, and with what real ones have."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Shape of the example input, batch first.
INPUT_SHAPE = (8, 3, 8, 8)


class ResidualNet(nn.Module):
    """Two convolutions whose outputs are added, norms with real statistics, and a classifier."""

    def __init__(self, channels: int = 8, inputs: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(inputs, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.body = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        self.hidden = nn.Linear(channels, 2 * channels)
        self.head = nn.Linear(2 * channels, max(channels // 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, classes) for images (batch, inputs, height, width)."""
        x = self.relu1(self.norm1(self.stem(x)))
        x = self.relu2(x + self.norm2(self.body(x)))
        hidden: Tensor = self.head(F.relu(self.hidden(x.mean((2, 3)))))
        return hidden


def residual_net(channels: int = 8) -> ResidualNet:
    """Return a network whose norms are not the identity, drawn from torch's random numbers."""
    model = ResidualNet(channels, INPUT_SHAPE[1])
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 1.5)
    return model


class ResidualBlock(nn.Module):
    """A norm and two linear layers, added to what comes in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., width)."""
        changed: Tensor = x + self.down(F.gelu(self.up(self.norm(x))))
        return changed


def residual_stack(width: int = 16, depth: int = 6) -> tuple[nn.Sequential, Tensor]:
    """Return residual blocks between two linear layers, and an example input."""
    blocks = [ResidualBlock(width) for _ in range(depth)]
    model = nn.Sequential(nn.Linear(8, width), nn.Sequential(*blocks), nn.Linear(width, 4))
    return model, torch.randn(8, 8)


def perceptron(width: int = 64, depth: int = 3) -> nn.Sequential:
    """Return linear layers with ReLU in between: where a step costs least, and cost shows most."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def linear_net(width: int = 64) -> nn.Sequential:
    """Return two linear layers, with and without a bias, for inputs (..., width)."""
    return nn.Sequential(nn.Linear(width, 32, bias=False), nn.GELU(), nn.Linear(32, 8))


def language_model(
    layers: int = 1, *, tied: bool = True, kind: str = "llama", **settings: object
) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return a random causal language model of transformers, and tokens for it.

    Args:
        layers: decoder layers; grouped queries, widths that groups of 64 divide.
        tied: whether head and embedding are one tensor.
        kind: transformers' ``model_type``.
        **settings: further ones of the config.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        kind,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=96,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        use_cache=False,
        **settings,
    )
    model: nn.Module = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    return model.eval(), {"input_ids": torch.randint(0, 96, (2, 7))}
