"""scikit-learn's handwritten digits, a small CNN for them, and one epoch of training."""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional as F


def load(seed=0):
    """Return train and test sets: 1347 and 450 images (n, 1, 8, 8) in [0, 1], and their labels."""
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images, labels, test_size=450, random_state=seed, stratify=labels)
    train_x, test_x = (torch.tensor(x).float().view(-1, 1, 8, 8) / 16 for x in parts[:2])
    train_y, test_y = (torch.tensor(y) for y in parts[2:])
    return (train_x, train_y), (test_x, test_y)


class DigitsNet(nn.Module):
    """Three convolutions and two linear layers, about 36,000 parameters."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(32)
        self.conv3 = nn.Conv2d(32, 64, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(64)
        self.fc1 = nn.Linear(256, 48)
        self.fc2 = nn.Linear(48, 10)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        x = F.max_pool2d(F.relu(self.bn3(self.conv3(x))), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


def train_epoch(model, data, optimizer, generator, batch_size=32):
    """Train for one epoch."""
    model.train()
    images, labels = data
    for batch in torch.randperm(len(images), generator=generator).split(batch_size):
        optimizer.zero_grad()
        F.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()


@torch.no_grad()
def accuracy(model, data):
    """Return the share of ``data`` that ``model`` gets right, in percent."""
    model.eval()
    images, labels = data
    return 100 * (model(images).argmax(1) == labels).float().mean().item()
