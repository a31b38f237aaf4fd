#!/usr/bin/env python
"""The script of an experiment: it gets a configuration and reports an accuracy.

engine run docs/examples/experiment/digits.yaml
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from digits_net import DigitsNet, accuracy, load, train_epoch

import engine

config = engine.BasicConfig().load(sys.argv[1])
torch.manual_seed(0)
generator = torch.Generator().manual_seed(0)
train_set, test_set = load()
model = DigitsNet()
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

compressor = engine.create_compressor(model, config, optimizer=optimizer)
model = compressor.compress()
for epoch in range(10):
    compressor.update_epoch(epoch)
    train_epoch(model, train_set, optimizer, generator)
    print(f"epoch {epoch}: {accuracy(model, test_set):.1f} %")

print(engine.layer_table(model, compressor))
engine.print_result(accuracy(model, test_set))
