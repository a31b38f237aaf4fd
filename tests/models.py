"""Small models and loops that many tests use."""

import itertools

import torch
import torch.nn.functional as F
from torch import nn

from engine.plugins import registry


class ConvNet(nn.Module):
    """For images (n, 1, 8, 8): two convolutions, one of them normalized, and a classifier."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3, padding=1, bias=bias)
        self.bn1 = nn.BatchNorm2d(6)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(6, 10, 3, stride=2, bias=bias)
        self.bn2 = nn.BatchNorm2d(10)
        self.fc = nn.Linear(90, 4, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu1(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.fc(x.flatten(1))


class TiedLanguageModel(nn.Module):
    """The decoder's weight is the embedding's, as in most language models."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 6)
        self.hidden = nn.Linear(6, 6)
        self.decoder = nn.Linear(6, 12)
        self.decoder.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.decoder(torch.tanh(self.hidden(self.embedding(tokens))))


def mlp(*sizes: int) -> nn.Sequential:
    sizes = sizes or (8, 10, 4)
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def images(count: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: torch.Tensor) -> None:
    optimizer.zero_grad()
    output = model(batch)
    (output.square().mean() + output[..., 0].sum()).backward()
    optimizer.step()


def pruner_plugins(*roles: str) -> list[registry.Plugin]:
    """Every installed pruning algorithm that can be used, so that a new one is covered.

    By default those that need no functions of their user; tests/automatic has the others.
    """
    roles = roles or ("provider", "schedule")
    return [
        plugin
        for plugin in registry.algorithms()
        if plugin.status == "ok" and plugin.kind == "pruning" and plugin.role in roles
    ]


def settings_of(plugin: registry.Plugin, sparsity: float = 0.5, **selection: list) -> dict:
    """Keyword arguments for ``plugin``'s class: its schema's example, with this sparsity."""
    example = dict(plugin.schema["examples"][0])
    entry = dict(example["config_list"][0])
    for key in ("op_types", "op_names", "exclude"):
        entry.pop(key, None)
    provided = [
        key
        for key, rule in plugin.schema["$defs"]["entry"]["properties"].items()
        if key == "sparsity" or rule.get("x-provides") == "sparsity"
    ]
    entry.update(dict.fromkeys(provided, sparsity))
    entry.update(selection or {"op_types": ["default"]})
    for key in ("batches", "forward"):
        example.pop(key, None)
    if "statistics_batch_num" in example:
        example["statistics_batch_num"] = 2
    if "training_epochs" in example:
        example["training_epochs"] = 1
    return {**example, "config_list": [entry], **calibration_of(plugin)}


def calibration_of(plugin: registry.Plugin | str) -> dict:
    """Batches for an algorithm that is calibrated with some, whichever of the models it gets."""
    if isinstance(plugin, str):
        plugin = registry.find(plugin)
    return {"batches": range(4), "forward": run_on_any_input} if plugin.calibration else {}


def run_on_any_input(model: nn.Module, seed: int) -> None:
    """Run a model of these tests on what its first layer takes: images, rows or tokens."""
    generator = torch.Generator().manual_seed(seed)
    layers = (nn.Conv2d, nn.Linear, nn.Embedding)
    first = next(module for module in model.modules() if isinstance(module, layers))
    like = next(p for p in model.parameters() if p.is_floating_point())
    if isinstance(first, nn.Embedding):
        value = torch.randint(0, first.num_embeddings, (6, 3), generator=generator)
    elif isinstance(first, nn.Conv2d):
        value = torch.randn(6, first.in_channels, 8, 8, generator=generator)
    else:
        value = torch.randn(6, first.in_features, generator=generator)
    model(value.to(like.device, like.dtype if value.is_floating_point() else value.dtype))


def zeros(tensor: torch.Tensor) -> int:
    return int((tensor == 0).sum())
