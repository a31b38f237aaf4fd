"""Grids that batches complete a program with: what they may cost, and where they come from."""

import pytest
import torch
from integers import Residual, program_of, quantized, step_of_input
from torch import nn

from engine.algorithms import DoReFaQuantizer, PTQQuantizer
from engine.export.integer_program import integer_program


def pictures(count=32):
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(2))


def range_of(model, x):
    with torch.no_grad():
        output = model(x)
    return output, output.max() - output.min()


@pytest.mark.parametrize("bits", [2, 4])
def test_a_reader_of_few_bits_does_not_make_the_other_branch_coarse(bits):
    # The sum reads in float what the second convolution reads in few bits.
    model, x = Residual(), pictures()
    with torch.no_grad():
        model.second.weight.mul_(1e-3)  # the sum is as good as that branch alone
    quantizer = quantized(model, x, "ptq", bits=bits, op_types=["Conv2d"])
    output, placements = program_of(quantizer, x, [x])
    expected, span = range_of(model, x)
    assert all(p.integer for p in placements if p.operator != "linear")
    # Four roundings to 8 bits and a few flips of an input of few bits; not one to 2 bits.
    assert (output - expected).abs().max() <= 0.03 * span


def test_a_reader_that_clips_does_not_clip_the_other_branch():
    # dorefa clips what a convolution reads to [0, 1]; the sum reads all of it.
    model, x = Residual(), pictures()
    with torch.no_grad():
        model.norm1.weight.mul_(4)
    entry = {"op_types": ["Conv2d"], "quant_types": ["weight", "input"], "quant_bits": 7}
    quantizer = DoReFaQuantizer(model, [entry])
    quantizer.compress()
    model.eval()
    output, placements = program_of(quantizer, x, [x])
    expected, span = range_of(model, x)
    assert all(p.integer for p in placements if p.operator != "linear")
    assert (output - expected).abs().max() <= 0.03 * span


def test_a_grid_that_covers_the_values_serves_all_readers():
    model, x = Residual(), pictures()
    quantizer = quantized(model, x, "ptq", fold_batch_norm=True)
    graph = integer_program(quantizer, x, [x]).program.graph
    scales = [node.args[1] for node in graph.nodes if "quantize_per_tensor.d" in str(node.target)]
    own = step_of_input(quantizer, "second")
    assert sum(abs(scale / own - 1) < 1e-6 for scale in scales) == 2  # one pair


def test_readers_with_different_grids_get_one_from_batches():
    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            x = self.stem(x)
            return self.a(x), self.b(x)

    model, x = Fork(), pictures()
    entry = {"quant_types": ["weight", "input"], "quant_bits": 8, "op_names": ["stem", "a"]}
    coarse = {**entry, "op_names": ["b"], "quant_bits": {"weight": 8, "input": 3}}
    quantizer = PTQQuantizer(model, [entry, coarse])
    quantizer.compress()
    quantizer.calibrate([x])
    alone = integer_program(quantizer, x)
    assert alone.placements[0].reason == "its readers have different grids"
    completed = integer_program(quantizer, x, [x])
    assert completed.placements[0].integer
    assert completed.observed == 2  # the outputs; the stem's has the finer reader's grid
    for output, expected in zip(completed.program.module()(x), model(x), strict=True):
        near = (output - expected).abs() <= (expected.max() - expected.min()) / 100
        assert near.float().mean() > 0.9


def test_several_inputs_are_the_first_items_of_a_batch():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv1d(2, 3, 1), nn.Conv1d(2, 3, 1)

        def forward(self, x, y):
            return self.a(x) + self.b(y)

    model, x, y = Two(), torch.randn(16, 2, 5), torch.randn(16, 2, 5)
    entry = {"quant_types": ["weight", "input"], "quant_bits": 8, "op_types": ["Conv1d"]}
    quantizer = PTQQuantizer(model, [entry])
    quantizer.compress()
    quantizer.calibrate([(x, y)], forward=lambda model, batch: model(*batch))
    exported = integer_program(quantizer, (x, y), [(x, y, torch.zeros(16))])
    assert all(placement.integer for placement in exported.placements)
    expected = model(x, y)
    step = (expected.max() - expected.min()) / 255
    assert (exported.program.module()(x, y) - expected).abs().max() <= 2.5 * step


def test_products_without_kernels_are_said_to_be_float():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.project, self.memory = nn.Linear(4, 4), nn.GRU(4, 4, batch_first=True)

        def forward(self, x):
            x = self.memory(self.project(x))[0]
            return nn.functional.scaled_dot_product_attention(x, x, x) @ x.transpose(1, 2)

    x = torch.randn(3, 5, 4)
    quantizer = quantized(Attention(), x, "ptq")
    where = integer_program(quantizer, x).placements
    assert [(p.layer, p.operator, p.integer) for p in where] == [
        ("project", "linear", True),
        ("memory", "recurrent", False),
        ("", "product", False),
        ("", "product", False),
    ]
    assert all(p.reason for p in where[1:])
