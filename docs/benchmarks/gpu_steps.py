"""Training steps that ``gpu.py`` measures: networks, what is attached to them, one step."""

import copy

import torch
import torch.nn.functional as F
from networks import ResNet18, mlp
from quantization_step import torch_ao
from torch import nn
from torch.nn.utils import prune

import engine


class Layer(nn.Module):
    """A transformer layer of plain linear layers, so that every package finds them."""

    def __init__(self, width):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        heads = self.qkv(self.norm1(x)).unflatten(-1, (3, 8, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(heads[0], heads[1], heads[2])
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(F.relu(self.up(self.norm2(x))))


class Encoder(nn.Module):
    """Two transformer layers, 6.3 million parameters at width 512."""

    def __init__(self, width=512):
        super().__init__()
        self.layers = nn.Sequential(Layer(width), Layer(width))
        self.fc = nn.Linear(width, 10)

    def forward(self, x):
        return self.fc(self.layers(x).mean(1))


def networks(quick):
    """Yield a title, a network, an input and its targets."""
    batch, width, side = (4, 4, 8) if quick else (128, 64, 32)
    x = torch.randn(batch, 3, side, side)
    yield f"ResNet-18 for CIFAR, batch {batch}", ResNet18(width), x, torch.arange(batch) % 10
    width = 32 if quick else 512
    x = torch.randn(batch, 64, width)
    yield f"two transformer layers, batch {batch}", Encoder(width), x, torch.arange(batch) % 10
    yield "64-64-64 MLP, batch 64", mlp(), torch.randn(64, 64), torch.arange(64)


def attached(name, **arguments):
    """Return what attaches an algorithm to a model, so that it is at rest after two epochs."""
    quantizes = name in ("qat", "lsq", "dorefa")
    entry = {"op_types": ["Conv2d", "Linear"]}
    if quantizes:
        entry |= {"quant_types": ["weight", "input"], "quant_bits": 8}
    elif name == "agp":
        entry |= {"final_sparsity": 0.5, "end_epoch": 1}
    else:
        entry["sparsity"] = 0.5

    def prepare(model, optimizer, x):
        present = {type(module).__name__ for module in model.modules()}
        own = {**entry, "op_types": [kind for kind in entry["op_types"] if kind in present]}
        compressor = engine.create_compressor(
            model, {"compressor": name, "config_list": [own], **arguments}, optimizer
        )
        compressor.compress()
        return compressor

    return prepare


def torch_prune(model, optimizer, x):
    for module in model.modules():
        if isinstance(module, nn.Conv2d) or type(module) is nn.Linear:
            prune.l1_unstructured(module, "weight", 0.5)
    optimizer.param_groups.clear()
    optimizer.add_param_group({"params": list(model.parameters())})


def torch_ao_fused(model, optimizer, x):
    prepared = torch_ao(fused=True)(model, optimizer, x)
    prepared.to(x.device)
    optimizer.param_groups.clear()
    optimizer.add_param_group({"params": list(prepared.parameters())})


VARIANTS = {
    "bare step": lambda model, optimizer, x: None,
    "level": attached("level"),
    "agp": attached("agp"),
    "l1_filter": attached("l1_filter"),
    "taylor": attached("taylor_fo_weight_filter", statistics_batch_num=1),
    "qat": attached("qat"),
    "lsq": attached("lsq"),
    "dorefa": attached("dorefa"),
    "torch.nn.utils.prune": torch_prune,
    "torch.ao fused": torch_ao_fused,
}
OTHERS = {"torch.nn.utils.prune", "torch.ao fused"}


class Step:
    """One training step of a copy of ``model``; ``dtype`` other than float32: under autocast."""

    def __init__(self, model, x, y, device, prepare, dtype=torch.float32):
        self.model = copy.deepcopy(model).to(device)
        self.x, self.y, self.dtype = x.to(device), y.to(device), dtype
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4, momentum=0.9)
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        compressor = prepare(self.model, self.optimizer, self.x)
        for epoch in range(2):
            if compressor is not None:
                compressor.update_epoch(epoch)
            self()
            self()

    def __call__(self):
        self.optimizer.zero_grad()
        with torch.autocast(self.x.device.type, self.dtype, enabled=self.dtype != torch.float32):
            loss = F.cross_entropy(self.model(self.x), self.y)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
