"""A small residual network, a problem that it learns, and what a search is given."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F


class Small(nn.Module):
    """A stem, a block whose output is added to the stem's, a convolution and a linear head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.inner = nn.Conv2d(8, 12, 3, padding=1)
        self.outer = nn.Conv2d(12, 8, 1)
        self.last = nn.Conv2d(8, 16, 3, stride=2)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = x + self.outer(F.relu(self.inner(x)))
        return self.head(F.relu(self.last(x)).mean((2, 3)))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(64, 3, 8, 8, generator=generator)
    return x, x.mean((2, 3)).argmax(1)


@pytest.fixture
def trainer(data):
    def train(model, optimizer, epoch):
        model.train()
        generator = torch.Generator().manual_seed(epoch)
        for batch in torch.randperm(64, generator=generator).split(16):
            optimizer.zero_grad()
            F.cross_entropy(model(data[0][batch]), data[1][batch]).backward()
            optimizer.step()

    return train


@pytest.fixture
def evaluator(data):
    def evaluate(model):
        model.eval()
        with torch.no_grad():
            return -F.cross_entropy(model(data[0]), data[1]).item()

    return evaluate
