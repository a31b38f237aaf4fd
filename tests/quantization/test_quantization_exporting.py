"""Ranges begin wherever nothing is exported, whatever PyTorch's own functions say of a graph."""

import torch
from torch import nn

from engine.algorithms import QAT_Quantizer


def test_ranges_begin_where_a_compiled_model_is_taken_for_an_exported_one(monkeypatch):
    # What torch.compile makes of this function in PyTorch 2.11.
    monkeypatch.setattr(torch.compiler.is_exporting, "__code__", (lambda: True).__code__)
    model = nn.Sequential(nn.Linear(4, 4)).double()  # not what is counted in Python numbers
    entry = {"op_types": ["Linear"], "quant_types": ["input"], "quant_bits": 8}
    quantizer = QAT_Quantizer(model, [entry])
    quantizer.compress()
    model(torch.tensor([[-1.0, 0.0, 0.5, 2.0]], dtype=torch.float64))
    assert quantizer.get_modules_wrapper()[0].input_range.tolist() == [-1.0, 2.0]
